"""Every log keeps the promises of the port."""

from pathlib import Path

import pytest

from engine.store import open_log
from engine.testing.check_log import check_log


@pytest.mark.slow
@pytest.mark.anyio
@pytest.mark.parametrize("scheme", ["file", "memory"])
async def test_a_log_keeps_every_promise(scheme: str, tmp_path: Path) -> None:
    url = "memory://conformance" if scheme == "memory" else (tmp_path / "store").as_uri()
    await check_log(lambda: open_log(url))
