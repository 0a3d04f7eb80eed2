# SPDX-License-Identifier: Apache-2.0
"""Read and write the TOML of configuration files (no writer is in the standard library)."""

import math
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib as _reader
else:
    import tomli as _reader

_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
_ESCAPES = {
    '"': '\\"',
    "\\": "\\\\",
    "\n": "\\n",
    "\r": "\\r",
    "\t": "\\t",
    "\b": "\\b",
    "\f": "\\f",
}


def read_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file.

    Raises:
        ValueError: not TOML, or not UTF-8; the sentence names file, line and column.
        OSError: the file cannot be read.
    """
    try:
        return dict(_reader.loads(path.read_text(encoding="utf-8")))
    except (_reader.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: must be a TOML file: {error}") from error


def parse_value(text: str) -> Any:
    """Read one TOML value, as given on the command line; what is no TOML value is a string."""
    try:
        table = _reader.loads(f"value = {text}")
    except _reader.TOMLDecodeError:
        return text
    return table["value"] if table.keys() == {"value"} else text


def format_value(value: Any) -> str:
    """Write a value as TOML, in one line; reading it gives an equal value.

    Raises:
        TypeError: a type that TOML does not have (None among them).
    """
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        return repr(value) if math.isfinite(value) else str(value)
    if isinstance(value, str):
        return '"' + "".join(_escape(character) for character in value) + '"'
    if isinstance(value, Path):
        return format_value(str(value))
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(format_value(item) for item in value) + "]"
    if isinstance(value, Mapping):
        pairs = (f"{format_key(key)} = {format_value(item)}" for key, item in value.items())
        return "{ " + ", ".join(pairs) + " }" if value else "{}"
    raise TypeError(f"format_value: value must have a type that TOML has, got {type(value)}")


def format_key(key: str) -> str:
    """Write a key, quoted where it must be."""
    return key if _BARE_KEY.fullmatch(key) else format_value(key)


def _escape(character: str) -> str:
    if character in _ESCAPES:
        return _ESCAPES[character]
    code = ord(character)
    return f"\\u{code:04X}" if code < 0x20 or code == 0x7F else character
