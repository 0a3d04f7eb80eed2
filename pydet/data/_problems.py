# SPDX-License-Identifier: Apache-2.0
"""Broken records: how they are named, and whether they stop the reading."""

import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

OnError = Literal["raise", "skip"]


@dataclass(frozen=True)
class Problem:
    """One broken record of a data set.

    Attributes:
        file: The file that the record is in, or the image that could not be used.
        record: Which record of the file, in words ("object 3 (RBC)"), or "" for the file itself.
        reason: What is wrong with it.
    """

    file: str
    record: str
    reason: str

    def __str__(self) -> str:
        where = f"{self.file}, {self.record}" if self.record else self.file
        return f"{where}: {self.reason}"


class DatasetError(ValueError):
    """A data set, or a record of it, cannot be used; the message names file and record."""


class ImageError(DatasetError):
    """A file is no image that can be decoded; the message names it."""


class ProblemLog:
    """Raises on the first problem, or collects all of them.

    Args:
        on_error: "raise" stops at the first broken record, "skip" leaves broken records out and
            lists them.
    """

    def __init__(self, on_error: OnError) -> None:
        if on_error not in ("raise", "skip"):
            raise ValueError(f"on_error must be 'raise' or 'skip', got {on_error!r}")
        self.on_error: OnError = on_error
        self.problems: list[Problem] = []

    def report(self, file: str | Path, record: str, reason: str) -> None:
        """Records that something is broken.

        Raises:
            DatasetError: In strict mode.
        """
        problem = Problem(os.fspath(file), record, reason)
        if self.on_error == "raise":
            raise DatasetError(
                f"{problem} (on_error='skip' leaves such records out and lists them)"
            )
        self.problems.append(problem)

    def require_images(self, source: str | os.PathLike[str], count: int) -> None:
        """Makes sure that something is left.

        Raises:
            DatasetError: No image is left of a data set that had some: its images lie elsewhere, or
                it is not what it was taken for.
        """
        if count == 0 and self.problems:
            raise DatasetError(
                f"{os.fspath(source)}: no image can be used; {len(self.problems)} problems, the "
                f"first: {self.problems[0]}"
            )


def summarize_problems(problems: Iterable[Problem], limit: int = 10) -> str:
    """The first problems, one a line, and how many more there are."""
    problems = list(problems)
    if not problems:
        return "no problems"
    lines = [f"{len(problems)} broken records left out"]
    lines += [f"  {problem}" for problem in problems[:limit]]
    if len(problems) > limit:
        files = Counter(problem.file for problem in problems[limit:])
        lines.append(f"  ... and {len(problems) - limit} more in {len(files)} files")
    return "\n".join(lines)
