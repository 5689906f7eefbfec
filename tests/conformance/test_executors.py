"""One suite of workflows over every executor: the same results, events and errors in this process, simulated, and on Ray."""

from collections.abc import Iterable
from pathlib import Path

import pytest

from engine.testing.cases import CASES
from engine.testing.conformance import Case, check_executor, check_simulated


def parameters(cases: Iterable[Case]) -> pytest.MarkDecorator:
    """One test for each case; those that wait for a real limit are slow."""
    found = [pytest.param(case, id=case.name, marks=[pytest.mark.slow] if case.timeout else []) for case in cases]
    return pytest.mark.parametrize("case", found)


EVERY = parameters(CASES)


@EVERY
def test_simulated_executor_conforms(case: Case):
    check_simulated(case)


@EVERY
@pytest.mark.anyio
async def test_inline_executor_conforms(case: Case):
    await check_executor(case, executor="inline", storage=f"memory://{case.name}")


@pytest.mark.anyio
@parameters(case for case in CASES if not case.stored)
async def test_inline_executor_conforms_without_storage(case: Case):
    await check_executor(case, executor="inline", storage=None)


@EVERY
@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.anyio
async def test_ray_executor_conforms(case: Case, ray_cluster: str, tmp_path: Path):
    await check_executor(case, executor="ray", storage=str(tmp_path))
