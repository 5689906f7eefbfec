"""The deployment's settings: the only place in serve that reads the environment.

Variables:
    GECKO_STORAGE        where runs are recorded
    GECKO_DEBUG          1: errors come with their traceback
    GECKO_MODULES        what the service runs: modules, files or targets, with commas between them
    GECKO_RECORDS        where lists and API keys are kept; default: beside the runs
    GECKO_HOST           the address that the service listens at; default: 127.0.0.1
    GECKO_PORT           its port; default: 8000
    GECKO_REPLICAS       how many processes answer requests; default: 2
    GECKO_COORDINATORS   how many coordinators drive runs, where there are none yet; default: 1
    GECKO_MAX_RUNS       runs under way at once; default: no limit
    GECKO_MAX_QUEUED     runs that wait; one more is refused; default: 10000
    GECKO_MAX_BODY       bytes of a request's body; default: 1048576
    GECKO_LOG            json: the log comes as JSON, a line a record; default: text
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
    modules: tuple[str, ...] = ()
    """Targets of the workflows that the service runs."""
    records: str | None = None
    """A folder or URL; None: beside the runs."""
    host: str = "127.0.0.1"
    port: int = 8000
    replicas: int = 2
    coordinators: int = 1
    max_runs: int | None = None
    max_queued: int = 10_000
    max_body: int = 1 << 20
    log: str = "text"
    """`text` or `json`; Ray's processes read it too, in cluster/logs.py."""


def read_settings(environment: Mapping[str, str] | None = None) -> Settings:
    """Return the settings of an environment, by default of this process's.

    Raises: ConfigurationError for a value that means nothing.
    """
    found = os.environ if environment is None else environment
    default = Settings()

    def number(name: str, default: int, least: int, most: int) -> int:
        return _number(name, found.get(name, "").strip(), default, least, most)

    return Settings(
        storage=found.get("GECKO_STORAGE") or None,
        debug=_flag("GECKO_DEBUG", found.get("GECKO_DEBUG", "")),
        modules=tuple(part.strip() for part in found.get("GECKO_MODULES", "").split(",") if part.strip()),
        records=found.get("GECKO_RECORDS") or None,
        host=found.get("GECKO_HOST", "").strip() or default.host,
        port=number("GECKO_PORT", default.port, 1, 65535),
        replicas=number("GECKO_REPLICAS", default.replicas, 1, 1000),
        coordinators=number("GECKO_COORDINATORS", default.coordinators, 1, 1000),
        max_runs=number("GECKO_MAX_RUNS", 0, 1, 10**9) or None,
        max_queued=number("GECKO_MAX_QUEUED", default.max_queued, 0, 10**9),
        max_body=number("GECKO_MAX_BODY", default.max_body, 1024, 1 << 30),
        log=_choice("GECKO_LOG", found.get("GECKO_LOG", ""), ("text", "json")),
    )


def _number(name: str, text: str, default: int, least: int, most: int) -> int:
    if not text:
        return default
    if text.isascii() and text.isdecimal() and len(text) < 12 and least <= int(text) <= most:
        return int(text)
    raise ConfigurationError(f"{name}={text!r:.80} must be a whole number from {least} to {most}", where=name)


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
