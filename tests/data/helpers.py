# SPDX-License-Identifier: Apache-2.0
"""Small data sets on disk, right in everything but what a test changes."""

import json
from pathlib import Path

import numpy as np
from PIL import Image


def write_image(path, width=40, height=30):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((height, width, 3), 90, np.uint8)).save(path)


def voc_object(name="cat", box=(11, 6, 20, 25), difficult=0):
    tags = ("xmin", "ymin", "xmax", "ymax")
    corners = "".join(f"<{t}>{v}</{t}>" for t, v in zip(tags, box, strict=True))
    return (
        f"<object><name>{name}</name><difficult>{difficult}</difficult>"
        f"<bndbox>{corners}</bndbox></object>"
    )


def voc_xml(objects=(), width=40, height=30, filename="a.jpg", extra=""):
    size = f"<size><width>{width}</width><height>{height}</height><depth>3</depth></size>"
    return (
        f"<annotation><folder>elsewhere</folder><filename>{filename}</filename>"
        f"<path>/home/someone/{filename}</path>{size}{extra}{''.join(objects)}</annotation>"
    )


def write_voc(root, annotations, splits=None):
    """Writes a VOC folder: the XML texts by their stems, and an image for each."""
    root = Path(root)
    for stem, text in annotations.items():
        write_image(root / "JPEGImages" / f"{stem}.jpg")
        file = root / "Annotations" / f"{stem}.xml"
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)
    for split, stems in (splits or {"train": list(annotations)}).items():
        file = root / "ImageSets" / "Main" / f"{split}.txt"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("\n".join(stems))
    return root


def coco_data(**changes):
    """Two images, three boxes, categories 3 (cat) and 7 (dog)."""
    data = {
        "images": [
            {"id": 10, "file_name": "a.jpg", "width": 40, "height": 30},
            {"id": 20, "file_name": "b.jpg", "width": 40, "height": 30},
        ],
        "annotations": [
            {"id": 1, "image_id": 10, "category_id": 7, "bbox": [1, 2, 10, 12.5], "area": 90},
            {"id": 2, "image_id": 10, "category_id": 3, "bbox": [5, 5, 20, 20], "area": 300},
            {"id": 3, "image_id": 20, "category_id": 3, "bbox": [0, 0, 8, 8], "area": 60},
        ],
        "categories": [{"id": 7, "name": "dog"}, {"id": 3, "name": "cat"}],
    }
    return {**data, **changes}


def write_coco(root, data=None, images=("a.jpg", "b.jpg")):
    root = Path(root)
    for name in images:
        write_image(root / "images" / name)
    file = root / "train.json"
    root.mkdir(exist_ok=True)
    file.write_text(data if isinstance(data, str) else json.dumps(data or coco_data()))
    return file


def write_yolo(root, labels, yaml="train: train/images\nnames: [cat, dog]\n", split="train"):
    """Writes a YOLO folder: the texts of label files by their stems, None for no file."""
    root = Path(root)
    for stem, text in labels.items():
        write_image(root / split / "images" / f"{stem}.jpg")
        file = root / split / "labels" / f"{stem}.txt"
        file.parent.mkdir(exist_ok=True)
        if text is not None:
            file.write_text(text)
    (root / "data.yaml").write_text(yaml)
    return root
