"""Retina-like grid and sequential attention: the scan of system S0."""

from napari_fovea.retina.fusion import (
    FUSIONS,
    Fusion,
    VoteMap,
    entropy,
    probabilities,
)
from napari_fovea.retina.grid import IGNORE, RetinaGrid, cell_pmfs, uncertainty
from napari_fovea.retina.path import FocusPath
from napari_fovea.retina.policy import POLICIES, Policy, Raster, Seek, step_size
from napari_fovea.retina.scan import CropLook, Frame, Look, Looked, Scan, scan

__all__ = [
    "FUSIONS",
    "IGNORE",
    "POLICIES",
    "CropLook",
    "FocusPath",
    "Frame",
    "Fusion",
    "Look",
    "Looked",
    "Policy",
    "Raster",
    "RetinaGrid",
    "Scan",
    "Seek",
    "VoteMap",
    "cell_pmfs",
    "entropy",
    "probabilities",
    "scan",
    "step_size",
    "uncertainty",
]
