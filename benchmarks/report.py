# SPDX-License-Identifier: Apache-2.0
"""``python -m benchmarks.report``: docs/performance.md and its plots from benchmarks/results.

The same results give the same bytes; tests/test_benchmarks.py holds the document to them.
"""

import functools
import hashlib
import json
import sys
from pathlib import Path
from typing import Any

from benchmarks._results import RESULTS
from benchmarks._tables import (
    loading_table,
    main_table,
    models_table,
    op_table,
    overhead_table,
    training_table,
)

DOCUMENT = Path(__file__).resolve().parents[1] / "docs" / "performance.md"
PLOTS = DOCUMENT.parent / "performance"
# Results that are not of operators, with tables of their own.
_OTHERS = ("overhead", "models", "models_before", "training_step", "data_loading")

_HEAD = """# Performance

Made by `python -m benchmarks.report` from the files in `benchmarks/results`; measured by
`python -m benchmarks` ([how](../benchmarks/README.md)). Nothing here was typed in by hand.

Each result is first compared with a formula; nothing wrong is timed. Contenders take turns, one
sample each a round. "N x" is the median over rounds of the other's time over pydet's: above 1 pydet
is faster. With one thread times are those that the process ran; with several those of the wall
clock. "of the limit" is how near pydet is to a copy of the bytes that must move, to filling as much
new memory as the results take ("fresh"), or to the arithmetic that must be done, whichever takes
longest in the same rounds. Memory is the peak of what a call holds more than before, its result
included.

"compile" is `torch.compile` of the formula, for each size anew; "eager" the formula itself.
"""


def load(folder: Path) -> dict[str, Any]:
    """All results of one device, by name."""
    files = sorted(folder.glob("*.json"))
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in files}


def _title(results: dict[str, Any]) -> str:
    one = next(iter(results.values()))
    return f"{one['machine']}, {one['cpu_path']}" if one["cpu_path"] else one["machine"]


def _machine(results: dict[str, Any]) -> str:
    one = next(iter(results.values()))
    loads = [content["load_average"] for content in results.values()]
    versions = f"torch {one['torch']}, torchvision {one['torchvision']}, pydet {one['pydet']}"
    return (
        f"{versions}, float32 unless said otherwise. The machine's load average was "
        f"{min(loads):.1f} to {max(loads):.1f}."
    )


def series_of(content: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Curves of at least three sizes, with the most threads that were measured."""
    most = max((result["threads"] for result in content["results"]), default=1)
    curves: dict[str, list[dict[str, Any]]] = {}
    for result in content["results"]:
        if result.get("series") and result["threads"] == most:
            curves.setdefault(result["series"], []).append(result)
    long = {name: sorted(c, key=lambda r: r["size"]) for name, c in curves.items() if len(c) > 2}
    return long


def digest(content: dict[str, Any]) -> str:
    """Of what a plot shows; written into its file."""
    shown = json.dumps(series_of(content), sort_keys=True)
    return hashlib.sha256(shown.encode()).hexdigest()[:16]


def _section(device: str, name: str, content: dict[str, Any]) -> list[str]:
    lines = [f"### {name}", ""]
    if series_of(content):
        lines += [f"![{name}: time over size](performance/{device}/{name}.svg)", ""]
    return [*lines, f"`python -m benchmarks {name}`", "", *op_table(content["results"]), ""]


def document(root: Path = RESULTS) -> str:
    """The whole text."""
    lines = [_HEAD]
    for folder in sorted(path for path in root.iterdir() if path.is_dir()):
        results = load(folder)
        work_around = functools.partial(models_table, before=results.get("models_before"))
        lines += [f"## {_title(results)}", "", _machine(results), ""]
        lines += main_table(results)
        for name, title, table in (
            ("overhead", "A call on next to nothing", overhead_table),
            ("training_step", "A training step beside torchvision's detectors", training_table),
            ("models", "The work around the layers", work_around),
            ("data_loading", "Reading images", loading_table),
        ):
            if name in results:
                lines += [f"### {title}", "", f"`python -m benchmarks {name}`", ""]
                lines += [*table(results[name]["results"]), ""]
        lines += ["## Every operator", ""]
        for name, content in results.items():
            if name not in _OTHERS:
                lines += _section(folder.name, name, content)
    return "\n".join(lines).rstrip() + "\n"


def plot(name: str, content: dict[str, Any], path: Path) -> None:
    """Time over size on logarithmic axes, pydet in black and the others beside it."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "pydet"
    matplotlib.rcParams["svg.fonttype"] = "none"
    from matplotlib import pyplot

    curves = series_of(content)
    columns = min(len(curves), 3)
    rows = -(-len(curves) // columns)
    figure, axes = pyplot.subplots(
        rows, columns, figsize=(3.6 * columns, 2.9 * rows), squeeze=False, layout="constrained"
    )
    peers = {"torchvision": "C1", "compile": "C0", "eager": "C7"}
    limits = {"copy": "C2", "fresh": "C4"}
    colours = {"pydet": "black", **peers, **limits}
    for axis in axes.flat[len(curves) :]:
        axis.set_visible(False)
    lines = {}
    for axis, (title, points) in zip(axes.flat, curves.items(), strict=False):
        for contender, colour in colours.items():
            known = [p for p in points if contender in p["times"]]
            if not known:
                continue
            (lines[contender],) = axis.loglog(
                [p["size"] for p in known],
                [p["times"][contender]["median_ms"] for p in known],
                color=colour,
                marker=".",
                linewidth=2 if contender == "pydet" else 1,
                linestyle=":" if contender in limits else "-",
            )
        axis.set_title(title, fontsize=8)
        axis.tick_params(labelsize=7)
        axis.minorticks_off()  # they are most of a file
        axis.grid(alpha=0.3)
    axes[0][0].set_ylabel("ms", fontsize=8)
    shown = [name for name in colours if name in lines]
    axes[0][0].legend([lines[name] for name in shown], shown, fontsize=7)
    path.parent.mkdir(parents=True, exist_ok=True)
    about = {"Date": None, "Creator": "pydet", "Description": digest(content)}
    figure.savefig(path, metadata=about)
    pyplot.close(figure)
    # matplotlib ends some lines with a space.
    text = "\n".join(line.rstrip() for line in path.read_text("utf-8").splitlines())
    path.write_text(text + "\n", encoding="utf-8")


def main() -> int:
    DOCUMENT.write_text(document(), encoding="utf-8")
    for folder in sorted(path for path in RESULTS.iterdir() if path.is_dir()):
        for name, content in load(folder).items():
            if name not in _OTHERS and series_of(content):
                plot(name, content, PLOTS / folder.name / f"{name}.svg")
    print(f"written: {DOCUMENT} and {PLOTS}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
