"""The wheel holds the three packages, typed, and the command; nothing of the repository's own."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory, root: Path) -> zipfile.ZipFile:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = folder.glob("gecko_ray-*.whl")
    return zipfile.ZipFile(built)


@pytest.mark.slow
def test_the_wheel_holds_the_three_packages_alone(wheel: zipfile.ZipFile):
    assert {name.partition("/")[0].partition("-")[0] for name in wheel.namelist()} == {"engine", "cluster", "serve", "gecko_ray"}


@pytest.mark.slow
def test_the_wheel_holds_every_source_and_marks_them_typed(wheel: zipfile.ZipFile, root: Path):
    wanted = {
        file.relative_to(root).as_posix()
        for package in ("engine", "cluster", "serve")
        for pattern in ("*.py", "py.typed")
        for file in (root / package).rglob(pattern)
    }
    assert {f"{package}/py.typed" for package in ("engine", "cluster", "serve")} <= wanted <= set(wheel.namelist())


@pytest.mark.slow
def test_the_wheel_brings_the_command_and_the_licence(wheel: zipfile.ZipFile):
    entries = [name for name in wheel.namelist() if name.endswith("entry_points.txt")]
    assert [wheel.read(name).decode().strip() for name in entries] == ["[console_scripts]\ngecko = serve.start:main"]
    assert any(name.endswith("licenses/LICENSE") for name in wheel.namelist())
