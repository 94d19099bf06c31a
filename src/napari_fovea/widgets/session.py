"""What all docks share: the model in use, and where and how it computes."""

from __future__ import annotations

from threading import Lock
from typing import TYPE_CHECKING, Any

from psygnal import Signal

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path

    from napari_fovea.device import Backend
    from napari_fovea.models import Entry, Model

_KEPT = 3
"""Models that stay in memory."""


class Session:
    """The chosen model, device and the like; tells when they change.

    Docks point at a fixation of a focus path through ``pointed``.

    Attributes
    ----------
    entries : tuple of Entry
        Models to choose from; empty until they have been listed.
    chosen : Entry or None
        The model in use.
    device : str
        ``"auto"`` or a device's name.
    precision : str
        ``"auto"``, or what networks compute in.
    memory : float
        GiB that features may take at most; 0 for half of what is free.
    compiled : bool
        Whether networks are compiled.
    """

    listed = Signal()
    changed = Signal()
    pointed = Signal(object, int)

    def __init__(self) -> None:
        self.entries: tuple[Entry, ...] = ()
        self.chosen: Entry | None = None
        self.device = "auto"
        self.precision = "auto"
        self.memory = 0.0
        self.compiled = False
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
        self.use(device=device)

    def use(self, **changes: Any) -> None:
        """Compute otherwise from the next run on; takes names of attributes."""
        changed = {k: v for k, v in changes.items() if getattr(self, k) != v}
        for name, value in changed.items():
            setattr(self, name, value)
        if changed:
            self.changed.emit()

    def backend(self) -> Backend:
        """Where and how to compute; call it in a job, since it imports torch."""
        from napari_fovea.device import Backend

        memory = int(self.memory * 2**30) or None
        return Backend(self.device, self.precision, memory, self.compiled)

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
        follow_preferences(_session)
    return _session


def follow_preferences(shared: Session) -> None:
    """Compute as napari's preferences say, and as they come to say."""
    from napari.settings import get_plugin_settings

    try:
        told: Any = get_plugin_settings("napari-fovea").computing  # type: ignore[attr-defined]
    except KeyError:
        return  # the plugin is used without its manifest
    names = ("device", "precision", "memory", "compiled")

    def read(*changed: str) -> None:
        shared.use(**{name: getattr(told, name) for name in changed})

    for name in names:  # one at a time: what was chosen in a dock since then stays
        getattr(told.events, name).connect(lambda _, name=name: read(name))
    read(*names)


def survey() -> Generator[Any, None, tuple[tuple[Entry, ...], tuple[str, ...]]]:
    """List models and devices; for a job, since it imports torch."""
    yield from ()
    from napari_fovea.device import available
    from napari_fovea.models import entries

    return entries(), available()


def computing(shared: Session) -> str:
    """Tell for people how the chosen model is computed; for a job, as it tries devices.

    Raises
    ------
    DeviceError
        If the device in use is not there, or computes wrongly.
    """
    from napari_fovea import device as devices

    backend, chosen = shared.backend(), shared.chosen
    where = devices.pick(backend.device)
    precision = backend.precision
    if precision == "auto":
        fast = str(devices.fast_precision(where)).removeprefix("torch.")
        exact = fast == "float32" or (chosen is not None and chosen.focused)
        precision = "float32" if exact else f"{fast} where it agrees with float32"
    room = backend.allowance(where) / 2**30
    lines = [f"{devices.describe(where)} · {precision} · up to {room:.1f} GiB"]
    lines += [
        f"⚠ {name} is skipped: it {why}" for name, why in devices.skipped().items()
    ]
    return "\n".join(lines)
