"""Many steps write the same keys at once; reducers say how the writes combine, in whatever order the steps end.

A map reads the lines of a poem, each in a step with a state of its own: no lock, no queue, no lost update.
"""

import asyncio
from collections import Counter
from typing import Any

from engine import Context, Engine, Workflow

POEM = ["so much depends upon", "a red wheel barrow", "glazed with rain water", "beside the white chickens"]


def read(line: str, ctx: Context) -> int:
    words = line.split()
    state = ctx.state
    state["words"] = state.get("words", 0) + len(words)
    state["lines"] = [*state.get("lines", []), line]
    state["initials"] = state.get("initials", set()) | {word[0] for word in words}
    state["longest"] = max(words, key=len)
    state["lengths"] = dict(Counter(map(len, words)))
    state["newest"] = line  # has no reducer
    return len(words)


def longest(base: str | None, writes: list[str]) -> str:
    """Combine by a rule of our own; `writes` come in declared order, here that of the lines."""
    return max([base or "", *writes], key=len)


def total(base: dict[int, int] | None, writes: list[dict[int, int]]) -> dict[int, int]:
    """Count how many words have each length."""
    return dict(sum(map(Counter, writes), Counter(base or {})))


flow = (
    Workflow("poem", reducers={"words": "add", "lines": "extend", "initials": "union", "longest": longest, "lengths": total})
    .add_map("read", read)
    .set_entry_point("read")
)


async def main() -> None:
    run = await Engine("memory://poem").start(flow, POEM)
    await run.wait()
    conflicts: list[dict[str, Any]] = [event.data async for event in run.events() if event.kind == "conflict"]
    print("words:   ", run.state["words"])
    print("lines:   ", run.state["lines"] == POEM and "all, in order")
    print("initials:", *sorted(run.state["initials"]))
    print("longest: ", run.state["longest"])
    print("lengths: ", ", ".join(f"{count} of {length}" for length, count in sorted(run.state["lengths"].items())))
    print("newest:  ", run.state["newest"], "- the last in order, and a conflict among", *conflicts[0]["nodes"])


if __name__ == "__main__":
    asyncio.run(main())
