"""Models: what they are, their files, and those that ship."""

from napari_fovea.models.model import Model
from napari_fovea.models.zoo import DEFAULT, Entry, entries

__all__ = ["DEFAULT", "Entry", "Model", "entries"]
