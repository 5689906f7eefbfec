"""The system's clock. Waiting goes through the event loop, so a loop with virtual time makes the whole engine virtual."""

import asyncio
import random
import time


class SystemClock:
    """Wall time for records, the event loop's own clock for limits, chance from the system."""

    # The functions themselves, so that a caller pays for no frame of ours.
    now = staticmethod(time.time)
    monotonic = staticmethod(time.monotonic)
    chance = staticmethod(random.random)

    async def sleep(self, delay: float) -> None:
        """Wait."""
        await asyncio.sleep(delay)
