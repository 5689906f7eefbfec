"""The double of the cluster keeps what the service stands on, as the real one does."""

from pathlib import Path

import pytest

from cluster.queue import Limits
from engine.engine import Engine
from tests.serve.cluster_cases import CASES, LIMITED
from tests.serve.double import InlineCluster

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("check", CASES, ids=lambda check: check.__name__)
@pytest.mark.parametrize("storage", ["file", "memory"])
async def test_the_double_keeps_what_the_service_stands_on(check, storage: str, tmp_path: Path):
    url = str(tmp_path / "runs") if storage == "file" else f"memory://{tmp_path.name}"
    await check(InlineCluster(url), Engine(url), tmp_path)


@pytest.mark.parametrize("check", LIMITED, ids=lambda check: check.__name__)
async def test_the_double_keeps_its_limits(check, tmp_path: Path):
    url = str(tmp_path / "runs")
    await check(InlineCluster(url, Limits(runs=1, queued=1)), Engine(url), tmp_path)
