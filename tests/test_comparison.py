# SPDX-License-Identifier: Apache-2.0
"""What is compared with torchvision's trainings is equal, and the table is what the runs give."""

import json
from pathlib import Path

import pytest
import torch

from benchmarks import compare_torchvision, comparison_report
from pydet.training.config import RunConfig
from tests.data.helpers import voc_object, voc_xml, write_voc

CONFIGS = Path(__file__).parents[1] / "configs" / "comparison"
NAMES = ("a", "b", "c")
# Samples that take everything: then chance decides nothing.
EVERYTHING = {"rpn_sample": 10**6, "roi_sample": 10**6, "rpn_fg_fraction": 1.0}
EVERYTHING |= {"roi_fg_fraction": 1.0}


def images_and_targets(count):
    # With some seeds an object overlaps two of SSD's boxes alike: rounding decides which it gets.
    generator = torch.Generator().manual_seed(2)
    images = [torch.rand(3, 128, 128, generator=generator) for _ in range(count)]
    targets = []
    for index in range(count):
        corners = torch.rand(6, 2, generator=generator) * 80
        sizes = torch.rand(6, 2, generator=generator) * 40 + 4
        boxes = torch.cat((corners, corners + sizes), 1)
        labels = torch.randint(0, 3, (6,), generator=generator)
        targets.append({"boxes": boxes[index:], "labels": labels[index:]})
    targets[0]["boxes"][0] = float("nan")  # both leave it out
    return images, targets


def models(name, **options):
    config = RunConfig.read(CONFIGS / f"{name}.toml").override({"model": options})
    return [
        compare_torchvision.make_model(config, NAMES, library)
        for library in compare_torchvision.LIBRARIES
    ]


@pytest.mark.parametrize("data", comparison_report._DATA)
@pytest.mark.parametrize("detector", comparison_report._NAMES)
def test_losses_gradients_and_detections_are_equal(detector, data):
    pytest.importorskip("torchvision", exc_type=ImportError)
    options = EVERYTHING if detector == "faster_rcnn" else {}
    ours, theirs = models(f"{data}_{detector}", score_threshold=0.005, **options)
    # Faster R-CNN of torchvision divides by the samples of the batch, pydet's by each image's.
    images, targets = images_and_targets(1 if options else 3)
    losses = []
    for model in (ours, theirs):
        found = model(images, targets)
        losses.append(sorted(float(loss.detach()) for loss in found.values()))
        sum(found.values()).backward()
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    stem, same = (next(m.parameters()).grad for m in (ours.backbone, theirs.network.backbone))
    torch.testing.assert_close(stem, same, rtol=1e-2, atol=1e-4 * stem.abs().max())
    with torch.no_grad():
        expected, got = theirs.eval()(images), ours.eval()(images)
    for one, other in zip(got, expected, strict=True):
        assert len(one["scores"]) > 50
        torch.testing.assert_close(one["scores"], other["scores"], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("library", compare_torchvision.LIBRARIES)
def test_a_run_leaves_its_figures_and_is_not_repeated(library, tmp_path):
    if library == "torchvision":
        pytest.importorskip("torchvision", exc_type=ImportError)
    annotations = {stem: voc_xml([voc_object()]) for stem in "abcd"}
    data = write_voc(tmp_path / "data", annotations, {"train": ["a", "b", "c"], "test": ["d"]})
    config = RunConfig.read(CONFIGS / "bccd_ssd.toml")
    train = {"epochs": 2, "batch_size": 2, "warmup_epochs": 0.5, "eval_every": 2}
    file = tmp_path / "bccd_ssd.toml"
    file.write_text(config.override({"train": train}).to_toml())
    output = tmp_path / "runs"
    words = [str(file), "--data", str(data), "--library", library, "--seed", "3"]
    words += ["--work", str(tmp_path / "work"), "--output", str(output)]
    assert compare_torchvision.main(words) == 0
    (path,) = output.iterdir()
    assert path.name == f"bccd_ssd_{library}_3.json"
    run = json.loads(path.read_text())
    assert (run["data"], run["detector"], run["library"]) == ("bccd", "ssd", library)
    assert (run["seed"], run["threads"], run["config"]) == (3, 1, "bccd_ssd.toml")
    assert 0 <= run["ap"] <= run["ap50"] <= 1
    assert run["training_seconds"] > 0 and run["file_bytes"] > 4 * run["parameters"]
    path.unlink()  # as if killed before it was written
    assert compare_torchvision.main(words) == 0
    again = json.loads(path.read_text())
    assert again["training_seconds"] > 0 and again["ap"] == run["ap"]
    path.write_text("not again")
    assert compare_torchvision.main(words) == 0
    assert path.read_text() == "not again"
    assert comparison_report._NAMES["ssd"] in comparison_report.document_of([run])


def test_verdicts_know_noise():
    assert comparison_report.verdict([0.5, 0.5], [0.1, 0.1]) == "too few seeds"
    assert comparison_report.verdict([0.50, 0.51, 0.52], [0.50, 0.52, 0.51]) == "+0.0 ± 0.8: equal"
    assert comparison_report.verdict([0.50, 0.51, 0.52], [0.6, 0.61, 0.62]).endswith("lower")
    assert comparison_report.verdict([0.60, 0.61, 0.62], [0.5, 0.51, 0.52]).endswith("higher")


@pytest.mark.skipif(not comparison_report.DOCUMENT.is_file(), reason="an sdist has no results")
def test_the_document_is_what_the_runs_give():
    again = "run `python -m benchmarks.comparison_report` and commit what it writes"
    runs = comparison_report.load(compare_torchvision.RUNS)
    written = comparison_report.DOCUMENT.read_text(encoding="utf-8")
    assert comparison_report.document_of(runs) == written, again
    for run in runs:
        assert (CONFIGS / run["config"]).is_file()
