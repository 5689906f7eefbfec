"""What user code raised, on its way to whoever has to know: as a future can hold it, and with a text that can be shown."""

import asyncio


class Raised(RuntimeError):
    """Stands for its cause, an error of user code that would mean something to whoever awaits a future."""


def holdable(error: BaseException) -> BaseException:
    """Return the error as a future can hold it; `told` gives the original back."""
    if isinstance(error, Exception) and not isinstance(error, StopIteration):
        return error
    cause = told(error)
    raised = Raised(f"the body raised {type(cause).__name__}: {cause}")
    raised.__cause__ = cause
    return raised


def told(error: BaseException) -> BaseException:
    """Return the error that user code raised, or one that stands for it where its own text cannot be had."""
    if isinstance(error, Raised) and error.__cause__ is not None:
        return error.__cause__
    if isinstance(error, asyncio.CancelledError) and not error.args:
        return asyncio.CancelledError("cancelled by its own code").with_traceback(error.__traceback__)
    try:
        str(error)
    except BaseException as broken:  # noqa: BLE001 - its __str__ is user code too
        substitute = RuntimeError(f"{type(error).__qualname__}, whose text cannot be shown: its __str__ raised {type(broken).__name__}")
        substitute.__cause__ = error
        return substitute
    return error
