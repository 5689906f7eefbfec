"""`gecko up`, `down` and `status` where no Ray has to be started: usage, and clusters that are not there."""

import json
import os
from pathlib import Path

import pytest

from cluster.head_record import Head, Options, find_head, write_head
from cluster.processes import look


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Describe heads in a folder of the test's own, and look for no Ray elsewhere."""
    monkeypatch.setenv("GECKO_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path / "none"))


def describe(folder: Path, name: str = "local", *, runs: bool) -> None:
    me = look(os.getpid())
    assert me is not None
    processes = (me._replace(role="gcs_server"), me._replace(role="raylet")) if runs else ()
    write_head(Head(name=name, address="127.0.0.2:6379", dashboard="http://127.0.0.1:8265", token_file="t", folder=str(folder / name),
                    kept=str(folder / "gcs"), options=Options(num_cpus=2), settings={}, started_at=1.0, ray="2.60.0",
                    processes=processes))  # fmt: skip


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("up", "--name", "A"), "'A' cannot name a cluster"),
        (("up", "--port", "80"), "greater than or equal to 1024"),
        (("up", "--redis", "h"), "say redis://host:port"),
        (("up", "--cluster", "cluster.yaml", "--num-cpus", "2"), "--cluster goes with none of"),
        (("up", "--cluster", "cluster.yaml"), "'cluster.yaml' is no file"),
        (("down", "--cluster", "cluster.yaml"), "'cluster.yaml' is no file"),
        (("down", "--name", "../a"), "cannot name a cluster"),
    ],
)
def test_wrong_usage_is_one_line(gecko, words, told):
    done = gecko(*words)
    assert (done.status, done.out, len(done.err.splitlines())) == (2, "", 1)
    assert told in done.err


def test_a_cluster_that_is_not_there_is_down_already(gecko):
    done = gecko("down")
    assert (done.status, done.out, done.err) == (0, "", "no cluster 'local' was started on this machine\n")
    assert json.loads(gecko("down", "--json").out) == {"name": "local", "ended": 0}


def test_up_answers_with_the_head_that_runs_and_refuses_another(gecko, tmp_path):
    describe(tmp_path, runs=True)
    done = gecko("up", "--num-cpus", "2")
    assert done.status == 0
    assert done.out.startswith("export RAY_ADDRESS=127.0.0.2:6379 ")
    told = json.loads(gecko("up", "--json").out)
    assert (told["address"], told["num_cpus"]) == ("127.0.0.2:6379", 2)
    done = gecko("up", "--num-cpus", "4")
    assert (done.status, done.out) == (2, "")
    assert "runs with --num-cpus 2, so that --num-cpus 4 cannot hold" in done.err


@pytest.mark.slow
def test_status_says_what_is_there_by_its_exit_status_too(gecko, tmp_path):
    done = gecko("status")
    assert (done.status, done.out) == (3, "cluster 'local' is not up\n")
    assert json.loads(gecko("status", "--json").out) == {"name": "local", "up": False, "gone": False}
    describe(tmp_path, runs=False)
    describe(tmp_path, "other", runs=True)
    done = gecko("status", "--name", "local")
    assert done.status == 3
    assert "is gone, and left something; `gecko up` starts it again, `gecko down` clears it away; there is 'other' (up)" in done.out


def test_down_clears_away_what_a_head_left(gecko, tmp_path):
    describe(tmp_path, runs=False)
    (tmp_path / "local").mkdir()
    (tmp_path / "gcs").mkdir()
    done = gecko("down")
    assert (done.status, find_head(), (tmp_path / "local").exists(), (tmp_path / "gcs").exists()) == (0, None, False, False)


@pytest.mark.slow
def test_what_rays_launcher_refuses_ends_with_its_words_and_status_3(tmp_path, capfd):
    from serve.cli import command

    (tmp_path / "cluster.yaml").write_text("cluster_name: x\nprovider: {type: nothing}\n")
    status = command(["up", "--cluster", "cluster.yaml"])
    out, err = capfd.readouterr()
    assert (status, out) == (3, "")
    assert "`ray up cluster.yaml` ended with" in err.splitlines()[-1]
    assert oct((tmp_path / "home" / "clusters" / "launched.token").stat().st_mode)[-3:] == "600"
