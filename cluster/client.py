"""Runs of a cluster, seen from outside of it: submit them, look at them, stop them. What the command line and the HTTP service call.

Nothing here outlives the caller, and nothing that it does is lost with it: each call may be repeated, and is, for as long as coordinators
are restarted. Which coordinator answers does not matter, since a run's claim decides who drives it.
"""

import asyncio
import hashlib
import pickle
import time
import uuid
from collections.abc import AsyncIterator, Mapping
from dataclasses import asdict, replace
from typing import Any

from cluster import remote, remote_fleet
from cluster.code import parcel, surroundings
from cluster.metrics import totals
from cluster.queue import Limits
from cluster.submission import Submission, check_labels, check_priority, set_of
from cluster.wire import opened_error, original_of
from engine import __version__
from engine.checkpoint.codec import Encoded, decode
from engine.core.events import Event
from engine.core.history import Row
from engine.core.ids import check_name, split_run_id
from engine.core.policy import check_limit
from engine.core.routing import Next
from engine.core.team import MemberResult
from engine.errors import ClusterUnavailable, ConfigurationError, DefinitionError, RunBusy, RunNotFound
from engine.handle import RunHandle
from engine.ports import RunKey
from engine.runtime.bind import code_of
from engine.runtime.bulk import as_data, encoded, is_long
from engine.runtime.control import Halt
from engine.runtime.session import Request
from engine.workflow import run_blocking

PATIENCE = 40.0
"""Seconds that a call is repeated for while coordinators are restarted."""
ANSWER = 20.0
"""Seconds after which a coordinator that does not answer is passed over: it may be frozen, and then others take its runs."""
SILENT = 30.0
"""So long it is asked last then."""
WAIT = 5.0
"""Seconds that one question for the end of a run takes."""
AGAIN = (0.05, 0.1, 0.2, 0.5)
"""Seconds between attempts."""
STOPPED = ("completed", "failed", "cancelled", "timed_out", "paused")


class Cluster:
    """The coordinators of one storage on the Ray cluster that this process is connected to."""

    def __init__(
        self, storage: str, *, coordinators: int = 1, limits: Limits | None = None, patience: float = PATIENCE,
        environment: dict[str, Any] | None = None, keep_code: bool = False,
    ) -> None:  # fmt: skip
        """Name a storage; nothing is called yet.

        Args:
            storage: A URL that the coordinators reach. `file://` is the disk of the node that this process is on.
            coordinators: How many are made where there are none.
            limits: What they let in at once; those that are there keep theirs.
            patience: Seconds that calls are repeated for while coordinators are away.
            environment: Ray's runtime environment of the coordinators; None: that of this process.
            keep_code: Whether the code of a workflow is pickled at its first run alone, for a process that submits the same ones again and
                again: what it captured stays as it was then.

        Raises: ConfigurationError for a storage that is this process's own memory.
        """
        self.storage = storage
        self._count = coordinators
        self._limits = limits or Limits()
        self._patience = patience
        self._prefix = ""
        self._environment = environment
        self._kept: dict[int, tuple[Any, str, bytes]] | None = {} if keep_code else None
        """By id a plan, which is held so that the id stays its own, and its parcel."""
        self._handles: dict[str, Any] = {}
        self._names: list[str] = []
        self._silent: dict[str, float] = {}
        """Coordinator that did not answer, to until when it is asked last."""
        if storage.startswith("memory:"):
            text = "runs that belong to a cluster are recorded where its coordinators find them, not in memory: "
            raise ConfigurationError(text + "name a folder or a database", where="storage")

    async def submit(
        self, flow: Any, input: Any = None, *, session_id: str | None = None, start_node: str | None = None, timeout: float | None = None,
        new: bool = False, priority: int = 0, labels: Mapping[str, str] | None = None, owner: str = "", ticket: str | None = None,
    ) -> RunHandle:  # fmt: skip
        """Hand a run to the cluster, which it belongs to from then on; returns when it is on storage.

        Arguments as in `Workflow.execute`, and:

        Args:
            priority: A greater one goes first where runs wait.
            labels: Texts by name, to find the run by.
            owner: Who submits it.
            ticket: Names this call: repeated with the same one, also by another process, it is the same run.

        Raises: QueueFull (with `retry_after`), SessionInUse, RunCancelled, DefinitionError, ClusterUnavailable, StoreUnavailable.
        """
        plan = flow.compiled()
        if session_id is not None and (wrong := check_name(session_id, "a session id")):
            raise DefinitionError(wrong, where="session_id")
        token, parcelled, around = await asyncio.to_thread(self._prepare, plan)
        ticket = ticket or uuid.uuid4().hex
        given = await encoded(await as_data(input, "the run's input"), "the run's input")
        submission = Submission(
            ticket=ticket, parcel=token, strategy=flow.checkpoint_strategy.value, on_commit_failure=flow.on_commit_failure,
            limit=check_limit(timeout, "timeout"), priority=check_priority(priority), labels=check_labels(labels), owner=owner,
            **around,
        )  # fmt: skip
        request = Request(
            workflow=flow.name, plan=None, session=session_id or ticket, input=Encoded(given), start_node=start_node,  # type: ignore[arg-type] - it travels apart
            timeout=submission.limit, new=new, strategy=submission.strategy, on_commit_failure=submission.on_commit_failure,
            target=flow.find_target(), code=code_of(plan),
        )  # fmt: skip
        arguments = token, pickle.dumps(request), None, submission.data()
        kind, answer = await self._ask("submit", f"{flow.name}.{request.session}", *arguments)
        if kind == "parcel":
            arguments = token, arguments[1], parcelled, arguments[3]
            kind, answer = await self._ask("submit", f"{flow.name}.{request.session}", *arguments)
        run_id, _ = _told(kind, answer)
        return self.handle(run_id)

    async def start(self) -> list[str]:
        """Have the coordinators made where there are none; returns their names when they answer."""
        names = await self._coordinators()
        await asyncio.gather(*(self._repeat(name, "attend") for name in names))
        return names

    async def adopt(self, environments: list[dict[str, Any]]) -> None:
        """Let the coordinators go on with runs of runtime environments that cannot be made again."""
        await asyncio.gather(*(self._repeat(name, "adopt", environments) for name in await self._coordinators()))

    def handle(self, run_id: str) -> RunHandle:
        """Return the handle of a run by its id; nothing is asked yet."""
        return RunHandle(ClusterRun(self, run_id))

    async def status(self, run_id: str) -> str:
        """Return a run's status. Raises: RunNotFound."""
        return await self.call("status", run_id, run_id)

    async def wait(self, run_id: str, timeout: float | None = None) -> str:
        """Return a run's status when it has stopped, or after so many seconds."""
        until = None if timeout is None else time.monotonic() + timeout
        while True:
            left = WAIT if until is None else min(WAIT, until - time.monotonic())
            status = await self.call("settled", run_id, run_id, max(0.0, left))
            if status in STOPPED or (until is not None and time.monotonic() >= until):
                return status

    async def pause(self, run_id: str) -> str:
        """Let no further step of a run start, durably; returns its status, `running` as long as steps are ending."""
        return await self._everywhere("ask_to", run_id, run_id, "pause")

    async def cancel(self, run_id: str) -> str:
        """Stop a run for good, durably; returns its status."""
        return await self._everywhere("ask_to", run_id, run_id, "cancel")

    async def resume(self, run_id: str, *, accept: bool = False) -> str:
        """Go on with a run that is paused, failed or timed out; returns its status. Raises: WrongState, NeedsCode."""
        return await self._everywhere("go_on", run_id, run_id, False, accept)

    async def retry(self, run_id: str, *, accept: bool = False) -> str:
        """Go on with a run that failed or timed out, from what failed; returns its status. Raises: WrongState, NeedsCode."""
        return await self._everywhere("go_on", run_id, run_id, True, accept)

    async def scale(self, ceiling: int | None) -> None:
        """Let steps use so many CPUs of the cluster at most, shared out evenly among the coordinators; None: all there are.

        What runs beyond them comes to its end. It holds until a coordinator is restarted.

        Raises: DefinitionError for less than one.
        """
        names = await self._coordinators()
        part = ceiling if ceiling is None or ceiling < 1 else max(1, ceiling // len(names))
        for answer in [await self._repeat(name, "scale", part) for name in names]:
            _told(*answer)

    async def recover_stale(self) -> int:
        """Have runs whose owner is gone taken over now; returns how many were."""
        answers = [await self._repeat(name, "recover_stale") for name in await self._coordinators()]
        return sum(_told(*answer) for answer in answers)

    async def statistics(self) -> dict[str, dict[str, Any]]:
        """Return what each coordinator has under way and waiting, by its name."""
        return {name: await self._repeat(name, "figures") for name in await self._coordinators()}

    async def totals(self) -> dict[str, float | None]:
        """Return what all coordinators have counted and measured, together, as `engine.observe.metrics.seed_figures` names it."""
        return totals(await self.statistics())

    async def survey(self, patience: float = 2.0) -> dict[str, dict[str, Any] | None]:
        """Return the same, None for a coordinator that does not answer within so many seconds: what a health check asks.

        Raises: ClusterUnavailable where the cluster does not even say which there are.
        """
        try:
            names = await asyncio.wait_for(self._coordinators(), patience)
        except TimeoutError as error:
            raise ClusterUnavailable(f"the Ray cluster does not answer within {patience:g} s") from error
        answers = await asyncio.gather(*(self._figures(name, patience) for name in names))
        if None in answers:
            await self._refresh()  # one that is gone for good is not asked for ever
        return dict(zip(names, answers, strict=True))

    async def _figures(self, name: str, patience: float) -> dict[str, Any] | None:
        try:
            return await asyncio.wait_for(self._once(name, "figures"), patience)
        except (*remote_fleet.AWAY, ClusterUnavailable, TimeoutError):
            return None

    # Calls.

    async def call(self, method: str, run_id: str, *arguments: Any) -> Any:
        """Return what a coordinator answers, asked again for as long as it is away. Raises: what it tells."""
        return _told(*await self._ask(method, _route(run_id), *arguments))

    async def _everywhere(self, method: str, run_id: str, *arguments: Any) -> Any:
        """The same of the one that drives the run, whichever it is."""
        until = time.monotonic() + self._patience
        busy: RunBusy | None = None
        while True:
            for name in self._order(_route(run_id), await self._coordinators()):
                try:
                    return _told(*await self._once(name, method, *arguments))
                except RunBusy as error:
                    busy = error
                except remote_fleet.AWAY:
                    continue
            if time.monotonic() > until:
                raise busy or ClusterUnavailable(f"no coordinator answers to {method!r} of run {run_id!r}")
            await self._refresh()

    async def _ask(self, method: str, route: str, *arguments: Any) -> tuple[str, Any]:
        """Ask the coordinator that a run is usually driven by, and the others where it stays away."""
        until, attempt = time.monotonic() + self._patience, 0
        while True:
            names = self._order(route, await self._coordinators())
            try:
                return await self._once(names[attempt // 3 % len(names)], method, *arguments)
            except remote_fleet.AWAY as away:
                if time.monotonic() > until:
                    raise ClusterUnavailable(f"no coordinator answers in {self._patience:g} s: {away}") from away
            except ClusterUnavailable:
                if time.monotonic() > until:
                    raise
            attempt += 1
            await asyncio.sleep(AGAIN[min(attempt, len(AGAIN)) - 1])
            await self._refresh()

    async def _repeat(self, name: str, method: str, *arguments: Any) -> Any:
        """Ask one coordinator, again for as long as it is away."""
        until = time.monotonic() + self._patience
        while True:
            try:
                return await self._once(name, method, *arguments)
            except remote_fleet.AWAY as away:
                if time.monotonic() > until:
                    raise ClusterUnavailable(f"{name} does not answer in {self._patience:g} s: {away}") from away
                await asyncio.sleep(AGAIN[-1])

    async def _once(self, name: str, method: str, *arguments: Any) -> Any:
        handle = self._handles.get(name)
        if handle is None:
            handle = self._handles[name] = await asyncio.to_thread(remote_fleet.get, name)
        try:
            return await asyncio.wait_for(getattr(handle, method).remote(*arguments), ANSWER)
        except TimeoutError as error:
            self._silent[name] = time.monotonic() + SILENT
            raise remote_fleet.AWAY[-1](f"{name} does not answer") from error
        except remote_fleet.AWAY:
            self._handles.pop(name, None)  # another may have come in its place
            raise

    def _order(self, route: str, names: list[str]) -> list[str]:
        """Return the coordinators, beginning with the one that a run is usually driven by; those that did not answer lately come last."""
        first, now = sum(route.encode()) % len(names), time.monotonic()
        return sorted(names[first:] + names[:first], key=lambda name: self._silent.get(name, now) > now)

    async def _refresh(self) -> None:
        self._names = []

    async def _coordinators(self) -> list[str]:
        """Return the coordinators' names; they are made where there are none."""
        if not self._names:
            self._names = await asyncio.to_thread(self._find)
        return self._names

    def _name_set(self) -> str:
        """Return how the coordinators' names begin."""
        remote.ensure(start=False)
        if not self._prefix:
            self._here = remote_fleet.node() if self.storage.startswith("file:") else None
            if self._environment is None:
                self._environment = remote_fleet.environment()
            where = "" if self._here is None else f"@{self._here[:12]}"
            self._prefix = f"gecko-{set_of(self.storage, self._environment, self._here, __version__)}{where}-"
        return self._prefix

    def _prepare(self, plan: Any) -> tuple[str, bytes, dict[str, Any]]:
        """Return a plan's parcel by name, and what is around this process; all of it may ask Ray, so it is done in one thread."""
        found = None if self._kept is None else self._kept.get(id(plan))
        token, data = _parcelled(plan) if found is None else found[1:]
        if self._kept is not None:
            self._kept[id(plan)] = plan, token, data
        return token, data, {"set": self._name_set(), **_surroundings(self._environment)}

    def _find(self) -> list[str]:
        self._name_set()
        found = remote_fleet.find(self._prefix)
        if not found:
            for i in range(self._count):
                name = f"{self._prefix}{i}"
                arguments = name, self.storage, self._environment, asdict(self._limits), self._count
                remote_fleet.create(name, arguments, self._environment or {}, self._here)
            found = [f"{self._prefix}{i}" for i in range(self._count)]
        return found


class ClusterRun:
    """A run that belongs to a cluster, as its handle sees it."""

    def __init__(self, cluster: Cluster, run_id: str) -> None:
        """Name a run."""
        self.run_id = run_id
        parts = split_run_id(run_id)
        if parts is None:
            raise RunNotFound(f"run {run_id!r} not found: an id is workflow.session.n")
        self.key = RunKey(*parts)
        self._cluster = cluster
        self._asked: list[asyncio.Task[str]] = []
        self._end: tuple[str, BaseException | None, Any, list[MemberResult]] | None = None

    lasting = True

    @property
    def status(self) -> str:
        """The run's status; asks, so it may take a moment."""
        return self._end[0] if self._end is not None else run_blocking(self._cluster.status(self.run_id))

    async def wait(self) -> None:
        """Wait for the end.

        Raises: WrongState where it was asked for what it cannot do any more.
        """
        while self._asked:
            await self._asked.pop()
        if self._end is None:
            await self._cluster.wait(self.run_id)
            status, error, output, results = await self._cluster.call("outcome", self.run_id, self.run_id)
            self._end = (
                status, None if error is None else original_of(pickle.loads(error)), None if output is None else Encoded(output),
                [] if results is None else pickle.loads(results),
            )  # fmt: skip

    @property
    def error(self) -> BaseException | None:
        """What a handle raises."""
        return None if self._end is None else self._end[1]

    @property
    def heavy(self) -> bool:
        """Whether to take the output takes long: where it is not known yet it has to be asked for."""
        return self._end is None or is_long(self._end[2])

    def _view(self) -> Any:
        return decode(run_blocking(self._cluster.call("view", self.run_id, self.run_id)))

    def output(self) -> Any:
        """The newest output."""
        return self._end[2].load() if self._end is not None and self._end[2] is not None else self._view()[1]

    def state(self) -> dict[Any, Any]:
        """The merged state."""
        return self._view()[2]

    def history(self) -> dict[str, Any]:
        """The window over the newest entries."""
        return dict(self._view()[3])

    def rows(self) -> list[Row]:
        """The newest rows."""
        return [Row(*row) for row in self._view()[4]]

    def results(self) -> list[MemberResult]:
        """How the members of a team ended that is performed alone."""
        found: list[MemberResult] = []
        for result, told in zip(self._end[3] if self._end else [], self.output(), strict=True):
            value = result.result if isinstance(result.result, Next) else told["result"]
            found.append(replace(result, result=value, exception=opened_error(result.exception)))
        return found

    def request(self, halt: Halt) -> None:
        """Ask the run to stop; `wait` tells what came of it. A caller that leaves (`DRAIN`) leaves the run to the cluster."""
        if halt not in (Halt.PAUSE, Halt.CANCEL):
            return
        self._end = None
        asked = self._cluster.pause(self.run_id) if halt is Halt.PAUSE else self._cluster.cancel(self.run_id)
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            run_blocking(asked)
        else:
            self._asked.append(loop.create_task(asked))

    async def events(self, *, after: int, transient: bool) -> AsyncIterator[Event]:
        """Yield events, each durable one once, through coordinators that are restarted, until the run stops."""
        reader = uuid.uuid4().hex
        while True:
            found = await self._cluster.call("follow", self.run_id, self.run_id, reader, after, transient)
            if found is None:
                return
            for *fields, data, ordinal in found:
                event = Event(*fields, decode(data), ordinal)  # type: ignore[arg-type] - as many fields as an event has
                if not ordinal:
                    if event.seq <= after:
                        continue
                    after = event.seq
                yield event


def _told(kind: str, answer: Any) -> Any:
    """Return what a coordinator answered. Raises: what it tells."""
    if kind == "error":
        raise original_of(pickle.loads(answer))
    return answer


def _route(run_id: str) -> str:
    """Return what all runs of a session share."""
    return run_id.rpartition(".")[0]


def _parcelled(plan: Any) -> tuple[str, bytes]:
    """Return the name of a plan's pickled parcel, and the parcel."""
    data = pickle.dumps(parcel(plan))
    return hashlib.blake2b(data, digest_size=16).hexdigest(), data


def _surroundings(environment: dict[str, Any] | None) -> dict[str, Any]:
    """Return what is around this process that its code may need; the runtime environment is the coordinators', where one was said."""
    remote.ensure(start=False)
    cwd, paths = surroundings()
    return {"environment": remote_fleet.environment() if environment is None else environment, "cwd": cwd, "paths": paths}
