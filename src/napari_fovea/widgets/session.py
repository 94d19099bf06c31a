"""What all docks share: the model and the device that are in use."""

from __future__ import annotations

from threading import Lock
from typing import TYPE_CHECKING, Any

from psygnal import Signal

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path

    from napari_fovea.models import Entry, Model

_KEPT = 3
"""Models that stay in memory."""


class Session:
    """The chosen model and device; tells when they change.

    Docks point at a fixation of a focus path through ``pointed``.

    Attributes
    ----------
    entries : tuple of Entry
        Models to choose from; empty until they have been listed.
    chosen : Entry or None
        The model in use.
    device : str
        ``"auto"`` or a device's name.
    """

    listed = Signal()
    changed = Signal()
    pointed = Signal(object, int)

    def __init__(self) -> None:
        self.entries: tuple[Entry, ...] = ()
        self.chosen: Entry | None = None
        self.device = "auto"
        self.devices: tuple[str, ...] = ()
        self._kept: dict[tuple[Path, int], Model] = {}
        self._loading = Lock()

    def offer(self, entries: tuple[Entry, ...]) -> None:
        """Set the models to choose from; the first becomes the chosen one."""
        kept = [e for e in self.entries if e.path not in {n.path for n in entries}]
        self.entries = (*entries, *kept)
        if self.chosen is None and entries:
            self.chosen = entries[0]
        self.listed.emit()
        self.changed.emit()

    def add(self, entry: Entry) -> None:
        """Add one model and choose it."""
        others = tuple(e for e in self.entries if e.path != entry.path)
        self.entries = (*others, entry)
        self.chosen = entry
        self.listed.emit()
        self.changed.emit()

    def offer_own(self, entry: Entry) -> None:
        """Add a model to the list, and leave the choice as it is."""
        others = tuple(e for e in self.entries if e.path != entry.path)
        self.entries = (*others, entry)
        self.listed.emit()
        self.changed.emit()

    def choose(self, entry: Entry | None) -> None:
        """Use another model."""
        if entry is not self.chosen:
            self.chosen = entry
            self.changed.emit()

    def use_device(self, device: str) -> None:
        """Compute elsewhere from the next run on."""
        if device != self.device:
            self.device = device
            self.changed.emit()

    def load(self, entry: Entry) -> Model:
        """Weights of a model; the last few are kept, so that a run starts at once.

        A file that was written anew is read again. Call it in a job.
        """
        from napari_fovea.models import Model

        with self._loading:
            written = entry.path.stat().st_mtime_ns if entry.path.exists() else 0
            key = entry.path, written
            model = self._kept.pop(key, None) or Model.load(entry.path)
            self._kept[key] = model  # the last used comes last
            for old in list(self._kept)[:-_KEPT]:
                del self._kept[old]
        return model


_session: Session | None = None


def session() -> Session:
    """Return the session that all docks of this napari share."""
    global _session
    if _session is None:
        _session = Session()
    return _session


def survey() -> Generator[Any, None, tuple[tuple[Entry, ...], tuple[str, ...]]]:
    """List models and devices; for a job, since it imports torch."""
    yield from ()
    from napari_fovea.device import available
    from napari_fovea.models import entries

    return entries(), available()
