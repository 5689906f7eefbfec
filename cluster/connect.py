"""Whether this process belongs to a Ray cluster; found out without importing Ray."""

import os
import sys

IN_A_JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Ray sets it for the program of a job that was submitted."""


def connected() -> bool:
    """Tell whether Ray is started here, or this process is told of a cluster (a Ray job, `RAY_ADDRESS`)."""
    ray = sys.modules.get("ray")
    if ray is not None and hasattr(ray, "is_initialized") and ray.is_initialized():
        return True
    return bool(os.environ.get("RAY_ADDRESS") or os.environ.get("RAY_JOB_ID"))


def in_job() -> bool:
    """Tell whether this process is the entry point of a Ray job, whose folder is Ray's cache."""
    return IN_A_JOB in os.environ
