"""panel: a hundred teams of five members that wait as calls of models do, all at once, on Ray and committed.

As many waits as bare calls of async actors stand beside it. Nothing can be faster than one wait.
"""

import os
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

from bench.bodies import AsyncRacer, wait
from bench.harness import Outcome, Scenario, Series, alternate, ratio
from bench.runs import check_committed, timed
from bench.setting import Setting
from bench.shapes import layer
from engine import Team, Workflow

TEAMS, MEMBERS, SECONDS = 100, 5, 0.05
CLOCK = 2e-3
"""How much earlier a timer may fire: event loops in workers count in whole milliseconds, from the beginning of a turn."""


def flow_of(form: str) -> Workflow:
    """Return the teams as the items of a map, or as the nodes of a layer."""
    team = Team([wait] * MEMBERS, "panel")
    if form == "map":
        return Workflow("bench-panel").add_map("panel", team).set_entry_point("panel")
    return layer(team, TEAMS)


def check_waits(setting: Setting, waits: list[tuple[int, float]], what: str) -> None:
    """Check how many waited, for how long, and where."""
    count = TEAMS * MEMBERS
    setting.checks.that(len(waits) == count, f"{count} waits of {what}", seen=len(waits))
    shortest = min(seconds for _, seconds in waits)
    setting.checks.that(shortest >= SECONDS - CLOCK, f"each of {what} took 50 ms by its own clock", seen=shortest)
    places = {pid for pid, _ in waits}
    setting.checks.that(os.getpid() not in places, f"none of {what} was in this process", seen=places)


def engine_run(setting: Setting, folder: Path, flow: Workflow, form: str, *, executor: str = "ray") -> float:
    """Run one form and check it; return the seconds from the call to the output."""
    done = setting.run(timed(flow, [SECONDS] * TEAMS if form == "map" else SECONDS, storage=folder, executor=executor))
    teams: list[Any] = list(done.output if form == "map" else done.output.values())
    answered = [member["is_success"] for team in teams for member in team]
    setting.checks.that(all(answered) and len(teams) == TEAMS, f"{TEAMS} teams of the {form} answered in full", seen=len(teams))
    if executor == "ray":
        check_waits(setting, [tuple(member["result"]) for team in teams for member in team], f"the {form}")
    events = check_committed(setting, folder, done.run_id, steps=TEAMS * (MEMBERS + 1))
    started = sum(e.kind == "step_started" and "member" in e.data for e in events)
    setting.checks.that(started == TEAMS * MEMBERS, "every member started once", seen=started)
    return done.seconds


def measure(setting: Setting) -> Outcome:
    """Run the map, the nodes and the bare calls in turn."""
    ray = setting.ray()
    actor = ray.remote(num_cpus=0, max_restarts=0, max_concurrency=10_000)(AsyncRacer)
    actors = [actor.remote() for _ in range(setting.slots)]

    def bare() -> float:
        begun = perf_counter()
        waits = ray.get([actors[n % len(actors)].wait.remote(SECONDS) for n in range(TEAMS * MEMBERS)], timeout=60)
        seconds = perf_counter() - begun
        check_waits(setting, waits, "the bare calls")
        return seconds

    with setting.storage() as folder:
        contenders = {form: partial(engine_run, setting, folder, flow_of(form), form) for form in ("map", "nodes")}
        series = alternate({**contenders, "bare calls": bare}, rounds=setting.rounds)
    for one in actors:
        ray.kill(one)
    found = Outcome(series=[s.scaled(1e3, "ms") for s in series.values()])
    found.series.append(Series(label="best possible", unit="ms", values=(SECONDS * 1e3,)))
    for name in series:
        found.figure(f"{name}, over the best possible", series[name].median / SECONDS, "times")
    for form in contenders:
        found.figure(f"{form}, over the bare calls", ratio(series[form], series["bare calls"]), "times")
    found.notes = {"teams": TEAMS, "members of each": MEMBERS, "processes for waiting": len(actors)}
    return found


SCENARIOS = [
    Scenario(
        name="panel", summary=f"{TEAMS} teams of {MEMBERS} async members that wait 50 ms, at once on Ray, committed", measure=measure,
        ray=True,
    )
]  # fmt: skip
