"""Every log keeps the promises of the port."""

from pathlib import Path

import pytest

from engine.store import open_log
from engine.testing.check_log import check_log

SCHEMES = ["file", "memory", "sqlite", pytest.param("postgres", marks=pytest.mark.services)]


@pytest.mark.slow
@pytest.mark.anyio
@pytest.mark.parametrize("scheme", SCHEMES)
async def test_a_log_keeps_every_promise(scheme: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    match scheme:
        case "memory":
            url = "memory://conformance"
        case "sqlite" | "postgres":
            url = request.getfixturevalue(scheme)
        case _:
            url = (tmp_path / "store").as_uri()
    await check_log(lambda: open_log(url))
