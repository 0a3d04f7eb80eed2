# SPDX-License-Identifier: Apache-2.0
"""``python -m benchmarks.comparison_report``: docs/results/comparison/README.md from its runs.

The same runs give the same bytes; tests/test_comparison.py holds the document to them.
"""

import json
import math
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks._tables import _table
from benchmarks.compare_torchvision import LIBRARIES, RUNS
from pydet.training.config import RunConfig

DOCUMENT = RUNS.parent / "README.md"
CONFIGS = Path(__file__).parents[1] / "configs/comparison"
_NAMES = {"retinanet": "RetinaNet", "faster_rcnn": "Faster R-CNN", "fcos": "FCOS", "ssd": "SSD"}
_DATA = {"bccd": "Blood cells (BCCD)", "aquarium": "Sea animals (Aquarium)"}
_SEEDS = 3  # of each library, before anything is said of noise

_HEAD = """# Four detectors beside torchvision's

Made by `python -m benchmarks.comparison_report` from the files in `runs`, which
`python -m benchmarks.compare_torchvision` wrote. Nothing here was typed in by hand.

```sh
python -m benchmarks.compare_torchvision configs/comparison/bccd_fcos.toml \\
    --data PATH/bccd --library torchvision --seed 0
```

All begin with random weights and learn by a schedule that is small enough for one core of a CPU,
and the same for both libraries: small images, a ResNet of ten layers with a pyramid of 64
channels, or a quarter of VGG-16's channels (`configs/comparison`). That is not the best that the
detectors can do: see [bccd](../bccd/README.md).

A run of torchvision and one of pydet with the same seed begin with the same weights and see the
same images, changed in the same way, in the same order. Optimiser, average of weights and
evaluation (by pycocotools, of the test list, once, after the last step) are the same too: only the
detectors differ. Where torchvision's leave no choice, pydet's are set to what those do: anchors of
whole pixels and their strides; FCOS without scales of levels, its first location at (0, 0), ranked
by the root of its score; losses of FCOS and SSD divided by the foreground of the batch. What is
left:

- Faster R-CNN draws other random numbers for its samples, and torchvision's divides by the sample
  of the batch, pydet's by each image's.
- Sums are rounded in another order. That is enough for two trainings to end apart. It decides, too,
  which default box of SSD an object gets that overlaps several alike.
- torchvision's Faster R-CNN has deltas of the background, its RetinaNet and FCOS a class for it,
  which starts such that it is never detected: some parameters more.
- SSD's trunk is pydet's in both, because torchvision's has one width. Anchors, matching, mining,
  losses, last layers and suppression are each library's own.

The losses of a batch and the detections of an image are equal while the weights are
(`tests/test_comparison.py`).

AP and AP50 are in percent, mean ± standard deviation over seeds; what follows the difference of
APs is its standard error, and up to two of these are called equal. A detector with an AP of a
percent or two has hardly begun to learn: there the comparison says little. "Training" is CPU time
of one core, reading and augmentation included, evaluation left out; other programs ran on the
machine meanwhile, which makes times rough. "Size" is the file of weights.
"""


def load(folder: Path) -> list[dict[str, Any]]:
    """All runs, by name of their files."""
    files = sorted(folder.glob("*.json"))
    return [json.loads(path.read_text(encoding="utf-8")) for path in files]


def _spread(values: Sequence[float], factor: float = 1.0) -> str:
    """Mean ± standard deviation."""
    mean = f"{statistics.mean(values) * factor:.1f}"
    return mean if len(values) < 2 else f"{mean} ± {statistics.stdev(values) * factor:.1f}"


def verdict(pydet: Sequence[float], torchvision: Sequence[float]) -> str:
    """Whether pydet's AP is lower, beyond what seeds do: two standard errors of the difference."""
    if min(len(pydet), len(torchvision)) < _SEEDS:
        return "too few seeds"
    difference = statistics.mean(pydet) - statistics.mean(torchvision)
    error = math.sqrt(sum(statistics.variance(v) / len(v) for v in (pydet, torchvision)))
    text = f"{difference * 100:+.1f} ± {error * 100:.1f}"
    if abs(difference) <= 2 * error:
        return f"{text}: equal"
    return f"{text}: {'higher' if difference > 0 else 'lower'}"


def _of(runs: Iterable[dict[str, Any]], key: str) -> list[float]:
    return [run[key] for run in runs]


def _schedules(runs: Iterable[dict[str, Any]]) -> list[str]:
    """A line for each schedule in the runs' configs, with the detectors that have it."""
    detectors: dict[str, set[str]] = {}
    for name, config_name in {(run["detector"], run["config"]) for run in runs}:
        config = RunConfig.read(CONFIGS / config_name)
        height, width = config.model.options["preprocessing"]["size"]
        learning = config.train
        schedule = (
            f"images of {height} x {width} pixels, {learning.epochs} epochs in batches of "
            f"{learning.batch_size}, highest learning rate {learning.learning_rate:g}"
        )
        detectors.setdefault(schedule, set()).add(name)
    lines = []
    for schedule, found in detectors.items():
        names = ", ".join(title for name, title in _NAMES.items() if name in found)
        lines.append(f"- {names}: {schedule}.")
    return sorted(lines)


def _section(data: str, runs: list[dict[str, Any]]) -> list[str]:
    learnt, costs = [], []
    for detector in (name for name in _NAMES if any(run["detector"] == name for run in runs)):
        by_library = {
            library: [r for r in runs if (r["library"], r["detector"]) == (library, detector)]
            for library in LIBRARIES
        }
        figures = [
            _spread(_of(found, key), 100) if found else ""
            for key in ("ap", "ap50")
            for found in by_library.values()
        ]
        seeds = "/".join(str(len(found)) for found in by_library.values())
        aps = [_of(found, "ap") for found in by_library.values()]
        learnt.append([_NAMES[detector], seeds, *figures, verdict(aps[0], aps[1])])
        for library, found in by_library.items():
            if found:
                costs.append(
                    [
                        _NAMES[detector],
                        library,
                        f"{statistics.mean(_of(found, 'training_seconds')):.0f} s",
                        f"{statistics.mean(_of(found, 'training_images_per_second')):.1f}",
                        f"{found[0]['parameters'] / 1e6:.2f} M",
                        f"{found[0]['file_bytes'] / 1e6:.1f} MB",
                    ]
                )
    head = ["detector", "seeds", *(f"{m}, {lib}" for m in ("AP", "AP50") for lib in LIBRARIES)]
    return [
        f"## {_DATA[data]}",
        "",
        *_schedules(runs),
        "",
        *_table([*head, "AP: pydet less torchvision"], learnt),
        "",
        *_table(
            ["detector", "library", "training", "images/s", "parameters", "size"],
            costs,
        ),
        "",
    ]


def document_of(runs: list[dict[str, Any]]) -> str:
    """The whole text."""
    lines = [_HEAD]
    for data in _DATA:
        if any(run["data"] == data for run in runs):
            lines += _section(data, [run for run in runs if run["data"] == data])
    for machine in sorted({_machine(run) for run in runs}):
        loads = _of((run for run in runs if _machine(run) == machine), "load_average")
        lines.append(f"Measured on: {machine}; load average {min(loads):.1f} to {max(loads):.1f}.")
    return "\n".join(lines) + "\n"


def _machine(run: dict[str, Any]) -> str:
    return (
        f"{run['machine']}, {run['cpu_path']} path, {run['threads']} thread, torch {run['torch']}, "
        f"torchvision {run['torchvision']}"
    )


if __name__ == "__main__":
    DOCUMENT.write_text(document_of(load(RUNS)), encoding="utf-8")
    print(f"{DOCUMENT} is made of {len(load(RUNS))} runs")
