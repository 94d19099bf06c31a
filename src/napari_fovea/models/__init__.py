"""Models: what they are, their files, and those that ship or that the user kept."""

from napari_fovea.models.model import Model
from napari_fovea.models.zoo import DEFAULT, Entry, entries, keep, shipped

__all__ = ["DEFAULT", "Entry", "Model", "entries", "keep", "shipped"]
