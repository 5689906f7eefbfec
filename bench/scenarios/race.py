"""race: what a race of four costs whose winner is on disk before it is used, beside bare Ray on warm actors and one append.

Ours are nodes in a chain, timed by the log's own stamps: from one race's start being told until the step behind it is ready, which is
all of a period: two commits, four members handed to Ray, 10 ms, the winner's way back, the next input. Of the bare race the calls, the
first answer and one append are timed. What stops losers is no part of either, but goes on beside our next race where members are async;
sync ones are raced one at a time, when every process that the race before has cost is there again.
"""

import asyncio
import os
import select
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

from bench.bodies import AsyncRacer, Racer, lose, lose_sync, pass_on, win, win_sync
from bench.commits import appending
from bench.harness import Bar, DidNotRun, Outcome, Scenario, Series, alternate, percentile, ratio
from bench.profiles import in_coordinator
from bench.runs import check_committed, timed
from bench.setting import Setting
from bench.shapes import Body, size_of
from cluster.ending import descriptor_of
from engine import RACE, Event, Team, Workflow

MEMBERS, SECONDS = 4, 0.01
LENGTH, AT_ONCE, EACH = 100, 30, 10
"""Races of one chain; chains at once, and the races of each."""
BLOCKING = 3
"""Races a round that cost three processes each."""
CLOCK = 2e-3
"""How much earlier a timer may fire: event loops in workers count in whole milliseconds, from the beginning of a turn."""
LATEST, TRIES = 60.0, 5
TIMES, STOPPED = 1.5, {"async": 50, "sync": 500}


@dataclass(slots=True)
class Races:
    """What was seen of some races, in seconds."""

    periods: list[float] = field(default_factory=list)
    """Each race, as the module's head says."""
    stops: list[float] = field(default_factory=list)
    """From a winner's being known to the end of each loser: of sync ones, of its process."""
    early: list[float] = field(default_factory=list)
    """Of sync losers: how long after its recorded stop a process ended, at worst."""
    refills: list[float] = field(default_factory=list)
    """From a race's end until as many processes are warm as before."""

    short: int = 0
    """How often the pool came back smaller than the race before had needed it; such races are not counted."""

    def __iadd__(self, other: "Races") -> "Races":
        self.periods += other.periods
        self.stops += other.stops
        self.early += other.early
        self.refills += other.refills
        self.short += other.short
        return self


def flow_of(first: Body, other: Body, count: int) -> Workflow:
    """Return a chain of races with a step before and one behind."""
    team = Team([first, *[other] * (MEMBERS - 1)], "race", strategy=RACE)
    flow, last = Workflow("bench-race").add_node("before", pass_on).set_entry_point("before"), "before"
    for number in range(count):
        flow.add_node(f"race-{number}", team).add_edge(last, f"race-{number}")
        last = f"race-{number}"
    return flow.add_node("after", pass_on).add_edge(last, "after")


def races_of(setting: Setting, events: Sequence[Event], count: int) -> Races:
    """Check what ran of a chain of races; return what it took."""
    found = Races()
    depth = {e.seq: e.step_id.count("/") for e in events}  # run/node/pass, and /member
    steps = [e for e in events if e.kind == "step_started" and depth[e.seq] == 2]
    found.periods = [(after.at - race.at).total_seconds() for race, after in pairwise(steps) if "members" in race.data]
    members = [e for e in events if depth[e.seq] == 3]
    kinds = Counter(e.kind for e in members)
    wanted = {"step_started": MEMBERS, "step_succeeded": 1, "member_won": 1, "member_lost": MEMBERS - 1}
    ran = len(found.periods) == count and kinds == {kind: number * count for kind, number in wanted.items()}
    setting.checks.that(ran, "of every race four members started, one won, three were stopped, and no other event is there", seen=kinds)
    started = {e.step_id: e.at for e in members if e.kind == "step_started"}
    won = {e.step_id.rpartition("/")[0]: e for e in members if e.kind == "member_won"}
    firsts = len(won) == count and all(e.step_id.endswith("/0") for e in won.values())
    setting.checks.that(firsts, "the first one won every race", seen=len(won))
    for event in members:
        if event.kind == "member_lost":
            behind = (started[event.step_id] - won[event.step_id.rpartition("/")[0]].at).total_seconds()
            found.stops.append(behind + event.data["stopped_after"])
    shortest = min(found.periods)
    setting.checks.that(shortest >= SECONDS - CLOCK, "no race was over before its winner's 10 ms", seen=shortest)
    return found


def engine_run(setting: Setting, folder: Path, flow: Workflow, count: int, *, given: str | None = None) -> tuple[Races, list[Event]]:
    """Run a chain of races on Ray and check it."""
    done = setting.run(timed(flow, given, storage=folder, executor="ray"))
    events = check_committed(setting, folder, done.run_id, steps=2 * count + 2)
    pids = {e.data["output"] for e in events if e.kind == "step_succeeded" and isinstance(e.data.get("output"), int)}
    setting.checks.that(bool(pids) and os.getpid() not in pids, "no winner ran in this process", seen=pids)
    return races_of(setting, events, count), events


class BareAsync:
    """Races of coroutines in warm actors, as many as the engine has lanes."""

    def __init__(self, ray: Any, count: int) -> None:
        """Start the actors."""
        self._ray = ray
        actor = ray.remote(num_cpus=0, max_restarts=0, max_concurrency=10_000)(AsyncRacer)
        self.actors = [actor.remote() for _ in range(count)]
        self._turn = 0

    def start(self) -> list[Any]:
        """Begin a race; return its members, the winner-to-be first."""
        self._turn += 1
        turns = [self.actors[(self._turn + n) % len(self.actors)] for n in range(MEMBERS)]
        return [turns[0].win.remote(), *(actor.lose.remote() for actor in turns[1:])]

    def races(self, count: int, append: Callable[[], object]) -> Races:
        """Race one after the other."""
        found = Races()
        for _ in range(count):
            begun = perf_counter()
            (won,), left = self._ray.wait(self.start(), num_returns=1, timeout=LATEST)
            self._ray.get(won)
            append()
            found.periods.append(perf_counter() - begun)
            begun = perf_counter()
            for ref in left:
                self._ray.cancel(ref)
            for ref in left:
                with suppress(self._ray.exceptions.TaskCancelledError):
                    raise DidNotRun(f"a loser of a bare race gave {self._ray.get(ref, timeout=LATEST)!r}")
                found.stops.append(perf_counter() - begun)
        return found

    async def lane(self, count: int) -> None:
        """Race one after the other beside other lanes; what loses is left to end by itself, as the engine's is."""
        for _ in range(count):
            refs = self.start()
            futures = [asyncio.wrap_future(ref.future()) for ref in refs]
            await futures[0]
            for ref in refs[1:]:
                self._ray.cancel(ref)
            await asyncio.gather(*futures[1:], return_exceptions=True)

    def at_once(self, setting: Setting) -> float:
        """Race in many lanes, nothing recorded; return the seconds."""

        async def all_of_them() -> None:
            await asyncio.gather(*(self.lane(EACH) for _ in range(AT_ONCE)))

        begun = perf_counter()
        setting.run(all_of_them())
        return perf_counter() - begun

    def end(self) -> None:
        """End the actors."""
        for actor in self.actors:
            self._ray.kill(actor)


class BareSync:
    """Races of blocking calls in warm actors, one for each member; losers are killed."""

    def __init__(self, ray: Any) -> None:
        """Start the actors and wait for them."""
        self._ray = ray
        self._actor = ray.remote(num_cpus=0, max_restarts=0)(Racer)
        self.actors: list[Any] = []
        self._fill()

    def _fill(self) -> None:
        self.actors += [self._actor.remote() for _ in range(MEMBERS - len(self.actors))]
        self._pids = self._ray.get([actor.pid.remote() for actor in self.actors], timeout=LATEST)

    def races(self, count: int, append: Callable[[], object]) -> Races:
        """Race one after the other, each with four actors that wait."""
        found = Races()
        for _ in range(count):
            watched = [descriptor_of(pid) for pid in self._pids[1:]]
            begun = perf_counter()
            refs = [self.actors[0].win.remote(), *(actor.lose.remote() for actor in self.actors[1:])]
            (won,), _ = self._ray.wait(refs, num_returns=1, timeout=LATEST)
            self._ray.get(won)
            append()
            found.periods.append(perf_counter() - begun)
            begun = perf_counter()
            for actor in self.actors[1:]:
                self._ray.kill(actor)
            for descriptor in watched:
                _wait_for(descriptor)
                found.stops.append(perf_counter() - begun)
            del self.actors[1:]
            self._fill()
            found.refills.append(perf_counter() - begun)
        return found

    def end(self) -> None:
        """End the actors."""
        for actor in self.actors:
            self._ray.kill(actor)


def _wait_for(descriptor: int) -> None:
    """Wait for a process's end."""
    if not select.select([descriptor], [], [], LATEST)[0]:
        raise DidNotRun("a killed process did not end")
    os.close(descriptor)


def _seats(coordinator: Any) -> tuple[list[int], bool]:
    """Return the processes of the actors that wait for members, and whether none is busy, ending or starting; called in there."""
    members = coordinator._pool.races.seats
    idle = [seat for shelf in members._shelves.values() for seat in shelf.idle]
    calm = not any(shelf.busy or len(shelf.idle) < shelf.wanted for shelf in members._shelves.values())
    return [seat.place[1] for seat in idle if seat.place is not None], calm and all(seat.place is not None for seat in idle)


def warm_seats(ray: Any) -> list[int]:
    """Wait until the coordinator's pool is as full as it wants to be; return the process ids."""
    from cluster.runner import script

    until = perf_counter() + LATEST
    while perf_counter() < until:
        pids, full = ray.get(script.get().__ray_call__.remote(_seats), timeout=LATEST)
        if full:
            return pids
        time.sleep(0.02)  # longer than a look takes, far shorter than a process takes to start
    raise DidNotRun(f"the actors for members did not start within {LATEST:g} s")


def ends_of(descriptors: dict[int, int], ends: dict[int, float]) -> None:
    """Note when processes end, until no more than one is left."""
    look, until = select.poll(), perf_counter() + LATEST
    names = {descriptor: pid for pid, descriptor in descriptors.items()}
    for descriptor in names:
        look.register(descriptor, select.POLLIN)
    while len(ends) < len(names) - 1 and perf_counter() < until:
        for descriptor, _ in look.poll(1e3):
            look.unregister(descriptor)
            ends[names[descriptor]] = time.time()
            os.close(descriptor)
    for descriptor in names.keys() - {descriptors[pid] for pid in ends}:
        os.close(descriptor)


def one_blocking(setting: Setting, folder: Path, flow: Workflow, pids: list[int]) -> Races:
    """Race sync members once; who lost has stopped when its process has ended, which is seen from here."""
    ends: dict[int, float] = {}
    watching = threading.Thread(target=ends_of, args=({pid: descriptor_of(pid) for pid in pids}, ends))
    watching.start()
    found, events = engine_run(setting, folder, flow, 1)
    watching.join()
    setting.checks.that(len(ends) == len(pids) - 1 == MEMBERS - 1, "of four warm processes three have ended", seen=(pids, ends))
    won = next(e for e in events if e.kind == "member_won")
    winner = next(e.data["output"] for e in events if e.kind == "step_succeeded" and e.step_id == won.step_id)
    setting.checks.that({winner} == set(pids) - ends.keys(), "the fourth one is the winner's", seen=(pids, winner))
    real = sorted(at - won.at.timestamp() for at in ends.values())
    found.early = [max(after - told for after, told in zip(real, sorted(found.stops), strict=True))]
    found.stops = real
    return found


def blocking_races(setting: Setting, folder: Path, flow: Workflow, count: int) -> Races:
    """Race sync members one at a time, each with a full pool."""
    ray, found = setting.ray(), Races()
    pids: list[int] = []
    while len(found.periods) < count:
        for _ in range(TRIES):
            if len(pids := warm_seats(ray)) >= MEMBERS:
                break
            found.short += bool(found.periods)  # not the first of all, nor one after the others' turn, when idle ones have ended
            engine_run(setting, folder, flow, 1)
        one, begun = one_blocking(setting, folder, flow, pids), perf_counter()
        warm_seats(ray)
        one.refills.append(perf_counter() - begun)
        found += one
    return found


def witnessed(setting: Setting, folder: Path, flow: Workflow) -> float:
    """Race with losers that write down when they are cancelled; return the longest that one went on after its race was decided."""
    witness = folder / "stopped"
    _, events = engine_run(setting, folder, flow, LENGTH, given=str(witness))
    stops = [line.split() for line in witness.read_text().splitlines()]
    witness.unlink()
    lost = LENGTH * (MEMBERS - 1)
    setting.checks.that(
        len({step for step, _ in stops}) == len(stops) == lost, f"{lost} losers say that they were cancelled", seen=len(stops)
    )
    won = {e.step_id.rpartition("/")[0]: e.at.timestamp() for e in events if e.kind == "member_won"}
    return max(float(at) - won[step.rpartition("/")[0]] for step, at in stops)


def races_at_once(setting: Setting, folder: Path, flow: Workflow) -> float:
    """Run many chains of races at once; return the seconds."""

    async def all_of_them() -> list[str]:
        found = await asyncio.gather(*(timed(flow, None, storage=folder, executor="ray") for _ in range(AT_ONCE)))
        return [done.run_id for done in found]

    begun = perf_counter()
    runs = setting.run(all_of_them())
    seconds = perf_counter() - begun
    for run_id in runs:
        races_of(setting, check_committed(setting, folder, run_id, steps=2 * EACH + 2), EACH)
    return seconds


def compare(ours: Callable[[], Races], bare: Callable[[], Races], *, rounds: int) -> tuple[dict[str, Series], dict[str, Races]]:
    """Race in turn; return the rounds' medians, and all that was seen after the warm-up."""
    seen: dict[str, Races] = {}
    warm: set[str] = set()

    def one(name: str, races: Callable[[], Races]) -> float:
        found = races()
        if name in warm:
            seen[name] += found
        else:
            seen[name] = Races()
            warm.add(name)
        return median(found.periods)

    return alternate({"engine": partial(one, "engine", ours), "bare": partial(one, "bare", bare)}, rounds=rounds), seen


def report(found: Outcome, kind: str, series: dict[str, Series], seen: dict[str, Races]) -> None:
    """Add the figures of one kind of members: a p99 needs the races of all rounds together."""
    names = {"engine": f"{kind}, engine", "bare": f"{kind}, bare Ray and an append"}
    ms = {name: [seconds * 1e3 for seconds in races.periods] for name, races in seen.items()}
    for name, label in names.items():
        found.series.append(Series(label=f"{label}: p50 of a round", unit="ms", values=series[name].scaled(1e3, "ms").values))
        found.series.append(Series(label=f"{label}: each race", unit="ms", values=tuple(ms[name])))
    found.figure(f"{kind}: p50 over bare", ratio(series["engine"], series["bare"]), "times")
    found.figure(f"{kind}: p99 over bare", percentile(ms["engine"], 99) / percentile(ms["bare"], 99), "times")
    for percent in (50, 99):
        values = {name: percentile(ms[name], percent) for name in names}
        for name, label in names.items():
            found.figure(f"{label}: p{percent}", values[name], "ms")
            found.figure(f"{label}: p{percent} beyond the 10 ms", values[name] - SECONDS * 1e3, "ms")
        beyond = (values["engine"] - SECONDS * 1e3) / (values["bare"] - SECONDS * 1e3)
        found.figure(f"{kind}: p{percent} over bare, beyond the 10 ms", beyond, "times")
    found.figure(f"{kind}: last loser stopped", max(seen["engine"].stops) * 1e3, "ms")
    if early := seen["engine"].early:
        found.figure(f"{kind}: the pool came back too small", seen["engine"].short, "times")
        found.figure(f"{kind}: a process ended after its recorded stop, at worst", max(early) * 1e3, "ms")
    for name, label in names.items():
        stops = [seconds * 1e3 for seconds in seen[name].stops]
        found.series.append(Series(label=f"{label}: a loser stopped after", unit="ms", values=tuple(stops)))
        if refills := seen[name].refills:
            found.series.append(Series(label=f"{label}: full again after", unit="s", values=tuple(refills)))


def measure(setting: Setting) -> Outcome:
    """Race async members in chains, many chains at once, then sync members one race at a time; all beside bare Ray."""
    ray = setting.ray()
    found = Outcome()
    with setting.storage() as folder:
        flows = {count: flow_of(win, lose, count) for count in (LENGTH, EACH)}
        engine_run(setting, folder, flows[LENGTH], LENGTH)
        size = size_of(folder) // LENGTH
        bare = BareAsync(ray, setting.slots)
        with appending(folder / "bare", size) as append:
            series, seen = compare(
                lambda: engine_run(setting, folder, flows[LENGTH], LENGTH)[0], lambda: bare.races(LENGTH, append), rounds=setting.rounds
            )
            report(found, "async", series, seen)
            found.figure("async: last loser stopped by its own clock", witnessed(setting, folder, flows[LENGTH]) * 1e3, "ms")
            crowd = alternate(
                {"engine": lambda: races_at_once(setting, folder, flows[EACH]), "bare": lambda: bare.at_once(setting)}, rounds=5
            )
            bare.end()
            sync, blocking = flow_of(win_sync, lose_sync, 1), BareSync(ray)
            report(found, "sync", *compare(
                lambda: blocking_races(setting, folder, sync, BLOCKING), lambda: blocking.races(BLOCKING, append), rounds=setting.rounds
            ))  # fmt: skip
            blocking.end()
    for name, beside in (("engine", ("engine", "engine")), ("bare", ("bare Ray and an append", "bare Ray, nothing recorded"))):
        alone = seen[name].periods
        found.figure(f"async, one after the other: {beside[0]}", len(alone) / sum(alone), "races/s")
        found.figure(f"async, {AT_ONCE} at once: {beside[1]}", AT_ONCE * EACH / crowd[name].median, "races/s")
    found.notes = {"bytes a race": size, "async races": LENGTH * setting.rounds, "sync races": BLOCKING * setting.rounds}
    return found


def profile(setting: Setting) -> str:
    """Tell the stages of races by the log's stamps, and what the coordinator's loop does meanwhile."""
    ray = setting.ray()
    flow, sync = flow_of(win, lose, LENGTH), flow_of(win_sync, lose_sync, 1)
    parts: list[str] = []
    with setting.storage() as folder:
        engine_run(setting, folder, flow, LENGTH)
        parts += ["async", stages(engine_run(setting, folder, flow, LENGTH)[1])]
        parts.append(in_coordinator(lambda: engine_run(setting, folder, flow, LENGTH)))
        engine_run(setting, folder, sync, 1)
        told: list[Event] = []
        for _ in range(5):
            warm_seats(ray)
            told += engine_run(setting, folder, sync, 1)[1]
        warm_seats(ray)
        parts += ["sync, five races", stages(told), in_coordinator(lambda: engine_run(setting, folder, sync, 1))]
    return "\n\n".join(parts)


def stages(events: Sequence[Event]) -> str:
    """Return the medians between what is told of a race."""
    spans: dict[str, list[float]] = {}

    def note(stage: str, begin: Event, end: Event, less: float = 0.0) -> None:
        spans.setdefault(stage, []).append((end.at - begin.at).total_seconds() * 1e3 - less)

    last: dict[str, Event] = {}
    for event in events:
        is_member = event.step_id.count("/") == 3
        if event.kind == "step_started" and not is_member:
            if "ended" in last:
                note("race told as over, until the next step is ready", last["ended"], event)
            last = {"begun": event}
        elif event.kind == "step_started" and "first" not in last and "begun" in last:
            last["first"] = event
            note("start told, until the first member starts (commit of the start)", last["begun"], event)
        elif event.kind == "step_succeeded" and is_member:
            last["done"] = event
            body = event.data["duration"] * 1e3
            spans.setdefault("the winner's body, by its own clock", []).append(body)
            note("the winner's way there and back, beside its body", last["first"], event, body)
        elif event.kind == "member_won":
            last["won"] = event
            note("winner back, until it is known as the winner", last["done"], event)
        elif event.kind == "step_succeeded" and "won" in last:
            last["ended"] = event
            note("winner known, until the race is over (commit of the winner)", last["won"], event)
    return "\n".join(f"{median(values):8.3f} p99 {percentile(values, 99):8.3f} ms  {stage}" for stage, values in spans.items())


SCENARIOS = [
    Scenario(
        name="race", summary="four members on Ray, the first done at 10 ms, the winner committed; async and sync", measure=measure,
        profile=profile, ray=True,
        bars=tuple(
            bar for kind in STOPPED for bar in (
                Bar(figure=f"{kind}: p50 over bare", unit="times", comparison="at most", limit=TIMES),
                Bar(figure=f"{kind}: p99 over bare", unit="times", comparison="at most", limit=TIMES),
                Bar(figure=f"{kind}: last loser stopped", unit="ms", comparison="at most", limit=STOPPED[kind]),
            )
        ),
    )
]  # fmt: skip
