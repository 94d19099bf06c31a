"""Segmenting images with a model."""

from napari_fovea.inference.instances import separate
from napari_fovea.inference.result import (
    AttentionMap,
    Event,
    Fixated,
    Preview,
    Segmentation,
    Separating,
    Started,
)
from napari_fovea.inference.segmenting import complete, segment

__all__ = [
    "AttentionMap",
    "Event",
    "Fixated",
    "Preview",
    "Segmentation",
    "Separating",
    "Started",
    "complete",
    "segment",
    "separate",
]
