"""Questions that the engine has for user code, answered in this process: conditions, custom reducers, a team's mapper and judge.

What is called is called in `engine.runtime.step`.
"""

from engine.checkpoint.codec import private
from engine.core.context import Question
from engine.core.ids import make_step_id
from engine.core.run import Answer, Apply, Ask
from engine.core.state import Combine
from engine.runtime.step import Moment, OffLoop, combined, judged


async def ask(question: Ask, moment: Moment, off_loop: OffLoop, run_id: str) -> Answer:
    """Ask a condition, in its limit; what it raises counts as false, and is told."""
    plan = moment.plan
    source = plan.names[plan.source[question.edge]]
    binding = plan.edges[question.edge].condition
    assert binding is not None
    ctx = Question(moment.scene, moment.state, question.window, source, make_step_id(run_id, source, question.at))

    verdict, error = await judged(binding, ctx, question.output, off_loop)
    return Answer(question, verdict, error)


async def reduce(question: Combine | Apply, moment: Moment, off_loop: OffLoop) -> Answer:
    """Let a custom reducer combine concurrent writes; a team's mapper or judge say what they make of what they are given."""
    if isinstance(question, Apply):
        function, given, where = question
    else:
        function, given = moment.plan.options.custom[question.reducer], (question.base, question.writes)
        where = f"reducer {question.reducer} of state key {question.key!r}"
    return Answer(question, *await combined(function, lambda: [private(value) for value in given], off_loop, where))
