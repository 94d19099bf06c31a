"""Regions of interest: their features, their level, and doing without duplicates."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn import functional

from napari_fovea.networks.mask_rcnn.boxes import areas, iou

if TYPE_CHECKING:
    from collections.abc import Sequence

_SAMPLES = 2  # sampling points along each side of a bin
_ROWS = 1024  # boxes compared at once, which bounds the memory of NMS


def roi_align(
    features: torch.Tensor, boxes: torch.Tensor, *, size: int, scale: float
) -> torch.Tensor:
    """Features of boxes on a grid, by bilinear interpolation.

    Every bin averages 2 × 2 points. A point between the outermost pixel centres and
    one pixel beyond takes the border's value, one further out is 0. This is
    torchvision's ``roi_align(…, sampling_ratio=2, aligned=True)``.

    Parameters
    ----------
    features : Tensor, shape (C, H, W)
        Feature map of one image.
    boxes : Tensor of float32, shape (R, 4)
        Boxes in pixels of the image.
    size : int
        Bins along each side.
    scale : float
        Cells of the feature map per pixel of the image, such as 1/4.

    Returns
    -------
    Tensor of float32, shape (R, C, size, size)
    """
    depth, height, width = features.shape
    rois = len(boxes)
    if not rois or not height or not width:
        # Attached to the graph, so that no parameter goes without a gradient.
        return features.float().sum() * 0 + features.new_zeros(
            (rois, depth, size, size), dtype=torch.float32
        )
    with torch.autocast(features.device.type, enabled=False):
        points = size * _SAMPLES
        corner = boxes[:, :2].float() * scale - 0.5  # (R, 2) in cells
        side = (boxes[:, 2:] - boxes[:, :2]).float() * scale
        steps = torch.arange(points, device=boxes.device) + 0.5
        # (R, points, 2): where the points of a box lie, in x and in y
        where = corner[:, None] + side[:, None] * (steps / points)[None, :, None]
        limit = where.new_tensor((width, height))
        inside = (where >= -1) & (where <= limit)
        where = where.clamp(min=0).minimum(limit - 1)
        before = where.floor()
        after = (before + 1).minimum(limit - 1)
        share = where - before
        # Along each axis a bin takes its share of two cells for each of its points,
        # and the cells of a bin are what the one axis and the other have taken.
        taken = torch.stack((before, after), -1).long().transpose(1, 2)
        worth = torch.stack((1 - share, share), -1) * inside[..., None] / _SAMPLES
        taken = taken.reshape(rois, 2, size, 2 * _SAMPLES)
        worth = worth.transpose(1, 2).reshape(rois, 2, size, 2 * _SAMPLES)
        (across, down), (wide, high) = taken.unbind(1), worth.unbind(1)
        cells = down[:, :, None, :, None] * width + across[:, None, :, None, :]
        weights = high[:, :, None, :, None] * wide[:, None, :, None, :]
        bins = rois * size**2
        pooled = functional.embedding_bag(
            cells.view(bins, -1),
            features.float().permute(1, 2, 0).reshape(height * width, depth),
            mode="sum",
            per_sample_weights=weights.view(bins, -1),
        )  # (R·size·size, C)
        return pooled.view(rois, size, size, depth).permute(0, 3, 1, 2)


def levels_of(boxes: torch.Tensor, *, canonical: float, levels: int) -> torch.Tensor:
    r"""Level of the pyramid (R,) that each of boxes (R, 4) takes its features from.

    .. math::

        k = \lfloor \log_2 (\sqrt{w h} / c) \rfloor

    for a canonical side c, held within the levels there are.
    """
    side = areas(boxes).clamp(min=1e-6).sqrt()
    return (side / canonical).log2().floor().clamp(0, levels - 1).long()


def pool(
    pyramid: Sequence[torch.Tensor],
    boxes: Sequence[torch.Tensor],
    *,
    strides: Sequence[int],
    size: int,
    canonical: float,
) -> torch.Tensor:
    """Features of the boxes of a batch, each from its level.

    Parameters
    ----------
    pyramid : sequence of Tensor, shape (B, C, H/stride, W/stride)
        Feature maps, fine to coarse.
    boxes : sequence of Tensor, shape (Rᵢ, 4)
        Boxes of each image, in pixels.
    strides : sequence of int
        Pixels per cell of each level.
    size : int
        Bins along each side.
    canonical : float
        See `levels_of`.

    Returns
    -------
    Tensor of float32, shape (ΣRᵢ, C, size, size)
        In the order of `boxes`.
    """
    parts, places, start = [], [], 0
    for image, some in enumerate(boxes):
        level = levels_of(some, canonical=canonical, levels=len(pyramid))
        for i, (features, stride) in enumerate(zip(pyramid, strides, strict=True)):
            rows = _where(level == i)
            parts.append(
                roi_align(features[image], some[rows], size=size, scale=1 / stride)
            )
            places.append(rows + start)
        start += len(some)
    order = torch.cat(places).argsort()
    return torch.cat(parts)[order]


def nms(boxes: torch.Tensor, scores: torch.Tensor, *, overlap: float) -> torch.Tensor:
    """Non-maximum suppression.

    Parameters
    ----------
    boxes : Tensor of float32, shape (N, 4)
        Boxes.
    scores : Tensor, shape (N,)
        How sure each is; of equals the first comes first.
    overlap : float
        A box goes if its IoU with a kept one of higher score is above this.

    Returns
    -------
    Tensor of int64, shape (M,)
        Indices of the kept boxes, highest score first.
    """
    order = scores.argsort(descending=True, stable=True)
    ranked = boxes[order].float()
    n = len(order)
    kept = np.ones(n, dtype=bool)
    for start in range(0, n, _ROWS):
        # Overlaps are computed where the boxes are, the greedy pass runs on the host.
        # No box suppresses one that ranks higher.
        rows = iou(ranked[start : start + _ROWS], ranked[start:]) > overlap
        above = rows.cpu().numpy()
        for i in range(len(above)):
            if kept[start + i]:
                kept[start + i + 1 :] &= ~above[i, i + 1 :]
    return order[torch.from_numpy(kept).to(order.device)]


def grouped_nms(
    boxes: torch.Tensor, scores: torch.Tensor, groups: torch.Tensor, *, overlap: float
) -> torch.Tensor:
    """Non-maximum suppression among the boxes of each group (N,), such as a class.

    Each group runs by itself rather than shifted out of the others' way: that
    compares fewer boxes and rounds none.

    Returns
    -------
    Tensor of int64, shape (M,)
        Indices of the kept boxes of all groups, highest score first.
    """
    parts = [_where(groups == group) for group in torch.unique(groups)]
    kept = [rows[nms(boxes[rows], scores[rows], overlap=overlap)] for rows in parts]
    if not kept:
        return torch.zeros(0, dtype=torch.int64, device=boxes.device)
    together = torch.cat(kept).sort().values
    return together[scores[together].argsort(descending=True, stable=True)]


def _where(mask: torch.Tensor) -> torch.Tensor:

    return mask.nonzero().squeeze(1)


def crop_masks(
    instances: torch.Tensor, ids: torch.Tensor, boxes: torch.Tensor, *, size: int
) -> torch.Tensor:
    """Masks of objects over boxes, by bilinear interpolation of their indicators.

    Parameters
    ----------
    instances : Tensor of int, shape (H, W)
        Instance map.
    ids : Tensor of int, shape (R,)
        Which instance each box shows.
    boxes : Tensor of float32, shape (R, 4)
        Boxes in pixels.
    size : int
        Side of a mask.

    Returns
    -------
    Tensor of float32, shape (R, size, size)
        In [0, 1]: how far each bin's centre lies on the object.
    """
    height, width = instances.shape
    steps = (torch.arange(size, device=boxes.device) + 0.5) / size
    side = boxes[:, 2:] - boxes[:, :2]
    where = boxes[:, None, :2] + side[:, None] * steps[None, :, None] - 0.5
    floor = where.floor()  # (R, size, 2)
    rest = where - floor
    x, y = floor.long().unbind(-1)  # (R, size)
    masks = boxes.new_zeros(len(boxes), size, size)
    for dy in (0, 1):
        for dx in (0, 1):
            row = (y + dy).clamp(0, height - 1)[:, :, None]
            column = (x + dx).clamp(0, width - 1)[:, None, :]
            hit = instances[row, column] == ids[:, None, None]  # (R, size, size)
            v = rest[..., 1] if dy else 1 - rest[..., 1]
            u = rest[..., 0] if dx else 1 - rest[..., 0]
            masks += hit * v[:, :, None] * u[:, None, :]
    return masks
