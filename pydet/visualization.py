# SPDX-License-Identifier: Apache-2.0
"""Pictures: boxes on images, precision over recall, losses over steps.

Boxes are drawn with Pillow. Plots need matplotlib, which is imported when the first one is made and
draws without a screen.
"""

import colorsys
import os
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

Color = tuple[int, int, int]

_GREY: Color = (150, 150, 150)
_MIN_SIDE = 480  # smaller pictures are enlarged so that labels can be read
_MARGIN = 6


def class_color(label: int) -> Color:
    """The colour of a class: the same in every picture, far from those of the classes before."""
    # Steps of the golden ratio spread any number of hues evenly.
    hue = (0.02 + label * 0.618033988749895) % 1.0
    lightness = (0.52, 0.40, 0.62)[label // 8 % 3]
    red, green, blue = colorsys.hls_to_rgb(hue, lightness, 0.95)
    return round(255 * red), round(255 * green), round(255 * blue)


def draw_boxes(
    image: Tensor | Image.Image,
    boxes: Tensor,
    labels: Tensor,
    scores: Tensor | None = None,
    *,
    class_names: Sequence[str] | None = None,
    ignored: Tensor | None = None,
    scale: float = 1.0,
) -> Image.Image:
    """Draws boxes with their classes and scores.

    Args:
        image: [3, H, W] uint8 RGB, or a picture.
        boxes: [D, 4] xyxy, pixels of the image; best first, which is drawn last, on top.
        labels: [D] int64.
        scores: [D] in [0, 1], written behind the name of the class.
        class_names: Names of the classes; None writes the labels themselves.
        ignored: [D] bool, boxes that are drawn grey and thin.
        scale: How much the picture is enlarged before drawing; lines and letters do not grow with
            it.

    Returns:
        A new RGB picture.
    """
    picture = _to_picture(image)
    if scale != 1.0:
        size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
        picture = picture.resize(size, Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(picture)
    font = _font(max(11, round(max(picture.size) / 45)))
    line = max(2, round(max(picture.size) / 300))
    count = len(boxes)
    hidden = [False] * count if ignored is None else ignored.tolist()
    values = [None] * count if scores is None else scores.tolist()
    far = 2.0 * max(picture.size)  # infinite corners become ones that are out of sight
    corners = (boxes.detach().double().cpu() * scale).clamp(-far, far).tolist()
    outlines: dict[int, tuple[int, int, int, int]] = {}
    for i in reversed(range(count)):
        x1, y1, x2, y2 = corners[i]
        if not (x2 > x1 and y2 > y1):  # also leaves out NaN
            continue
        left, top = round(x1), round(y1)
        # Pillow includes the last pixel of a rectangle.
        outlines[i] = (left, top, max(left, round(x2) - 1), max(top, round(y2) - 1))
        color = _GREY if hidden[i] else class_color(int(labels[i]))
        draw.rectangle(outlines[i], outline=color, width=1 if hidden[i] else line)
    # Labels come last, so that no box crosses them; the best detection chooses its place first.
    taken: list[tuple[int, int, int, int]] = []
    for i in sorted(outlines):
        label = int(labels[i])
        text = str(label) if class_names is None else class_names[label]
        if values[i] is not None:
            text += f" {values[i]:.2f}"
        color = _GREY if hidden[i] else class_color(label)
        _draw_label(draw, picture.size, outlines[i], text, color, font, taken)
    return picture


def _draw_label(
    draw: ImageDraw.ImageDraw,
    size: tuple[int, int],
    outline: tuple[int, int, int, int],
    text: str,
    color: Color,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
    taken: list[tuple[int, int, int, int]],
) -> None:
    """Writes at a corner of a box where no label is yet, and adds the place to ``taken``."""
    left, top, right, bottom = outline
    x1, y1, x2, y2 = (round(v) for v in draw.textbbox((0, 0), text, font=font))
    width, height = x2 - x1 + 4, y2 - y1 + 4
    places = [
        (left, top - height),
        (left, top),
        (right + 1 - width, top - height),
        (left, bottom + 1),
        (left, bottom + 1 - height),
        (right + 1 - width, bottom + 1),
    ]
    inside = [
        (min(max(0, x), max(0, size[0] - width)), y)
        for x, y in places
        if 0 <= y <= size[1] - height
    ] or [(max(0, min(left, size[0] - width)), max(0, min(top, size[1] - height)))]
    grounds = [(x, y, x + width - 1, y + height - 1) for x, y in inside]
    ground = next((g for g in grounds if not any(_overlap(g, t) for t in taken)), grounds[0])
    taken.append(ground)
    draw.rectangle(ground, fill=color)
    red, green, blue = color
    is_bright = 0.299 * red + 0.587 * green + 0.114 * blue > 140
    ink = (0, 0, 0) if is_bright else (255, 255, 255)
    draw.text((ground[0] + 2 - x1, ground[1] + 2 - y1), text, fill=ink, font=font)


def _overlap(a: tuple[int, int, int, int], b: tuple[int, int, int, int]) -> bool:
    return a[0] <= b[2] and b[0] <= a[2] and a[1] <= b[3] and b[1] <= a[3]


def side_by_side(
    image: Tensor | Image.Image,
    target: Mapping[str, Any],
    detection: Mapping[str, Any],
    *,
    class_names: Sequence[str] | None = None,
    score_threshold: float = 0.3,
) -> Image.Image:
    """The ground truth on the left, the detections on the right.

    Args:
        image: [3, H, W] uint8 RGB, or a picture.
        target: ``boxes``, ``labels`` and perhaps ``ignored`` in pixels of the image.
        detection: ``boxes``, ``scores`` and ``labels``.
        class_names: Names of the classes.
        score_threshold: Detections below it are not drawn.
    """
    picture = _to_picture(image)
    scale = max(1.0, _MIN_SIDE / max(1, *picture.size))
    keep = detection["scores"] >= score_threshold
    left = draw_boxes(
        picture,
        target["boxes"],
        target["labels"],
        class_names=class_names,
        ignored=target.get("ignored"),
        scale=scale,
    )
    right = draw_boxes(
        picture,
        detection["boxes"][keep],
        detection["labels"][keep],
        detection["scores"][keep],
        class_names=class_names,
        scale=scale,
    )
    return tile(
        [left, right], 2, titles=("ground truth", f"detections, score >= {score_threshold:g}")
    )


def tile(
    pictures: Sequence[Image.Image], columns: int, *, titles: Sequence[str] = ()
) -> Image.Image:
    """Pictures in rows of ``columns``, with ``titles`` above those of the first row."""
    if not pictures or columns < 1:
        raise ValueError(f"tile: needs pictures and columns, got {len(pictures)} and {columns}")
    width, height = max(p.width for p in pictures), max(p.height for p in pictures)
    rows = -(-len(pictures) // columns)
    columns = min(columns, len(pictures))
    font = _font(14)
    head = 20 if titles else 0
    sheet = Image.new(
        "RGB",
        (
            columns * width + (columns + 1) * _MARGIN,
            head + rows * height + (rows + 1) * _MARGIN,
        ),
        (255, 255, 255),
    )
    draw = ImageDraw.Draw(sheet)
    for i, title in enumerate(titles):
        draw.text((_MARGIN + i * (width + _MARGIN), _MARGIN), title, fill=(0, 0, 0), font=font)
    for i, picture in enumerate(pictures):
        x = _MARGIN + i % columns * (width + _MARGIN)
        y = head + _MARGIN + i // columns * (height + _MARGIN)
        sheet.paste(picture, (x, y))
    return sheet


def precision_recall_plot(
    path: str | os.PathLike[str],
    recall: NDArray[np.float64],
    precision_of: Mapping[str, NDArray[np.float64]],
    *,
    title: str = "",
) -> None:
    """Writes the curves of precision over recall.

    For :class:`pydet.metrics.CocoMetrics` ``m`` at IoU 0.5 ``precision_of`` is ``{c.name:
    m.precision[0, :, k]}`` over its classes, and ``recall`` is ``m.recall``.

    Args:
        path: Image file to write; its suffix decides the format.
        recall: [R].
        precision_of: Curve [R] of each class by its name; one of negative values or NaN is left
            out.
        title: Written above.
    """
    figure, axes = _new_plot("recall", "precision", title)
    drawn = {
        name: curve
        for name, curve in precision_of.items()
        if np.isfinite(curve).all() and (curve >= 0).all()
    }
    for k, (name, curve) in enumerate(drawn.items()):
        if len(drawn) <= 20:
            color = tuple(v / 255 for v in class_color(k))
            axes.plot(
                recall, curve, color=color, label=f"{name} ({curve.mean():.3f})", linewidth=1.5
            )
        else:  # no legend has room for eighty classes
            axes.plot(recall, curve, color="0.75", linewidth=0.8)
    if drawn:
        mean = np.mean(list(drawn.values()), axis=0)
        axes.plot(recall, mean, color="black", label=f"mean ({mean.mean():.3f})", linewidth=2.5)
        axes.legend(loc="lower left", fontsize="small")
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1.02)
    _save(figure, path)


def loss_plot(
    path: str | os.PathLike[str],
    steps: Sequence[float],
    losses: Mapping[str, Sequence[float]],
    *,
    title: str = "",
    xlabel: str = "step",
) -> None:
    """Writes losses over steps: each value faint, and a running mean over it.

    Args:
        path: Image file to write; its suffix decides the format.
        steps: Places on the x axis.
        losses: Values, one for each step, by the name of the loss.
        title: Written above.
        xlabel: What the steps are.
    """
    figure, axes = _new_plot(xlabel, "loss", title)
    window = max(1, len(steps) // 50)
    for k, (name, values) in enumerate(losses.items()):
        color = tuple(v / 255 for v in class_color(k))
        curve = np.asarray(values, dtype=np.float64)
        axes.plot(steps, curve, color=color, alpha=0.25, linewidth=0.8)
        axes.plot(steps, running_mean(curve, window), color=color, linewidth=1.8, label=name)
    if losses:
        axes.legend(loc="upper right", fontsize="small")
    finite = np.array([v for values in losses.values() for v in values], dtype=np.float64)
    finite = finite[np.isfinite(finite)]
    # The first steps are often tens of times the rest, which would press it to the bottom.
    top = float(np.quantile(finite, 0.99)) * 1.1 if finite.size else 1.0
    axes.set_ylim(0, top if top > 0 else 1.0)
    _save(figure, path)


def running_mean(values: NDArray[np.float64], window: int) -> NDArray[np.float64]:
    """[N] mean of each value and the up to ``window - 1`` values before it, NaN left out."""
    valid = np.isfinite(values)
    sums = np.cumsum(np.concatenate(([0.0], np.where(valid, values, 0.0))))
    counts = np.cumsum(np.concatenate(([0], valid)))
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(0, ends - window)
    number = counts[ends] - counts[starts]
    means = np.full(len(values), np.nan)
    np.divide(sums[ends] - sums[starts], number, out=means, where=number > 0)
    return means


def _new_plot(xlabel: str, ylabel: str, title: str) -> tuple[Any, Any]:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415
        from matplotlib.figure import Figure  # noqa: PLC0415
    except ImportError as error:
        raise ImportError(
            "pydet.visualization: matplotlib must be installed (pip install 'pydet[train]')"
        ) from error
    # A figure of its own, not pyplot's: nothing global is changed and no window is ever asked for.
    figure = Figure(figsize=(7, 5), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    axes.set_title(title)
    axes.grid(alpha=0.3)
    return figure, axes


def _save(figure: Any, path: str | os.PathLike[str]) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def _to_picture(image: Tensor | Image.Image) -> Image.Image:
    if isinstance(image, Image.Image):
        return image.convert("RGB").copy()
    return Image.fromarray(image.detach().cpu().permute(1, 2, 0).contiguous().numpy())


@lru_cache(maxsize=16)
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)  # Pillow's own scalable font
