"""Segmenting images with a model."""

from napari_fovea.inference.instances import separate
from napari_fovea.inference.reading import complete
from napari_fovea.inference.result import (
    AttentionMap,
    Event,
    Fixated,
    Preview,
    Segmentation,
    Separating,
    Started,
    Tiled,
)
from napari_fovea.inference.segmenting import segment
from napari_fovea.inference.tiles import Tiling

__all__ = [
    "AttentionMap",
    "Event",
    "Fixated",
    "Preview",
    "Segmentation",
    "Separating",
    "Started",
    "Tiled",
    "Tiling",
    "complete",
    "segment",
    "separate",
]
