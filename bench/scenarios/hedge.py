"""hedge: calls of a service with a long tail, plainly and hedged, in-process and on Ray, committed.

Each call is a team in a map of which a few are under way at once. Its time is the log's: from the start of its first member to the
team's answer, which follows the commit of who won. Plain calls are teams of one, so that hedging is all that differs.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from bench.bodies import ask, ask_again, get
from bench.harness import Outcome, Scenario, alternate, percentile, ratio
from bench.runs import committed, timed
from bench.service import SLOW, Service
from bench.setting import Setting
from engine import HEDGE, RACE, Event, Team, Workflow

SEED, AT_ONCE, DELAY = 4, 8, 0.05
PLACES = {"in-process": "inline", "on Ray": "ray"}


@dataclass(slots=True, kw_only=True)
class Calls:
    """What was seen of some calls."""

    seconds: list[float] = field(default_factory=list)
    """How long each took."""
    hedged: int = 0
    """How many asked a second time."""
    asked: int = 0
    """How often the service was asked."""


def flow_of(way: str) -> Workflow:
    """Return the calls of one way as a map over their addresses."""
    team = Team([ask, ask_again], "call", strategy=HEDGE(DELAY)) if way == "hedged" else Team([ask], "call", strategy=RACE)
    return Workflow("bench-hedge").add_map("call", team, max_concurrency=AT_ONCE).set_entry_point("call")


def calls_of(events: Sequence[Event]) -> Calls:
    """Return how long each call took, and how many second ones started."""
    found = Calls()
    begun = {e.step_id: e.at for e in events if e.kind == "step_started" and "member" in e.data}
    for event in events:
        if event.kind == "step_succeeded" and "answer" in event.data:
            found.seconds.append((event.at - begun[f"{event.step_id}/0"]).total_seconds())
            found.hedged += f"{event.step_id}/1" in begun
    return found


def run_once(setting: Setting, folder: Path, service: Service, way: str, *, executor: str, count: int) -> Calls:
    """Make so many calls, and check that each was answered and what the service was asked."""

    def asked() -> int:
        return int(setting.run(get(f"{service.url}/asked")))

    before = asked()
    done = setting.run(timed(flow_of(way), [f"{service.url}/{n}" for n in range(count)], storage=folder, executor=executor))
    answers = [result["result"] for (result,) in done.output]
    right = all(answer in (f"/{n}/0", f"/{n}/1") for n, answer in enumerate(answers))
    setting.checks.that(right and len(answers) == count, f"each of {count} calls got its own answer", seen=len(answers))
    events = setting.run(committed(folder, done.run_id))
    found = calls_of(events)
    won = sum(e.kind == "member_won" for e in events)
    whole = len(found.seconds) == won == count and events[-1].kind == "run_completed"
    setting.checks.that(whole, "the log holds one winner and one answer of every call, and the end", seen=(len(found.seconds), won))
    found.asked = asked() - before
    fits = count <= found.asked <= count + found.hedged  # who is stopped at once may never have asked
    setting.checks.that(fits, "the service was asked once for a call, and at most once more for a hedged one", seen=found)
    return found


def measure(setting: Setting) -> Outcome:
    """Make the same calls in each way and place, in turn."""
    setting.ray()
    count = setting.size(1000, 400)
    seen: dict[str, list[Calls]] = {}

    def p99(way: str, place: str) -> float:
        found = run_once(setting, folder, service, way, executor=PLACES[place], count=count)
        seen.setdefault(f"{way}, {place}", []).append(found)
        return percentile(found.seconds, 99)

    with setting.storage() as folder, Service(SEED) as service:
        contenders = {f"{way}, {place}": partial(p99, way, place) for place in PLACES for way in ("plain", "hedged")}
        series = alternate(contenders, rounds=setting.rounds)
    found = Outcome(series=[s.scaled(1e3, "ms (p99)") for s in series.values()])
    for place in PLACES:
        for way in ("plain", "hedged"):
            together = [seconds for calls in seen[f"{way}, {place}"][1:] for seconds in calls.seconds]  # without the warm-up
            for percent in (50, 99):
                found.figure(f"{way}, {place}: p{percent}", percentile(together, percent) * 1e3, "ms")
        found.figure(f"{place}: p99 plain over hedged", ratio(series[f"plain, {place}"], series[f"hedged, {place}"]), "times")
        rounds = seen[f"hedged, {place}"][1:]
        found.figure(f"{place}: calls that were hedged", sum(c.hedged for c in rounds) / (count * len(rounds)) * 100, "%")
        found.figure(f"{place}: requests more than plain", (sum(c.asked for c in rounds) / (count * len(rounds)) - 1) * 100, "%")
    found.notes = {
        "calls a round": count, "at once": AT_ONCE, "delay, ms": DELAY * 1e3, "share of slow answers, %": SLOW * 100,
        "hedged in each round": {place: [c.hedged for c in seen[f"hedged, {place}"][1:]] for place in PLACES},
    }  # fmt: skip
    return found


SCENARIOS = [
    Scenario(
        name="hedge", summary="calls of a local service with a long tail, with and without HEDGE, in-process and on Ray, committed",
        measure=measure, ray=True,
    )
]  # fmt: skip
