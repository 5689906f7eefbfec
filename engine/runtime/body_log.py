"""The logger of a body, `ctx.logger`: its records say which run, session, node and step they are of."""

import logging
from collections.abc import MutableMapping
from typing import Any

from engine.core.context import Context


class BodyLogger(logging.LoggerAdapter[logging.Logger]):
    """A logger whose records say where they are from, besides what a call gives as `extra`."""

    def process(self, msg: Any, kwargs: MutableMapping[str, Any]) -> tuple[Any, MutableMapping[str, Any]]:
        """Add what is known to what a call gives."""
        kwargs["extra"] = {**(kwargs.get("extra") or {}), **(self.extra or {})}
        return msg, kwargs


def body_logger(ctx: Context) -> BodyLogger:
    """Return the logger of a step."""
    extra = {"run_id": ctx.run_id, "session_id": ctx.session_id, "node": ctx.node, "step_id": ctx.step_id}
    return BodyLogger(logging.getLogger("engine.body"), extra)
