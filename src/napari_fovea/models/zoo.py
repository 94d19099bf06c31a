"""The models that ship with napari-fovea, by name."""

from __future__ import annotations

import os
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from napari_fovea.errors import ModelError
from napari_fovea.models.checkpoint import Header, read_header
from napari_fovea.models.checkpoint import load as load_file
from napari_fovea.networks import system_of

if TYPE_CHECKING:
    from napari_fovea.models.model import Model

DEFAULT = "retina-nuclei"
"""The model to start with."""


@dataclass(frozen=True)
class Entry:
    """A model that can be loaded.

    Attributes
    ----------
    path : Path
        Its file.
    header : Header
        What the file says about itself.
    """

    path: Path
    header: Header

    @property
    def name(self) -> str:
        """Name to load it by."""
        return self.header.name

    @property
    def system(self) -> str:
        """``"S0"`` to ``"S4"``."""
        return system_of(self.header.network, self.header.config)

    @property
    def focused(self) -> bool:
        """Whether it moves a focus over the image."""
        return self.header.network == "retina-vgg"

    @property
    def megabytes(self) -> float:
        """Size of its file in MB (10⁶ bytes)."""
        return self.path.stat().st_size / 1e6

    def facts(self) -> dict[str, object]:
        """All that a list of models shows, ready for JSON."""
        header = self.header
        return {
            "name": self.name,
            "system": self.system,
            "network": header.network,
            "classes": list(header.classes),
            "channels": header.config["channels"],
            "object_diameter": header.object_diameter,
            "pixel_size": header.pixel_size,
            "file": str(self.path),
            "megabytes": round(self.megabytes, 2),
            "scan": header.scan.model_dump(exclude_none=True),
            "provenance": header.provenance,
        }


def entries() -> tuple[Entry, ...]:
    """Models that ship, the default first, the others by system."""
    folder = Path(str(resources.files("napari_fovea.models") / "weights"))
    found = [Entry(p, read_header(p)) for p in sorted(folder.glob("*.safetensors"))]
    return tuple(sorted(found, key=lambda e: (e.name != DEFAULT, e.system, e.name)))


def load(source: str | os.PathLike[str]) -> Model:
    """Load a model by name or file; see `Model.load`."""
    known = {entry.name: entry.path for entry in entries()}
    if str(source) in known:
        return load_file(known[str(source)])
    path = Path(source)
    if path.suffix or path.exists() or os.sep in str(source):
        return load_file(path)
    raise ModelError(
        f"There is no model {str(source)!r}; expected "
        f"{' or '.join(map(repr, known)) or 'a file'}, or the path of a model file."
    )
