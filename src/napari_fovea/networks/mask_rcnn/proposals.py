"""Region proposals: where anchors lie, which ones are taken, what they learn."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from napari_fovea.losses import box_loss, objectness_loss
from napari_fovea.networks.mask_rcnn import boxes as box
from napari_fovea.networks.mask_rcnn.roi import grouped_nms

if TYPE_CHECKING:
    from collections.abc import Sequence

    from napari_fovea.networks.mask_rcnn.config import MaskRCNNConfig
    from napari_fovea.networks.mask_rcnn.targets import Target

STRIDES = (4, 8, 16)
"""Pixels per cell of P2, P3 and P4."""
THINNEST = 0.5
"""Boxes with a side below this many pixels show nothing."""
_WEIGHTS = (1.0, 1.0, 1.0, 1.0)
_VOID = 0.5  # boxes that lie on void by more than this are no negatives


def anchors_of(
    levels: Sequence[torch.Tensor], config: MaskRCNNConfig
) -> list[torch.Tensor]:
    """Anchors (H·W·A, 4) of every level's features (B, N, H, W)."""
    anchors = []
    for features, size, stride in zip(levels, config.anchors, STRIDES, strict=True):
        shapes = box.anchor_shapes(size, octaves=config.octaves, ratios=config.ratios)
        anchors.append(
            box.grid_anchors(
                shapes.to(features.device),
                height=features.shape[-2],
                width=features.shape[-1],
                stride=stride,
            )
        )
    return anchors


@torch.no_grad()
def propose(
    logits: Sequence[torch.Tensor],
    offsets: Sequence[torch.Tensor],
    anchors: Sequence[torch.Tensor],
    *,
    size: tuple[int, int],
    config: MaskRCNNConfig,
    training: bool,
) -> list[torch.Tensor]:
    """Boxes (R, 4) of each image that look like objects, the surest first."""
    before = config.before_training if training else config.before_inference
    after = config.after_training if training else config.after_inference
    scores, found, groups = [], [], []
    for level, (score, offset) in enumerate(zip(logits, offsets, strict=True)):
        best = score.detach().topk(min(before, score.shape[1]), dim=1)  # (B, n)
        rows = best.indices[..., None].expand(-1, -1, 4)
        chosen = box.decode(
            offset.detach().gather(1, rows),
            anchors[level][best.indices],
            _WEIGHTS,
        )  # (B, n, 4)
        found.append(box.clip(chosen, *size))
        scores.append(best.values)
        groups.append(torch.full_like(best.indices, level))
    boxes, score, group = (torch.cat(x, dim=1) for x in (found, scores, groups))
    proposed = []
    for image in range(len(boxes)):
        seen = (boxes[image, :, 2:] - boxes[image, :, :2]).amin(1) >= THINNEST
        some = boxes[image, seen]
        kept = grouped_nms(
            some,
            score[image, seen],
            group[image, seen],
            overlap=config.proposal_overlap,
        )
        proposed.append(some[kept[:after]])
    return proposed


def proposal_losses(
    logits: torch.Tensor,
    offsets: torch.Tensor,
    anchors: torch.Tensor,
    targets: Sequence[Target],
    *,
    size: tuple[int, int],
    config: MaskRCNNConfig,
) -> dict[str, torch.Tensor]:
    """Losses of logits (B, A) and offsets (B, A, 4) at anchors (A, 4)."""
    labels = torch.full(logits.shape, -1, device=logits.device)
    predicted, wanted, drawn = [], [], 0
    centres = (anchors[:, :2] + anchors[:, 2:]) / 2
    within = (centres < centres.new_tensor(size[::-1])).all(1)  # not in the padding
    for i, target in enumerate(targets):
        matches = box.match(anchors, target.boxes, low=0.3, high=0.7, rescue=True)
        positive, negative = box.draw(
            matches >= 0,
            (matches == box.BACKGROUND) & within & countable(anchors, target),
            count=config.anchors_per_image,
            fraction=0.5,
        )
        labels[i, positive], labels[i, negative] = 1, 0
        drawn += len(positive) + len(negative)
        predicted.append(offsets[i, positive])
        objects = target.boxes[matches[positive]]
        wanted.append(box.encode(objects, anchors[positive], _WEIGHTS))
    return {
        "objectness": objectness_loss(logits.flatten(), labels.flatten()),
        "rpn_box": box_loss(torch.cat(predicted), torch.cat(wanted), normaliser=drawn),
    }


def countable(boxes: torch.Tensor, target: Target) -> torch.Tensor:
    """Tell which of boxes (N, 4) may be negatives: those that do not lie on void."""
    if target.void is None:
        return torch.ones(len(boxes), dtype=torch.bool, device=boxes.device)
    return box.covered(boxes, target.void) <= _VOID
