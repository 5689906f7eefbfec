"""The ground that all tests stand on keeps its promises."""

import os
from pathlib import Path

import pytest


def test_a_test_runs_in_an_empty_folder_of_its_own(root: Path):
    assert list(Path.cwd().iterdir()) == []
    assert root not in [Path.cwd(), *Path.cwd().parents]


def test_the_shell_says_nothing_about_gecko_or_a_cluster():
    said = {name for name in os.environ if name.startswith("GECKO_") or name == "RAY_ADDRESS"}
    assert said - {"GECKO_REQUIRE_SERVICES", "GECKO_HOME"} == set()  # which ask something of the tests, and hide what is up


@pytest.mark.anyio
async def test_async_tests_run_on_asyncio(anyio_backend: str):
    assert anyio_backend == "asyncio"


@pytest.mark.slow
def test_ray_does_not_start_in_a_test_that_is_not_marked():
    import ray

    with pytest.raises(pytest.fail.Exception, match="not marked ray"):
        ray.init()
    assert not ray.is_initialized()


@pytest.mark.ray
@pytest.mark.slow
def test_a_test_marked_ray_has_a_cluster_that_runs_code_of_this_checkout(ray_cluster: str):
    import ray

    def where() -> tuple[str, str]:
        import engine.errors

        return engine.errors.__file__, os.environ["RAY_AUTH_MODE"]

    import engine.errors

    assert ray.get(ray.remote(num_cpus=1)(where).remote()) == (engine.errors.__file__, "token")
    assert ray.get_runtime_context().gcs_address == ray_cluster
