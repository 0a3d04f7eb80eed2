# SPDX-License-Identifier: Apache-2.0
"""Detecting and evaluating, with a detector that is small and one that is perfect."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import Subset

from pydet.data import DatasetError, open_dataset, read_image, write_synthetic_dataset
from pydet.inference import collect_results, detect, detect_files, evaluate, find_images
from pydet.models import Detector, create_model
from pydet.postprocess import PaddedDetections
from pydet.preprocessing import Preprocessing
from pydet.structures import PackedTargets
from tests.training import tiny_detector  # noqa: F401 - registers "tiny"


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_synthetic_dataset(
        tmp_path_factory.mktemp("drawn"), num_images=9, image_size=64, val_fraction=0.34,
        min_object_size=8, max_object_size=24,
    )  # fmt: skip


@dataclass(frozen=True)
class OracleConfig:
    truth: tuple = ()
    preprocessing: Preprocessing = field(
        default_factory=lambda: Preprocessing(resize="short_side", size=40, max_size=60)
    )


class Oracle(Detector):
    """Knows the annotations: recognises an image by the order in which images come."""

    def __init__(self, truth) -> None:
        super().__init__(OracleConfig(tuple(truth)), 6)
        self.weight = nn.Parameter(torch.zeros(1))
        self.seen = 0

    def predict(self, images: Tensor) -> Tensor:
        return images

    def losses(self, output: Tensor, targets: PackedTargets) -> dict[str, Tensor]:
        raise NotImplementedError

    def decode(self, output: Tensor, image_sizes: Tensor) -> PaddedDetections:
        most = max(len(target["labels"]) for target in self.config.truth)
        boxes, scores = torch.zeros(len(output), most, 4), torch.zeros(len(output), most)
        labels, counts = torch.full((len(output), most), -1), []
        for row, size in enumerate(image_sizes):
            target = self.config.truth[self.seen]
            self.seen += 1
            height, width = target["size"]
            scale = torch.stack([size[1] / width, size[0] / height]).repeat(2)
            count = len(target["labels"])
            boxes[row, :count] = target["boxes"] * scale
            scores[row, :count] = torch.linspace(0.9, 0.5, count)
            labels[row, :count] = target["labels"]
            counts.append(count)
        return PaddedDetections(boxes, scores, labels, torch.tensor(counts))


def _truth(dataset) -> list[dict]:
    return [{**dataset.target(i), "size": dataset.image_size(i)} for i in range(len(dataset))]


def test_perfect_detections_measure_one(drawn):
    """Boxes go to the network's pixels and back: every measure is 1."""
    dataset = open_dataset(drawn, "train")
    evaluation = evaluate(Oracle(_truth(dataset)), dataset, batch_size=2)
    numbers = evaluation.numbers()
    assert numbers["ap"] == numbers["ap75"] == 1
    assert numbers["voc_ap_11"] == numbers["voc_ap_area"] == 1
    assert len(evaluation.results) == dataset.num_boxes
    assert "circle" in evaluation.table()


def test_shares_of_processes_add_up(drawn):
    dataset = open_dataset(drawn, "train")
    model = create_model("tiny", 6, class_names=dataset.class_names)

    def key(result: dict) -> tuple:
        return (result["image_id"], -result["score"], *result["bbox"])

    whole = collect_results(model, dataset, batch_size=4, workers=1)
    shares = [
        result
        for rank in range(3)
        for result in collect_results(model, dataset, batch_size=1, rank=rank, world_size=3)
    ]
    assert len(shares) == len(whole) > 0
    for a, b in zip(sorted(whole, key=key), sorted(shares, key=key), strict=True):
        assert a["image_id"] == b["image_id"]
        assert a["bbox"] == pytest.approx(b["bbox"], abs=1e-3)
        assert a["score"] == pytest.approx(b["score"], abs=1e-5)


def test_other_classes_are_refused(drawn):
    dataset = open_dataset(drawn, "train")
    model = create_model("tiny", 6, class_names=tuple("abcdef"))
    with pytest.raises(ValueError, match="dataset must have the model's classes"):
        evaluate(model, dataset)
    for call in (evaluate, collect_results):
        with pytest.raises(ValueError, match=r"must have the model's 7 classes, got 6;"):
            call(create_model("tiny", 7), dataset)
        with pytest.raises(TypeError, match=r"must be a DetectionDataset, got Subset"):
            call(create_model("tiny", 6), Subset(dataset, [0]))


def test_a_part_of_a_data_set_is_evaluated(drawn):
    dataset = open_dataset(drawn, "train")
    part = dataset.subset([4, 1])
    evaluation = evaluate(Oracle(_truth(part)), part)
    assert evaluation.numbers()["ap"] == 1
    assert {r["image_id"] for r in evaluation.results} == {
        int(dataset.records.image_ids[i]) for i in (1, 4)
    }


def test_labels_of_no_class_are_not_measured(drawn):
    """A model with gaps in its labels, as torchvision's of COCO, on the categories that are."""
    names = open_dataset(drawn, "train").class_names
    model = create_model("tiny", 8, class_names=("N/A", *names, "N/A"))
    dataset = open_dataset(drawn, "train", class_names=model.class_names)
    evaluation = evaluate(model, dataset)
    assert [c.name for c in evaluation.coco.per_class] == list(names)
    assert {r["category_id"] for r in evaluation.results} <= set(dataset.category_ids) - {None}


def test_tensors_files_and_mixtures_give_the_same_detections(drawn):
    model = create_model("tiny", 6)
    paths = find_images(drawn / "train")
    images = [read_image(path) for path in paths]
    floats = [image.float() / 255 for image in images]
    mixed = [image if i % 3 == 0 else floats[i] if i % 3 == 1 else paths[i]
             for i, image in enumerate(images)]  # fmt: skip
    expected = detect(model, paths, batch_size=2)
    assert len(expected) == len(paths)
    for variant in (images, floats, mixed):
        for a, b in zip(expected, detect(model, variant, batch_size=4), strict=True):
            # A resized byte is rounded, a float is not.
            torch.testing.assert_close(a["scores"], b["scores"], rtol=0, atol=5e-3)
    assert detect(model, []) == []
    with pytest.raises(DatasetError):
        detect(model, [drawn / "annotations" / "instances_train.json"])


def test_one_image_in_any_form(drawn):
    model = create_model("tiny", 6)
    path = min((drawn / "train").glob("*.jpg"))
    image = read_image(path)
    (expected,) = detect(model, [image])
    array = image.permute(1, 2, 0).numpy()
    array.setflags(write=False)
    forms = [path, str(path), image, image[None], array, array[..., ::-1][..., ::-1],
             Image.open(path), Image.fromarray(array)]  # fmt: skip
    for form in forms:
        for images in (form, [form], (form,)):
            if isinstance(images, list | tuple) and form is forms[3]:
                continue
            (found,) = detect(model, images)
            assert all(found[key].equal(expected[key]) for key in expected), type(form)
    (file,) = detect_files(model, str(path))
    assert file.detection["boxes"].equal(expected["boxes"])
    assert len(detect(model, torch.stack([image, image]))) == 2


def test_images_of_pillow_are_not_turned(drawn):
    """Boxes are in the pixels of the image as given."""
    image = Image.open(min((drawn / "train").glob("*.jpg"))).resize((40, 20))
    turned = image.copy()
    turned.getexif()[0x0112] = 6
    model = create_model("tiny", 6)
    (expected,), (found,) = detect(model, image), detect(model, turned)
    assert found["boxes"].equal(expected["boxes"])


@pytest.mark.parametrize(
    ("images", "error", "words"),
    [
        (None, TypeError, "images must be an image or a sequence of images, got NoneType"),
        ({1}, TypeError, "images must be an image or a sequence of images, got set"),
        ([None], TypeError, r"images\[0\] must be a tensor \[3, H, W\], .* got NoneType"),
        ([[torch.zeros(3, 9, 9)]], TypeError, r"images\[0\] must be a tensor .* got list"),
        (torch.zeros(9, 9), ValueError, r"images\[0\] must have shape \[3, H, W\], got \[9, 9\]"),
        (torch.zeros(9, 9, 3), ValueError, r"must have shape \[3, H, W\], got \[9, 9, 3\]"),
        (torch.zeros(3, 9, 9).int(), TypeError, "must be uint8 .* or floating"),
        (np.zeros((9, 9, 3)), TypeError, "must be uint8 if it is an array, got float64"),
        (np.zeros((9, 9), np.uint8), ValueError, r"\[H, W, 3\] if it is an array, got \[9, 9\]"),
        (np.zeros((3, 9, 9), np.uint8), ValueError, r"got \[3, 9, 9\]"),
        (np.zeros((2, 9, 9, 3), np.uint8), ValueError, r"got \[2, 9, 9, 3\]"),
        ("gone.png", FileNotFoundError, "gone.png"),
        ([Image.new("F", (9, 9))], DatasetError, r"images\[0\] cannot be used: .* floating point"),
    ],
)
def test_what_is_no_image_is_named(images, error, words):
    with pytest.raises(error, match=words):
        detect(create_model("tiny", 6), images)


def test_unreadable_files_are_named_and_left_out(drawn, tmp_path):
    paths = find_images(drawn / "train")[:3]
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(paths[0].read_bytes()[:200])
    missing = tmp_path / "missing.png"
    order = [paths[0], broken, paths[1], missing, paths[0], paths[2]]
    found = list(detect_files(create_model("tiny", 6), order, batch_size=2))
    assert [file.path for file in found] == order
    assert [bool(file.problem) for file in found] == [False, True, False, True, False, False]
    assert "broken.jpg" in found[1].problem
    for key, value in found[0].detection.items():  # the same file, in another batch
        torch.testing.assert_close(value, found[4].detection[key])


def test_find_images(tmp_path):
    with pytest.raises(FileNotFoundError, match="neither a file nor a folder"):
        find_images(tmp_path / "nothing")
    with pytest.raises(FileNotFoundError, match="holds no image file"):
        find_images(tmp_path)
    (tmp_path / "b").mkdir()
    for name in ("a.JPG", "b/c.png", "notes.txt"):
        (tmp_path / name).touch()
    assert [p.relative_to(tmp_path).as_posix() for p in find_images(tmp_path)] == [
        "a.JPG",
        "b/c.png",
    ]
    assert find_images(tmp_path / "notes.txt") == [tmp_path / "notes.txt"]
    (tmp_path / "folder.png").mkdir()
    assert find_images(tmp_path, leave_out=tmp_path / "b") == [tmp_path / "a.JPG"]


@pytest.mark.parametrize("batch_size", [0, -1])
def test_batch_size_is_checked(batch_size):
    with pytest.raises(ValueError, match=f"batch_size must be at least 1, got {batch_size}"):
        detect(create_model("tiny", 6), [torch.zeros(3, 9, 9)], batch_size=batch_size)
