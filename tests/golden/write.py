"""Writes a recorded run in the present format: python -m tests.golden.write v1

Two processes drive it and are killed; of each one's segment the last batch is cut in the middle, as a power failure would leave it. It is
for a new version of the format: a folder that is there is what an older version wrote, and is never written anew.
"""

import asyncio
import os
import socket
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
SIZE = 280
"""Of the large value, in units of 256 bytes."""
CUT = 40
"""Bytes of the last batch that a power failure took."""


def drive(folder: str) -> None:
    """Drive the run until it dies."""
    socket.gethostname = lambda: "golden"
    from engine import Engine
    from tests.golden.flow import flow

    async def run() -> None:
        await (await Engine(folder, "inline").start(flow, SIZE, session_id="s")).wait()

    asyncio.run(run())


def write(folder: Path) -> None:
    """Write the run, through two processes that die."""
    folder.mkdir()
    for epoch, end in enumerate(("before pay", "close"), 1):
        command = [sys.executable, "-m", "tests.golden.write", "--drive", str(folder)]
        done = subprocess.run(command, env={**os.environ, "GOLDEN_DIE": end}, cwd=HERE.parent.parent, check=False)
        assert done.returncode == 9, f"the process of epoch {epoch} ended with {done.returncode}"
        segment = folder / "runs" / "golden" / "s" / "1" / f"{epoch}.arrows"
        segment.write_bytes(segment.read_bytes().rstrip(b"\0")[:-CUT])
    for path in [*(folder / "owners").iterdir(), folder / ".gitignore"]:
        path.unlink()
    (folder / "owners").rmdir()


if __name__ == "__main__":
    if sys.argv[1] == "--drive":
        drive(sys.argv[2])
    else:
        write(HERE / sys.argv[1])
