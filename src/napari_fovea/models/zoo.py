"""Models by name: those that ship with napari-fovea, and the user's own."""

from __future__ import annotations

import os
import re
import unicodedata
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError

from napari_fovea.errors import FoveaError, ModelError
from napari_fovea.files import home
from napari_fovea.models.checkpoint import Header, read_header
from napari_fovea.models.checkpoint import load as load_file
from napari_fovea.networks import RetinaConfig, config_of, system_of

if TYPE_CHECKING:
    from napari_fovea.models.model import Model

DEFAULT = "r2-attention-unet-nuclei"
"""The model to start with: the one that tells objects best; see its card."""


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
        """``"S0"`` to ``"S4"``, or ``"ensemble"``."""
        return system_of(self.header.network, self.header.config)

    @property
    def focused(self) -> bool:
        """Whether it moves a focus over the image."""
        return issubclass(config_of(self.header.network), RetinaConfig)

    @property
    def own(self) -> bool:
        """Whether it is one of the user's own; see `keep`."""
        return self.path.parent == _own_folder()

    @property
    def megabytes(self) -> float:
        """Size of its file in MB (10⁶ bytes), and of those it takes weights from."""
        files = [self.path, *(self.path.with_name(n) for n in self.header.parts)]
        return sum(file.stat().st_size for file in files if file.is_file()) / 1e6

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


def shipped() -> tuple[Entry, ...]:
    """List the models that ship, the default first, the others by system."""
    folder = Path(str(resources.files("napari_fovea.models") / "weights"))
    found = [Entry(p, read_header(p)) for p in sorted(folder.glob("*.safetensors"))]
    return tuple(sorted(found, key=lambda e: (e.name != DEFAULT, e.system, e.name)))


def entries() -> tuple[Entry, ...]:
    """List the models that ship, then the user's own by name."""
    own = []
    for path in sorted(_own_folder().glob("*.safetensors")):
        try:
            own.append(Entry(path, read_header(path)))
        except FoveaError:
            continue  # one bad file must not hide the others
    return (*shipped(), *sorted(own, key=lambda e: e.name))


def keep(model: Model) -> Entry:
    """Save a model among the user's own, where `entries` finds it.

    Parameters
    ----------
    model : Model
        What to save. If its name is taken, the saved one is called "name 2", and
        so on; nothing is replaced.

    Raises
    ------
    ModelError
        If it cannot be written.
    """
    folder = _own_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        name, path = _claim(folder, model.name.strip() or "model")
        try:
            replace(model, name=name).save(path)
        except BaseException:
            path.unlink(missing_ok=True)
            raise
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ModelError(
            f"Model {model.name!r} cannot be written to {folder} ({reason}): free "
            "some space, or set NAPARI_FOVEA_HOME to another folder."
        ) from error
    return Entry(path, read_header(path))


def load(source: str | os.PathLike[str]) -> Model:
    """Load a model by name or file; see `Model.load`."""
    known: dict[str, Path] = {}
    for entry in entries():
        known.setdefault(entry.name, entry.path)
    if str(source) in known:
        return load_file(known[str(source)])
    path = Path(source)
    if path.suffix or path.exists() or os.sep in str(source):
        return load_file(path)
    raise ModelError(
        f"There is no model {str(source)!r}; expected "
        f"{' or '.join(map(repr, known)) or 'a file'}, or the path of a model file."
    )


def _own_folder() -> Path:
    return home() / "models"


def _claim(folder: Path, wanted: str) -> tuple[str, Path]:
    """Find a name that is free, and make its file so that no other takes it."""
    names = {entry.name for entry in entries()}
    name, stem, number = wanted, _safe(wanted), 1
    while True:
        if name not in names:
            path = folder / f"{stem}.safetensors"
            with suppress(FileExistsError):
                path.touch(exist_ok=False)
                return name, path
        number += 1
        name, stem = f"{wanted} {number}", f"{_safe(wanted)} {number}"


def _safe(name: str) -> str:
    """Keep of a name what every file system takes."""
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
    return re.sub(r"[^\w +-]+", "-", plain)[:80].strip(" -") or "model"
