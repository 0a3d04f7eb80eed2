# SPDX-License-Identifier: Apache-2.0
"""What the comparisons with torchvision's detectors share."""

import torch

import pydet

NUM_CLASSES = 6  # torchvision's, with the background
SIZES = ((97, 141), (160, 83))
RESIZE = {"min_size": 120, "max_size": 180}  # torchvision's names


def shake_norms(model):
    """Gives batch norms statistics, and biases, that matter."""
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if name.endswith(("running_mean", "bn1.bias", "bn2.bias", "bn3.bias")):
                value.normal_(std=0.1)
            elif name.endswith("running_var"):
                value.uniform_(0.5, 1.5)


def images_and_targets(seed=1, sizes=SIZES, counts=None):
    """Images in double precision, and objects with torchvision's labels, seven of each image."""
    generator = torch.Generator().manual_seed(seed)
    images = [torch.rand(3, *size, generator=generator).double() for size in sizes]
    targets = []
    for (height, width), count in zip(sizes, counts or [7] * len(sizes), strict=True):
        corners = torch.rand(count, 2, 2, generator=generator).sort(1).values
        boxes = (corners * torch.tensor([width, height])).flatten(1)
        boxes[:, 2:] += 0.5  # none without area
        boxes = torch.minimum(boxes, torch.tensor([width, height] * 2).float())
        labels = torch.randint(1, NUM_CLASSES, (count,), generator=generator)
        targets.append({"boxes": boxes, "labels": labels})
    return images, targets


def zero_based(targets):
    """The same targets with pydet's labels."""
    return [{"boxes": t["boxes"], "labels": t["labels"] - 1} for t in targets]


def load_saved(folder, state, **options):
    """pydet's model of a state_dict that was saved to a file, in double precision."""
    path = folder / "weights.pth"
    torch.save(state, path)
    size = {"size": RESIZE["min_size"], "max_size": RESIZE["max_size"]}
    return pydet.load(path, preprocessing=size, **options).double()


def assert_same_detections(theirs, ours, images, *, least, shift=1, box_atol=1e-4):
    """The same boxes, scores and labels, at least so many of each image."""
    with torch.no_grad():
        expected, got = theirs(images), ours(images)
    for a, b in zip(expected, got, strict=True):
        assert len(a["scores"]) > least, "too few detections to compare"
        torch.testing.assert_close(b["scores"], a["scores"], atol=1e-4, rtol=1e-4)
        assert torch.equal(b["labels"], a["labels"] - shift)
        torch.testing.assert_close(b["boxes"], a["boxes"], atol=box_atol, rtol=1e-4)


def assert_same_gradients(pairs, atol=1e-6):
    """The same gradients of pairs of parameters, pydet's and torchvision's."""
    for mine, other in pairs:
        torch.testing.assert_close(mine.grad, other.grad, atol=atol, rtol=1e-4)
