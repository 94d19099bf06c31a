"""Segmenting images with a model."""

from napari_fovea.inference.attention import (
    Attends,
    attends,
    means_of_instances,
)
from napari_fovea.inference.attribution import (
    Evidence,
    Explanation,
    Influence,
    explain,
)
from napari_fovea.inference.decision import Deciding, deciding
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
    "Attends",
    "AttentionMap",
    "Deciding",
    "Event",
    "Evidence",
    "Explanation",
    "Fixated",
    "Influence",
    "Preview",
    "Segmentation",
    "Separating",
    "Started",
    "Tiled",
    "Tiling",
    "attends",
    "complete",
    "deciding",
    "explain",
    "means_of_instances",
    "segment",
    "separate",
]
