"""Teams: bodies performed together, as a node of a workflow or alone."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

from engine.core.context import Context
from engine.core.graph import Composite, Node, Problem
from engine.core.ids import check_name
from engine.core.policy import Limits, Policy, Resources, check_limit
from engine.core.team import ALL, Member, MemberResult, Strategy, TeamPlan
from engine.engine import Engine
from engine.errors import DefinitionError, StepFailed, TeamTimedOut
from engine.runtime.bind import bind
from engine.runtime.control import Halt
from engine.runtime.step import judge_of
from engine.workflow import Workflow

_STRATEGIES = "ALL, RACE, HEDGE(delay), QUORUM(k), VOTE or BEST(judge), as from engine import RACE"


class Team(Composite):
    """Bodies performed together on one input, and a strategy that says when there is an answer and whose it is.

    The answer is a list of `MemberResult`; where nobody could win it is one failure for each member, which is no failure of the team: take
    the `.value` of a result, which raises. A team is a body: of a node, of a map, of a member of another team; or it is run by itself.
    Runs of one team share nothing, so any number of them may be under way.
    """

    def __init__(
        self, members: Iterable[Any], name: str = "Team", max_concurrent: int | None = 0, return_full_output: bool = False,
        strategy: Strategy = ALL, input_mapper: Callable[[Any, int], Any] | None = None, *, timeout: float | None = None,
    ) -> None:  # fmt: skip
        """Name the members.

        Args:
            members: Functions (sync or async), objects with `run`, Workflows, Teams; a `Member` says what is to hold for one alone. What
                is no body is a member that fails.
            max_concurrent: How many members at once; 0: all.
            return_full_output: Keep an output with a text `content`, as an agent's is, instead of taking that text alone.
            strategy: ALL, RACE, HEDGE(delay), QUORUM(k), VOTE, BEST(judge), or a `Strategy` of your own.
            input_mapper: Makes each member's input: `input_mapper(raw, index)`, sync or async; None: all get the team's.
            timeout: Seconds for the team. ALL, VOTE and BEST go on with what has ended, the others raise TeamTimedOut.

        Raises: DefinitionError (a ValueError) for an empty team under any strategy but ALL, and for more successes than members.
        """
        members = _listed(members)
        if isinstance(name, Strategy):
            text = f"a team's name must be a text, not {name.text}: write Team(members, strategy={name.text})"
            raise DefinitionError(text, where="name")
        if wrong := check_name(name, "a team's name"):
            raise DefinitionError(wrong, where="name")
        if not isinstance(strategy, Strategy):
            hint = "call it: HEDGE(delay), QUORUM(k), BEST(judge)" if callable(strategy) else f"pass {_STRATEGIES}"
            raise DefinitionError(f"team {name!r}: strategy={strategy!r} is no Strategy; {hint}", where="strategy")
        if max_concurrent is not None and (type(max_concurrent) is not int or max_concurrent < 0):
            text = f"team {name!r}: max_concurrent={max_concurrent!r} is no number from 0 (no limit)"
            raise DefinitionError(text, where="max_concurrent")
        if input_mapper is not None and not callable(input_mapper):
            raise DefinitionError(f"team {name!r}: input_mapper={input_mapper!r} is no function of (input, index)", where="input_mapper")
        self.name = name
        self.members = members
        self.strategy = strategy
        self.max_concurrent = max_concurrent or 0
        self.return_full_output = return_full_output
        self.input_mapper = input_mapper
        self.timeout = check_limit(timeout, f"team {name!r}: timeout")
        count = len(self.members)
        if not count and strategy.chooses:
            raise DefinitionError(f"team {name!r} has no members, so nobody can win; only ALL takes an empty team", where="members")
        if strategy.need is not None and strategy.need > count:
            few = f"{count} member{'' if count == 1 else 's'}"
            raise DefinitionError(f"team {name!r} needs {strategy.need} successes of its {few}", where="strategy")
        self._bound: tuple[Any, ...] = tuple(_bound(member, name, i, brief=not return_full_output) for i, member in enumerate(self.members))
        self._plan: TeamPlan | None = None
        self._alone: dict[float | None, tuple[TeamPlan, Workflow]] = {}
        """By limit: the workflow of the team alone, and the plan that it was made of."""

    def __repr__(self) -> str:
        return f"Team({self.name!r}, members={len(self.members)}, strategy={self.strategy.text})"

    async def run(self, input_or_context: Any = None, timeout: float | None = None) -> list[MemberResult]:
        """Perform the team by itself, recorded nowhere, and return its answer.

        In this process, or on Ray where this process is connected to one; inside of a body in its process.

        Args:
            input_or_context: The input, or the context of a body, whose input it is then.
            timeout: Seconds, in place of the team's own.

        The result of a member that jumps is its `Next`, for a body to hand on. A loser that does not listen when it is cancelled is not
        waited for here, but `asyncio.run` waits for it when everything else has ended.

        Raises: TeamTimedOut (a RuntimeError).
        """
        given = input_or_context.step_input if isinstance(input_or_context, Context) else input_or_context
        limit = self.timeout if timeout is None else check_limit(timeout, "timeout")
        handle = await Engine(False).start(self._flow(limit), given, watch=False)
        try:
            await handle.wait(unwanted=Halt.CANCEL)
        except StepFailed as failed:
            if isinstance(failed.__cause__, TeamTimedOut):
                raise failed.__cause__ from None
            raise
        return handle.results()

    __call__ = run

    def _flow(self, limit: float | None) -> Workflow:
        """Return the workflow of this team alone; one for each limit, since a plan that is known need not travel again."""
        plan = self.compiled()
        known, flow = self._alone.get(limit, (None, None))
        if flow is None or known is not plan:
            while len(self._alone) >= 8:
                del self._alone[next(iter(self._alone))]
            flow = Workflow(self.name, storage=False)
            node = "team" if "[" in self.name or self.name == "last_output" else self.name
            flow.add_node(node, _Alone(replace(plan, timeout=limit, alone=True))).set_entry_point(node)
            self._alone[limit] = plan, flow
        return flow

    def compiled(self) -> TeamPlan:
        """Return the team as it is performed. Raises: InvalidGraph for a member that is a workflow with problems."""
        bodies = [b.body.compiled() if isinstance(b.body, Composite) else b.body for b in self._bound]
        if self._plan is None or not all(body is member.body for body, member in zip(bodies, self._plan.members, strict=True)):
            nodes = [replace(bound, body=body) for bound, body in zip(self._bound, bodies, strict=True)]
            lacks = {i: lack for i, node in enumerate(nodes) if (lack := _lack(node)) is not None}
            self._plan = TeamPlan(
                name=self.name, members=tuple(nodes), lacks=lacks, strategy=self.strategy, width=self.max_concurrent or None,
                mapper=self.input_mapper, judge=judge_of(self.strategy.judge), timeout=self.timeout,
            )  # fmt: skip
        return self._plan

    def problems(self) -> list[Problem]:
        """Return what is wrong with the members; one that is no body stops nothing, since it is one failed result."""
        found: list[Problem] = []
        for i, node in enumerate(self._bound):
            where = f"{self.name}[{i}]"
            if (lack := _lack(node)) is not None:
                found.append(Problem("member", f"member {where}: {lack}", where, warning=True))
            elif isinstance(node.body, Composite):
                found += [p._replace(text=f"in member {where}: {p.text}", where=f"{where}/{p.where}") for p in node.body.problems()]
        return found

    def contains(self, other: Any) -> bool:
        """Tell whether something is this team, or in it at any depth."""
        return other is self or any(isinstance(b.body, Composite) and b.body.contains(other) for b in self._bound)


def _listed(members: Any) -> tuple[Any, ...]:
    """Return members as they were listed; what is no list of them is refused with what to write."""
    if isinstance(members, (str, bytes)):
        raise DefinitionError(f"the members of a team must be a list of bodies, not the text {members!r:.80}", where="members")
    try:
        return tuple(members)
    except TypeError:
        text = f"the members of a team must be a list, not {members!r:.80}: write Team([{_name_of(members)}, ...])"
        raise DefinitionError(text, where="members") from None


class _Alone(Composite):
    """A team's plan as the only body of a workflow."""

    def __init__(self, plan: TeamPlan) -> None:
        self._plan = plan

    def compiled(self) -> TeamPlan:
        """Return the plan."""
        return self._plan


class _NoBody:
    """Stands for a member that cannot be performed, and says why."""

    def __init__(self, why: str) -> None:
        self.why = why


def _bound(given: Any, team: str, index: int, *, brief: bool) -> Node:
    """Return a member as a node of its own, its signature read."""
    member = given if isinstance(given, Member) else Member(given)
    where = f"team {team!r}, member {index}"
    try:
        resources = Resources(num_cpus=member.num_cpus, num_gpus=member.num_gpus, memory=member.memory, custom=member.resources)
        limits = Limits(attempt=check_limit(member.timeout, "timeout"))
    except DefinitionError as error:
        raise DefinitionError(f"{where}: {error}", where=f"{team}[{index}]: {error.where}") from None
    body: Any = member.body
    if not isinstance(body, Composite):
        try:
            body = bind(body, "", brief=brief)
        except DefinitionError as error:
            body = _NoBody(f"not executable: {error}")
    return Node(name=_name_of(member.body), body=body, policy=Policy(limits=limits, resources=resources), kind="member")


def _lack(node: Node) -> str | None:
    return node.body.why if isinstance(node.body, _NoBody) else None


def _name_of(body: Any) -> str:
    """Return what a member is called in events."""
    name = getattr(body, "_step_name", None) or getattr(body, "name", None) or getattr(body, "__name__", None)
    return name if isinstance(name, str) and name else type(body).__name__
