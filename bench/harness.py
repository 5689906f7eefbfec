"""What measuring is made of: bars, figures, series of alternating runs, and the record of where they were taken.

It knows no scenario and prints nothing. Ratios are medians over rounds in which every contender ran once, in alternating order, so that
a machine that slows down meanwhile slows all of them.
"""

import gc
import os
import platform
import statistics
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

PACKAGES = ("gecko-ray", "ray", "pyarrow", "msgspec", "numpy", "cloudpickle")
LEAST_ROUNDS = 5
"""A ratio is the median of at least so many rounds."""


class DidNotRun(RuntimeError):
    """What a scenario counts did not all run: its figures are void."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """A figure to reach."""

    figure: str
    """Name of the figure that it judges."""
    unit: str
    comparison: Literal["at most", "under", "at least"]
    limit: float

    def met(self, value: float) -> bool:
        """Tell whether a value reaches the bar; NaN never does."""
        if self.comparison == "at least":
            return value >= self.limit
        return value < self.limit if self.comparison == "under" else value <= self.limit

    def __str__(self) -> str:
        return f"{self.comparison} {self.limit:g} {self.unit}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """One contender's values, one for each round."""

    label: str
    unit: str
    values: tuple[float, ...]
    first: float | None = None
    """What the warm-up took, where it says something; it counts nowhere."""

    @property
    def median(self) -> float:
        """The middle value."""
        return statistics.median(self.values)

    def scaled(self, factor: float, unit: str) -> "Series":
        """Return the series in another unit."""
        first = None if self.first is None else self.first * factor
        return Series(label=self.label, unit=unit, values=tuple(v * factor for v in self.values), first=first)

    def as_data(self) -> dict[str, Any]:
        """Return the series and its summary as JSON types."""
        summary = {"median": self.median, "min": min(self.values), "max": max(self.values)}
        summary |= {f"p{p}": percentile(self.values, p) for p in (50, 95, 99)}
        return {"label": self.label, "unit": self.unit, "first": self.first, "values": list(self.values), **summary}


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One number that a scenario found; a bar may judge it."""

    name: str
    value: float
    unit: str


@dataclass(kw_only=True)
class Outcome:
    """What a scenario found out."""

    figures: list[Figure] = field(default_factory=list)
    series: list[Series] = field(default_factory=list)
    notes: dict[str, Any] = field(default_factory=dict)
    """Printed beside, judged by nothing: JSON types."""

    def figure(self, name: str, value: float, unit: str) -> None:
        """Add a figure."""
        self.figures.append(Figure(name=name, value=value, unit=unit))


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """Something to measure, and the bars that it should reach."""

    name: str
    summary: str
    measure: Callable[[Any], Outcome]
    """Called with the `Setting`; raises DidNotRun where something that it counts did not run."""
    bars: tuple[Bar, ...] = ()
    profile: Callable[[Any], str] | None = None
    """Called where a bar was missed; its text says where the time or the space goes."""
    peers: str = ""
    """Figures of others on two cores, for orientation."""
    ray: bool = False


class Checks:
    """Facts that were checked, and how often."""

    def __init__(self) -> None:
        """Nothing is checked yet."""
        self.held: dict[str, int] = {}

    def that(self, holds: bool, fact: str, *, seen: Any = None) -> None:
        """Note that a fact holds. Raises: DidNotRun, with what was seen instead."""
        if not holds:
            raise DidNotRun(f"not so: {fact}" + ("" if seen is None else f" (seen: {seen!r})"))
        self.held[fact] = self.held.get(fact, 0) + 1


def alternate(contenders: Mapping[str, Callable[[], float]], *, rounds: int, warm: int = 1, unit: str = "s") -> dict[str, Series]:
    """Run every contender once a round, in alternating order; each returns its own measured value.

    Raises: ValueError for fewer rounds than a median needs.
    """
    if rounds < LEAST_ROUNDS:
        raise ValueError(f"a median needs at least {LEAST_ROUNDS} rounds, not {rounds}")
    names = list(contenders)
    first: dict[str, float] = {}
    values: dict[str, list[float]] = {name: [] for name in names}
    for name in names:
        for _ in range(warm):
            first.setdefault(name, contenders[name]())
    for number in range(rounds):
        for name in names if number % 2 == 0 else reversed(names):
            gc.collect()
            values[name].append(contenders[name]())
    return {name: Series(label=name, unit=unit, values=tuple(values[name]), first=first.get(name)) for name in names}


def ratio(over: Series, under: Series) -> float:
    """Return the median of the rounds' ratios."""
    return statistics.median(a / b for a, b in zip(over.values, under.values, strict=True))


def percentile(values: Sequence[float], percent: float) -> float:
    """Return a percentile, interpolated between the two values next to it."""
    ordered = sorted(values)
    at = (len(ordered) - 1) * percent / 100
    low = int(at)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (at - low)


def environment(folder: Path) -> dict[str, Any]:
    """Return what figures depend on: processors, memory, versions, load, and the file system of the folder where storage lies."""
    versions: dict[str, str | None] = {}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = None
    return {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cpus": os.cpu_count(),
        "usable_cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "cpu": _of_proc("/proc/cpuinfo", "model name") or platform.processor(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1024**3, 1),
        "load": [round(value, 2) for value in os.getloadavg()],
        "file_system": _file_system(folder),
        "commit": _commit(),
        "versions": versions,
    }


def _of_proc(path: str, key: str) -> str | None:
    try:
        with open(path) as lines:
            return next((line.partition(":")[2].strip() for line in lines if line.startswith(key)), None)
    except OSError:
        return None


def _file_system(folder: Path) -> str | None:
    """Return the type of the file system that holds a folder: a sync in memory costs nothing, and means nothing."""
    try:
        mounts = [line.split()[1:3] for line in Path("/proc/mounts").read_text().splitlines()]
    except OSError:
        return None
    path = str(folder.resolve())
    holding = [(place, kind) for place, kind in mounts if path == place or path.startswith(place.rstrip("/") + "/")]
    return max(holding, default=("", None), key=lambda m: len(m[0]))[1]


def _commit() -> str | None:
    root = Path(__file__).resolve().parent.parent
    try:
        said = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=root, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return said.stdout.strip() or None
