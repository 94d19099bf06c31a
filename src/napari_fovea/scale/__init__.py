"""Segmenting images larger than memory."""

from napari_fovea.scale.job import Failure
from napari_fovea.scale.measuring import diameter_of
from napari_fovea.scale.plan import Block, Plan, cut
from napari_fovea.scale.result import (
    Event,
    Finished,
    Joining,
    LargeResult,
    Opened,
    Segmenting,
)
from napari_fovea.scale.run import segment_large
from napari_fovea.scale.source import Level, Source, open_source

__all__ = [
    "Block",
    "Event",
    "Failure",
    "Finished",
    "Joining",
    "LargeResult",
    "Level",
    "Opened",
    "Plan",
    "Segmenting",
    "Source",
    "cut",
    "diameter_of",
    "open_source",
    "segment_large",
]
