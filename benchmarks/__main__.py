# SPDX-License-Identifier: Apache-2.0
"""``python -m benchmarks [NAME ...]``: every bench_<name>.py, or those that are named.

A benchmark has ``cases(device)``, which are checked and timed here, or is a measurement of another
kind and has ``run(device, args)``, which returns its results.
"""

import argparse
import importlib
import sys
from pathlib import Path
from typing import Any

import torch

from benchmarks._harness import format_line, measure, torchvision_ops
from benchmarks._results import write_results


def names() -> list[str]:
    """The benchmarks of this folder."""
    files = Path(__file__).parent.glob("bench_*.py")
    return sorted(path.stem.removeprefix("bench_") for path in files)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(names())}")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    parser.add_argument(
        "--threads",
        type=int,
        nargs="+",
        default=sorted({1, torch.get_num_threads()}),
        help="numbers of threads to measure with (default: 1 and all)",
    )
    parser.add_argument("--seconds", type=float, default=2.0, help="time a case (default: 2)")
    parser.add_argument("--quick", action="store_true", help="check all results, time briefly")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    parser.add_argument(
        "--models", nargs="+", default=[], metavar="MODEL", help="for models and training_step"
    )
    parser.add_argument(
        "--images", nargs="+", default=[], metavar="FOLDER", help="JPEG files for data_loading"
    )
    parser.add_argument("--no-write", action="store_true", help="leave benchmarks/results alone")
    return parser


def _measure_cases(module: Any, device: torch.device, args: argparse.Namespace) -> list[Any]:
    results = []
    skip = ("compile",) if args.quick or args.no_compile else ()
    for case in module.cases(device):
        torch.set_num_threads(max(args.threads))
        expected = case.eager()
        for threads in args.threads if device.type == "cpu" else args.threads[:1]:
            seconds = 0.05 if args.quick else args.seconds
            results.append(measure(case, device, threads, seconds, expected=expected, skip=skip))
            print(format_line(results[-1]), flush=True)
    return results


def main(arguments: list[str] | None = None) -> int:
    args = build_parser().parse_args(arguments)
    unknown = set(args.names) - set(names())
    if unknown:
        print(f"benchmarks: NAME must be one of {names()}, got {sorted(unknown)}", file=sys.stderr)
        return 2
    device = torch.device(args.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        print("benchmarks: --device cuda needs a GPU; torch sees none", file=sys.stderr)
        return 2
    if torchvision_ops() is None:
        print("torchvision cannot be imported: compared with the eager formula only")
    for name in args.names or names():
        print(name, flush=True)
        module = importlib.import_module(f"benchmarks.bench_{name}")
        if hasattr(module, "cases"):
            results = _measure_cases(module, device, args)
        else:
            results = module.run(device, args)
        if not args.quick and not args.no_write:
            print(f"  written to {write_results(name, device, results)}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
