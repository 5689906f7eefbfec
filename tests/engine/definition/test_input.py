"""An input is JSON, from the command line, a file or standard input; what is wrong with it is said with its place."""

import io
import sys
from pathlib import Path

import pytest

from engine.definition.input import read_input
from engine.errors import InvalidDocument


def test_no_input_is_none():
    assert read_input(None) is None


def test_json_is_read_from_the_text_a_file_and_standard_input(monkeypatch: pytest.MonkeyPatch):
    Path("in.json").write_text('{"a": [1, 2.5, null]}')
    monkeypatch.setattr(sys, "stdin", io.StringIO('"\u00e9"'))
    assert read_input("[1]") == [1]
    assert read_input("@in.json") == {"a": [1, 2.5, None]}
    assert read_input("-") == "\u00e9"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('{"a": }', r"--input is no JSON: expecting value \(line 1, column 7\), at '}'"),
        ("hello there", "a plain text is written '\"hello there\"'"),
        ("One isn't two.", r"""a plain text is written '"One isn'"'"'t two."'$"""),
        ('["a"', "where the text ends$"),
        ("", "where the text ends"),
        ("@missing.json", "'missing.json' cannot be read: No such file"),
        ("@.", "cannot be read: Is a directory"),
        ("@bytes.json", "is no UTF-8 text"),
        ("@broken.json", r"broken\.json is no JSON: .* \(line 2, column 1\)"),
        ("[" * 100_000, "nested too deep"),
        ('{"x": NaN}', "--input is no JSON: it has no NaN; leave the value out"),
        ("-Infinity", "it has no -Infinity"),
    ],
)
def test_what_cannot_be_read_is_told_with_its_place(text: str, told: str):
    Path("bytes.json").write_bytes(b'"\xff"')
    Path("broken.json").write_text("[1,\n}")
    with pytest.raises(InvalidDocument, match=told):
        read_input(text)
