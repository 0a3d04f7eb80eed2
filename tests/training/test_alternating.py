# SPDX-License-Identifier: Apache-2.0
"""The four steps of Faster R-CNN's alternating training: what learns in each, and going on."""

import copy
import dataclasses

import pytest
import torch

import pydet
from pydet.cli import main
from pydet.data import open_dataset
from pydet.training import TrainConfig, load_checkpoint
from pydet.training.alternating import train_alternating
from pydet.training.checkpoint import seed_everything

OPTIONS = {
    "width": 0.0625,
    "anchor_sizes": [[16.0, 32.0]],
    "rpn_channels": 8,
    "box_channels": 8,
    "train_pre_nms": 50,
    "train_post_nms": 20,
    "pre_nms": 50,
    "post_nms": 10,
    "min_proposal_size": 1.0,
    "roi_sample": 8,
    "preprocessing": {"resize": "fixed", "size": (64, 64)},
}
CONFIG = TrainConfig(
    epochs=1, batch_size=4, learning_rate=0.01, log_every=1, workers=0, device="cpu", threads=1
)
PARTS = ("backbone", "rpn", "box_features", "box_head")


def build(names):
    seed_everything(0)
    return pydet.create_model("faster_rcnn_vgg16", len(names), class_names=names, **OPTIONS)


def state(folder):
    return load_checkpoint(folder / "last.ckpt")["model"]


def changed(before, after):
    """The parts of the model of which any tensor differs."""
    return {
        part
        for part in PARTS
        if any(not torch.equal(before[k], after[k]) for k in before if k.startswith(part + "."))
    }


def test_each_step_learns_its_part(drawn, tmp_path):
    training = open_dataset(drawn, "train")
    validation = open_dataset(drawn, "val", class_names=training.class_names)
    model = build(training.class_names)
    initial = copy.deepcopy(model.state_dict())
    options = {"output": tmp_path / "run", "tensorboard": False, "progress": False}
    result = train_alternating(model, training, validation, CONFIG, **options)
    assert result.folder == tmp_path / "run" / "step4"
    assert "ap" in result.metrics
    assert changed(initial, model.state_dict()) == set()
    first, second, third, fourth = (state(tmp_path / "run" / f"step{i}") for i in range(1, 5))
    assert changed(initial, first) == {"backbone", "rpn"}
    assert changed(initial, second) == {"backbone", "box_features", "box_head"}
    assert changed(second, third) == {"rpn"}
    assert changed(third, fourth) == {"box_features", "box_head"}
    # Finished steps are passed over.
    again = train_alternating(model, training, validation, CONFIG, resume=True, **options)
    assert again.steps == result.steps
    assert changed(fourth, state(tmp_path / "run" / "step4")) == set()
    detector = pydet.load(tmp_path / "run" / "step4" / "last.safetensors")
    assert detector.part is None
    assert detector([torch.rand(3, 64, 64)])[0]["boxes"].shape[1] == 4


def test_proposer_gives_the_proposals_and_is_no_part_of_the_model():
    model, other = build(["a", "b"]), build(["a", "b"])
    torch.nn.init.normal_(other.rpn.objectness.weight)
    x = torch.rand(1, 3, 64, 64)
    names = set(model.state_dict())
    own, theirs = model.predict(x), other.predict(x)
    output = model.learn("head", proposer=other).predict(x)
    assert set(model.state_dict()) == names
    assert torch.equal(output.objectness, theirs.objectness)
    assert torch.equal(output.features[0], own.features[0])
    assert not output.objectness.requires_grad
    assert not any(p.requires_grad for p in model.rpn.parameters())


def test_fixed_parts_keep_their_statistics():
    names = ["a", "b"]
    options = {**OPTIONS, "width": 1.0, "fpn_norm": "batch", "fpn_channels": 8}
    options["anchor_sizes"] = ((8,), (16,), (32,), (64,), (128,))
    model = pydet.create_model("faster_rcnn_resnet18_fpn", 2, class_names=names, **options)
    model.learn("head", fix_trunk=True).train()
    before = copy.deepcopy(model.state_dict())
    target = {"boxes": torch.tensor([[5.0, 5, 40, 44]]), "labels": torch.tensor([1])}
    losses = model([torch.rand(3, 64, 64)], [target])
    assert set(losses) == {"loss_cls", "loss_box"}
    sum(losses.values()).backward()
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    learnt = {k.split(".")[0] for k, p in model.named_parameters() if p.grad is not None}
    assert learnt == {"box_features", "box_head"}


def test_c5_belongs_to_the_head():
    with torch.device("meta"):
        model = pydet.create_model("faster_rcnn_resnet50_c4", 2).learn("head", fix_trunk=True)
    learnt = {k for k, p in model.named_parameters() if p.requires_grad}
    assert {k.split(".")[0] for k in learnt} == {"backbone", "box_head"}
    assert all(k.startswith(("backbone.layer4.", "box_head.")) for k in learnt)


def test_command(drawn, tmp_path, capsys):
    output = tmp_path / "run"
    flags = [f"--option={k}={v}" for k, v in (("width", 0.0625), ("box_channels", 8))]
    flags += ["--option=preprocessing={resize='fixed', size=[64, 64]}"]
    run = ["train", "faster_rcnn_vgg16", "--data", str(drawn), "--output", str(output)]
    run += [*flags, "--alternating", "--epochs", "1", "--device", "cpu", "--no-tensorboard"]
    run += ["--no-progress", "--workers", "0"]
    assert main(run) == 0
    assert sorted(p.name for p in output.iterdir()) == [f"step{i}" for i in range(1, 5)]
    assert main([*run, "--resume"]) == 0
    capsys.readouterr()
    assert main([*run, "--resume-from", "x"]) != 0
    assert "--resume-from must not be given" in capsys.readouterr().err


def test_other_detectors_are_refused(drawn, tmp_path):
    training = open_dataset(drawn, "train")
    model = pydet.create_model("retinanet_resnet18_fpn", 3)
    with pytest.raises(ValueError, match="must be a Faster R-CNN, got RetinaNet"):
        train_alternating(model, training, None, dataclasses.replace(CONFIG), output=tmp_path)


def test_a_data_set_for_the_last_step_is_refused_before_the_first(drawn, tmp_path):
    training = open_dataset(drawn, "train")
    part = torch.utils.data.Subset(training, [0])
    with pytest.raises(TypeError, match=r"val_dataset must be a .*DetectionDataset"):
        train_alternating(build(training.class_names), training, part, CONFIG, output=tmp_path)
    assert not list(tmp_path.iterdir())
