"""How an actor answers: with what a method returns, or with an error of ours as it is."""

import pickle
from collections.abc import Awaitable, Callable
from functools import wraps
from typing import Any

from engine.errors import GeckoError

Method = Callable[..., Awaitable[Any]]


def answered(method: Method) -> Method:
    """Answer with ("ok", what it returns) or ("error", the pickled error): Ray would change an error's class on its way."""

    @wraps(method)
    async def call(self: Any, *args: Any) -> tuple[str, Any]:
        try:
            return "ok", await method(self, *args)
        except GeckoError as error:
            return "error", pickle.dumps(error)

    return call
