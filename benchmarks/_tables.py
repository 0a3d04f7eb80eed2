# SPDX-License-Identifier: Apache-2.0
"""The tables of docs/performance.md."""

from collections.abc import Sequence
from typing import Any

from benchmarks._profile import REST

# The workloads that the operators are built for: (benchmark, case).
MAIN = (
    ("box_iou", "box_iou 100 x 100000"),
    ("box_iou", "box_iou 1000 x 1000"),
    ("box_iou", "box_iou 5000 x 5000"),
    ("box_iou", "generalized_box_iou 1000 x 1000"),
    ("box_iou", "generalized_box_iou 100 x 20000"),
    ("box_iou", "distance_box_iou 1000 x 1000"),
    ("box_iou", "distance_box_iou 100 x 20000"),
    ("box_iou", "complete_box_iou 1000 x 1000"),
    ("box_iou", "complete_box_iou 100 x 20000"),
    ("box_iou", "generalized_box_iou with gradients 1000 x 1000"),
    ("box_iou", "distance_box_iou with gradients 1000 x 1000"),
    ("box_iou", "complete_box_iou with gradients 1000 x 1000"),
    ("nms", "nms clustered 1000"),
    ("nms", "nms clustered 5000"),
    ("nms", "nms clustered 20000"),
    ("nms", "nms clustered 100000"),
    ("nms", "nms sparse 1000"),
    ("nms", "nms sparse 5000"),
    ("nms", "nms sparse 20000"),
    ("nms", "nms sparse 100000"),
    ("nms", "batched_nms 20000 x 80 classes"),
    ("nms", "batched_nms 8 x 5000 x 80 classes"),
    ("soft_nms", "soft_nms linear clustered 1000"),
    ("soft_nms", "soft_nms linear clustered 5000"),
    ("match_anchors", "1 x 201600 x 8"),
    ("match_anchors", "1 x 201600 x 100"),
    ("focal_loss", "sum, dense, 200000 x 80 float32"),
    ("focal_loss", "sum and gradient, dense, 200000 x 80 float32"),
    ("roi_align", "256 x 200 x 272, 512 RoIs, 7 x 7, NCHW"),
    ("roi_align", "256 x 200 x 272, 512 RoIs, 7 x 7, NHWC"),
    ("roi_align", "256 x 200 x 272, 512 RoIs, 7 x 7, NCHW, with gradient"),
    ("roi_align", "1024 x 50 x 84, 256 RoIs, 14 x 14, adaptive"),
    ("roi_align", "1024 x 50 x 84, 256 RoIs, 14 x 14, adaptive, with gradient"),
    ("roi_align", "4 levels, 1000 RoIs, 7 x 7, NCHW"),
    ("roi_align", "4 levels, 1000 RoIs, 7 x 7, NHWC"),
    ("roi_align", "4 levels, 1000 RoIs, 7 x 7, NCHW, with gradient"),
    ("roi_pool", "fpn 1000 RoIs NCHW"),
    ("roi_pool", "fpn 1000 RoIs NCHW, with gradient"),
    ("roi_pool", "c4 300 RoIs NCHW"),
    ("roi_pool", "c4 300 RoIs NCHW, with gradient"),
)


def _table(head: Sequence[str], rows: list[list[str]]) -> list[str]:
    columns = "|".join("---" if i == 0 else "---:" for i in range(len(head)))
    return [f"| {' | '.join(head)} |", f"|{columns}|", *(f"| {' | '.join(r)} |" for r in rows)]


def time_text(ms: float) -> str:
    """Milliseconds in the unit that reads best, three digits."""
    for factor, unit in ((1e-3, "s"), (1.0, "ms")):
        if ms * factor >= 1:
            return f"{ms * factor:.3g} {unit}"
    return f"{ms * 1e3:.3g} µs"


def _spread(times: dict[str, Any]) -> str:
    relative = (times["q75_ms"] - times["q25_ms"]) / times["median_ms"] / 2
    return f"{time_text(times['median_ms'])} ± {relative:.0%}"


def _ratio(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}" if value < 100 else f"{value:.0f}"


def _memory(result: dict[str, Any], name: str) -> str:
    peak = result.get("peak_extra_bytes", {}).get(name)
    return "" if peak is None else f"{peak / 2**20:.1f}"


def _by_threads(results: list[dict[str, Any]]) -> dict[str, dict[int, dict[str, Any]]]:
    cases: dict[str, dict[int, dict[str, Any]]] = {}
    for result in results:
        cases.setdefault(result["case"], {})[result["threads"]] = result
    return cases


def main_table(results: dict[str, Any]) -> list[str]:
    """The main workloads: one row each, one thread and all side by side."""
    contents = {name: _by_threads(content["results"]) for name, content in results.items()}
    rows = []
    for name, case in MAIN:
        runs = contents.get(name, {}).get(case)
        if not runs:
            continue
        ends = [runs[threads] for threads in sorted({min(runs), max(runs)})]
        row = [case if "nms" in case or "iou" in case else f"{name}: {case}"]
        row += [_spread(run["times"]["pydet"]) for run in ends]
        row += [""] * (2 - len(ends))
        for other in ("torchvision", "compile"):
            ratios = [_ratio(run["times_faster_than"].get(other)) for run in ends]
            row.append(" / ".join(ratios) if any(ratios) else "")
        row.append(f"{ends[0]['share_of_bound']:.0%} of {ends[0]['bound']}")
        row += [_memory(ends[0], "pydet"), _memory(ends[0], "torchvision")]
        rows.append(row)
    if not rows:
        return []
    head = ("workload", "pydet, 1 thread", "all threads", "x torchvision, 1 / all")
    more = ("x compile, 1 / all", "of the limit", "MB", "MB, torchvision")
    return ["### The main workloads", "", *_table((*head, *more), rows), ""]


def op_table(results: list[dict[str, Any]]) -> list[str]:
    """Every case of one benchmark and every number of threads."""
    peers = [
        name
        for name in ("torchvision", "compile", "eager")
        if any(name in result["times_faster_than"] for result in results)
    ]
    rows = [
        [
            result["case"],
            str(result["threads"]),
            _spread(result["times"]["pydet"]),
            *(_ratio(result["times_faster_than"].get(peer)) for peer in peers),
            f"{result['share_of_bound']:.0%} of {result['bound']}",
            _memory(result, "pydet"),
            *(_memory(result, peer) for peer in peers[:1]),
        ]
        for result in results
    ]
    head = ["case", "threads", "pydet", *(f"x {peer}" for peer in peers), "of the limit", "MB"]
    return _table([*head, *(f"MB, {peer}" for peer in peers[:1])], rows)


def overhead_table(results: list[dict[str, Any]]) -> list[str]:
    """Microseconds of a call."""
    rows = []
    for case, runs in _by_threads(results).items():
        run = runs[min(runs)]
        others = run["times"].get("torchvision")
        rows.append(
            [
                case,
                _spread(run["times"]["pydet"]),
                _spread(others) if others else "",
                _ratio(run["times_faster_than"].get("torchvision")),
            ]
        )
    return _table(("call", "pydet", "torchvision", "x torchvision"), rows)


def training_table(results: list[dict[str, Any]]) -> list[str]:
    """Time, memory and the part around the layers, beside torchvision."""
    rows = []
    for result in results:
        for name, times in result["times"].items():
            rows.append(
                [
                    f"{result['case']}: {name}",
                    str(result["threads"]),
                    _spread(times),
                    _memory(result, name),
                    time_text(result["around_ms"][name]),
                    f"{result['around_share'][name]:.1%}",
                ]
            )
    return _table(("step", "threads", "time", "MB", "around", "share of the step"), rows)


def models_table(results: list[dict[str, Any]], before: dict[str, Any] | None) -> list[str]:
    """Shares of a step and of a detection, and what is dearest of the rest; earlier ones beside."""
    kinds = sorted({kind for result in results for kind in result["shares"]} - {REST})
    earlier = {result["case"]: result for result in before["results"]} if before else {}
    rows = []
    for result in results:
        dearest = list(result["around_ms"].items())[:3]
        row = [result["case"], time_text(result["seconds"] * 1e3)]
        row += [f"{result['shares'].get(kind, 0):.1%}" for kind in kinds]
        row.append(_around(result))
        if before:
            was = earlier.get(result["case"])
            row.append("" if was is None else _around(was))
        row.append(", ".join(f"`{name[:40]}` {time_text(ms)}" for name, ms in dearest))
        rows.append(row)
    head = ["call", "time", *kinds, REST]
    head += [f"{REST}, at {before['commit']}"] if before else []
    return _table([*head, "the dearest around the layers"], rows)


def _around(result: dict[str, Any]) -> str:
    share = result["shares"].get(REST, 0)
    return f"{time_text(share * result['seconds'] * 1e3)}: {share:.1%}"


def loading_table(results: list[dict[str, Any]]) -> list[str]:
    """Images a second and core."""
    peers = sorted({name for result in results for name in result["images_per_second"]})
    peers.sort(key=lambda name: name != "pydet")
    rows = [
        [result["case"]]
        + [
            f"{result['images_per_second'][p]:.0f}" if p in result["images_per_second"] else ""
            for p in peers
        ]
        for result in results
    ]
    return _table(("images a second on one core", *peers), rows)
