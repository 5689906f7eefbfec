"""The cluster.yaml is what Ray's launcher takes, and says what `gecko up` says on one machine."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.head import SETTINGS
from cluster.head_record import LAUNCHED, file_of

LAPTOP = {"RAY_enable_worker_prestart", "RAY_num_workers_soft_limit"}
"""What is said of one machine alone."""


@pytest.fixture
def config(root: Path) -> dict[str, Any]:
    return yaml.safe_load((root / "cluster.yaml").read_text())


@pytest.mark.slow
def test_ray_takes_it(config):
    from ray.autoscaler._private.util import prepare_config, validate_config

    prepared = prepare_config(config)
    validate_config(prepared)
    assert set(prepared["available_node_types"]) == {"head", "worker"}  # none of Ray's defaults came along


@pytest.mark.slow
def test_ray_refuses_one_with_a_mistake(config):
    from jsonschema import ValidationError
    from ray.autoscaler._private.util import prepare_config, validate_config

    config["idle_timeout"] = 1
    with pytest.raises(ValidationError, match="idle_timeout"):
        validate_config(prepare_config(config))


def test_every_ray_that_it_starts_is_told_how_to_authenticate(config):
    commands = [text for kind in ("head", "worker") for text in config[f"{kind}_start_ray_commands"] if "ray start" in text]
    assert len(commands) == 2
    for command in commands:
        assert "RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$HOME/.gecko-token" in command.partition("ray start")[0]


def test_the_token_is_the_one_that_gecko_up_makes(config, monkeypatch):
    for name in ("GECKO_HOME", "XDG_STATE_HOME"):
        monkeypatch.delenv(name, raising=False)
    assert Path(config["file_mounts"]["~/.gecko-token"]).expanduser() == file_of(LAUNCHED, "token")


def test_the_head_has_the_settings_of_a_head_on_one_machine(config):
    (command,) = [text for text in config["head_start_ray_commands"] if "ray start" in text]
    told = dict(re.findall(r"(RAY_\w+)=(\S+?);?(?:\s|$)", command))
    assert {name: value for name, value in told.items() if name in SETTINGS} == {k: v for k, v in SETTINGS.items() if k not in LAPTOP}


def test_the_workers_have_what_their_own_processes_heed(config):
    (command,) = [text for text in config["worker_start_ray_commands"] if "ray start" in text]
    told = dict(re.findall(r"(RAY_\w+)=(\S+?);?(?:\s|$)", command))
    assert {name for name in SETTINGS if "health_check" not in name} - LAPTOP <= set(told)
    assert {name: value for name, value in told.items() if name in SETTINGS} == {k: v for k, v in SETTINGS.items() if k in told}


def test_the_head_has_no_work_and_workers_come_and_go(config):
    types = config["available_node_types"]
    assert types["head"]["resources"]["CPU"] == 0
    assert "--num-cpus=0" in "".join(config["head_start_ray_commands"])
    assert types["worker"]["min_workers"] == 0 < types["worker"]["max_workers"] <= config["max_workers"]
    assert config["idle_timeout_minutes"] > 0
