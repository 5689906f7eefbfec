"""What the environment says: the only reader of it. Everything else gets values.

GECKO_STORAGE   where runs are recorded, unless --storage says otherwise
GECKO_DEBUG     1: errors come with their traceback
GECKO_LOG       json: the log comes as JSON, a line a record; default: text
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass

from engine.errors import ConfigurationError

_YES, _NO = ("1", "true", "yes", "on"), ("", "0", "false", "no", "off")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The deployment's settings."""

    storage: str | None = None
    """A folder or URL; None: nothing was said."""
    debug: bool = False
    log: str = "text"
    """`text` or `json`; Ray's processes read it too, in cluster/logs.py."""


def read_settings(environment: Mapping[str, str] | None = None) -> Settings:
    """Return the settings of an environment, by default of this process's.

    Raises: ConfigurationError for a value that means nothing.
    """
    found = os.environ if environment is None else environment
    return Settings(
        storage=found.get("GECKO_STORAGE") or None,
        debug=_flag("GECKO_DEBUG", found.get("GECKO_DEBUG", "")),
        log=_choice("GECKO_LOG", found.get("GECKO_LOG", ""), ("text", "json")),
    )


def _choice(name: str, text: str, known: tuple[str, ...]) -> str:
    """Return one of several words, the first where nothing is said."""
    said = text.strip().casefold() or known[0]
    if said not in known:
        raise ConfigurationError(f"{name}={text!r} is none of {', '.join(known)}", where=name)
    return said


def _flag(name: str, text: str) -> bool:
    if text.strip().casefold() in _YES:
        return True
    if text.strip().casefold() in _NO:
        return False
    raise ConfigurationError(f"{name}={text!r} is neither yes nor no: set it to 1 or 0", where=name)
