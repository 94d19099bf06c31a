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
from napari_fovea.inference.batch import (
    Batch,
    Computing,
    Failed,
    Found,
    Written,
    segment_files,
)
from napari_fovea.inference.decision import Deciding, deciding
from napari_fovea.inference.diameter import estimate_diameter
from napari_fovea.inference.folders import ImageFile, find_images
from napari_fovea.inference.instances import separate
from napari_fovea.inference.reading import complete
from napari_fovea.inference.result import (
    AttentionMap,
    Event,
    Fixated,
    Measured,
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
    "Batch",
    "Computing",
    "Deciding",
    "Event",
    "Evidence",
    "Explanation",
    "Failed",
    "Fixated",
    "Found",
    "ImageFile",
    "Influence",
    "Measured",
    "Preview",
    "Segmentation",
    "Separating",
    "Started",
    "Tiled",
    "Tiling",
    "Written",
    "attends",
    "complete",
    "deciding",
    "estimate_diameter",
    "explain",
    "find_images",
    "means_of_instances",
    "segment",
    "segment_files",
    "separate",
]
