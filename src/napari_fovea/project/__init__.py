"""Work in progress: what was painted, and the models that learned from it."""

from napari_fovea.project.folder import load_step, open_project, save_project, step_file
from napari_fovea.project.identity import ImageId, identify, same
from napari_fovea.project.journal import Journal
from napari_fovea.project.journals import Unfinished, discard, prune, unfinished
from napari_fovea.project.work import Project, Step, Strokes

__all__ = [
    "ImageId",
    "Journal",
    "Project",
    "Step",
    "Strokes",
    "Unfinished",
    "discard",
    "identify",
    "load_step",
    "open_project",
    "prune",
    "same",
    "save_project",
    "step_file",
    "unfinished",
]
