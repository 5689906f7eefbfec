"""The script `gecko`: it loads the command, which takes a while, and ends at Ctrl-C meanwhile as the command does later."""

import os
import signal
from types import FrameType

_LEFT = 130


def main() -> None:
    """Load the command and perform it."""
    former = signal.getsignal(signal.SIGINT)
    if former is signal.default_int_handler:  # else whoever started us wants it ignored
        signal.signal(signal.SIGINT, _leave)
    from serve.cli import main as perform

    if former is signal.default_int_handler:
        signal.signal(signal.SIGINT, former)
    perform()


def _leave(number: int, frame: FrameType | None) -> None:
    # Raised out of an import, KeyboardInterrupt would end in a traceback, or as another error of the module that it met.
    os.write(2, b"error: interrupted\n")
    os._exit(_LEFT)


if __name__ == "__main__":
    main()
