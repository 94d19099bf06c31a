"""Losses: logits, target, and an optional mask of what counts.

The dense ones share one signature, `loss(logits, target, *, mask=None)`, and are
listed by name in `LOSSES`; those of cells and of detection have their own.
"""

from napari_fovea.losses.cells import cell_cross_entropy
from napari_fovea.losses.dense import DenseLoss
from napari_fovea.losses.detection import (
    box_loss,
    class_loss,
    mask_loss,
    objectness_loss,
)
from napari_fovea.losses.hybrid import (
    adaptive_log_hybrid_loss,
    bce_dice_loss,
    hybrid_loss,
)
from napari_fovea.losses.pixels import cross_entropy, weighted_cross_entropy
from napari_fovea.losses.regions import dice_loss, focal_tversky_loss, tversky_loss

LOSSES: dict[str, DenseLoss] = {
    "bce": cross_entropy,
    "weighted-bce": weighted_cross_entropy,
    "dice": dice_loss,
    "tversky": tversky_loss,
    "focal-tversky": focal_tversky_loss,
    "bce-dice": bce_dice_loss,
    "hybrid": hybrid_loss,
    "log-hybrid": adaptive_log_hybrid_loss,
}
"""The dense losses by name; "bce" is cross-entropy, for any number of classes."""

__all__ = [
    "LOSSES",
    "DenseLoss",
    "adaptive_log_hybrid_loss",
    "bce_dice_loss",
    "box_loss",
    "cell_cross_entropy",
    "class_loss",
    "cross_entropy",
    "dice_loss",
    "focal_tversky_loss",
    "hybrid_loss",
    "mask_loss",
    "objectness_loss",
    "tversky_loss",
    "weighted_cross_entropy",
]
