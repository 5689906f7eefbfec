"""Performs a team: starts its members as its strategy says, takes in how they end, commits who won, and stops the others.

What is decided is `engine.core.team.settle`'s business. Members are calls of their own under the team's step id, sub-workflows and teams
among them, so the log has each one's end; a race that is brought back from there is settled as it was. The losers are stopped beside
what comes after the team, and no run ends before they have stopped.
"""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import inf
from typing import TYPE_CHECKING, Any

from engine.checkpoint.codec import private
from engine.core.numbering import numbered
from engine.core.routing import Next
from engine.core.run import Apply
from engine.core.team import End, Standing, TeamPlan, named, settle
from engine.errors import GeckoError, StepFailed, TeamTimedOut
from engine.runtime.bind import is_async
from engine.runtime.bulk import encoded
from engine.runtime.control import Control
from engine.runtime.nested import Nested
from engine.runtime.seat import Seat, known_text, score_of, text_of
from engine.runtime.step import STUBBORN, Call, Outcome
from engine.runtime.unit import Unit, recalled

if TYPE_CHECKING:
    from engine.runtime.loop import Driver


class TeamWork:
    """One attempt of a team's step."""

    def __init__(self, driver: "Driver", unit: Unit, call: Call, text: str, before: Sequence[Mapping[str, Any]] = ()) -> None:
        """`text` is the id of the team's step without the run's; `before` are the shapes that it had in earlier lives of the run."""
        self.control = Control()
        self.halted = False
        self._driver = driver
        self._clock = driver.ledger.clock
        self._unit = unit
        self._call = call
        self._text = text
        self._team: TeamPlan = (call.spare or call.node).body
        self._moment = driver.moment()
        self._seats = [Seat() for _ in self._team.members]
        self._before = before
        lives = [[name for name, _ in shape["members"]] for shape in before]
        self._numbers = numbered([*lives, [member.name for member in self._team.members]])
        """By life and place, those that members have in their step ids."""
        self._ends: list[End] = []
        """How members ended, in the order in which it is told."""
        self._running: set[int] = set()
        """Members that have started, or whose input is being made, and that have not ended."""
        self._arrived: list[Outcome] = []
        """Outcomes that came since the last look: those of one turn of the event loop count as one moment."""
        self._newest = -inf
        """When a member started last."""
        self._waited_out = False
        """Whether the delay until the next start is over: a timer may go off a hair before the clock says so."""
        self._expired = False
        self._over = False
        self._why = "cancelled"
        self._won: tuple[int, ...] = ()
        """Who had won already, as the log says."""
        self._answer: tuple[int, ...] = ()
        self._failure: GeckoError | None = None
        self._nested = Nested(driver, self.control, self._report, self._let_go)
        self.control.request(driver.control.halt)

    # What a layer asks of whatever drives a call of several calls.

    async def drive(self) -> None:
        """Go on until the team has its answer, or is asked to stop."""
        self._recall()
        limit = self._team.timeout
        expiring = None if limit is None else asyncio.get_running_loop().call_later(limit, self._expire)
        self._expired = limit is not None and limit <= 0
        try:
            while not (standing := await self._stand()).over:
                self._nested.request(self.control.halt)
                if self.control.halt and (self.control.halt.hard or not self._running):
                    self.halted = True
                    return
                if standing.judge:
                    await self._score(standing.judge)
                elif standing.start and not self.control.halt:
                    self._start(standing.start)
                else:
                    await self._change()
            await self._settle(standing)
        finally:
            if expiring is not None:
                expiring.cancel()
            if self.halted:
                await self._stop(sorted(self._running), "step_stopped", self._why)
                self._take_in()  # what ended all the same need not be performed again
                self._running.clear()
            self._over = True
            self._leave(sorted(self._running))

    async def settle(self, outcome: Outcome) -> None:
        """Put the answer into the outcome of the team's call."""
        outcome.error = self._failure
        if self.halted or self._failure is not None:
            return
        results = [self._seats[member].result(member) for member in self._answer]
        if self._team.alone:
            self._driver.results = [replace(r, result=self._jump(r.member_index) or r.result) for r in results]
        outcome.output = [result.data() for result in results]
        parts: list[Any] = []
        jumper: int | None = None
        for member in sorted(self._answer):
            found = self._seats[member].outcome
            if found is None:
                continue
            if found.diff is not None:
                parts.append(((member,), found.diff))
            parts += [((member, *path), diff) for path, diff in found.parts]  # of a team in this one: in the place of its member
            if found.jump is not None and outcome.jump is None and not self._team.alone:
                outcome.jump, jumper = found.jump, member
        outcome.parts = parts
        if outcome.jump is not None and self._call.node.kind == "map":
            outcome.error = StepFailed(f"item {self._call.label!r} returned a Next; an item of a map cannot jump", node=self._call.label)
            outcome.final = True
            return
        errors = {str(member): seat.text for member in self._answer if (seat := self._seats[member]).outcome is None}
        numbers = {str(member): number for member, number in enumerate(self._numbers[-1]) if member != number}
        told = {"errors": errors, "numbers": numbers}
        outcome.answer = {"answer": list(self._answer), **{what: data for what, data in told.items() if data}}
        if jumper is not None:
            outcome.answer["jumper"] = jumper
        if self._call.spare is not None:
            outcome.answer["under"] = self._text

    def stop_direct(self, inner: "asyncio.Task[None]", reason: str) -> None:
        """Note why it stops: a team never waits for user code in its own task, so its control is enough."""
        self._why = reason

    # Looking.

    def _recall(self) -> None:
        """Take from the log, and from earlier attempts, who has ended; a failure counts in its own attempt alone."""
        recorded, known = self._driver.recorded, self._unit.members.setdefault(self._text, {})
        ended = [(outcome.seq, self._succeeded(member, outcome)) for member, outcome in known.items()]  # in the order in which they ended
        for member in (m for m in range(len(self._seats)) if m not in known):
            text = self._text_of(member)
            done = recorded.finished(text) if recorded else None
            if done is not None:
                call = self._member_call(member, None)
                self._seats[member].since, self._seats[member].stopped_after = done.started, done.duration
                ended.append((done.seq, self._succeeded(member, recalled(done, call))))
            elif recorded and (failed := recorded.failure(text, self._call.attempt)) is not None:
                seq, reason = failed
                ended.append((seq, self._failed(member, reason, None)))
        self._ends = [end for _, end in sorted(ended, key=lambda pair: pair[0])]
        if recorded and self._team.strategy.chooses:
            numbers = self._numbers[-1]  # of a team that lost members since, not all
            won = [numbers.index(number) for number in recorded.winners(self._text) if number in numbers]
            self._won = tuple(member for member in won if self._seats[member].outcome is not None)

    async def _stand(self) -> Standing:
        self._take_in()
        if self._won:
            return Standing(over=True, answer=self._won, won=True)
        if self._expired:
            await self._end_unfinished()
        running = sorted(self._running)
        waited = inf if self._waited_out else self._clock.monotonic() - self._newest
        return settle(self._team.strategy, len(self._seats), self._ends, running=running, waited=waited, width=self._team.width)

    async def _change(self) -> None:
        """Wait until a member ends, the next one may be due, or something is asked."""
        stagger, timeout = self._team.strategy.stagger, None
        if stagger and not self._waited_out and self._running and len(self._ends) + len(self._running) < len(self._seats):
            left = stagger - (self._clock.monotonic() - self._newest)
            timeout = max(0.0, left) if left < inf else None  # it may have run out since `_stand` looked
        waiter = self.control.waiter()
        if self._arrived:
            waiter.cancel()
            return
        done, _ = await asyncio.wait({waiter}, timeout=timeout)
        self._waited_out = self._waited_out or not done
        waiter.cancel()

    def _expire(self) -> None:
        self._expired = True
        self.control.wake()

    # Members that start and end.

    def _text_of(self, member: int) -> str:
        """Return the id of a member's step without the run's."""
        return f"{self._text}/{self._numbers[-1][member]}"

    def _before_of(self, member: int) -> list[Mapping[str, Any]]:
        """Return the shapes that a member which is a workflow or a team had in earlier lives of the run."""
        number = self._numbers[-1][member]
        found = [
            shape["members"][numbers.index(number)][1]
            for shape, numbers in zip(self._before, self._numbers, strict=False)
            if number in numbers
        ]
        return [shape for shape in found if shape is not None]

    def _member_call(self, member: int, given: Any) -> Call:
        call, node = self._call, self._team.members[member]
        body = named(node, call.label, call.node.policy)
        step_id = f"{self._driver.log_id}/{self._text_of(member)}"
        return Call(body, call.number, call.at, member, call.attempt, given, call.window, step_id, node.policy.limits.attempt)

    def _start(self, members: tuple[int, ...]) -> None:
        """Start members; one whose input is made first by the team's mapper starts when that is done."""
        calls: list[Call] = []
        self._newest, self._waited_out = self._clock.monotonic(), False
        for member in members:
            seat = self._seats[member]
            seat.since = self._clock.now()
            self._running.add(member)
            if member in self._team.lacks:
                self._tell_started(member)
                self._arrive(member, TypeError(self._team.lacks[member]))
            elif self._team.mapper is not None:
                seat.mapping = self._driver.spawn(self._map(member))
            else:
                self._tell_started(member)
                calls.append(self._member_call(member, self._call.input))
        self._submit(calls)

    def _submit(self, calls: list[Call]) -> None:
        plain: list[Call] = []
        for call in calls:
            assert call.ordinal is not None
            self._seats[call.ordinal].call = call
            if self._driver.is_nested(call):
                before = self._before_of(call.ordinal)
                self._nested.start(call, self._driver.child(self._unit, call, text=self._text_of(call.ordinal), before=before))
            else:
                plain.append(call)
        if plain:
            self._driver.executor.submit(plain, self._moment, self._report)

    async def _map(self, member: int) -> None:
        """Make a member's input, or take the one that the log has, and start it."""
        recorded = self._driver.recorded
        given = recorded.given(self._text_of(member)) if recorded else None
        kept: bytes | None = None
        if given is None:
            where = f"the input of {self._call.label}[{member}]"
            try:
                (answer,) = await self._driver.executor.ask([Apply(self._team.mapper, (self._call.input, member), where)], self._moment)
                error, given = answer.error, answer.value
                if error is None and self._driver.ledger.stores:
                    kept = await encoded(given, where)
            except GeckoError as caught:
                error = caught
            if error is not None:
                self._tell_started(member)
                self._arrive(member, error, "Input mapping failed: ")
                return
        self._seats[member].mapping = None
        if self.control.halt:  # nobody starts any more
            self._running.discard(member)
            self.control.wake()
            return
        self._tell_started(member, kept, given)
        self._submit([self._member_call(member, given)])

    def _tell_started(self, member: int, kept: bytes | None = None, given: Any = None) -> None:
        """Write down that a member starts, with its own input where it has one."""
        shown = None if self._driver.ledger.stores else given
        self._tell("step_started", member, {"member": self._team.members[member].name}, kept, shown)
        self._driver.ledger.soon()  # who runs is to be seen from elsewhere; nobody waits for it

    def _tell(self, kind: str, member: int, data: dict[str, Any], output: bytes | None = None, value: Any = None) -> None:
        driver, step = self._driver, self._text_of(member)
        if driver.live and not driver.ledger.quiet:
            driver.ledger.tell(kind, self._unit.name, step, data, attempt=self._call.attempt, output=output, value=value)

    def _arrive(self, member: int, error: BaseException, before: str = "") -> None:
        """Let a member that has no body performed end with an error."""
        outcome = Outcome(self._member_call(member, None), self._seats[member].since)
        outcome.error = error
        self._seats[member].text = f"{before}{text_of(error)}" if before else str(error)
        self._report(outcome)

    def _let_go(self, call: Call) -> None:
        """Take note of a member that is a workflow or team, and that was stopped before its end."""
        assert call.ordinal is not None
        self._running.discard(call.ordinal)
        self.control.wake()

    def _report(self, outcome: Outcome) -> None:
        self._arrived.append(outcome)
        self.control.wake()

    def _take_in(self) -> None:
        """Write down what has ended since the last look; what ended in one moment, in member order."""
        arrived, self._arrived = sorted(self._arrived, key=lambda o: o.call.ordinal or 0), []
        for outcome in arrived:
            member = outcome.call.ordinal
            if member is None or member not in self._running or self._over:
                continue
            self._running.discard(member)
            seat = self._seats[member]
            seat.since, seat.stopped_after, seat.mapping = outcome.started, outcome.duration, None
            if outcome.error is not None:
                data = {"error": self._driver.error_data(outcome.error), "duration": outcome.duration}
                end = self._failed(member, seat.text or text_of(outcome.error), outcome.error)
                data["reason"] = seat.text
                self._tell("step_failed", member, data)
            else:
                end = self._succeeded(member, outcome)
                self._unit.members[self._text][member] = outcome
                self._driver.tell_success(self._unit.name, self._text_of(member), outcome)
            self._ends.append(end)
        if arrived:
            self._driver.ledger.soon()

    def _succeeded(self, member: int, outcome: Outcome) -> End:
        self._seats[member].outcome = outcome
        return self._seats[member].end(member)

    def _failed(self, member: int, text: str, error: BaseException | None) -> End:
        seat = self._seats[member]
        seat.outcome, seat.text, seat.error = None, text, error
        return seat.end(member)

    # The end.

    async def _score(self, members: tuple[int, ...]) -> None:
        """Have the judge score results; one that it cannot score is its member's failure."""
        asked = [Apply(self._team.judge, self._seats[m].judged(), f"the score of {self._call.label}[{m}]") for m in members]
        asking = self._driver.spawn(self._driver.executor.ask(asked, self._moment))
        while not asking.done() and not self._expired and not self.control.halt.hard:
            waiter = self.control.waiter()
            await asyncio.wait({asking, waiter}, return_when=asyncio.FIRST_COMPLETED)
            waiter.cancel()
        if not asking.done():
            asking.cancel()
            await asyncio.wait({asking}, timeout=STUBBORN + self._driver.executor.patience)
            return
        for member, answer in zip(members, asking.result(), strict=True):
            place = next(i for i, end in enumerate(self._ends) if end.member == member)
            score = None if answer.error is not None else score_of(answer.value)
            if score is not None:
                self._seats[member].score = score  # as it is: a large whole number is no float
                self._ends[place] = self._ends[place]._replace(score=score)
                continue
            reason = f"gave {answer.value!r:.80}, which is no number" if answer.error is None else text_of(answer.error)
            self._ends[place] = self._failed(member, f"Judge failed: {reason}", answer.error)

    async def _end_unfinished(self) -> None:
        """Let the team's time be over: who has not ended has failed."""
        text = f"Timed out after {self._team.timeout:g} s"
        running, why = sorted(self._running), "the team's limit"
        await self._stop(running, "step_stopped", why)
        late = [outcome for outcome in self._arrived if outcome.call.ordinal in running]
        for outcome in late:  # too late, whatever it gave
            assert outcome.call.ordinal is not None
            self._seats[outcome.call.ordinal].stopped_after = outcome.duration
            self._tell("step_stopped", outcome.call.ordinal, {"reason": why, "stopped_after": outcome.duration})
        self._arrived.clear()
        unscored = {end.member for end in self._ends if end.success and end.score is None} if self._team.judge is not None else set[int]()
        self._ends = [end for end in self._ends if end.member not in unscored]
        ended = {end.member for end in self._ends}
        self._ends += [self._failed(member, text, None) for member in range(len(self._seats)) if member not in ended]
        self._running.clear()

    async def _settle(self, standing: Standing) -> None:
        """Write down who won, before anything is done with it, and stop the others."""
        self._answer, team = standing.answer, self._team
        if not standing.won:
            await self._stop(sorted(self._running), "step_stopped", "too many others had failed")
            self._take_in()
            for member in sorted(self._running):
                self._failed(member, "Stopped: too many others had failed", None)
            self._running.clear()
            for member, seat in enumerate(self._seats):
                if seat.outcome is None and not seat.text:
                    begun = self._left_behind(member, "step_stopped")
                    seat.text = f"{'Stopped' if begun else 'Never started'}: too many others had failed"
            if self._expired and team.strategy.need is not None:
                results = [seat.result(member) for member, seat in enumerate(self._seats)]
                results = [replace(result, result=private(result.result)) for result in results]
                text = f"team {self._call.label!r} timed out after {team.timeout:g} s; {known_text(results)}"
                self._failure = TeamTimedOut(text, node=self._call.label, results=results)
            return
        if not team.strategy.chooses:
            return
        if not self._won:
            for member in self._answer:
                score = self._seats[member].score
                self._tell("member_won", member, {} if score is None else {"score": score})
            for end in self._ends:
                if end.member not in self._answer:
                    self._tell_lost(end.member, "another was chosen" if end.success else self._seats[end.member].text)
            for member in set(range(len(self._seats))) - self._running - {end.member for end in self._ends}:
                self._left_behind(member, "member_lost")
        self._over = True
        if self._driver.ledger.strategy in ("always", "async") and self._driver.live:
            await self._driver.ledger.checkpoint()

    def _jump(self, member: int) -> Next | None:
        """Return the jump that a member gave, which leads nowhere where the team is alone: its caller may hand it on."""
        outcome = self._seats[member].outcome
        return None if outcome is None else outcome.jump

    # Stopping.

    def _leave(self, members: list[int]) -> None:
        """Stop who has lost, beside what comes next."""
        if members:
            stopping = self._driver.spawn(self._stop(members, "member_lost", "stopped, since the team had its answer"))
            self._driver.stops.add(stopping)
            stopping.add_done_callback(self._driver.stops.discard)
            self._running.difference_update(members)

    async def _stop(self, members: list[int], kind: str, reason: str) -> None:
        """Stop members, and write down when each had really stopped."""
        if members:
            await asyncio.gather(*(self._stop_one(member, kind, reason) for member in members))

    async def _stop_one(self, member: int, kind: str, reason: str) -> None:
        seat = self._seats[member]
        if seat.mapping is not None and not seat.mapping.done():
            self._tell_started(member)
            if not await self._stop_mapping(seat.mapping):
                reason = f"{reason}; its input mapper goes on unattended"
        elif seat.call is not None and self._driver.is_nested(seat.call):
            if await self._nested.stop(reason, {seat.call.step_id}):
                reason = f"{reason}; what it performs goes on unattended"
        elif seat.call is not None and await self._driver.executor.stop([seat.call], STUBBORN):
            reason = f"{reason}; the body goes on unattended"
        late = next((outcome for outcome in self._arrived if outcome.call.ordinal == member), None)
        if late is not None and kind == "step_stopped":
            return  # it ended after all
        seat.stopped_after = max(0.0, self._clock.now() - seat.since) if late is None else late.duration
        if late is not None:
            reason = "it ended after the team had its answer"
        if kind == "member_lost":
            self._tell_lost(member, reason)
        else:
            self._tell(kind, member, {"reason": reason, "stopped_after": seat.stopped_after})

    async def _stop_mapping(self, mapping: "asyncio.Task[None]") -> bool:
        """Stop what makes a member's input; False where it goes on, as a thread in this process does."""
        patience = self._driver.executor.patience
        mapping.cancel()
        await asyncio.wait({mapping}, timeout=STUBBORN + patience)
        return mapping.done() and (patience > 0 or is_async(self._team.mapper))

    def _left_behind(self, member: int, kind: str) -> bool:
        """Tell of a member that had started when the process that performed it ended, and whether it is one; nobody saw its stop."""
        recorded = self._driver.recorded
        if not recorded or not recorded.is_under_way(self._text_of(member)):
            return False
        self._tell(kind, member, {"reason": "the process that performed it ended"})
        return True

    def _tell_lost(self, member: int, reason: str) -> None:
        seat = self._seats[member]
        data: dict[str, Any] = {"reason": reason, "stopped_after": seat.stopped_after}
        if seat.score is not None:
            data["score"] = seat.score
        self._tell("member_lost", member, data)
        self._driver.ledger.soon()
