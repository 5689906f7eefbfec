"""The workflow of the recorded runs in this folder. It must not change: what is recorded was written by it."""

import os
from typing import Any

from engine import Context, Workflow

performed: list[str] = []
"""What was performed in this process, by label."""


def plan(size: int, ctx: Context) -> list[int]:
    performed.append(ctx.node)
    ctx.state["blob"] = bytes(range(256)) * size
    return [1, 2, 3]


def measure(item: int, ctx: Context) -> int:
    performed.append(f"measure[{item}]")
    ctx.state["longest"] = "x" * item
    return item * item


def left(sizes: list[int], ctx: Context) -> int:
    performed.append(ctx.node)
    ctx.state["longest"] = "left"
    ctx.state["total"] = ctx.state.get("total", 0) + sum(sizes)
    return sum(sizes)


def right(sizes: list[int], ctx: Context) -> int:
    performed.append(ctx.node)
    ctx.state["longest"] = "rightmost"
    ctx.state["total"] = ctx.state.get("total", 0) + max(sizes)
    return max(sizes)


def never(given: Any) -> None:
    performed.append("never")


async def pay(given: Any, ctx: Context) -> str:
    performed.append(ctx.node)
    _die_in(ctx.node, before=True)
    receipt = await ctx.once("payment", lambda: "receipt 1")
    _die_in(ctx.node)
    return receipt


def close(receipt: str, ctx: Context) -> dict[str, Any]:
    performed.append(ctx.node)
    _die_in(ctx.node)
    return {"receipt": receipt, "longest": ctx.state["longest"], "total": ctx.state["total"], "bytes": len(ctx.state["blob"])}


def longest(base: str | None, writes: list[str]) -> str:
    return max([base or "", *writes], key=len)


def is_odd(ctx: Context) -> bool:
    return ctx.state["total"] % 2 == 1


flow = (
    Workflow("golden", reducers={"longest": longest, "total": "add"})
    .add_node("plan", plan)
    .add_map("measure", measure)
    .add_node("left", left)
    .add_node("right", right)
    .add_node("never", never)
    .add_node("pay", pay, join="all")
    .add_node("close", close)
    .add_edge("plan", "measure")
    .add_edge("measure", "left")
    .add_edge("measure", "right")
    .add_edge("right", "never", condition=lambda ctx: False)
    .add_edge("left", "pay")
    .add_edge("right", "pay")
    .add_edge("pay", "close", condition=is_odd)
    .set_entry_point("plan")
)


def _die_in(node: str, *, before: bool = False) -> None:
    if os.environ.get("GOLDEN_DIE") == (f"before {node}" if before else node):
        os._exit(9)
