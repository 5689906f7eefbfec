"""The Executor port over packs of Ray: hands what a run's driver wants performed to the pool that all runs of a coordinator share."""

import asyncio
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from cluster.chain import Chain, chain_from
from cluster.code import Parcel, RemoteBody
from cluster.dispatch import FORCE, Pool
from cluster.flight import Entry
from cluster.queue import Room
from cluster.shipping import Shipper
from engine.checkpoint.codec import decode
from engine.core.graph import Node
from engine.core.history import Window
from engine.core.run import Answer, Apply, Ask
from engine.core.state import Combine
from engine.runtime.control import Control, Halt
from engine.runtime.step import CONDITION_LIMIT, Call, Moment, Outcome


class RayExecutor:
    """Performs the calls of one run on the pool of its coordinator."""

    name = "ray"
    keeps_copies = True
    ahead = False
    patience = 5.0

    def __init__(self, pool: Pool, parcel: Parcel, codes: Any, room: Room | None = None) -> None:
        """Perform nothing yet.

        Args:
            codes: Refers to the parcel's code in the cluster.
            room: What bounds the steps of all runs together; None: nothing does.
        """
        self.pool = pool
        self._room = room
        self.parcel = parcel
        self.codes = codes
        self.shipper = Shipper(pool)
        self.losses: dict[str, int] = {}
        self.careful = False
        self.demands: list[dict[str, float]] = []
        self._width = parcel.plan.options.max_concurrency
        self._queue: deque[tuple[Call, Moment, Callable[[Outcome], None]]] = deque()
        """What is beyond the run's width: sub-workflows that are side by side know nothing of each other."""
        self._open: dict[str, Entry] = {}
        self._stopping = 0
        """Calls that are being stopped: they count until they have ended."""
        self._chain: Chain | None = None
        self._chained: list[Entry] = []
        pool.executors.add(self)

    @property
    def waiting(self) -> int:
        """How many calls wait for room, before they wait for a pack."""
        return len(self._queue)

    async def one(self, call: Call, moment: Moment) -> Outcome | None:
        """Perform a single call; where others follow it with certainty, they go along in the same pack."""
        outcome = None
        while outcome is None:
            outcome = await self._one(call, moment)
            if outcome is None and moment.owner.control.halt is not Halt.NONE:
                return None
        return outcome

    async def _one(self, call: Call, moment: Moment) -> Outcome | None:
        if self._chain is None or not self._chain.holds(call.step_id):
            self._drop_chain()
            alone = call.limit is not None or moment.owner.nested or self._room is not None  # what is bounded is counted step by step
            nodes = [call.number] if alone else chain_from(moment.plan, call.number)
            if len(nodes) < 2:
                return await self._alone(call, moment)
            ledger = moment.owner.ledger
            gated = self.careful or (ledger.strategy == "always" and ledger.stores)
            self._start_chain(Chain(nodes, call, moment, gated=gated), moment)
        assert self._chain is not None
        chain = self._chain
        try:
            with heeded(moment.owner.control, self._recall_chain):
                outcome = await chain.next(call)
        except asyncio.CancelledError:
            await self._stop_chain(call.step_id)
            raise
        if chain.over:
            self._drop_chain()
        return outcome

    async def _alone(self, call: Call, moment: Moment) -> Outcome | None:
        future: asyncio.Future[Outcome | None] = asyncio.get_running_loop().create_future()
        self.submit([call], moment, partial(_settle, future))

        def withdraw() -> None:
            if self.withdraw([call]):
                _settle(future, None)

        try:
            with heeded(moment.owner.control, withdraw):
                return await future
        except asyncio.CancelledError:
            await self.stop([call], FORCE)
            raise

    def take(self, step_id: str) -> Outcome | None:
        """Return the plain answer of a step that a chain has performed already."""
        chain = self._chain
        outcome = None if chain is None else chain.take(step_id)
        if chain is not None and chain.over:
            self._drop_chain()
        return outcome

    async def finished(self, step_id: str) -> bool:
        """Tell whether a step has been performed ahead of its driver, in a chain; what the worker has begun ends first."""
        if self._chain is None:
            return False
        self._recall_chain()
        try:
            return await self._chain.settled(step_id)
        except asyncio.CancelledError:
            await self._stop_chain(step_id)
            raise

    def submit(self, calls: Sequence[Call], moment: Moment, report: Callable[[Outcome], None]) -> None:
        """Let calls wait for packs, no more than the run's width at once."""
        self._queue.extend((call, moment, report) for call in calls)
        self._let_in()

    def _let_in(self) -> None:
        entries: list[Entry] = []
        while self._queue and (self._width is None or len(self._open) + self._stopping < self._width):
            if self._room is not None and not self._room.take(self._let_in):
                break
            call, moment, report = self._queue.popleft()
            entry = self._open[call.step_id] = self.pool.entry(self, call, moment, report)
            entries.append(entry)
        if entries:
            self.pool.add(entries)

    def ended(self, entry: Entry) -> None:
        """Take note that a call has come back."""
        if self._open.get(entry.call.step_id) is entry:
            del self._open[entry.call.step_id]
            self._leave(1)
            if self._queue:
                self._let_in()

    def _leave(self, count: int) -> None:
        """Make room for steps of other runs."""
        if self._room is not None:
            self._room.give(count)

    def withdraw(self, calls: Sequence[Call]) -> list[Call]:
        """Take back calls that wait here or for a pack; what waits in a worker comes later, and then its driver is woken to ask again."""
        queued = self._take_out(calls)
        entries = [self._open[c.step_id] for c in calls if c.step_id in self._open]
        self.pool.recall(entries)
        waiting = [entry for entry in entries if entry.pack is None and entry.waiting is not None]
        self.pool.drop(waiting)
        for entry in waiting:
            del self._open[entry.call.step_id]
        self._leave(len(waiting))
        self._let_in()
        return [*queued, *(entry.call for entry in waiting)]

    def _take_out(self, calls: Sequence[Call]) -> list[Call]:
        """Take calls out of the queue."""
        if not self._queue:
            return []
        meant = {call.step_id for call in calls}
        taken = [call for call, _, _ in self._queue if call.step_id in meant]
        self._queue = deque(item for item in self._queue if item[0].step_id not in meant)
        return taken

    async def stop(self, calls: Sequence[Call], grace: float) -> list[Call]:
        """Stop calls: what waits is dropped, what runs is interrupted, then its worker killed; nothing is left unattended."""
        self._take_out(calls)
        entries = [self._open.pop(c.step_id) for c in calls if c.step_id in self._open]
        self._stopping += len(entries)
        try:
            await self.pool.stop(entries, grace=grace)
        finally:
            self._stopping -= len(entries)
            self._leave(len(entries))
            self._let_in()
        return []

    async def ask(self, questions: Sequence[Ask | Combine | Apply], moment: Moment) -> list[Answer]:
        """Let a warm worker beside answer conditions and custom reducers."""
        answers: list[asyncio.Future[Outcome]] = []
        entries: dict[str, dict[int, Entry]] = {"ask": {}, "reduce": {}}
        bodies: dict[int, RemoteBody] = {}
        for question in questions:
            future: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
            answers.append(future)
            kind, call, body = self._question(question, moment)
            entry = self.pool.entry(self, call, moment, partial(_settle, future))
            entries[kind][entry.id] = entry
            bodies[entry.id] = body
        for kind, some in entries.items():
            if some:
                self.pool.fly(kind, some, lane=0, bodies=bodies)
        found: list[Answer] = []
        try:
            outcomes = await asyncio.gather(*answers)
        except asyncio.CancelledError:
            await self.pool.stop([entry for some in entries.values() for entry in some.values()], grace=FORCE)
            raise
        for question, outcome in zip(questions, outcomes, strict=True):
            value = None if outcome.output_data is None else decode(outcome.output_data)
            found.append(Answer(question, value, outcome.error))
        return found

    def _question(self, question: Ask | Combine | Apply, moment: Moment) -> tuple[str, Call, RemoteBody]:
        plan = moment.plan
        if not isinstance(question, Ask):
            if isinstance(question, Combine):
                function, given = plan.options.custom[question.reducer], [question.base, question.writes]
                what = f"reducer {question.reducer} of state key {question.key!r}"
            else:
                function, given, what = question.function, list(question.given), question.where
            node = Node(name=what, body=plan.nodes[0].body)  # errors say it
            call = Call(node, 0, 0, None, 1, given, Window.of({}, None), f"{moment.scene.run_id}/{what}")
            return "reduce", call, function
        node = plan.nodes[plan.source[question.edge]]
        step_id = f"{moment.scene.run_id}/{node.name}/{question.at}"
        call = Call(node, 0, question.at, None, 1, question.output, question.window, step_id, CONDITION_LIMIT)
        body: Any = plan.edges[question.edge].condition
        return "ask", call, body

    async def close(self) -> None:
        """Let go of what the run kept in the cluster."""
        self._drop_chain()
        self.shipper.close()

    def _start_chain(self, chain: Chain, moment: Moment) -> None:
        self._chain, self.ahead = chain, True
        self._chained = [self.pool.entry(self, call, moment, chain.report) for call in chain.calls]
        self.pool.fly("chain", {entry.id: entry for entry in self._chained}, chain=chain, counted=True)

    def _recall_chain(self) -> None:
        """Let the worker end after the step that it performs."""
        self.pool.recall(self._chained)

    async def _stop_chain(self, step_id: str) -> None:
        """Stop a chain in a step."""
        chain, chained = self._chain, self._chained
        self._chain, self._chained, self.ahead = None, [], False
        if chain is not None:
            chain.stop()
        await self.pool.stop([e for e in chained if e.call.step_id == step_id], grace=FORCE)
        self.pool.forget(chained)

    def _drop_chain(self) -> None:
        """Forget steps that were to follow: the chain took another way, or has ended."""
        if self._chain is not None:
            self._chain.stop()
            self.pool.forget(self._chained)
            self._chain, self._chained, self.ahead = None, [], False


@contextmanager
def heeded(control: Control, then: Callable[[], None]) -> Iterator[None]:
    """While this is open call `then` when the run is asked to stop, and again whenever its driver is woken after that."""

    def wait() -> "asyncio.Future[None]":
        future = control.waiter()
        future.add_done_callback(look)
        return future

    def look(_: Any = None) -> None:
        nonlocal waiter
        if over:
            return
        waiter = wait()
        if control.halt is not Halt.NONE:
            then()

    over, waiter = False, wait()
    if control.halt is not Halt.NONE:
        then()
    try:
        yield
    finally:
        over = True
        waiter.cancel()


def _settle(future: "asyncio.Future[Any]", outcome: Outcome | None) -> None:
    if not future.done():
        future.set_result(outcome)
