"""What a run that belongs to a cluster has recorded with its start, so that any coordinator can go on with it."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from engine.core.policy import check_count
from engine.errors import DefinitionError

LONGEST = 200
"""Characters of a label's name and of its value."""
MOST = 64
"""Labels of a run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    """What is recorded of how a run was submitted. Names of code and no code: data on storage is never executed."""

    ticket: str
    """Names the call of `submit`: asked again, it is the same run."""
    parcel: str
    """Names the plan with its code, as long as the cluster holds it."""
    environment: dict[str, Any] = field(default_factory=dict[str, Any])
    """Ray's runtime environment of the submitter."""
    set: str = ""
    """Names the coordinators that it was submitted to."""
    cwd: str = ""
    paths: tuple[str, ...] = ()
    """Where the submitter worked, and where its modules are, on a machine that has them."""
    strategy: str = "always"
    on_commit_failure: str = "stop"
    limit: float | None = None
    """Seconds that the run may take from its start on, through all coordinators."""
    priority: int = 0
    labels: dict[str, str] = field(default_factory=dict[str, str])
    owner: str = ""
    """Who submitted it, as far as that was said."""

    def data(self) -> dict[str, Any]:
        """Return it as it is recorded."""
        return {**asdict(self), "paths": list(self.paths)}

    @classmethod
    def from_data(cls, data: Mapping[str, Any]) -> "Submission":
        """Return what was recorded; what another version recorded besides is passed over."""
        known = {f.name for f in fields(cls)}
        told = {name: value for name, value in data.items() if name in known}
        return cls(**{**told, "paths": tuple(told.get("paths", ()))})


def set_of(place: str, environment: Mapping[str, Any], node: str | None, version: str) -> str:
    """Return what names the coordinators that share runs: those of one storage, of one runtime environment and of one version.

    Args:
        node: Where the storage is the disk of a node: which one.
    """
    text = json.dumps([place, environment, node, version], sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=5).hexdigest()


def check_labels(labels: Mapping[str, str] | None) -> dict[str, str]:
    """Return labels as they are recorded.

    Raises: DefinitionError for more than 64, for what is no text, and for texts that are empty or long.
    """
    found = dict(labels or {})
    if len(found) > MOST:
        raise DefinitionError(f"a run has at most {MOST} labels, not {len(found)}", where="labels")
    for name, value in found.items():
        if not isinstance(name, str) or not isinstance(value, str) or not name or max(len(name), len(value)) > LONGEST:
            text = f"label {name!r:.60}={value!r:.60}: names and values are texts of at most {LONGEST} characters, names not empty"
            raise DefinitionError(text, where="labels")
    return found


def check_priority(priority: int) -> int:
    """Return a priority; a greater one goes first. Raises: DefinitionError for what is no whole number."""
    return check_count("priority", priority)
