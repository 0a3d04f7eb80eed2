# SPDX-License-Identifier: Apache-2.0
"""torchvision's SSD300 and VGG-16 with random weights, beside pydet's with the same."""

import pytest
import torch

import pydet
from pydet.models.ssd import SSDConfig
from tests.weights.helpers import (
    NUM_CLASSES,
    assert_same_detections,
    images_and_targets,
    zero_based,
)

torchvision = pytest.importorskip(
    "torchvision", reason="needs torchvision, whose results are compared with", exc_type=ImportError
)

SIZES = [(197, 341), (360, 283), (120, 90)]
COUNTS = [7, 2, 0]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """torchvision's model and pydet's, loaded from its file."""
    torch.manual_seed(0)
    theirs = torchvision.models.detection.ssd300_vgg16(
        weights=None, weights_backbone=None, num_classes=NUM_CLASSES
    )
    with torch.no_grad():
        # Weights of ImageNet are made for 0 ... 255, random ones are not: scores would be 0 or 1.
        theirs.backbone.features[0].weight /= 64
        theirs.backbone.scale_weight.uniform_(10, 30)
        for name, parameter in theirs.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(std=0.1)
    path = tmp_path_factory.mktemp("weights") / "ssd300.pth"
    torch.save(theirs.state_dict(), path)
    # In double, where rounding does not decide which of two near scores is higher.
    return theirs.double(), pydet.load(path).double()


def test_same_default_boxes(models):
    from torchvision.models.detection.image_list import ImageList

    theirs, ours = models
    maps = [torch.zeros(1, 1, side, side) for side in (38, 19, 10, 5, 3, 1)]
    images = ImageList(torch.zeros(1, 3, 300, 300), [(300, 300)])
    (expected,) = theirs.anchor_generator(images, maps)
    got = ours.anchors([x.shape[2:] for x in maps], (300, 300), torch.device("cpu"))
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=0)
    # They are not those of the paper for Pascal VOC, the defaults of pydet.
    assert ours.config.anchor_sizes != SSDConfig().anchor_sizes


def test_same_detections(models):
    theirs, ours = (model.eval() for model in models)
    assert ours.name == "ssd300_vgg16"
    assert ours.num_classes == NUM_CLASSES - 1
    images = images_and_targets(sizes=SIZES, counts=COUNTS)[0][:2]
    assert_same_detections(theirs, ours, images, least=100, box_atol=1e-3)
    with torch.no_grad():
        assert all(len(found["labels"].unique()) > 2 for found in ours(images))


def test_same_losses_and_gradients(models):
    theirs, ours = (model.train() for model in models)
    images, targets = images_and_targets(sizes=SIZES, counts=COUNTS)
    expected = theirs([i.clone() for i in images], targets)
    got = ours(images, zero_based(targets))
    torch.testing.assert_close(got["loss_cls"], expected["classification"], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(got["loss_box"], expected["bbox_regression"], atol=1e-4, rtol=1e-4)
    pairs = [
        (ours.neck.atrous.conv6.bias, theirs.backbone.extra[0][7][1].bias),
        (ours.neck.l2_norm.weight, theirs.backbone.scale_weight),
        (ours.head.box_deltas[2].weight, theirs.head.regression_head.module_list[2].weight),
    ]
    mine = torch.autograd.grad(sum(got.values()), [a for a, _ in pairs])
    other = torch.autograd.grad(sum(expected.values()), [b for _, b in pairs])
    for a, b in zip(mine, other, strict=True):
        assert b.abs().max() > 0
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-4)


def test_other_number_of_classes_begins_anew_in_the_last_layers(models, tmp_path):
    state = models[0].float().state_dict()
    torch.save(state, tmp_path / "a.pth")
    with pytest.warns(UserWarning, match=r"head\.cls_logits\.0\.weight, .* begin anew"):
        ours = pydet.load(tmp_path / "a.pth", num_classes=2, class_names=["a", "b"])
    models[0].double()
    assert ours.class_names == ("a", "b")
    name = "head.regression_head.module_list.3.weight"
    assert torch.equal(ours.head.box_deltas[3].weight, state[name])


def trunk_state(batch_norm: bool):
    """The state_dict of a VGG-16; its classifier, of which most files consist, repeats one row."""
    vgg = torchvision.models.vgg
    layers = vgg.make_layers(vgg.cfgs["D"], batch_norm=batch_norm)
    state = {f"features.{name}": value for name, value in layers.state_dict().items()}
    state["classifier.0.weight"] = torch.rand(1, 512 * 49).expand(4096, -1)
    state["classifier.3.weight"] = torch.rand(4096, 1).expand(-1, 4096)
    state["classifier.0.bias"], state["classifier.3.bias"] = torch.rand(2, 4096)
    state["classifier.6.weight"], state["classifier.6.bias"] = torch.rand(9, 4096), torch.rand(9)
    return state


@pytest.mark.parametrize("batch_norm", [False, True])
def test_imagenet_trunk_and_classifier_fill_an_ssd(batch_norm, tmp_path):
    state = trunk_state(batch_norm)
    torch.save(state, tmp_path / "vgg.pth")
    model = pydet.load(tmp_path / "vgg.pth", num_classes=3, name="ssd512_vgg16")
    assert model.name == "ssd512_vgg16"
    assert model.config.norm == ("frozen" if batch_norm else "none")
    assert model.config.preprocessing.std == (0.229, 0.224, 0.225)
    for name, value in model.backbone.state_dict().items():
        assert torch.equal(value, state[name]), name
    window = state["classifier.0.weight"][0].view(512, 7, 7)
    assert torch.equal(model.neck.atrous.conv6.weight[5], window[:, ::3, ::3])
    assert torch.equal(
        model.neck.atrous.conv7.weight[:, 9, 0, 0], state["classifier.3.weight"][::4, 0]
    )
    assert torch.equal(model.neck.atrous.conv6.bias, state["classifier.0.bias"][::4])
    with pytest.raises(ValueError, match=r"num_classes must be given: .* an ImageNet VGG-16"):
        pydet.load(tmp_path / "vgg.pth")


def test_trunk_of_the_authors_brings_its_pixels_along(tmp_path):
    """torchvision's IMAGENET1K_FEATURES: NaN for a classifier, images of 0 ... 255 less a mean."""
    state = trunk_state(False)
    for name in ("0.weight", "0.bias", "3.weight", "3.bias"):
        state[f"classifier.{name}"] = state[f"classifier.{name}"] * float("nan")
    torch.save(state, tmp_path / "vgg.pth")
    model = pydet.load(tmp_path / "vgg.pth", num_classes=3)
    assert model.name == "ssd300_vgg16"
    assert model.config.preprocessing.mean == (0.48235, 0.45882, 0.40784)
    assert model.config.preprocessing.std == (1 / 255,) * 3
    assert model.config.preprocessing.size == (300, 300)
    assert all(p.isfinite().all() for p in model.parameters())


def test_narrow_trunk_refuses_weights_of_the_papers(tmp_path):
    torch.save(trunk_state(False), tmp_path / "vgg.pth")
    with pytest.raises(ValueError, match=r"features\.0\.weight \(\[64, 3, 3, 3\] in the file"):
        pydet.load(tmp_path / "vgg.pth", num_classes=3, width=0.5)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"width": 0.5}, "width must be 1.0 as in torchvision's SSD300, got 0.5"),
        ({"anchor_strides": None}, "anchor_strides must be"),
        ({"extra_norm": "group"}, r"parts alone, got neck\.extra\.0\.1\.|neck\.atrous\.norm6"),
    ],
)
def test_models_that_torchvision_cannot_build_are_refused(overrides, words, tmp_path):
    path = tmp_path / "a.safetensors"
    pydet.save(pydet.create_model("ssd300_vgg16", 2, **overrides), path)
    with pytest.raises(ValueError, match=words):
        pydet.weights.convert(path, tmp_path / "b.pth", to="torchvision")
