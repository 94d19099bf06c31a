"""Measures of agreement between a segmentation and the truth."""

from napari_fovea.metrics.instances import (
    DSB_THRESHOLDS,
    Matching,
    average_precision,
    instance_scores,
    iou_matrix,
    match,
)
from napari_fovea.metrics.semantic import (
    Confusion,
    accuracy,
    cohen_kappa,
    dice,
    jaccard,
    precision,
    recall,
    roc_auc,
    specificity,
)

__all__ = [
    "DSB_THRESHOLDS",
    "Confusion",
    "Matching",
    "accuracy",
    "average_precision",
    "cohen_kappa",
    "dice",
    "instance_scores",
    "iou_matrix",
    "jaccard",
    "match",
    "precision",
    "recall",
    "roc_auc",
    "specificity",
]
