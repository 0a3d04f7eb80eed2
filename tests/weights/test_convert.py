# SPDX-License-Identifier: Apache-2.0
"""`pydet convert`: there and back is the same file, for every family; what cannot be is refused."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

import pydet
from pydet.cli import main
from pydet.weights import _formats, convert, read_metadata
from pydet.weights._family import read_family

torchvision = pytest.importorskip(
    "torchvision", reason="needs torchvision, whose files are converted", exc_type=ImportError
)

NUM_CLASSES = 4  # torchvision's, with the background


def random_state(name: str) -> dict[str, torch.Tensor]:
    """A state_dict of a detector of torchvision in which no two numbers are alike."""
    with torch.device("meta"):
        model = getattr(torchvision.models.detection, name.removesuffix(" old"))(
            weights=None, weights_backbone=None, num_classes=NUM_CLASSES
        )
    generator = torch.Generator().manual_seed(0)
    state = {}
    for key, value in model.state_dict().items():
        if name.endswith(" old"):
            key = old_name(key)  # noqa: PLW2901
        shape = list(value.shape)
        state[key] = (
            torch.randint(0, 99, shape, generator=generator)
            if value.dtype == torch.int64
            else torch.rand(shape, generator=generator)
        )
    return state


def old_name(name: str) -> str:
    """The name that torchvision gave before its version 0.13, as its published files have it."""
    if ".inner_blocks." in name or ".layer_blocks." in name:
        return name.replace(".0.weight", ".weight").replace(".0.bias", ".bias")
    name = name.replace("rpn.head.conv.0.0.", "rpn.head.conv.")
    for index in range(4):
        name = name.replace(f"_head.conv.{index}.0.", f"_head.conv.{2 * index}.")
    return name


# Names of torchvision's builders; " old" is the layout before its version 0.13.
FILES = (
    "fasterrcnn_resnet50_fpn",
    "fasterrcnn_resnet50_fpn_v2",
    "fasterrcnn_resnet50_fpn old",
    "fcos_resnet50_fpn",
    "fcos_resnet50_fpn old",
    "retinanet_resnet50_fpn",
    "retinanet_resnet50_fpn_v2",
    "retinanet_resnet50_fpn old",
    "ssd300_vgg16",
)


def assert_same(state, other):
    assert set(state) == set(other)
    for key, value in state.items():
        assert value.dtype == other[key].dtype, key
        assert torch.equal(value, other[key]), key


@pytest.mark.parametrize(
    ("name", "keep_background"),
    [*((name, False) for name in FILES), *((FILES[i], True) for i in (0, 3, 5))],
)
def test_there_and_back_is_the_same_to_the_bit(name, keep_background, tmp_path, capsys):
    theirs, ours, back = (tmp_path / n for n in ("a.pth", "b.safetensors", "c.pth"))
    state = random_state(name)
    torch.save(state, theirs)
    flags = ["--keep-background"] if keep_background else []
    names = [] if keep_background else ["--class-names", "cat", "dog", "cow"]
    assert main(["convert", str(theirs), str(ours), *flags, *names]) == 0
    assert read_metadata(ours)["class_names"] == (["cat", "dog", "cow"] if names else None)
    assert main(["convert", str(ours), str(back), "--to", "torchvision"]) == 0
    assert_same(torch.load(back, weights_only=True), state)
    assert "no place for" not in capsys.readouterr().err


def test_converted_file_loads_as_the_original_does(tmp_path):
    theirs, ours, back = (tmp_path / n for n in ("a.pth", "b.safetensors", "c.safetensors"))
    state = random_state("retinanet_resnet50_fpn_v2")
    torch.save(state, theirs)
    convert(theirs, ours)
    model, direct = pydet.load(ours), pydet.load(theirs)
    assert model.num_classes == NUM_CLASSES - 1
    assert model.config == direct.config
    assert model.config.box_loss == "giou"
    assert_same(model.state_dict(), direct.state_dict())
    # What pydet itself saves has no rows of a background: they are made anew.
    pydet.save(model, ours)
    convert(ours, back, to="torchvision")
    with safe_open(back, framework="pt") as file:
        again = {key: file.get_tensor(key) for key in file.keys()}
    layer = "head.classification_head.cls_logits."
    background = again[layer + "bias"].view(9, NUM_CLASSES)[:, 0]
    assert (background.sigmoid() < 1e-5).all()
    for part in ("weight", "bias"):
        for rows in (again, state):
            rows[layer + part] = rows[layer + part].unflatten(0, (9, NUM_CLASSES))[:, 1:]
    assert_same(again, state)


def test_settings_that_torchvision_takes_to_be_others_are_listed(tmp_path, capsys):
    ours = tmp_path / "a.safetensors"
    model = pydet.create_model("retinanet_resnet18_fpn", 2, score_threshold=0.2)
    pydet.save(model, ours)
    assert main(["convert", str(ours), str(tmp_path / "b.pth"), "--to", "torchvision"]) == 0
    text = capsys.readouterr().err
    assert "score_threshold is 0.2, there 0.05" in text
    assert "preprocessing.antialias is True, there False" in text
    assert "fpn_channels" not in text


def test_models_that_torchvision_cannot_build_are_refused(tmp_path):
    for overrides, words in (
        (
            {"levels": (3, 4, 5, 6), "anchor_sizes": ((8,),) * 4, "anchor_ratios": (1,) * 9},
            r"no neck\.extra\.7",
        ),
        ({"head_convs": 5}, r"alone, got head\.(cls|box)_convs\.12"),
        ({"fpn_norm": "group"}, r"alone, got neck\.\w+\.\d\.1\."),
        ({"anchor_ratios": (1.0,)}, "9 anchors a location"),
    ):
        path = tmp_path / "a.safetensors"
        pydet.save(pydet.create_model("retinanet_resnet18_fpn", 2, **overrides), path)
        with pytest.raises(ValueError, match=words):
            convert(path, tmp_path / "b.pth", to="torchvision")
        assert not (tmp_path / "b.pth").exists()


def test_what_cannot_be_converted_is_said(tmp_path, capsys):
    path, output = tmp_path / "a.pth", tmp_path / "b.safetensors"

    def said(*arguments):
        assert main(["convert", str(path), str(output), *arguments]) == 2
        assert not output.exists()
        return capsys.readouterr().err

    torch.save(torchvision.models.resnet18().state_dict(), path)
    assert "must hold a detector, got an ImageNet ResNet, a trunk" in said()
    assert "must be a file of pydet to be written as one of torchvision" in said("--to=torchvision")
    torch.save({"layer.weight": torch.zeros(1)}, path)
    assert "must be a file of pydet, torchvision's" in said()
    state = random_state("retinanet_resnet50_fpn")
    del state["backbone.body.layer2.0.bn1.running_mean"]
    state["head.mask.weight"] = torch.zeros(1)
    torch.save(state, path)
    text = said()
    assert "1 missing: backbone.layer2.0.bn1.running_mean" in text
    assert "1 unexpected: head.mask.weight" in text
    pydet.save(pydet.create_model("retinanet_resnet18_fpn", 2), path)
    assert "must be a file of another project" in said()
    for flags in (["--keep-background"], ["--norm-eps=0"], ["--class-names", "a", "b"]):
        assert "must be left out for" in said("--to=torchvision", *flags)


def meta_state(name, num_classes):
    """A state_dict of a detector of torchvision without memory."""
    with torch.device("meta"):
        builder = getattr(torchvision.models.detection, name)
        return builder(weights=None, weights_backbone=None, num_classes=num_classes).state_dict()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("retinanet_resnet50_fpn", "keep_background must be True for a.pth, whose only class"),
        ("fcos_resnet50_fpn", "keep_background must be True"),
        ("fasterrcnn_resnet50_fpn", "keep_background must be True"),
        ("ssd300_vgg16", "a.pth must have a class beside the background"),
    ],
)
def test_one_class_without_a_background_is_said(name, words):
    state = meta_state(name, 1)
    family = _formats.family_of(state)
    with pytest.raises(ValueError, match=f"load: {words}"):
        read_family("load", Path("a.pth"), family, state, None, False)
    if name != "ssd300_vgg16":
        assert read_family("load", Path("a.pth"), family, state, None, True).num_classes == 1


@pytest.mark.parametrize("option", [(0.1, False), (None, True)])
def test_options_of_other_families_are_refused(option):
    state = meta_state("ssd300_vgg16", 3)
    family = _formats.family_of(state)
    with pytest.raises(ValueError, match=r"must be left out for a.pth: .* torchvision's SSD300"):
        read_family("load", Path("a.pth"), family, state, *option)


def test_a_file_is_recognised_by_one_entry_alone():
    states = [random_state(name) for name in FILES]
    with torch.device("meta"):
        trunks = ("resnet18", "resnet50", "vgg16", "vgg16_bn")
        states += [getattr(torchvision.models, name)().state_dict() for name in trunks]
    for state in states:
        entries = (*_formats.FAMILIES, *_formats.TRUNKS)
        assert sum(entry.recognises(state) for entry in entries) == 1


def test_the_file_says_where_it_comes_from(tmp_path):
    theirs, ours = tmp_path / "a.pth", tmp_path / "b.safetensors"
    torch.save(random_state("retinanet_resnet50_fpn old"), theirs)
    convert(theirs, ours)
    with safe_open(ours, framework="pt") as file:
        about = json.loads(file.metadata()["pydet"])
        kept = [key for key in file.keys() if key.startswith("origin/")]
    assert about["origin"] == {"layout": "old", "keep_background": False}
    assert about["config"]["norm_eps"] == 0.0
    layer = "origin/head.classification_head.cls_logits."
    assert sorted(kept) == [layer + "bias", layer + "weight"]
