"""How good models are, by the measures of the papers."""

from napari_fovea.evaluation.changes import CHANGES, Change
from napari_fovea.evaluation.crossval import (
    CrossValidation,
    FoldEvent,
    cross_validate,
    split,
)
from napari_fovea.evaluation.images import (
    SEMANTIC,
    Evaluation,
    ImageScored,
    class_scores,
    evaluate,
    mean_and_std,
)

__all__ = [
    "CHANGES",
    "SEMANTIC",
    "Change",
    "CrossValidation",
    "Evaluation",
    "FoldEvent",
    "ImageScored",
    "class_scores",
    "cross_validate",
    "evaluate",
    "mean_and_std",
    "split",
]
