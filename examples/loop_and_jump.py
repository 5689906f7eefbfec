"""Two ways to go back: an edge that closes a loop, and a body that jumps.

    begin ─▶ improve ─▶ keep          improve ─▶ improve, while the root is rough
                ◀─ jump ─┘            keep jumps with the next number, until there is none

Square roots by Newton's method: the loop makes one root good, the jump begins the next one.
"""

import asyncio

from engine import Context, Engine, Next, Workflow, step


@step
def begin(asked: dict[str, int]) -> dict[str, float]:
    return {"number": asked["first"], "root": 1.0}


@step
def improve(guess: dict[str, float]) -> dict[str, float]:
    number, root = guess["number"], guess["root"]
    return {"number": number, "root": (root + number / root) / 2}


def rough(ctx: Context) -> bool:
    return abs(ctx.step_input["root"] ** 2 - ctx.step_input["number"]) > 1e-9  # what the edge's source gave


@step
def keep(guess: dict[str, float], ctx: Context) -> Next | dict[int, float]:
    roots = ctx.state.setdefault("roots", {})
    roots[guess["number"]] = round(guess["root"], 6)
    if guess["number"] < ctx.input["last"]:
        return Next("improve", input={"number": guess["number"] + 1, "root": guess["root"]})
    return roots


flow = (
    Workflow("roots", storage="memory://roots", allow_cycles=True, max_steps=50)  # it may go back that often
    .add_node("begin", begin)
    .add_node("improve", improve)
    .add_node("keep", keep)
    .add_edge("begin", "improve")
    .add_edge("improve", "improve", rough)
    .add_edge("improve", "keep", lambda ctx: not rough(ctx))
    .set_entry_point("begin")
)


async def main() -> None:
    run = await Engine(flow.storage).start(flow, {"first": 2, "last": 5})
    roots = await run.wait()
    print("passes:", *(row.step_id.partition("/")[2] for row in run.executions if row.status == "success"))
    print("roots:", roots)


if __name__ == "__main__":
    asyncio.run(main())
