"""Coordinators of a cluster without Ray: their workers are threads of this process, and its memory for code is a dictionary."""

import asyncio
import hashlib
import pickle
import threading
from collections import Counter
from typing import Any

from cluster import coordinator as module
from cluster.code import parcel
from cluster.detached import Detached
from cluster.opened import Home, Opened
from cluster.progress import Progress, Watch, answer
from cluster.submission import Submission
from cluster.wire import PackWire, read_pack
from cluster.worker import perform_calls, perform_chain
from engine import Workflow
from engine.checkpoint.codec import Encoded, encode
from engine.checkpoint.record import Recorded
from engine.runtime.bind import code_of
from engine.runtime.session import Request
from tests.cluster.test_dispatch import Threaded, fetched

WITHIN = 20.0
performed: Counter[str] = Counter()
gate = threading.Event()


class Workers(Threaded):
    """Threads that perform packs, ask their coordinator as workers do, and are left behind where they are stopped."""

    coordinator: Detached

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.get_running_loop()

    async def warm_up(self) -> list[int]:
        return []

    def send(self, data: bytes, refs: list[Any], resources: Any) -> Any:
        pack, ref = read_pack(data), self.loop.create_future()

        def done(work: Any) -> None:
            self.loop.call_soon_threadsafe(lambda: ref.done() or ref.set_result(work.result()))

        self._threads.submit(self.perform, pack, refs).add_done_callback(done)
        return ref

    def cancel(self, ref: Any, *, force: bool) -> None:
        if not ref.done():
            ref.set_exception(RuntimeError("stopped"))

    def perform(self, pack: PackWire, refs: list[Any]) -> Any:
        def report(name: str, data: bytes) -> None:
            self.loop.call_soon_threadsafe(self.coordinator._pool.take_report, data)

        def ask(name: str, *args: Any) -> Any:
            return asyncio.run_coroutine_threadsafe(getattr(self.coordinator, name)(*args), self.loop)

        home = Home(lambda name, *args: ask(name, *args).result(), None, report, fetched, ask)  # type: ignore[arg-type]
        progress, ready = Progress(pack, home), Opened(pack, refs, home)
        with Watch().over(progress):
            (perform_chain if pack.kind == "chain" else perform_calls)(ready, progress)
        return answer(progress)


class Shelf:
    """What a cluster keeps of code, and where it finds it again."""

    def __init__(self) -> None:
        self.parcels: dict[str, bytes] = {}
        self.modules: dict[str, tuple[bytes, Any]] = {}

    async def keep(self, token: str, data: bytes) -> None:
        self.parcels[token] = data

    async def kept(self, token: str) -> bytes | None:
        return self.parcels.get(token)

    async def load(self, target: str, cwd: str, paths: tuple[str, ...]) -> tuple[bytes | None, Any]:
        return self.modules.get(target, (None, "there is no such module"))


class Fleet:
    """Coordinators over one storage, which come and go."""

    def __init__(self, monkeypatch: Any, place: str) -> None:
        self.place = place
        self.shelf = Shelf()
        self.alive: list[Detached] = []
        self._workers: list[Workers] = []
        self._monkeypatch = monkeypatch

    def begin(self, parts: int = 1, **limits: Any) -> Detached:
        """Start a coordinator, which does not look for runs by itself."""
        workers = Workers()
        self._monkeypatch.setattr(module, "make_remote", lambda: workers)
        made = Detached(f"coordinator {len(self.alive)}", self.place, {}, limits, parts, self.shelf)
        workers.coordinator = made
        self._workers.append(workers)
        self.alive.append(made)
        return made

    async def end(self, one: Detached) -> None:
        """End a coordinator with what it drives; nothing is told to its runs, and their claims are gone."""
        self.alive.remove(one)
        tasks = [run.task for run in one._runs.values() if run.task is not None and not run.task.done()]
        tasks += [one._attending, *one._beside] if one._attending is not None else []
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    async def end_all(self) -> None:
        gate.set()
        for one in list(self.alive):
            await self.end(one)
        for workers in self._workers:  # while there is a loop that answers what they ask
            await asyncio.to_thread(workers._threads.shutdown)

    async def submit(self, one: Detached, flow: Workflow, input: Any = None, **options: Any) -> tuple[str, str]:
        """Submit a run as a client does; returns its id and status. Raises: what the coordinator tells."""
        token, packed = parcelled(flow)
        request, submission = submitted(flow, token, input, **options)
        kind, answer = await one.submit(token, request, None, submission.data())
        if kind == "parcel":
            kind, answer = await one.submit(token, request, packed, submission.data())
        return told((kind, answer))

    async def recorded(self, one: Detached, run_id: str) -> Recorded:
        """Read a run's log."""
        return Recorded(await one._log.read(await one._engine.find(run_id)))


def parcelled(flow: Workflow) -> tuple[str, bytes]:
    data = pickle.dumps(parcel(flow.compiled()))
    return hashlib.blake2b(data, digest_size=16).hexdigest(), data


def submitted(
    flow: Workflow, token: str, input: Any = None, *, session: str = "s", ticket: str = "t", new: bool = False, priority: int = 0,
    limit: float | None = None, target: str | None = None,
) -> tuple[bytes, Submission]:  # fmt: skip
    strategy = flow.checkpoint_strategy.value
    request = Request(
        workflow=flow.name, plan=None, session=session, input=Encoded(encode(input)), new=new, timeout=limit, strategy=strategy,  # type: ignore[arg-type]
        target=target, code=code_of(flow.compiled()),
    )  # fmt: skip
    return pickle.dumps(request), Submission(ticket=ticket, parcel=token, strategy=strategy, limit=limit, priority=priority)


def told(answered: tuple[str, Any]) -> Any:
    kind, answer = answered
    if kind == "error":
        raise pickle.loads(answer)
    assert kind == "ok"
    return answer


async def end_of(one: Detached, run_id: str) -> str:
    """Return how a run has stopped."""
    return told(await one.settled(run_id, WITHIN))


def note(x: Any) -> Any:
    performed[f"note {x}"] += 1
    return x


def hold(x: Any) -> Any:
    performed[f"hold {x}"] += 1
    gate.wait(WITHIN)
    return x


def fail(x: Any) -> Any:
    performed[f"fail {x}"] += 1
    if not gate.is_set():
        raise ValueError("not yet")
    return x


def quick(**options: Any) -> Workflow:
    """Return a workflow of one step."""
    return Workflow("quick", **options).add_node("note", note).set_entry_point("note")


def held(name: str = "held", **options: Any) -> Workflow:
    """Return a workflow whose second step of three ends when the gate is opened."""
    flow = Workflow(name, **options).add_node("before", note).add_node("hold", hold).add_node("after", note)
    return flow.add_edge("before", "hold").add_edge("hold", "after").set_entry_point("before")


def failing() -> Workflow:
    """Return a workflow that fails until the gate is opened."""
    return Workflow("failing").add_node("before", note).add_node("fail", fail).add_edge("before", "fail").set_entry_point("before")
