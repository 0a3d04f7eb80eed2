# SPDX-License-Identifier: Apache-2.0
"""The training loop, in this process."""

import dataclasses
import functools
import json
import math
import time
from pathlib import Path

import pytest
import torch

import pydet
from pydet.data import DatasetError, DetectionDataset, RandomHorizontalFlip, open_dataset
from pydet.models import create_model
from pydet.training import (
    CheckpointError,
    NonFiniteLossError,
    TrainConfig,
    TrainResult,
    load_checkpoint,
    results,
    state,
    train,
)
from pydet.training.checkpoint import seed_everything
from pydet.training.devices import memory_format
from pydet.training.logging import read_log
from pydet.training.watch import LossWatch
from tests.training import tiny_detector  # noqa: F401 - registers "tiny"

CONFIG = TrainConfig(
    epochs=3,
    batch_size=4,
    learning_rate=0.05,
    log_every=1,
    workers=0,
    device="cpu",
    threads=1,
    seed=1,
)


def run(drawn: Path, output: Path, *, options=None, val=True, **changes) -> TrainResult:
    seed_everything(0)
    training = open_dataset(drawn, "train")
    validation = open_dataset(drawn, "val", class_names=training.class_names)
    names = training.class_names
    arguments = {
        key: changes.pop(key) for key in ("resume", "tensorboard", "transform") if key in changes
    }
    return train(
        create_model("tiny", len(names), class_names=names, **(options or {})),
        training,
        validation if val else None,
        dataclasses.replace(CONFIG, **changes),
        output=output,
        **{"transform": RandomHorizontalFlip(), "tensorboard": False, **arguments},
        progress=False,
    )


def weights(folder: Path) -> dict[str, torch.Tensor]:
    state = load_checkpoint(folder / "last.ckpt")
    tensors = {f"model.{k}": v for k, v in state["model"].items()}
    tensors |= {f"average.{k}": v for k, v in (state["average"] or {"model": {}})["model"].items()}
    for i, values in state["optimizer"]["state"].items():
        tensors |= {f"optimizer.{i}.{k}": v for k, v in values.items() if torch.is_tensor(v)}
    return tensors


def assert_same_bits(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    assert [key for key in a if not torch.equal(a[key], b[key])] == []


def losses(folder: Path) -> list[float]:
    return [record["loss"] for record in read_log(folder) if record["kind"] == "train"]


def test_a_training_writes_all_it_promises(drawn, tmp_path):
    result = run(drawn, tmp_path, epochs=3, tensorboard=True)
    assert (result.steps, result.epochs, result.signal) == (12, 3, 0)  # 45 images, 4 a step
    names = {path.name for path in tmp_path.iterdir()}
    assert names >= {
        "best.safetensors", "config.toml", "last.ckpt", "last.safetensors", "loss.png",
        "metrics.json", "metrics.jsonl", "precision_recall.png", "previous.ckpt",
    }  # fmt: skip
    assert any(name.startswith("events.out.tfevents") for name in names)
    records = read_log(tmp_path)
    steps = [record for record in records if record["kind"] == "train"]
    assert [record["step"] for record in steps] == list(range(1, 13))
    assert {"loss", "loss_cls", "loss_box", "learning_rate", "gradient_norm", "invalid_boxes",
            "images_per_second", "epoch", "images"} <= steps[0].keys()  # fmt: skip
    assert [r["epoch"] for r in records if r["kind"] == "eval"] == [1, 2, 3]
    assert losses(tmp_path)[-1] < losses(tmp_path)[0]
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["best"]["ap"] == result.best["ap"]
    assert metrics["images"] == 48
    loaded = pydet.load(tmp_path / "last.safetensors")
    average = load_checkpoint(tmp_path / "last.ckpt")["average"]["model"]
    assert_same_bits(dict(loaded.state_dict()), average)


def test_two_runs_are_the_same_bits(drawn, tmp_path):
    run(drawn, tmp_path / "a", epochs=2)
    run(drawn, tmp_path / "b", epochs=2)
    assert_same_bits(weights(tmp_path / "a"), weights(tmp_path / "b"))
    run(drawn, tmp_path / "c", epochs=2, seed=2)
    assert any(not torch.equal(v, weights(tmp_path / "c")[k])
               for k, v in weights(tmp_path / "a").items())  # fmt: skip


def test_workers_and_evaluations_change_nothing(drawn, tmp_path):
    run(drawn, tmp_path / "a", epochs=2)
    run(drawn, tmp_path / "b", epochs=2, workers=2, val=False)
    assert_same_bits(weights(tmp_path / "a"), weights(tmp_path / "b"))


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("options", [{}, {"batch_norm": True}])
def test_resumed_is_undisturbed_to_the_bit(drawn, tmp_path, optimizer, options, monkeypatch):
    """Stopped in the middle of an epoch, between two log lines."""
    changes = {"options": options, "optimizer": optimizer, "learning_rate": 0.01, "log_every": 4}
    run(drawn, tmp_path / "whole", epochs=3, **changes)
    stop_after(monkeypatch, 6)
    stopped = run(drawn, tmp_path / "parts", epochs=3, **changes)
    monkeypatch.undo()
    assert (stopped.steps, stopped.signal) == (6, 15)
    seed_everything(77)
    result = run(drawn, tmp_path / "parts", epochs=3, resume=True, **changes)
    assert result.steps == 12
    assert_same_bits(weights(tmp_path / "whole"), weights(tmp_path / "parts"))
    logs = [
        [{k: v for k, v in record.items() if k != "images_per_second"} for record in read_log(f)]
        for f in (tmp_path / "whole", tmp_path / "parts")
    ]
    assert logs[0] == logs[1]


def stop_after(monkeypatch, steps: int) -> None:
    """As if SIGTERM came during this step."""
    import os
    import signal

    from pydet.training.ema import WeightAverage

    update = WeightAverage.update

    def update_and_stop(self, model):
        update(self, model)
        if self.updates == steps:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(WeightAverage, "update", update_and_stop)


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
@pytest.mark.parametrize("epoch", [1, 2])
def test_an_evaluation_that_fails_is_made_up_for(drawn, tmp_path, epoch, error, monkeypatch):
    run(drawn, tmp_path / "whole", epochs=2)
    evaluate_results, calls = results.evaluate_results, []

    def fail_once(*arguments):
        calls.append(arguments)
        if len(calls) == epoch:
            raise error("no more")
        return evaluate_results(*arguments)

    monkeypatch.setattr(results, "evaluate_results", fail_once)
    with pytest.raises(error, match="no more"):
        run(drawn, tmp_path / "parts", epochs=2)
    saved = load_checkpoint(tmp_path / "parts/last.ckpt")
    assert (saved["step"], saved["evaluated"]) == (4 * epoch, epoch - 1)
    result = run(drawn, tmp_path / "parts", epochs=2, resume=True)
    assert (result.steps, result.metrics["epoch"], len(calls)) == (8, 2, 3)
    assert_same_bits(weights(tmp_path / "whole"), weights(tmp_path / "parts"))
    assert [r["epoch"] for r in read_log(tmp_path / "parts") if r["kind"] == "eval"] == [1, 2]


def test_an_evaluation_that_was_not_saved_is_logged_once(drawn, tmp_path, monkeypatch):
    def fail(*_, again=False):
        if again:
            raise OSError("no space left")

    monkeypatch.setattr(state, "save_checkpoint", fail_after(state.save_checkpoint, fail))
    with pytest.raises(OSError, match="no space left"):
        run(drawn, tmp_path, epochs=2)
    monkeypatch.undo()
    run(drawn, tmp_path, epochs=2, resume=True)
    kinds = ["train"] * 4 + ["eval"]
    assert [record["kind"] for record in read_log(tmp_path)] == kinds * 2


def fail_after(function, fail):
    def both(*arguments, **options):
        fail(*arguments, **options)
        function(*arguments, **options)

    return both


def test_an_evaluation_leaves_the_checkpoint_before_it(drawn, tmp_path):
    run(drawn, tmp_path, epochs=2)
    last, previous = (load_checkpoint(tmp_path / f"{n}.ckpt") for n in ("last", "previous"))
    assert (last["step"], last["evaluated"]) == (8, 2)
    assert (previous["step"], previous["evaluated"]) == (4, 1)


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_what_was_learnt_is_kept_where_an_image_cannot_be_read(
    drawn, tmp_path, accumulate, workers, monkeypatch
):
    changes = {"epochs": 2, "accumulate": accumulate, "log_every": 4, "workers": workers}
    run(drawn, tmp_path / "whole", **changes)
    dataset = open_dataset(drawn, "train")
    victim = batch_keys(dataset, 2)[3]  # of the third step's second piece
    getitem = DetectionDataset.__getitem__

    def fail(self, index):
        if len(self) == len(dataset) and index == victim[1]:
            raise DatasetError("damaged")
        return getitem(self, index)

    with monkeypatch.context() as patch:
        patch.setattr(DetectionDataset, "__getitem__", fail)
        with pytest.raises(DatasetError, match="damaged"):
            run(drawn, tmp_path / "parts", **changes)
    assert load_checkpoint(tmp_path / "parts/last.ckpt")["step"] == 2
    run(drawn, tmp_path / "parts", resume=True, **changes)
    assert_same_bits(weights(tmp_path / "whole"), weights(tmp_path / "parts"))
    assert losses(tmp_path / "whole") == losses(tmp_path / "parts")


def test_weights_of_a_loss_that_is_nan_are_never_the_best(drawn, tmp_path, monkeypatch):
    """As on a GPU, where losses are looked at when a look is due."""
    add = LossWatch.add

    def add_only(self, *arguments):
        with monkeypatch.context() as patch:
            patch.setattr(LossWatch, "look", lambda self: None)
            add(self, *arguments)

    monkeypatch.setattr(LossWatch, "add", add_only)
    monkeypatch.setattr(LossWatch, "add_gradient", lambda *_: None)
    monkeypatch.setattr(results, "collect_results", lambda *_, **__: [])  # NaN is no detection
    boxes = batch_boxes(open_dataset(drawn, "train"), 2)
    with pytest.raises(NonFiniteLossError, match="step 2"):
        run(drawn, tmp_path, epochs=2, log_every=100, options={"nan_at": boxes})
    assert not (tmp_path / "best.safetensors").exists()
    assert not (tmp_path / "last.ckpt").exists()


def test_the_rate_counts_the_wait_for_a_gpu_but_no_evaluation(drawn, tmp_path, monkeypatch):
    take, evaluate = LossWatch.take, results.Results.evaluate

    def wait(self):
        time.sleep(0.05)
        return take(self)

    def sleep(self, dataset):
        time.sleep(2)
        evaluate(self, dataset)

    monkeypatch.setattr(LossWatch, "take", wait)
    monkeypatch.setattr(results.Results, "evaluate", sleep)
    run(drawn, tmp_path, epochs=2)
    rates = [r["images_per_second"] for r in read_log(tmp_path) if r["kind"] == "train"]
    assert max(rates) < 4 / 0.05
    assert min(rates) > 4 / 2


@pytest.mark.parametrize(("changes", "size"), [({}, 4), ({"accumulate": 2}, 2),
                                               ({"eval_batch_size": 3}, 3)])  # fmt: skip
def test_an_evaluation_needs_no_more_memory_than_a_step(
    drawn, tmp_path, changes, size, monkeypatch
):
    collect_results, sizes = results.collect_results, []

    def collect(*arguments, batch_size, **options):
        sizes.append(batch_size)
        return collect_results(*arguments, batch_size=batch_size, **options)

    monkeypatch.setattr(results, "collect_results", collect)
    run(drawn, tmp_path, epochs=1, **changes)
    assert sizes == [size]


def test_a_signal_in_the_last_step_stops_nothing(drawn, tmp_path, monkeypatch):
    stop_after(monkeypatch, 4)
    assert run(drawn, tmp_path, epochs=1).signal == 0


def test_accumulated_pieces_are_the_whole_batch(drawn, tmp_path):
    options = {"dropout": 0.0}
    run(drawn, tmp_path / "a", epochs=2, options=options)
    run(drawn, tmp_path / "b", epochs=2, options=options, accumulate=2)
    torch.testing.assert_close(losses(tmp_path / "a"), losses(tmp_path / "b"), rtol=1e-4, atol=1e-5)


def test_epochs_and_batch_size_may_change_on_resume(drawn, tmp_path):
    run(drawn, tmp_path, epochs=2, batch_size=4)  # 30 images: 8 steps, 32 images
    result = run(drawn, tmp_path, epochs=4, batch_size=7, resume=True)  # 28 to 60: 4 steps more
    assert (result.steps, result.epochs) == (12, 4)
    images = [record["images"] for record in read_log(tmp_path) if record["kind"] == "train"]
    assert images == [4, 8, 12, 16, 20, 24, 28, 32, 39, 46, 53, 60]


LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize(("before", "after"), [tuple(LAYOUTS), tuple(LAYOUTS)[::-1]])
def test_layout_may_change_on_resume(drawn, tmp_path, optimizer, before, after, monkeypatch):
    # Dropout draws its numbers in the order of the memory.
    changes = {"optimizer": optimizer, "learning_rate": 0.01, "options": {"dropout": 0.0}}
    run(drawn, tmp_path / "whole", epochs=2, memory_format=after, **changes)
    stop_after(monkeypatch, 4)
    run(drawn, tmp_path / "parts", epochs=2, memory_format=before, **changes)
    monkeypatch.undo()
    run(drawn, tmp_path / "parts", epochs=2, memory_format=after, resume=True, **changes)
    assert losses(tmp_path / "parts") == pytest.approx(losses(tmp_path / "whole"), rel=1e-3)
    for folder in ("whole", "parts"):
        state = load_checkpoint(tmp_path / folder / "last.ckpt")
        for tensors in (state["model"], state["average"]["model"]):
            kernel = tensors["trunk.0.weight"]
            assert kernel.is_contiguous(memory_format=LAYOUTS[after])
            assert not kernel.is_contiguous(memory_format=LAYOUTS[before])


def test_a_finished_training_is_left_as_it_is(drawn, tmp_path):
    run(drawn, tmp_path, epochs=1)
    before = weights(tmp_path)
    assert run(drawn, tmp_path, epochs=1, resume=True).steps == 4
    assert_same_bits(before, weights(tmp_path))


def test_resuming_without_a_checkpoint_begins(drawn, tmp_path):
    assert run(drawn, tmp_path / "new", epochs=1, resume=True).steps == 4


def test_a_folder_that_holds_a_training_is_refused(drawn, tmp_path):
    run(drawn, tmp_path, epochs=1)
    with pytest.raises(ValueError, match="output must be a new folder, or be resumed"):
        run(drawn, tmp_path, epochs=1)


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"seed": 9}, "seed = 1, which cannot change .* got 9"),
     ({"optimizer": "adamw"}, "optimizer = sgd, which cannot change .* got adamw"),
     ({"options": {"channels": 4}}, "weights do not fit the model")],
)  # fmt: skip
def test_a_checkpoint_of_another_training_is_refused(drawn, tmp_path, changes, words):
    run(drawn, tmp_path, epochs=1)
    with pytest.raises(CheckpointError, match=words):
        run(drawn, tmp_path, epochs=2, resume=True, **changes)


def test_a_damaged_checkpoint_is_refused_and_the_one_before_goes_on(drawn, tmp_path):
    run(drawn, tmp_path / "whole", epochs=2)
    run(drawn, tmp_path / "parts", epochs=2)
    path = tmp_path / "parts" / "last.ckpt"
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(CheckpointError, match=r"damaged .*previous.ckpt"):
        run(drawn, tmp_path / "parts", epochs=2, resume=True)
    result = run(drawn, tmp_path / "parts", epochs=2, resume=path.with_name("previous.ckpt"))
    assert result.steps == 8
    assert_same_bits(weights(tmp_path / "whole"), weights(tmp_path / "parts"))


def test_a_nan_loss_stops_before_the_weights_and_names_its_batch(drawn, tmp_path):
    dataset = open_dataset(drawn, "train")
    whole = run(drawn, tmp_path / "a", epochs=1, val=False)
    assert whole.steps == 4
    with pytest.raises(NonFiniteLossError) as error:
        # The first batch whose boxes are as many as those of the third batch of the stream.
        run(drawn, tmp_path / "b", epochs=1, val=False, options={"nan_at": batch_boxes(dataset, 2)})
    text = str(error.value)
    named = [str(dataset.image_path(i)) for _, i in batch_keys(dataset, 2)]
    assert all(name in text for name in named)
    assert "loss_box = nan" in text
    assert "step 2" in text


def batch_keys(dataset, step: int) -> list[tuple[int, int]]:
    from pydet.training.sampler import ImageStream

    return ImageStream(len(dataset), CONFIG.seed).keys(4 * step, 4 * step + 4)


def batch_boxes(dataset, step: int) -> int:
    counts = [sum(len(dataset.target(i)["labels"]) for _, i in batch_keys(dataset, s))
              for s in range(step + 1)]  # fmt: skip
    assert counts[step] not in counts[:step]
    return counts[step]


def test_invalid_boxes_are_counted(drawn, tmp_path):
    class Broken(torch.utils.data.Dataset):
        def __init__(self, dataset):
            self.dataset = dataset
            self.class_names = dataset.class_names

        def __len__(self):
            return 4

        def __getitem__(self, index):
            image, target = self.dataset[index]
            boxes = torch.tensor([[5.0, 5, 5, 9], [float("nan"), 0, 4, 4]])
            target = {"boxes": torch.cat([target["boxes"], boxes]),
                      "labels": torch.cat([target["labels"], torch.tensor([0, 1])])}  # fmt: skip
            return image, target

    names = open_dataset(drawn, "train").class_names
    result = train(
        create_model("tiny", len(names), class_names=names),
        Broken(open_dataset(drawn, "train")),
        config=dataclasses.replace(CONFIG, epochs=2, warmup_epochs=0),
        output=tmp_path,
        tensorboard=False,
        progress=False,
    )
    assert result.invalid_boxes == 2 * 4 * 2
    assert all(math.isfinite(loss) for loss in losses(tmp_path))


def test_other_classes_are_refused(drawn, tmp_path):
    dataset = open_dataset(drawn, "train")
    model = create_model("tiny", 2, class_names=("cat", "dog"))
    with pytest.raises(ValueError, match=r"train_dataset must have the model's classes \(cat, dog"):
        train(model, dataset, config=CONFIG, output=tmp_path)


def test_a_data_set_that_cannot_be_measured_on_is_refused_at_the_start(drawn, tmp_path):
    dataset = open_dataset(drawn, "train")
    names = dataset.class_names
    model = create_model("tiny", len(names), class_names=names)
    part = torch.utils.data.Subset(dataset, [0, 1])
    words = r"val_dataset must be a pydet\.data\.DetectionDataset or None, got Subset"
    with pytest.raises(TypeError, match=words):
        train(model, dataset, part, CONFIG, output=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"precision": "fp16"}, "precision must be 32 or bf16 on the CPU"),
     ({"sync_batchnorm": True}, "sync_batchnorm must be false on the CPU")],
)  # fmt: skip
def test_what_the_machine_cannot_do_is_refused(drawn, tmp_path, changes, words):
    with pytest.raises(ValueError, match=words):
        run(drawn, tmp_path, **changes)


def test_compiled_is_the_same_curve(drawn, tmp_path, monkeypatch):
    """Traced whole by Dynamo; the backend runs the graph as it is (Inductor needs minutes)."""
    graphs = []

    def backend(graph, _):
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=backend))
    options = {"dropout": 0.0}
    run(drawn, tmp_path / "a", epochs=1, options=options, val=False)
    assert not graphs
    run(drawn, tmp_path / "b", epochs=1, options=options, val=False, compile=True)
    assert graphs
    torch.testing.assert_close(losses(tmp_path / "a"), losses(tmp_path / "b"), rtol=1e-5, atol=1e-6)
    saved = [load_checkpoint(tmp_path / name / "last.ckpt")["model"].keys() for name in "ab"]
    assert saved[0] == saved[1]


def test_automatic_precision_is_one_of_its_two(drawn, tmp_path):
    run(drawn, tmp_path / "auto", epochs=1, precision="auto", val=False)
    native = "bf16" if torch.cpu._is_avx512_bf16_supported() else "32"
    run(drawn, tmp_path / "named", epochs=1, precision=native, val=False)
    assert_same_bits(weights(tmp_path / "auto"), weights(tmp_path / "named"))


@pytest.mark.parametrize(
    ("setting", "device", "capability", "expected"),
    [
        ("contiguous", "cuda", "AVX512", torch.contiguous_format),
        ("channels_last", "cpu", "DEFAULT", torch.channels_last),
        ("auto", "cuda", "AVX2", torch.channels_last),
        ("auto", "cpu", "AVX512", torch.channels_last),
        ("auto", "cpu", "AVX2", torch.contiguous_format),
    ],
)
def test_layout_is_chosen_by_the_machine(monkeypatch, setting, device, capability, expected):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    config = TrainConfig(memory_format=setting)
    assert memory_format(config, torch.device(device)) is expected


def test_other_settings_run(drawn, tmp_path):
    result = run(
        drawn, tmp_path, precision="bf16", ema_decay=0, memory_format="contiguous", clip_norm=0,
        schedule="step", step_epochs=(1, 2), eval_every=2, threads=1,
    )  # fmt: skip
    assert result.steps == 12
    records = read_log(tmp_path)
    assert [r["epoch"] for r in records if r["kind"] == "eval"] == [2, 3]
    rates = [r["learning_rate"] for r in records if r["kind"] == "train"]
    assert rates[-1] == pytest.approx(0.05 * 0.01)
    assert load_checkpoint(tmp_path / "last.ckpt")["average"] is None
