"""What a body sees of its run: a copy-on-write view of the state that records a diff, and a window over the history.

A view costs in proportion to what is read and written through it. A container read from the base is a private copy, so an edit
in place stays with the step; it counts as a write only where it left the container different.
"""

from collections.abc import Callable, ItemsView, Iterator, KeysView, Mapping, ValuesView
from typing import Any, Final, cast

from engine.core.history import Row, Window
from engine.core.state import SCALARS, Growth, Lazy, StateDiff, growth, opened, same

Private = Callable[[Any], Any]
_MISSING: Final = object()


class _Filler:
    """The one entry in a view's own storage: C code (json's encoder) takes a dict with empty storage for an empty dict."""

    __slots__ = ()


class View(dict[Any, Any]):
    """A mapping over a base that is never changed; writes and deletes stay in the view.

    It is a `dict`, so that code which asks for one takes it; every method goes through base and overlay.
    """

    __slots__ = ("_base", "_deleted", "_private", "_read", "_written")

    def __init__(self, base: Mapping[Any, Any], private: Private) -> None:
        """Look at `base` through a private overlay; `private` copies what may be edited in place."""
        super().__init__({_Filler: None})
        self._base = base
        self._private = private
        self._written: dict[Any, Any] = {}
        self._read: dict[Any, Any] = {}
        self._deleted: set[Any] = set()

    def __getitem__(self, key: Any) -> Any:
        if key in self._written:
            return self._written[key]
        if key in self._read:
            return self._read[key]
        if key in self._deleted:
            raise KeyError(key)
        value = self._base[key]
        if type(value) in SCALARS:
            return value
        copy = self._read[key] = value.load() if isinstance(value, Lazy) else self._private(value)
        return copy

    def __setitem__(self, key: Any, value: Any) -> None:
        hash(key)
        self._written[key] = value
        self._read.pop(key, None)

    def __delitem__(self, key: Any) -> None:
        if key not in self:
            raise KeyError(key)
        self._written.pop(key, None)
        self._read.pop(key, None)
        if key in self._base:
            self._deleted.add(key)

    def __contains__(self, key: object) -> bool:
        return key in self._written or (key in self._base and key not in self._deleted)

    def __iter__(self) -> Iterator[Any]:
        for key in self._base:
            if key in self:
                yield key
        for key in self._written:
            if key not in self._base:
                yield key

    def __reversed__(self) -> Iterator[Any]:
        return reversed(list(self))

    def __len__(self) -> int:
        gone = sum(1 for k in self._deleted if k not in self._written)
        return len(self._base) - gone + sum(1 for k in self._written if k not in self._base)

    def __bool__(self) -> bool:
        return len(self) > 0

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Mapping) and dict(self.items()) == dict(cast("Mapping[Any, Any]", other).items())

    def __ne__(self, other: object) -> bool:
        return not self == other

    __hash__ = None  # type: ignore[assignment]

    def __or__(self, other: Any) -> dict[Any, Any]:
        return dict(self.items()) | dict(other)

    def __ror__(self, other: Any) -> dict[Any, Any]:
        return dict(other) | dict(self.items())

    def __ior__(self, other: Any) -> "View":  # type: ignore[override]
        self.update(other)
        return self

    def __repr__(self) -> str:
        return repr(dict(self.items()))

    def __reduce__(self) -> tuple[Any, ...]:
        return dict, (list(self.items()),)

    def keys(self) -> Any:
        """Return the keys, as a set-like view."""
        return KeysView(self)

    def values(self) -> Any:
        """Return the values, as a view."""
        return ValuesView(self)

    def items(self) -> Any:
        """Return the pairs, as a view."""
        return ItemsView(self)

    def get(self, key: Any, default: Any = None) -> Any:
        """Return the value of a key, or the default."""
        if key not in self:
            return default
        return self[key]

    def copy(self) -> dict[Any, Any]:
        """Return a plain dict with the same entries."""
        return dict(self.items())

    def setdefault(self, key: Any, default: Any = None) -> Any:
        """Return the value of a key, writing the default first where there is none."""
        if key not in self:
            self[key] = default
        return self[key]

    def pop(self, key: Any, default: Any = _MISSING) -> Any:
        """Delete a key and return its value."""
        if key not in self:
            if default is _MISSING:
                raise KeyError(key)
            return default
        value = self[key]
        del self[key]
        return value

    def popitem(self) -> tuple[Any, Any]:
        """Delete the newest key and return it with its value."""
        for key in self.__reversed__():
            return key, self.pop(key)
        raise KeyError("the state is empty")

    def clear(self) -> None:
        """Delete every key."""
        for key in list(self):
            del self[key]

    def update(self, *others: Any, **more: Any) -> None:
        """Write the entries of a mapping or of pairs, then keyword arguments; anything else is a TypeError."""
        for key, value in dict(*others, **more).items():
            self[key] = value

    def touched(self) -> list[Any]:
        """Return what a diff looks at: assigned values, and containers that were read."""
        return [*self._written.values(), *self._read.values()]

    def diff(self, version: int = 0) -> StateDiff:
        """Return what was written and deleted: assigned keys, and containers that were read and are now different."""
        base = self._base
        written: dict[Any, Any] = {}
        for key, value in self._written.items():
            written[key] = _against(base, key, value)
        for key, value in self._read.items():
            held = opened(base[key])
            if not same(held, value):
                written[key] = growth(held, value) or value
        return StateDiff(written, frozenset(k for k in self._deleted if k not in written), version)


def _against(base: Mapping[Any, Any], key: Any, value: Any) -> Any:
    if type(value) in SCALARS or key not in base:
        return value
    more = growth(opened(base[key]), value)
    return value if more is None else more


class ReadOnly(View):
    """The state as a condition sees it: to read, not to write."""

    __slots__ = ()

    def _refuse(self, *_: Any, **__: Any) -> Any:
        raise TypeError("a condition may read the state, not write it")

    __setitem__ = __delitem__ = setdefault = pop = popitem = clear = update = __ior__ = _refuse


class History(Mapping[str, Any]):
    """The window over the newest outputs as one body sees it; a container read from it is a private copy.

    `history["last_output"]` reads the newest output; iteration and length are of nodes alone.
    """

    __slots__ = ("_private", "_read", "_window")

    def __init__(self, window: Window, private: Private) -> None:
        """Look at a shared window; `private` copies what may be edited in place."""
        self._window = window
        self._private = private
        self._read: dict[str, Any] = {}

    def __getitem__(self, node: str) -> Any:
        if node not in self._read:
            value = self._window.last if node == "last_output" else self._window.entries()[node]
            self._read[node] = value.load() if isinstance(value, Lazy) else self._private(value)
        return self._read[node]

    def __contains__(self, node: object) -> bool:
        return node == "last_output" or node in self._window.entries()

    def __iter__(self) -> Iterator[str]:
        return iter(self._window.entries())

    def __len__(self) -> int:
        return len(self._window.entries())

    def __repr__(self) -> str:
        return repr(dict(self))


class Scene:
    """What all bodies of one run share: its names, its input, and the way back to its driver."""

    __slots__ = ("deadline", "input", "metadata", "private", "rows", "run_id", "services", "session_id")

    def __init__(
        self,
        *,
        run_id: str,
        session_id: str | None,
        input: Any,
        private: Private,
        rows: Callable[[], list[Row]],
        services: Any,
        metadata: dict[str, Any] | None = None,
        deadline: float | None = None,
    ) -> None:
        """Keep what does not change while the run goes on; `services` performs `once`, `checkpoint`, `progress` and finds the logger."""
        self.run_id = run_id
        self.session_id = session_id
        self.input = input
        self.private = private
        self.rows = rows
        self.services = services
        self.metadata = metadata or {}
        self.deadline = deadline


class Context:
    """What a body is given of its run. `WorkflowContext` is another name of it."""

    __slots__ = (
        *("_base", "_history", "_input", "_metadata", "_off_loop", "_scene", "_step_input", "_view", "_window"),
        *("attempt", "node", "step_id"),
    )

    node: str
    """The node's name (of a condition: the source's)."""
    step_id: str
    """The idempotency key: the same through every retry and crash."""
    attempt: int
    """From 1."""

    def __init__(
        self, scene: Scene, base: Mapping[Any, Any], window: Window, node: str, step_id: str, attempt: int = 1,
        off_loop: Callable[[Callable[[], Any]], Any] | None = None,
    ) -> None:  # fmt: skip
        """Made by the engine, once for each attempt."""
        self._scene = scene
        self._base = base
        self._window = window
        self.node = node
        self.step_id = step_id
        self.attempt = attempt
        self._step_input: Any = None
        self._off_loop = off_loop
        """Performs a sync function off the event loop; None where the body is on none."""
        self._view: View | None = None
        self._history: History | None = None
        self._input: Any = _MISSING
        self._metadata: dict[str, Any] | None = None

    @property
    def run_id(self) -> str:
        """The run's id, `workflow.session.n`."""
        return self._scene.run_id

    @property
    def execution_id(self) -> str:
        """The run's id, under the name that earlier versions used."""
        return self._scene.run_id

    @property
    def session_id(self) -> str | None:
        """The caller's key for the run, if it gave one."""
        return self._scene.session_id

    @property
    def input(self) -> Any:
        """The run's input."""
        if self._input is _MISSING:
            self._input = self._scene.private(opened(self._scene.input))
        return self._input

    @property
    def step_input(self) -> Any:
        """The input of this step (of a condition: its source's output)."""
        return self._step_input

    @property
    def state(self) -> View:
        """The state: a private view; what is written is merged when the layer ends."""
        if self._view is None:
            self._view = View(self._base, self._scene.private)
        return self._view

    @property
    def history(self) -> History:
        """The newest outputs by node."""
        if self._history is None:
            self._history = History(self._window, self._scene.private)
        return self._history

    @property
    def metadata(self) -> dict[str, Any]:
        """What the caller and the engine noted of the run (`session_id`, in a sub-workflow `parent_run_id`); a private copy."""
        if self._metadata is None:
            self._metadata = cast("dict[str, Any]", self._scene.private(self._scene.metadata))
        return self._metadata

    @property
    def executions(self) -> list[Row]:
        """The newest 100 rows of what ran, by layer, then declared order."""
        return self._scene.rows()

    @property
    def deadline(self) -> float | None:
        """When the run must have ended, in seconds since 1970; None without a limit."""
        return self._scene.deadline

    @property
    def logger(self) -> Any:
        """A logger whose records carry run, node and step."""
        return self._scene.services.logger(self)

    def get_last_output(self) -> Any:
        """Return the newest layer's output, or the run's input where nothing ran yet."""
        return self.history["last_output"]

    def get_last_output_as(self, kind: Any) -> Any:
        """Return the newest output as an instance of a type, a model or dataclass among them; TypeError where it does not fit."""
        return self._scene.services.build(kind, self.get_last_output())

    def get_summary(self) -> dict[str, Any]:
        """Return `execution_id`, `total_nodes`, `total_time` (seconds), `last_node` and `status` of what ran so far.

        A layer with a failed step has no rows before it is resumed, so a body of the same run reads `completed`.
        """
        rows = self.executions
        return {
            "execution_id": self.run_id,
            "total_nodes": len(rows),
            "total_time": sum(row.duration for row in rows),
            "last_node": rows[-1].node if rows else None,
            "status": "failed" if any(row.status == "failed" for row in rows) else "completed",
        }

    async def once(self, key: str, fn: Callable[[], Any], again: bool = False) -> Any:
        """Perform an effect of this step once and return its value, also after a crash; `key` names it within the step.

        The intent is committed, `fn` (async, or sync and then in a thread; without arguments) runs, its receipt is committed. An
        intent without a receipt raises `InDoubt`, unless `again` says that `fn` may be repeated.
        """
        return await self._scene.services.once(self, key, fn, again)

    async def checkpoint(self) -> None:
        """Return when everything that the run has done so far is on storage."""
        await self._scene.services.checkpoint(self)

    def progress(self, done: float, total: float | None = None, note: str = "") -> None:
        """Tell whoever watches how far this step is; never stored."""
        self._scene.services.progress(self, done, total, note)

    def to_storage_payload(self, max_history_steps: int = 10) -> dict[str, Any]:
        """Return the run as data without the trace and with the newest history entries; for callers, the log does not use it."""
        kept = list(self.history)[-max_history_steps:] if max_history_steps else list(self.history)
        history = {node: self.history[node] for node in kept}
        history["last_output"] = self.get_last_output()
        return {"execution_id": self.run_id, "input": self.input, "state": self.state.copy(), "history": history, "metadata": self.metadata}

    def touched(self) -> list[Any]:
        """Return the values that decide how long `wrote` takes. For the engine."""
        return [] if self._view is None else self._view.touched()

    def wrote(self, version: int = 0) -> StateDiff | None:
        """Return the diff that this attempt leaves, None where it never looked at the state. For the engine."""
        return None if self._view is None else self._view.diff(version)


class Question(Context):
    """The context of a condition: state can be read, not written."""

    __slots__ = ()

    @property
    def state(self) -> View:
        """The merged state, to read."""
        if self._view is None:
            self._view = ReadOnly(self._base, self._scene.private)
        return self._view


__all__ = ["Context", "Growth", "History", "Question", "ReadOnly", "Scene", "View"]
