"""Measures of agreement between a segmentation and the truth."""

from napari_fovea.metrics.instances import (
    DSB_THRESHOLDS,
    average_precision,
    iou_matrix,
)
from napari_fovea.metrics.semantic import dice

__all__ = ["DSB_THRESHOLDS", "average_precision", "dice", "iou_matrix"]
