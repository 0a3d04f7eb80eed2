# SPDX-License-Identifier: Apache-2.0
"""What every registered detector must do; a new one is tested from the day its line is added."""

import copy
import dataclasses
import math

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import pydet
from pydet.models import Detector
from pydet.preprocessing import Preprocessing
from tests.conftest import needs_cuda
from tests.models.helpers import SMALL

NUM_CLASSES = 3
SIZES = [(61, 83), (70, 50)]
PREPROCESSING = {"resize": "short_side", "size": 64, "max_size": 96, "size_divisor": 32}


# What leaves a step no choice that the last bit of a number could change: of two stages, the boxes
# themselves are the only proposals, and all anchors are learnt from.
STEADY = {"faster_rcnn": {"min_proposal_size": 1e6, "rpn_sample": 10**6}}


def settings_of(name: str, table) -> dict:
    return next((value for key, value in table.items() if name.startswith(key)), {})


def build(name: str, **overrides) -> Detector:
    small = settings_of(name, SMALL)
    torch.manual_seed(0)
    settings = {**small, "preprocessing": PREPROCESSING, **overrides}
    return pydet.create_model(name, NUM_CLASSES, class_names=["a", "b", "c"], **settings)


@pytest.fixture(params=pydet.list_models(), scope="module")
def shared(request):
    return build(request.param)


@pytest.fixture
def model(shared):
    shared.train()
    shared.zero_grad()
    return shared


def step(model, images, targets):
    """The losses, with the same random numbers whenever it is called."""
    torch.manual_seed(1)
    return model(images, targets)


def images():
    generator = torch.Generator().manual_seed(0)
    return [torch.rand(3, *size, generator=generator) for size in SIZES]


def target(*boxes, labels=None):
    labels = [index % NUM_CLASSES for index in range(len(boxes))] if labels is None else labels
    return {
        "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        "labels": torch.tensor(labels, dtype=torch.int64),
    }


def targets():
    return [
        target([10, 10, 50, 45], [30, 20, 80, 60], [5, 40, 20, 60]),
        target([0, 0, 49, 69], [10, 10, 20, 60]),
    ]


def test_losses_are_finite_scalars_with_a_gradient_in_every_parameter(model):
    losses = model(images(), targets())
    assert losses
    assert all(key.startswith("loss_") for key in losses)
    assert all(loss.shape == () and loss > 0 for loss in losses.values())
    sum(losses.values()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.count_nonzero() > 0, name


@pytest.mark.parametrize("which", ["one image", "whole batch"])
def test_images_without_objects_train(model, which):
    truth = [targets()[0] if which == "one image" else target(), target()]
    losses = model(images(), truth)
    sum(losses.values()).backward()
    assert all(loss.isfinite() for loss in losses.values())
    # No unused parameter: several processes could not agree on their gradients otherwise.
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_invalid_boxes_are_trained_through_and_counted(model):
    bad = [[20, 20, 20, 40], [40, 40, 20, 20], [math.nan, 0, 9, 9], [200, 10, 240, 40]]
    before = int(model.num_invalid_boxes)
    with_bad = step(model, images(), [target([10, 10, 50, 45], *bad, labels=[0] * 5), target()])
    assert int(model.num_invalid_boxes) == before + 4
    without = step(model, images(), [target([10, 10, 50, 45], labels=[0]), target()])
    for key, value in without.items():
        torch.testing.assert_close(with_bad[key], value)
    sum(with_bad.values()).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_targets_decide_and_not_the_mode(model):
    assert isinstance(model(images()), list)
    model.eval()
    with torch.no_grad():
        assert isinstance(model(images(), targets()), dict)


def test_detections_lie_in_images_of_odd_sizes(model):
    model.eval()
    model.config = dataclasses.replace(model.config, score_threshold=0.0)
    odd = [torch.rand(3, 37, 53), torch.rand(3, 91, 40), torch.rand(3, 33, 33)]
    with torch.no_grad():
        detections = model(odd)
    assert len(detections) == 3
    for image, found in zip(odd, detections, strict=True):
        height, width = image.shape[1:]
        boxes, scores, labels = found["boxes"], found["scores"], found["labels"]
        assert set(found) == {"boxes", "scores", "labels"}
        assert 0 < len(boxes) == len(scores) == len(labels)
        assert (boxes >= 0).all()
        assert (boxes <= torch.tensor([width, height, width, height]) + 1e-3).all()
        assert (boxes[:, 2:] >= boxes[:, :2]).all()
        assert (scores.diff() <= 0).all()
        assert ((scores >= 0) & (scores <= 1)).all()
        assert labels.dtype == torch.int64
        assert ((labels >= 0) & (labels < NUM_CLASSES)).all()


def test_one_image_is_detected_in_as_it_is_in_a_batch(model):
    model.eval()
    model.config = dataclasses.replace(
        model.config, preprocessing=Preprocessing(resize="none", size_divisor=128)
    )
    with torch.no_grad():
        together = model(images())
        alone = [model([image])[0] for image in images()]
    model.config = dataclasses.replace(model.config, preprocessing=Preprocessing(**PREPROCESSING))
    for a, b in zip(together, alone, strict=True):
        assert len(a["scores"]) == len(b["scores"])
        torch.testing.assert_close(a["scores"], b["scores"], atol=1e-5, rtol=1e-5)


def test_same_seed_gives_the_same_bits(model):
    twin = build(model.name)
    other = build(model.name)
    results = []
    for each in (twin, other):
        losses = step(each, images(), targets())
        sum(losses.values()).backward()
        results.append([*losses.values(), *(p.grad for p in each.parameters())])
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)


def test_saved_and_loaded_is_the_same(model, tmp_path):
    path = tmp_path / "model.safetensors"
    pydet.save(model, path, ap50=0.5)
    loaded = pydet.load(path)
    assert type(loaded) is type(model)
    assert (loaded.name, loaded.class_names, loaded.config) == (
        model.name,
        model.class_names,
        model.config,
    )
    assert not loaded.training
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name
    model.eval()
    with torch.no_grad():
        for a, b in zip(model(images()), loaded(images()), strict=True):
            assert torch.equal(a["boxes"], b["boxes"])
            assert torch.equal(a["scores"], b["scores"])


@pytest.mark.parametrize(
    ("bad", "truth", "error", "words"),
    [
        ([torch.rand(1, 40, 40)] * 2, None, ValueError, r"\[3, H, W\]"),
        ([torch.rand(3, 40, 40)] * 2, [target()], ValueError, "each of the 2 images"),
        (None, [target([0, 0, 9, 9], labels=[3]), target()], ValueError, r"0 \.\.\. 2 .*got 3"),
        (None, [target([0, 0, 9, 9], labels=[-1]), target()], ValueError, "got -1 in image 0"),
        (None, [{"boxes": torch.zeros(1, 4)}, target()], TypeError, "'boxes' and 'labels'"),
        (
            None,
            [{"boxes": torch.zeros(1, 5), "labels": torch.zeros(1).long()}, target()],
            ValueError,
            r"\[G, 4\]",
        ),
        (
            None,
            [{"boxes": torch.zeros(1, 4), "labels": torch.zeros(1)}, target()],
            TypeError,
            "integers",
        ),
    ],
)
def test_wrong_input_is_refused_in_words(model, bad, truth, error, words):
    with pytest.raises(error, match=words):
        model(images() if bad is None else bad, truth)


def test_invalid_boxes_are_refused_where_asked(model):
    strict = build(model.name, preprocessing={**PREPROCESSING, "invalid_boxes": "raise"})
    with pytest.raises(ValueError, match="must be finite"):
        strict(images(), [target([math.nan, 0, 9, 9]), target()])


class _Syncs(TorchDispatchMode):
    """Counts the calls whose result depends on values on the host: each would wait for a GPU."""

    names = ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal", "unique")

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        indices = args[1] if func is torch.ops.aten.index.Tensor else ()
        by_mask = any(i is not None and i.dtype == torch.bool for i in indices)
        if by_mask or func.overloadpacket.__name__ in self.names:
            self.found.append(str(func))
        return func(*args, **(kwargs or {}))


def test_step_never_asks_for_values(model):
    batch, packed = model.preprocessing.batch(images(), targets())
    with _Syncs() as watch:
        normalized = model.preprocessing.normalize(batch)
        losses = model.losses(model.predict(normalized), packed)
        sum(losses.values()).backward()
    assert watch.found == []
    with _Syncs() as watch:  # the test of the test
        torch.ones(2)[torch.tensor([True, False])].sum().item()
    assert len(watch.found) == 2


class _Copies(TorchDispatchMode):
    """Collects the calls that move values to another device and wait until that is done."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        tensors = [x for x in tree_leaves((args, kwargs, result)) if isinstance(x, torch.Tensor)]
        # A number on the host may meet a tensor on the device: it travels with the kernel's launch.
        devices = {x.device.type for x in tensors if x.dim() > 0}
        if len(devices) > 1 and not kwargs.get("non_blocking"):
            self.found.append(str(func))
        return result


@pytest.mark.skipif(
    torch.version.cuda is None, reason="a torch without CUDA has no tensors of shapes on a GPU"
)
def test_step_without_values_never_waits_for_a_gpu(model):
    # Tensors of a GPU that is not there: they have shapes only, whoever asks for values fails.
    batch, packed = model.preprocessing.batch(images(), targets())
    with FakeTensorMode(allow_non_fake_inputs=True):
        with torch.device("cuda"):
            gpu = build(model.name)
        batch, packed = batch.to("cuda"), packed.to("cuda")
        with _Copies() as watch:
            losses = gpu(batch, packed)
        assert watch.found == []
        assert {loss.device.type for loss in losses.values()} == {"cuda"}
        with _Copies() as watch:  # the test of the test
            torch.ones(2).to("cuda").cpu()
        assert len(watch.found) == 2
        with pytest.raises(torch._subclasses.fake_tensor.DataDependentOutputException):
            losses.popitem()[1].item()


@needs_cuda
def test_step_on_a_gpu_never_waits_for_it(model):
    gpu = copy.deepcopy(model).cuda().to(memory_format=torch.channels_last)
    batch, packed = model.preprocessing.batch(images(), targets())
    batch, packed = batch.to("cuda"), packed.to("cuda")
    optimizer = torch.optim.SGD(gpu.parameters(), 0.01)

    def step():
        with torch.autocast("cuda", torch.bfloat16):
            loss = sum(gpu(batch, packed).values())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss

    step()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        loss = step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert loss.isfinite()


@needs_cuda
def test_gpu_gives_the_losses_of_the_cpu(model):
    model = build(model.name, **settings_of(model.name, STEADY)).eval()
    gpu = copy.deepcopy(model).cuda()
    on_cpu = model(images(), targets())
    on_gpu = gpu(
        [i.cuda() for i in images()],
        [{key: value.cuda() for key, value in t.items()} for t in targets()],
    )
    for key, value in on_cpu.items():
        torch.testing.assert_close(on_gpu[key].cpu(), value, atol=1e-3, rtol=1e-3)


def test_bfloat16_and_channels_last_train(model):
    steady = settings_of(model.name, STEADY)
    twin = build(model.name, **steady).to(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        low = step(twin, images(), targets())
    sum(low.values()).backward()
    exact = step(build(model.name, **steady), images(), targets())
    for key, value in exact.items():
        assert low[key].dtype == torch.float32
        torch.testing.assert_close(low[key], value, atol=0.02, rtol=0.1)
    assert all(p.grad.isfinite().all() for p in twin.parameters())


def test_decoding_is_traced_whole(model):
    model.eval()
    sizes = torch.tensor([[64.0, 96.0], [50.0, 60.0]])
    compiled = torch.compile(model.decode, fullgraph=True, backend="eager")
    with torch.no_grad():
        output = model.predict(torch.randn(2, 3, 64, 96))
        for a, b in zip(model.decode(output, sizes), compiled(output, sizes), strict=True):
            torch.testing.assert_close(a, b)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_network_sees_images_in_the_layout_of_its_weights(shared, monkeypatch, memory_format):
    model = copy.deepcopy(shared).eval().to(memory_format=memory_format)
    seen = []
    predict = model.predict

    def look(pixels):
        seen.append(pixels.is_contiguous(memory_format=memory_format))
        return predict(pixels)

    monkeypatch.setattr(model, "predict", look)
    pixels = images()
    model(pixels)
    model([x.permute(1, 2, 0).contiguous().permute(2, 0, 1) for x in pixels])
    assert seen == [True, True]
