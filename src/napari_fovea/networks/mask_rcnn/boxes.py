"""Algebra of boxes: overlaps, anchors, offsets, matching and drawing.

Boxes are x₀, y₀, x₁, y₁ in pixels, of float32, where pixel i covers [i, i + 1).
MONAI has most of this too, but importing it takes longer than segmenting an image.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

_LARGEST = math.log(1000 / 16)  # a box grows by this much at most; exp stays finite
_BLOCK = 16384  # anchors compared at once, which bounds the memory of matching

BACKGROUND = -1
"""Match of a box that overlaps no object."""
BETWEEN = -2
"""Match of a box that overlaps too much for background, too little for an object."""


def areas(boxes: torch.Tensor) -> torch.Tensor:
    """Areas (N,) of boxes (N, 4)."""
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


def iou(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Intersection over union (N, M) of boxes (N, 4) and (M, 4); 0 for empty ones."""
    corner = torch.maximum(first[:, None, :2], second[None, :, :2])
    opposite = torch.minimum(first[:, None, 2:], second[None, :, 2:])
    sides = (opposite - corner).clamp_(min=0)  # (N, M, 2)
    shared = sides[..., 0] * sides[..., 1]
    union = areas(first)[:, None] + areas(second)[None] - shared
    return torch.where(union > 0, shared / union.clamp(min=1e-12), 0.0)


def clip(boxes: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Cut boxes (…, 4) off at the image's border."""
    limit = boxes.new_tensor((width, height, width, height))
    return boxes.clamp(min=0).minimum(limit)


def encode(
    boxes: torch.Tensor, references: torch.Tensor, weights: Sequence[float]
) -> torch.Tensor:
    r"""Offsets (N, 4) that lead from references (N, 4) to boxes (N, 4).

    .. math::

        t = (w_x \Delta x / w,\; w_y \Delta y / h,\;
             w_w \log(w^* / w),\; w_h \log(h^* / h))

    between the centres and sides.
    """
    centre, side = _centred(references)
    goal, goal_side = _centred(boxes)
    tiny = torch.finfo(boxes.dtype).tiny
    side, goal_side = side.clamp(min=tiny), goal_side.clamp(min=tiny)
    offsets = torch.cat(((goal - centre) / side, (goal_side / side).log()), dim=-1)
    return offsets * offsets.new_tensor(weights)


def decode(
    offsets: torch.Tensor, references: torch.Tensor, weights: Sequence[float]
) -> torch.Tensor:
    """Boxes (…, 4) at offsets (…, 4) from references (…, 4); undoes `encode`."""
    offsets = offsets / offsets.new_tensor(weights)
    centre, side = _centred(references)
    middle = centre + offsets[..., :2] * side
    half = side * offsets[..., 2:].clamp(max=_LARGEST).exp() / 2
    return torch.cat((middle - half, middle + half), dim=-1)


def anchor_shapes(
    size: float, *, octaves: int, ratios: Sequence[float]
) -> torch.Tensor:
    """Anchors (A, 4) about the origin.

    Parameters
    ----------
    size : float
        Square root of the smallest one's area, in pixels.
    octaves : int
        How many sizes there are before the next would be twice `size`.
    ratios : sequence of float
        Height over width.
    """
    sides = [
        (size * 2 ** (i / octaves) / ratio**0.5, size * 2 ** (i / octaves) * ratio**0.5)
        for i in range(octaves)
        for ratio in ratios
    ]
    half = torch.tensor(sides, dtype=torch.float32) / 2  # (A, 2)
    return torch.cat((-half, half), dim=1)


def grid_anchors(
    shapes: torch.Tensor, *, height: int, width: int, stride: int
) -> torch.Tensor:
    """Anchors (H·W·A, 4) about the centres of the cells of a feature map.

    Parameters
    ----------
    shapes : Tensor, shape (A, 4)
        Anchors about the origin.
    height, width : int
        H and W, the size of the feature map in cells.
    stride : int
        Side of a cell in pixels.
    """
    y = (torch.arange(height, device=shapes.device) + 0.5) * stride
    x = (torch.arange(width, device=shapes.device) + 0.5) * stride
    centres = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)  # (H, W, 2)
    anchors = centres.repeat(1, 1, 2)[:, :, None] + shapes  # (H, W, A, 4)
    return anchors.reshape(-1, 4)


def match(
    boxes: torch.Tensor,
    objects: torch.Tensor,
    *,
    low: float,
    high: float,
    rescue: bool = False,
) -> torch.Tensor:
    """Which object each box stands for.

    Parameters
    ----------
    boxes : Tensor, shape (N, 4)
        Anchors or proposals.
    objects : Tensor, shape (M, 4)
        Boxes of the objects.
    low, high : float
        A box is background below an IoU of `low`, and stands for the object that it
        overlaps most from `high` on.
    rescue : bool
        Whether the boxes that overlap an object most stand for it even below
        `high`, so that hardly an object goes without; where two objects claim the
        same box, the last one gets it.

    Returns
    -------
    Tensor of int64, shape (N,)
        Index of the object, `BACKGROUND` or `BETWEEN`.
    """
    if not len(objects):
        return torch.full((len(boxes),), BACKGROUND, device=boxes.device)
    best, index, most = [], [], objects.new_zeros(len(objects))
    for block in torch.split(boxes, _BLOCK):
        overlaps = iou(block, objects)
        value, where = overlaps.max(dim=1)
        best.append(value)
        index.append(where)
        most = torch.maximum(most, overlaps.max(dim=0).values) if len(block) else most
    overlap, nearest = torch.cat(best), torch.cat(index)
    matches = torch.where(overlap >= high, nearest, BETWEEN)
    matches = torch.where(overlap < low, BACKGROUND, matches)
    if rescue:
        start = 0
        for block in torch.split(boxes, _BLOCK):
            # The same operations on the same numbers, so equality is exact.
            hits = (iou(block, objects) == most) & (most > 0)
            row, column = hits.nonzero(as_tuple=True)
            winner = matches.new_full((len(block),), -1)
            winner = winner.scatter_reduce(0, row, column, "amax")
            part = matches[start : start + len(block)]
            part.copy_(torch.where(winner >= 0, winner, part))
            start += len(block)
    return matches


def covered(boxes: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Fraction (N,) of each of boxes (N, 4) that lies on a mask (H, W).

    Boxes are rounded to whole pixels; what sticks out of the image is left out.
    """
    height, width = mask.shape
    table = torch.zeros(height + 1, width + 1, device=mask.device)
    table[1:, 1:] = mask.float().cumsum(0).cumsum(1)
    x0, y0, x1, y1 = clip(boxes.round(), height, width).long().unbind(1)
    inside = table[y1, x1] - table[y0, x1] - table[y1, x0] + table[y0, x0]
    return inside / ((x1 - x0) * (y1 - y0)).clamp(min=1)


def draw(
    positive: torch.Tensor, negative: torch.Tensor, *, count: int, fraction: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw boxes at random.

    Parameters
    ----------
    positive, negative : Tensor of bool, shape (N,)
        Which boxes are which; the others are not drawn.
    count : int
        How many at most.
    fraction : float
        How many of `count` may be positive; negatives fill the rest.

    Returns
    -------
    tuple of Tensor of int64
        Indices of the positive and the negative ones, on the masks' device. They
        come from torch's generator on the CPU, the same on every device.
    """
    positives = _some(positive.nonzero().squeeze(1), int(count * fraction))
    return positives, _some(negative.nonzero().squeeze(1), count - len(positives))


def _some(indices: torch.Tensor, count: int) -> torch.Tensor:
    order = torch.randperm(len(indices))[:count]
    return indices[order.to(indices.device)]


def _centred(boxes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    side = boxes[..., 2:] - boxes[..., :2]
    return boxes[..., :2] + side / 2, side
