"""A process dies in the middle of a run, and the same line goes on: what was finished is not done again, and nobody pays twice.

`python examples/resume.py` plays both lives: it starts itself as a process that kills itself after paying, then runs the same line.
"""

import asyncio
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from engine import Context, Workflow, step


@step
def price(order: list[str]) -> int:
    print("  pricing", " and ".join(order))
    return sum(len(item) for item in order)


@step
async def charge(total: int, ctx: Context) -> str:
    def pay() -> str:
        print("  paying", total, "with the key", ctx.step_id)
        return f"receipt for {total}"

    print("  charging")
    receipt = await ctx.once("pay", pay)  # the intent is on storage before `pay` runs, its answer before this line returns
    if "crash" in sys.argv:
        print("  killed", flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    return receipt


@step
def ship(receipt: str) -> str:
    print("  shipping")
    return f"on its way, with a {receipt}"


flow = (
    Workflow("shop")
    .add_node("price", price)
    .add_node("charge", charge)
    .add_node("ship", ship)
    .add_edge("price", "charge")
    .add_edge("charge", "ship")
    .set_entry_point("price")
)

if __name__ == "__main__":
    if "crash" not in sys.argv:
        program = Path(__file__).resolve()
        os.chdir(tempfile.mkdtemp(prefix="shop-"))  # the log is in .gecko there
        print("First life:", flush=True)
        subprocess.run([sys.executable, program, "crash"], check=False)
        print("Second life:")
    print(asyncio.run(flow.execute(["tea", "cups"], session_id="order-17")))
