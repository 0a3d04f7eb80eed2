# SPDX-License-Identifier: Apache-2.0
"""``pydet demo`` from end to end, with few pictures; `make demo` is the whole of it."""

import json
from pathlib import Path

import pytest
from PIL import Image

import pydet
from pydet.cli import main

pytest.importorskip("lightning_fabric", reason="needs the packages for training")


def _demo(folder: Path, required: str) -> int:
    sizes = ("--images", "40", "--epochs", "1", "--pictures", "3")
    return main(
        ["demo", "--output", str(folder), *sizes, "--required-ap50", required, "--no-progress"]
    )


def test_demo_writes_all_that_it_promises(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _demo(tmp_path / "demo", required="0") == 0
    assert "AP50" in capsys.readouterr().out
    folder = tmp_path / "demo"
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["held_out_images"] == 4
    assert 0 <= metrics["coco"]["ap50"] <= 1
    model = pydet.load(folder / "detector.safetensors")
    assert model.name == metrics["model"]
    assert len(model.class_names) == 6
    for name in ("loss.png", "precision_recall.png", "pictures.png", "pictures/02.png"):
        with Image.open(folder / name) as picture:
            assert min(picture.size) > 100
    assert len(list((folder / "pictures").iterdir())) == 3
    # A second demo takes the place of the first; a bad detector is a failure.
    assert _demo(folder, required="1.1") == 1
    assert "AP50 must be at least 1.1" in capsys.readouterr().out
