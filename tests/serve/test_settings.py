"""The environment is read in one place, and a value that means nothing is refused."""

import ast
from pathlib import Path

import pytest

from engine.errors import ConfigurationError
from serve.settings import Settings, read_settings


@pytest.mark.parametrize(
    ("environment", "settings"),
    [
        ({}, Settings()),
        ({"GECKO_STORAGE": "", "GECKO_DEBUG": "0"}, Settings()),
        ({"GECKO_STORAGE": "/data", "GECKO_DEBUG": "Yes"}, Settings(storage="/data", debug=True)),
    ],
)
def test_settings_come_from_the_environment(environment: dict[str, str], settings: Settings):
    assert read_settings(environment) == settings


def test_a_flag_that_is_neither_yes_nor_no_is_refused():
    with pytest.raises(ConfigurationError, match="GECKO_DEBUG='maybe'"):
        read_settings({"GECKO_DEBUG": "maybe"})


def test_nothing_else_in_serve_reads_the_environment(root: Path):
    readers = {
        file.name
        for file in (root / "serve").rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Attribute) and node.attr in ("environ", "getenv")
    }
    assert readers == {"settings.py"}


def test_the_log_is_text_or_json():
    assert read_settings({}).log == read_settings({"GECKO_LOG": " "}).log == read_settings({"GECKO_LOG": "text"}).log == "text"
    assert read_settings({"GECKO_LOG": "JSON"}).log == "json"
    with pytest.raises(ConfigurationError, match="GECKO_LOG='xml' is none of text, json"):
        read_settings({"GECKO_LOG": "xml"})
