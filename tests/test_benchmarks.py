# SPDX-License-Identifier: Apache-2.0
"""The harness measures what it says, and docs/performance.md is what the committed results give."""

import argparse
import importlib
import re

import pytest
import torch

from benchmarks import __main__ as command
from benchmarks import report
from benchmarks._harness import Case, measure
from benchmarks._memory import can_measure, peak_extra_memory, result_bytes
from benchmarks._profile import REST, profile_call
from benchmarks._results import RESULTS
from benchmarks._tables import MAIN, models_table, time_text
from benchmarks._timing import paired_ratio, sample, summary

CPU = torch.device("cpu")
# An sdist has no results.
DEVICES = sorted(RESULTS.glob("*/")) if RESULTS.is_dir() else []
MEGABYTE = 2**20


@pytest.fixture(autouse=True)
def keep_threads():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def double(x: torch.Tensor) -> torch.Tensor:
    return x + x


def make_case(**changes) -> Case:
    x = torch.ones(1000)
    fields = {
        "name": "double 1000",
        "pydet": lambda: 2 * x,
        "eager": lambda: double(x),
        "num_bytes": 8000,
        "peers": {"torchvision": lambda: double(x)},
        "series": "double",
        "size": 1000,
    }
    return Case(**{**fields, **changes})


def test_a_result_has_all_that_the_tables_need():
    result = measure(make_case(arithmetic=("exp", 1000)), CPU, 1, 0.0)
    assert result["times"].keys() == {"pydet", "torchvision", "eager", "copy", "exp"}
    assert result["times_faster_than"].keys() == {"torchvision", "eager"}
    assert result["bound"] in ("copy", "exp")
    assert result["times"]["pydet"]["samples"] == result["rounds"] >= 5
    assert result["result_bytes"] == 4000
    assert (result["series"], result["size"]) == ("double", 1000)


@pytest.mark.parametrize("megabytes", [1, 40])  # from where on it counts; and in huge pages
def test_large_results_are_limited_by_fresh_memory(megabytes):
    x = torch.ones(megabytes << 18)
    case = make_case(pydet=lambda: 2 * x, eager=lambda: double(x), peers={})
    result = measure(case, CPU, 1, 0.0)
    assert result["result_bytes"] == megabytes << 20
    assert result["times"].keys() == {"pydet", "eager", "copy", "fresh"}
    assert result["bound"] == "fresh"  # the case says that next to nothing is to be copied


def test_nothing_wrong_is_timed():
    with pytest.raises(AssertionError):
        measure(make_case(pydet=lambda: torch.zeros(1000)), CPU, 1, 0.0)


def test_limits_grow_with_the_work():
    few, many = (
        measure(make_case(arithmetic=("multiply-add", count)), CPU, 1, 0.0)["times"]["multiply-add"]
        for count in (1e6, 1e9)
    )
    assert many["median_ms"] > 100 * few["median_ms"]


def test_slow_contenders_are_sampled_less_often():
    seconds = {"slow": 25.0, "middle": 2.0, "quick": 0.1}
    taken = sample(
        {name: (lambda name=name: name) for name in seconds},
        lambda call, repeats: seconds[call()] * repeats,
        0.1,
    )
    assert {name: len(values) for name, values in taken.items()} == {
        "slow": 1,
        "middle": 3,
        "quick": 5,
    }
    assert summary(taken["slow"])["median_ms"] == 25000
    assert paired_ratio(taken["slow"], taken["quick"]) == pytest.approx(250)


@pytest.mark.skipif(not can_measure(CPU), reason="this system does not tell peaks of memory")
def test_peak_memory_sees_temporaries_that_are_gone():
    def call() -> torch.Tensor:
        return torch.ones(2 * MEGABYTE).sum()  # 8 MB, and a scalar

    call()
    assert peak_extra_memory(call, CPU) / MEGABYTE == pytest.approx(8, abs=1.5)
    assert peak_extra_memory(lambda: None, CPU) < MEGABYTE
    assert result_bytes([torch.zeros(3), (torch.zeros(2, dtype=torch.int64), None)]) == 28


def test_layers_and_the_rest_are_told_apart():
    layers = torch.nn.Sequential(torch.nn.Conv2d(3, 64, 3), torch.nn.BatchNorm2d(64))
    x = torch.rand(2, 3, 64, 64)
    found = profile_call(lambda: layers(x).sort(), CPU)
    assert {"convolution", "normalisation", REST} <= found["by_kind"].keys()
    assert "aten::sort" in found["around_by_operator"]
    assert not any("conv" in name for name in found["around_by_operator"])
    inside = profile_call(lambda: layers(x), CPU)["around_by_operator"].keys()
    assert not {"aten::empty", "aten::empty_like"} & inside, "a layer's own results are the layer's"
    assert sum(found["by_kind"].values()) == pytest.approx(found["seconds"], rel=0.05)


def test_the_work_around_the_layers_stands_beside_what_it_was():
    def result(case, share):
        return {"case": case, "seconds": 2.0, "shares": {REST: share}, "around_ms": {"sort": 5.0}}

    now = [result("a", 0.01), result("b", 0.02)]
    assert "20 ms: 1.0%" in models_table(now, None)[2]
    head, _, first, second = models_table(now, {"commit": "abc", "results": [result("a", 0.05)]})
    assert "at abc" in head
    assert "20 ms: 1.0% | 100 ms: 5.0% |" in first
    assert "40 ms: 2.0% |  |" in second


@pytest.mark.parametrize("name", command.names())
def test_every_benchmark_can_be_run(name):
    module = importlib.import_module(f"benchmarks.bench_{name}")
    assert callable(getattr(module, "cases", None)) != callable(getattr(module, "run", None))
    assert module.__doc__


def test_cases_have_names_of_their_own():
    for name in ("overhead", "box_coding", "matrix_nms"):
        cases = importlib.import_module(f"benchmarks.bench_{name}").cases(CPU)
        found = [case.name for case in cases]
        assert len(found) == len(set(found)) > 5


def test_times_are_written_in_the_unit_that_reads_best():
    written = [time_text(ms) for ms in (0.0021, 0.5, 12.345, 2500)]
    assert written == ["2.1 µs", "500 µs", "12.3 ms", "2.5 s"]


@pytest.mark.skipif(not DEVICES, reason="there are no results here, as in an sdist")
def test_the_document_is_what_the_results_give():
    again = "run `python -m benchmarks.report` and commit what it writes"
    assert report.document() == report.DOCUMENT.read_text(encoding="utf-8"), again


@pytest.mark.parametrize("folder", DEVICES, ids=lambda folder: folder.name)
def test_the_plots_are_of_the_results(folder):
    for name, content in report.load(folder).items():
        if name in report._OTHERS or not report.series_of(content):
            continue
        text = (report.PLOTS / folder.name / f"{name}.svg").read_text(encoding="utf-8")
        assert report.digest(content) in text, f"{name}.svg is of other results"


def test_a_plot_is_the_same_each_time(tmp_path):
    results = [
        {"series": "s", "size": size, "threads": 1, "times": {"pydet": {"median_ms": float(size)}}}
        for size in (1, 10, 100)
    ]
    for name in ("first.svg", "second.svg"):
        report.plot("s", {"results": results}, tmp_path / name)
    first = (tmp_path / "first.svg").read_bytes()
    assert first == (tmp_path / "second.svg").read_bytes()
    assert re.search(rb"<dc:description>[0-9a-f]{16}<", first)


@pytest.mark.parametrize("folder", DEVICES, ids=lambda folder: folder.name)
def test_the_main_workloads_are_measured(folder):
    results = report.load(folder)
    missing = [
        case
        for name, case in MAIN
        if name in results and case not in {r["case"] for r in results[name]["results"]}
    ]
    assert missing == []


def test_the_command_refuses_what_it_does_not_know(capsys):
    assert command.main(["no_such_op"]) == 2
    assert "no_such_op" in capsys.readouterr().err
    assert isinstance(command.build_parser(), argparse.ArgumentParser)
