# SPDX-License-Identifier: Apache-2.0
"""The few lines of YAML that describe a YOLO data set, read without a YAML library.

Such files are written by tools and by hand in a small part of YAML: keys at the left margin;
plain, 'single' or "double" quoted scalars; lists and maps of scalars, in brackets or a line each;
comments. What goes beyond it is refused with its line, never guessed. So no library is needed for
one file, and nothing in it can be more than text.
"""

import re
from pathlib import Path

from pydet.data._problems import DatasetError

Value = str | list[str] | dict[str, str]

_KEY = re.compile(r"([A-Za-z_][\w-]*)\s*:(?:\s+(.*))?$")
_QUOTED = re.compile(r"""'((?:[^']|'')*)'|"((?:[^"\\]|\\["\\/])*)\"""")
_PLAIN = re.compile(r"[^\s'\"\[\]{},][^\[\]{},]*")  # within brackets
_NAME = re.compile(r"([\w.-]+)\s*:\s+")  # within braces
_SPECIAL = "'\"[]{}&*!|>%@`"  # what begins YAML's other constructs


def read_yaml(path: Path) -> dict[str, Value]:
    """The keys of a file: scalars as text, lists, and maps of scalars.

    Raises:
        DatasetError: The file cannot be read or is beyond what is understood; the message has the
            line.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"{path} cannot be read: {error}") from error
    content: dict[str, Value] = {}
    blocks: dict[str, list[tuple[int, str]]] = {}  # the lines below a key that has no value
    key = ""
    for number, raw in enumerate(lines, start=1):
        line = _without_comment(raw).rstrip()
        if not line.strip() or line in ("---", "..."):
            continue
        if line[0] not in " -\t":
            match = _KEY.match(line)
            if not match or match[1] in content or match[1] in blocks:
                raise _error(path, number, raw)
            key = match[1]
            if match[2]:
                content[key] = _parse(path, number, match[2])
                key = ""
            else:
                blocks[key] = []
        elif key and "\t" not in line[: len(line) - len(line.lstrip())]:
            blocks[key].append((number, line))
        else:
            raise _error(path, number, raw)
    return {**content, **{name: _block(path, block) for name, block in blocks.items()}}


def _without_comment(line: str) -> str:
    quote = ""
    for index, letter in enumerate(line):
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "'\"" and (index == 0 or line[index - 1] in " [,:{-"):
            quote = letter
        elif letter == "#" and (index == 0 or line[index - 1].isspace()):
            return line[:index]
    return line


def _parse(path: Path, number: int, text: str) -> Value:
    """A scalar, or a list or map in brackets."""
    text = text.strip()
    if not text.startswith(("[", "{")):
        return _scalar(path, number, text)
    is_map = text[0] == "{"
    if not text.endswith("}" if is_map else "]"):
        raise _error(path, number, text)
    items: list[str] = []
    pairs: dict[str, str] = {}
    rest = text[1:-1].strip()
    while rest:
        name = _NAME.match(rest) if is_map else None
        if is_map and (name is None or name[1] in pairs):
            raise _error(path, number, text)
        rest = rest[name.end() :] if name else rest
        match = _QUOTED.match(rest) or _PLAIN.match(rest)
        after = rest[match.end() :].lstrip() if match else "?"
        if match is None or after[:1] not in ("", ","):
            raise _error(path, number, text)
        value = _scalar(path, number, match[0].strip())
        rest = after[1:].lstrip()
        if name:
            pairs[name[1]] = value
        else:
            items.append(value)
    return pairs if is_map else items


def _block(path: Path, lines: list[tuple[int, str]]) -> Value:
    """A list or map of a line for each entry."""
    items: list[str] = []
    pairs: dict[str, str] = {}
    indents = {len(line) - len(line.lstrip()) for _, line in lines}
    for number, line in lines:
        text = line.strip()
        key, colon, value = text.partition(":")
        if len(indents) > 1 or (items and pairs):
            raise _error(path, number, line)
        if text.startswith("- "):
            items.append(_scalar(path, number, text[2:].strip()))
        elif colon and value[:1] in ("", " ") and key.strip() not in pairs:
            pairs[key.strip()] = _scalar(path, number, value.strip())
        else:
            raise _error(path, number, line)
    if items and pairs:
        raise _error(path, *lines[0])
    return pairs or items


def _scalar(path: Path, number: int, text: str) -> str:
    if match := _QUOTED.fullmatch(text):
        if match[1] is not None:
            return match[1].replace("''", "'")
        return re.sub(r"\\(.)", r"\1", match[2])
    if text and (text[0] in _SPECIAL or text.startswith(("- ", "? "))):
        raise _error(path, number, text)
    return text


def _error(path: Path, number: int, text: str) -> DatasetError:
    got = text.strip()
    return DatasetError(f"{path}, line {number}: must be plain keys and lists, got {got!r}")
