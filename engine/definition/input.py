"""A run's input from text: JSON, a file that holds it, or standard input. The command line and `python -m cluster` both use it.

What cannot be read is an error that says what and where; nothing is guessed, so plain words are not taken for a text.
"""

import json
import os
import shlex
import sys
from pathlib import Path
from typing import Any

from engine.errors import InvalidDocument


def read_input(text: str | None) -> Any:
    """Return what `--input` says: JSON, `@file` or `-` (standard input); None where it is left out.

    Raises: InvalidDocument.
    """
    if text is None:
        return None
    if text == "-":
        return parse_json(sys.stdin.read(), "standard input")
    if text.startswith("@"):
        path = Path(text[1:]).expanduser()
        try:
            found = path.read_bytes().decode()
        except UnicodeDecodeError as error:
            raise InvalidDocument(
                f"input file {str(path)!r} is no UTF-8 text: {error.reason} at byte {error.start}", where=str(path)
            ) from error
        except OSError as error:
            reason = error.strerror or os.strerror(error.errno or 0)
            raise InvalidDocument(f"input file {str(path)!r} cannot be read: {reason}", where=str(path)) from error
        return parse_json(found, str(path))
    return parse_json(text, "--input")


class _NoNumber(Exception):
    """A constant of JavaScript's that JSON does not have."""


def _refuse(constant: str) -> None:
    raise _NoNumber(constant)


def parse_json(text: str, where: str) -> Any:
    """Return the value of a JSON text.

    Raises: InvalidDocument, with line and column and what stands there.
    """
    try:
        return json.loads(text, parse_constant=_refuse)
    except json.JSONDecodeError as error:
        near = text[error.pos : error.pos + 20].split("\n")[0]
        there = f", at {near!r}" if near else ", where the text ends"
        plain = where == "--input" and text.strip()[:1] not in ("", "{", "[", '"') and len(text) <= 80
        hint = f"; a plain text is written {shlex.quote(json.dumps(text, ensure_ascii=False))}" if plain else ""
        raise InvalidDocument(
            f"{where} is no JSON: {error.msg.lower()} (line {error.lineno}, column {error.colno}){there}{hint}", where=where
        ) from error
    except _NoNumber as error:
        raise InvalidDocument(f"{where} is no JSON: it has no {error}; leave the value out, or write null or a text", where=where) from None
    except RecursionError as error:
        raise InvalidDocument(f"{where} is nested too deep to be read", where=where) from error
