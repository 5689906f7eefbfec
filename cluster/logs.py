"""The log of Ray's processes: coordinators, lanes, members and the workers of packs write it as their environment says."""

import os
from functools import cache

from engine.observe.log import show_json

VARIABLE = "GECKO_LOG"
"""The environment variable, `json` or nothing. Processes have it from the head of their node, or by a runtime environment."""


@cache
def set_up_log() -> None:
    """Write this process's log as its environment says; once, and never over what the program has set up."""
    if os.environ.get(VARIABLE) == "json":
        show_json()
