"""Retina-like grid and sequential attention: the scan of system S0."""

from napari_fovea.retina.fusion import (
    FUSIONS,
    Fusion,
    VoteMap,
    entropy,
    probabilities,
)
from napari_fovea.retina.grid import IGNORE, RetinaGrid, cell_pmfs, lay, uncertainty
from napari_fovea.retina.path import FocusPath
from napari_fovea.retina.path_file import Recorded, load_path, save_path, write_table
from napari_fovea.retina.policy import POLICIES, Policy, Raster, Seek, step_size
from napari_fovea.retina.replay import Moment, Replay, finest_levels
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
    "Moment",
    "Policy",
    "Raster",
    "Recorded",
    "Replay",
    "RetinaGrid",
    "Scan",
    "Seek",
    "VoteMap",
    "cell_pmfs",
    "entropy",
    "finest_levels",
    "lay",
    "load_path",
    "probabilities",
    "save_path",
    "scan",
    "step_size",
    "uncertainty",
    "write_table",
]
