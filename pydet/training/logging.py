# SPDX-License-Identifier: Apache-2.0
"""What a training writes while it runs: JSON lines, TensorBoard events, a progress bar."""

import contextlib
import json
import math
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from pydet._files import write_text

LOG = "metrics.jsonl"


class Clock:
    """Measures how fast images are learnt from; the time inside of its blocks is left out.

    Args:
        position: images seen so far.
    """

    def __init__(self, position: int) -> None:
        self._position, self._begin = position, time.perf_counter()

    def __enter__(self) -> None:
        self._stopped = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self._begin += time.perf_counter() - self._stopped

    def images_per_second(self, position: int) -> float:
        """Mean since the last call, or the start; to be asked when a GPU has caught up."""
        now = time.perf_counter()
        rate = (position - self._position) / max(now - self._begin, 1e-9)
        self._position, self._begin = position, now
        return rate


class RunLog:
    """The log of one training, written by one process.

    ``metrics.jsonl`` has one JSON object a line: ``{"kind": "train", "step": ..., "epoch": ...,
    "loss": ..., ...}`` or ``{"kind": "eval", ...}``. A resumed training first takes out the lines
    of steps and evaluations that it will do again, so that each is there once.

    Args:
        folder: the training's output folder.
        total: images of the whole training, the length of the bar.
        position: images seen before this start.
        step: steps done before this start.
        evaluated: epochs done before the last evaluation that counts.
        tensorboard: write events, too.
        progress: show a bar on the standard error.
    """

    def __init__(
        self,
        folder: Path,
        *,
        total: int,
        position: int = 0,
        step: int = 0,
        evaluated: int = 0,
        tensorboard: bool = True,
        progress: bool = True,
    ) -> None:
        self.path = folder / LOG
        kept = [
            record
            for record in (read_log(folder) if step else [])
            if record["step"] <= step and (record["kind"] != "eval" or record["epoch"] <= evaluated)
        ]
        write_text(self.path, "".join(json.dumps(record) + "\n" for record in kept))
        self._lines = self.path.open(
            "a", encoding="utf-8", buffering=1
        )  # a line is whole or absent
        self._writer = _tensorboard_writer(folder, step) if tensorboard else None
        self._bar = _progress_bar(total, position) if progress else None

    def write(self, kind: str, record: dict[str, Any]) -> None:
        """Append one record; every number of it goes to TensorBoard as ``kind/key``."""
        self._lines.write(json.dumps({"kind": kind, **_finite(record)}) + "\n")
        if self._writer is not None:
            for key, value in record.items():
                if isinstance(value, (int, float)) and key not in ("step", "images"):
                    self._writer.add_scalar(f"{kind}/{key}", value, record["step"])

    def progress(self, images: int, epoch: int, epochs: int) -> None:
        """Move the bar by `images`."""
        if self._bar is not None:
            self._bar.set_description_str(f"epoch {min(epoch + 1, epochs)}/{epochs}", refresh=False)
            self._bar.update(images)

    @property
    def shows_progress(self) -> bool:
        """Whether there is a bar."""
        return self._bar is not None

    def show(self, values: dict[str, float]) -> None:
        """Show numbers at the end of the bar: the losses."""
        if self._bar is not None:
            self._bar.set_postfix(
                {key: f"{value:.4g}" for key, value in values.items()}, refresh=False
            )

    def say(self, text: str) -> None:
        """Print a line without breaking the bar."""
        if self._bar is not None:
            self._bar.write(text, file=sys.stderr)
        else:
            print(text, file=sys.stderr, flush=True)

    def close(self) -> None:
        """Flush and close everything."""
        if self._bar is not None:
            self._bar.close()
        if self._writer is not None:
            self._writer.close()
        self._lines.close()

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def read_log(folder: Path) -> list[dict[str, Any]]:
    """Records of a folder's ``metrics.jsonl``; a last line cut short by a kill is left out."""
    path = folder / LOG
    if not path.is_file():
        return []
    records = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        with contextlib.suppress(json.JSONDecodeError):
            record = json.loads(line)
            if isinstance(record, dict) and "step" in record:
                records.append(record)
    return records


def _finite(record: dict[str, Any]) -> dict[str, Any]:
    """NaN and infinities as null: JSON has no word for them."""
    return {
        key: None if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in record.items()
    }


def _tensorboard_writer(folder: Path, step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415
    except ImportError as error:
        raise ImportError(
            f"train: TensorBoard must be importable ({error}); install pydet[train], or turn it "
            "off with --no-tensorboard"
        ) from error
    # Events from here on replace those that a killed run wrote after its last checkpoint.
    return SummaryWriter(str(folder), purge_step=step + 1 if step else None)


def _progress_bar(total: int, position: int) -> Any:
    from tqdm import tqdm  # noqa: PLC0415

    return tqdm(
        total=total,
        initial=position,
        unit="img",
        dynamic_ncols=True,
        smoothing=0.1,
        # In a file, where each redraw is one more line, a line a minute is enough.
        mininterval=0.5 if sys.stderr.isatty() else 60.0,
    )
