"""The script's side of runs on Ray: hands a run to the script's coordinator, waits, looks, and asks again where a coordinator died.

Starting is resuming, so a lost coordinator is answered with the same call to a new one.
"""

import asyncio
import logging
import os
import pickle
import threading
import uuid
import weakref
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import replace
from typing import Any

from cluster import remote
from cluster.code import parcel
from cluster.coordinator import Coordinator
from cluster.wire import opened_error, original_of
from engine.checkpoint.codec import Encoded, decode
from engine.core.events import Event
from engine.core.history import Row
from engine.core.routing import Next
from engine.core.team import MemberResult
from engine.errors import ClusterUnavailable, ConfigurationError, GeckoError, RunCancelled, WorkerLost
from engine.ports import Log, RunKey
from engine.runtime.bulk import as_data, encoded, is_long
from engine.runtime.control import Halt
from engine.runtime.session import Request

STARTS = 5
"""How often a run is handed to a new coordinator after one died."""
WARM = 20.0
"""Seconds that a script's first run waits for its workers; they do not come where others have the cluster's CPUs."""

logger = logging.getLogger(__name__)


class Script:
    """What this process keeps on Ray between runs: its coordinator, and which plans it knows."""

    def __init__(self) -> None:
        """Nothing is started yet."""
        self.coordinator: Any = None
        self.cluster: str | None = None
        self._starting = threading.Lock()
        self.tokens: dict[int, tuple[weakref.ref[Any] | Any, str, bytes]] = {}

    def get(self, *, not_this: Any = None) -> Any:
        """Return the coordinator, a new one instead of `not_this` or where the cluster is another; may take seconds.

        From any thread: runs that begin at once get the same one.
        """
        with self._starting:
            remote.ensure()
            session = remote.session_name()
            if self.coordinator is None or self.coordinator is not_this or session != self.cluster:
                if self.coordinator is not None and self.cluster == session:
                    remote.kill(self.coordinator)
                self.coordinator = remote.new_coordinator(Coordinator)
                self.cluster = session
                warm = self.coordinator.warm_up.remote(os.getpid())
                if not_this is None and not remote.arrives(warm, WARM):  # a run that goes on waits for no workers that it may not need
                    logger.warning("Not all workers have started in %g s; steps wait for them where others have the CPUs", WARM)
            return self.coordinator

    def token(self, plan: Any) -> tuple[str, bytes]:
        """Return the name and the pickled parcel of a plan, made once."""
        held = self.tokens.get(id(plan))
        if held is None or held[0] is not plan:
            while len(self.tokens) >= 64:
                del self.tokens[next(iter(self.tokens))]
            held = self.tokens[id(plan)] = plan, uuid.uuid4().hex, pickle.dumps(parcel(plan))
        return held[1], held[2]


script = Script()


class RayRunner:
    """Begins runs on Ray."""

    async def start(self, request: Request, log: Log | None) -> "RayRun":
        """Hand a run to the coordinator; returns when it is claimed and recorded. `memory://` is the coordinator's memory then.

        Raises: ConfigurationError for a Log object.
        """
        place = None if log is None else getattr(log, "url", None)
        if log is not None and place is None:
            raise ConfigurationError("a Log object cannot travel to Ray; give storage by URL", where="storage")
        token, parcelled = script.token(request.plan)
        given = await encoded(await as_data(request.input, "the run's input"), "the run's input")
        sent = replace(request, plan=None, input=Encoded(given))  # type: ignore[arg-type] - the coordinator has the plan by its token
        run = RayRun(token, parcelled, sent, place)
        await run.begin()
        return run

    async def halt(self, place: str, run_id: str, halt: Halt) -> bool:
        """Stop a run that this script's coordinator drives."""
        if script.coordinator is None:
            return False
        try:
            return await script.coordinator.halt.remote(place, run_id, int(halt))
        except remote.GONE:
            return False


class RayRun:
    """A run that a coordinator drives, as its handle sees it."""

    lasting = False

    def __init__(self, token: str, parcelled: bytes, request: Request, place: str | None) -> None:
        """Use `begin` next; the request is without its plan, with its input encoded."""
        self.run_id = ""
        self.key = RunKey("", "", 0)
        self._token = token
        self._parcel = parcelled
        self._request = request
        self._place = place
        self._ticket = uuid.uuid4().hex
        self._home: Any = None
        self._asked: Any = None
        """The coordinator that was asked last to begin it."""
        self._status = "pending"
        self._error: BaseException | None = None
        self._end: asyncio.Task[None] | None = None
        self._output: Any = None
        self._results: list[MemberResult] = []
        """Of a team alone, without what is in the output."""
        self._halts: list[Halt] = []

    async def begin(self) -> None:
        """Hand the run over, and start waiting for its end."""
        try:
            await self._hand_over()
        except asyncio.CancelledError:  # who asked for it is not there to wait: it stops as soon as it begins
            if self._asked is not None:
                self._asked.request.remote(self._ticket, int(Halt.CANCEL if self._place is None else Halt.DRAIN))
            raise
        self._end = asyncio.get_running_loop().create_task(self._attend())

    async def _hand_over(self) -> None:
        """Hand the run to the coordinator; to a new one where it died."""
        kind, home = "", self._home
        request = pickle.dumps(replace(self._request, new=False, takeover=True) if self.run_id else self._request)
        answer: Any = None
        for left in range(STARTS, -1, -1):
            home = await asyncio.to_thread(script.get, not_this=home)
            self._asked = home
            try:
                kind, answer = await home.start.remote(self._ticket, self._token, request, None, self._place)
                if kind == "parcel":
                    kind, answer = await home.start.remote(self._ticket, self._token, request, self._parcel, self._place)
                break
            except remote.GONE as lost:
                if not left:
                    raise ClusterUnavailable(f"no coordinator lives long enough to begin a run: {remote.why(lost)}") from lost
        if kind == "error":
            raise original_of(pickle.loads(answer))
        self._home = home  # not before: whoever reads events meanwhile would ask a coordinator that does not know the run yet
        self.run_id, key, self._status = answer
        self.key = RunKey(*key)

    async def _attend(self) -> None:
        """Wait for the end, through coordinators that die."""
        for left in range(STARTS, -1, -1):
            try:
                self._status, error, output, results = await self._home.wait.remote(self._ticket)
                self._error = None if error is None else original_of(pickle.loads(error))
                self._results = [] if results is None else pickle.loads(results)
                self._output = None if output is None else Encoded(output)
                return
            except remote.GONE as lost:
                if self._place is None or not left:
                    text = f"the coordinator of run {self.run_id!r} died"
                    if self._place is None:
                        text += ", and nothing of the run is on storage; give it a session_id and storage to have it go on"
                    self._status, self._error = "failed", WorkerLost(f"{text}: {remote.why(lost)}")
                    return
            try:
                await self._hand_over()
            except GeckoError as error:
                self._status, self._error = "cancelled" if isinstance(error, RunCancelled) else "failed", error
                return
            for halt in self._halts:
                self._home.request.remote(self._ticket, int(halt))

    @property
    def status(self) -> str:
        """The run's status."""
        if self._end is None or not self._end.done():
            with suppress(WorkerLost):  # the newest that is known, until another coordinator has it
                return str(self._look()[0])
        return self._status

    @property
    def error(self) -> BaseException | None:
        """What a handle raises."""
        return self._error

    async def wait(self) -> None:
        """Wait for the end."""
        if self._end is not None:
            await asyncio.shield(self._end)

    def _look(self) -> Any:
        try:
            return decode(remote.fetch(self._home.look.remote(self._ticket)))
        except remote.GONE as lost:
            text = f"the coordinator of run {self.run_id!r} died"
            raise WorkerLost(f"{text}; what is recorded is found by Engine.state and Engine.events") from lost

    @property
    def heavy(self) -> bool:
        """Whether to take the output takes long."""
        return is_long(self._output)

    def output(self) -> Any:
        """The newest output."""
        return self._output.load() if self._output is not None else self._look()[1]

    def state(self) -> dict[Any, Any]:
        """The merged state."""
        return self._look()[2]

    def history(self) -> dict[str, Any]:
        """The window over the newest entries."""
        return dict(self._look()[3])

    def rows(self) -> list[Row]:
        """The newest rows."""
        return [Row(*row) for row in self._look()[4]]

    def results(self) -> list[MemberResult]:
        """How the members of a team ended that is performed alone."""
        found: list[MemberResult] = []
        for result, told in zip(self._results, self.output(), strict=True):
            value = result.result if isinstance(result.result, Next) else told["result"]
            found.append(replace(result, result=value, exception=opened_error(result.exception)))
        return found

    def request(self, halt: Halt) -> None:
        """Ask the run to stop."""
        self._halts.append(halt)
        self._home.request.remote(self._ticket, int(halt))

    async def events(self, *, after: int, transient: bool) -> AsyncIterator[Event]:
        """Yield events; through a coordinator that dies, each durable one once."""
        reader = uuid.uuid4().hex
        while True:
            try:
                found = await self._home.events.remote(self._ticket, reader, after, transient)
            except remote.GONE:
                if self._end is None or self._end.done():
                    return
                reader = uuid.uuid4().hex
                await asyncio.wait({self._end}, timeout=0.2)
                continue
            if found is None:
                return
            for *fields, data, ordinal in found:
                event = Event(*fields, decode(data), ordinal)  # type: ignore[arg-type] - as many fields as an event has
                if not ordinal:
                    if event.seq <= after:
                        continue
                    after = event.seq
                yield event
