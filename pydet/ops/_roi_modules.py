# SPDX-License-Identifier: Apache-2.0
"""RoI align as modules that keep its settings; see :mod:`pydet.ops.roi_align` for the letters."""

from collections.abc import Sequence

from torch import Tensor, nn

from pydet.ops._checks import check_sides
from pydet.ops.roi_align import multiscale_roi_align, roi_align


def _level_of_height(height: int, image_height: int) -> int:
    """The k of the power 2^k next to image_height / height; by integers: sizes may be symbols.

    Next on a logarithmic scale: the ratio is between 2^(k - 1/2) and 2^(k + 1/2).
    """
    if height < 1 or image_height < 1:
        return 0
    k = 0
    while image_height * image_height > 2 * 4**k * height * height:
        k += 1
    while k <= 0 and 2 * 4**-k * image_height * image_height < height * height:
        k -= 1
    return k


class RoIAlign(nn.Module):
    """:func:`roi_align` with its settings kept.

    Args:
        output_size: h, or (h, w).
        spatial_scale: Cells a pixel.
        sampling_ratio: Samples of a bin along each axis; not positive: one a cell.
        aligned: Take half a cell off.
    """

    def __init__(
        self,
        output_size: int | Sequence[int],
        spatial_scale: float,
        sampling_ratio: int,
        aligned: bool = False,
    ) -> None:
        super().__init__()
        self.output_size = output_size
        self.spatial_scale = spatial_scale
        self.sampling_ratio = sampling_ratio
        self.aligned = aligned

    def forward(self, input: Tensor, rois: Tensor | Sequence[Tensor]) -> Tensor:
        """``input`` [B, C, H, W] and boxes as :func:`roi_align` takes them -> [R, C, h, w]."""
        return roi_align(
            input, rois, self.output_size, self.spatial_scale, self.sampling_ratio, self.aligned
        )

    def extra_repr(self) -> str:
        """The settings."""
        return (
            f"output_size={self.output_size}, spatial_scale={self.spatial_scale}, "
            f"sampling_ratio={self.sampling_ratio}, aligned={self.aligned}"
        )


class MultiScaleRoIAlign(nn.Module):
    """:func:`multiscale_roi_align` on a dict of maps, with scales taken from the images' sizes.

    Args:
        featmap_names: Names of the maps to use, which must come largest first.
        output_size: h, or (h, w).
        sampling_ratio: Samples of a bin along each axis; not positive: one a cell.
        canonical_scale: Side in pixels of the boxes of the canonical level.
        canonical_level: k of that level.
        aligned: Take half a cell off.
    """

    def __init__(
        self,
        featmap_names: list[str],
        output_size: int | Sequence[int],
        sampling_ratio: int,
        *,
        canonical_scale: int = 224,
        canonical_level: int = 4,
        aligned: bool = False,
    ) -> None:
        super().__init__()
        self.featmap_names = featmap_names
        self.output_size = check_sides("MultiScaleRoIAlign", "output_size", output_size, 1)
        self.sampling_ratio = sampling_ratio
        self.canonical_scale = canonical_scale
        self.canonical_level = canonical_level
        self.aligned = aligned

    def forward(
        self, x: dict[str, Tensor], boxes: list[Tensor], image_shapes: list[tuple[int, int]]
    ) -> Tensor:
        """Pools the boxes of each image.

        Args:
            x: Maps [B, C, Hl, Wl] by name; those that ``featmap_names`` does not have are left out.
            boxes: [r, 4] xyxy in pixels for each image.
            image_shapes: (height, width) of each image, before padding to the batch's size. The
                scale of a map is the power of 2 next to its height over the largest of theirs.

        Returns:
            [R, C, h, w], image after image.
        """
        maps = [feature_map for name, feature_map in x.items() if name in self.featmap_names]
        if not maps:
            raise ValueError(
                f"MultiScaleRoIAlign: x must have a map of {self.featmap_names}, got {list(x)}"
            )
        if not image_shapes:
            raise ValueError("MultiScaleRoIAlign: image_shapes must not be empty, got []")
        image_height = max(shape[0] for shape in image_shapes)
        return multiscale_roi_align(
            maps,
            boxes,
            self.output_size,
            [2.0 ** -_level_of_height(m.shape[-2], image_height) for m in maps],
            self.sampling_ratio,
            self.aligned,
            self.canonical_scale,
            self.canonical_level,
        )

    def __repr__(self) -> str:
        """As torchvision writes it."""
        return (
            f"{type(self).__name__}(featmap_names={self.featmap_names}, "
            f"output_size={self.output_size}, sampling_ratio={self.sampling_ratio})"
        )
