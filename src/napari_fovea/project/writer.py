"""Bringing what is new of a journal to disk, piece by piece."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from napari_fovea.errors import ProjectError
from napari_fovea.project import journals
from napari_fovea.project.folder import write_model
from napari_fovea.project.manifest import (
    Manifest,
    Part,
    Record,
    Stored,
    reason,
    remove,
    store,
    write_manifest,
)
from napari_fovea.project.painted import write_painted

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    import numpy as np
    from filelock import FileLock
    from numpy.typing import NDArray

    from napari_fovea.models import Model
    from napari_fovea.project.identity import ImageId
    from napari_fovea.project.work import Step

    Labels = NDArray[np.integer[Any]]

MODELS = 20
"""Models that a journal keeps at most."""


@dataclass(frozen=True)
class LayerNews:
    """What is new of a labels layer: all of it, planes of it, or planes after all."""

    image: ImageId
    name: str
    shape: tuple[int, ...]
    dtype: str
    whole: Labels | None = None
    planes: Mapping[tuple[int, ...], Labels] = field(default_factory=dict)

    def after(self, older: LayerNews | None) -> LayerNews:
        """Take over what was to be written before."""
        if older is None or self.whole is not None:
            return self
        # Planes are written in their order, so what was told last must come last.
        kept = {
            index: labels
            for index, labels in older.planes.items()
            if not any(index[: len(new)] == new for new in self.planes)
        }
        return replace(self, whole=older.whole, planes={**kept, **self.planes})


@dataclass(frozen=True)
class Settings:
    """The model one began with, the classes, and all else."""

    base: str
    classes: Mapping[int, str]
    settings: Mapping[str, Any]


@dataclass
class News:
    """What waits to be written; the newest of each kind."""

    layers: dict[str, LayerNews | None] = field(default_factory=dict)
    settings: Settings | None = None
    current: int | None = None
    steps: dict[int, tuple[Step, Model | Path | None]] = field(default_factory=dict)

    def after(self, older: News) -> None:
        """Take over what an attempt left unwritten."""
        layers = dict(older.layers)
        for key, layer in self.layers.items():
            layers[key] = layer and layer.after(older.layers.get(key))
        self.layers = layers
        self.settings = self.settings or older.settings
        self.current = older.current if self.current is None else self.current
        self.steps = {**older.steps, **self.steps}

    def bound(self, current: int) -> None:
        """Forget the oldest models where no disk takes any for long."""
        for number in _surplus(
            [n for n, (_, model) in self.steps.items() if model is not None], current
        ):
            del self.steps[number]


@dataclass(frozen=True)
class _State:
    """What stands on disk."""

    settings: Settings = field(default_factory=lambda: Settings("", {}, {}))
    records: Mapping[str, Record] = field(default_factory=dict)
    steps: Mapping[int, Stored] = field(default_factory=dict)
    current: int = -1

    def manifest(self) -> Manifest:
        numbers = list(self.steps)
        known = self.current in self.steps
        return Manifest(
            base=self.settings.base,
            classes=dict(self.settings.classes),
            settings=dict(self.settings.settings),
            strokes=tuple(self.records.values()),
            steps=tuple(self.steps.values()),
            current=numbers.index(self.current) if known else -1,
        )


class Writer:
    """Brings what is new to disk; every change is there whole or not at all."""

    def __init__(self, root: Path) -> None:
        self.folder: Path | None = None
        self._root = root
        self._lock: FileLock | None = None
        self._state = _State()
        self._number = 0
        self._fresh: list[str] = []

    def write(self, news: News) -> str | None:
        """Write, and take from the news what was written; tell what went wrong.

        One thing that cannot be written does not keep others from it.
        """
        error: str | None = None

        def tried(change: Callable[[Path], None]) -> bool:
            nonlocal error
            try:
                self._tried(change)
            except Exception as problem:  # the thread must outlive all of them
                error = error or (
                    f"Work in progress cannot be kept in {self._root} "
                    f"({reason(problem)}): free some space there; it is tried again "
                    "by itself."
                )
                return False
            return True

        for key, layer in list(news.layers.items()):
            if tried(lambda folder, k=key, v=layer: self._paint(folder, k, v)):  # type: ignore[misc]
                del news.layers[key]
        if (news.settings or news.current is not None) and tried(
            lambda folder: self._set(folder, news)
        ):
            news.settings = news.current = None
        for number, (step, model) in sorted(news.steps.items()):
            if not tried(lambda f, n=number, s=step, m=model: self._add(f, n, s, m)):  # type: ignore[misc]
                break  # history stays in order
            del news.steps[number]
        return error

    def close(self, *, discard: bool) -> None:
        """Let go of the folder, and remove it if asked to."""
        if self._lock is None or self.folder is None:
            return
        self._lock.release()
        if discard:
            # What cannot be removed is found again as unfinished.
            with suppress(ProjectError):
                journals.discard(self.folder)

    def _tried(self, change: Callable[[Path], None]) -> None:
        if self.folder is None:
            self.folder, self._lock = journals.create(self._root)
        self._fresh = []
        try:
            change(self.folder)
        except BaseException:
            remove(self.folder, self._fresh)
            raise

    def _paint(self, folder: Path, key: str, layer: LayerNews | None) -> None:
        records = dict(self._state.records)
        if layer is None:
            records.pop(key, None)
        else:
            old = records.get(key)
            parts = () if layer.whole is not None or old is None else old.parts
            news = {} if layer.whole is None else {(): layer.whole}
            for index, labels in (news | dict(layer.planes)).items():
                name = self._name("strokes", "npz")
                painted = write_painted(folder / name, labels)
                kept = (p for p in parts if p.plane[: len(index)] != index)
                parts = (*kept, Part(plane=index, file=name, painted=painted))
            records[key] = Record(
                image=layer.image,
                layer=layer.name,
                shape=layer.shape,
                dtype=layer.dtype,
                parts=parts,
            )
        self._commit(folder, replace(self._state, records=records))

    def _set(self, folder: Path, news: News) -> None:
        state = self._state
        settings = news.settings or state.settings
        current = state.current if news.current is None else news.current
        self._commit(folder, replace(state, settings=settings, current=current))

    def _add(
        self, folder: Path, number: int, step: Step, model: Model | Path | None
    ) -> None:
        name = None
        if model is not None:
            name = self._name("models", "safetensors")
            write_model(folder / name, model)
        steps = {**self._state.steps, number: store(replace(step, file=name), name)}
        files = [n for n, stored in steps.items() if stored.file is not None]
        for surplus in _surplus(files, self._state.current):
            del steps[surplus]
        self._commit(folder, replace(self._state, steps=steps))

    def _name(self, kind: str, suffix: str) -> str:
        name = f"{kind}/{self._number:03}.{suffix}"
        self._number += 1
        self._fresh.append(name)
        return name

    def _commit(self, folder: Path, state: _State) -> None:
        manifest = state.manifest()
        write_manifest(folder, manifest)
        gone = self._state.manifest().files() - manifest.files()
        self._state = state
        remove(folder, gone)


def _surplus(numbers: list[int], current: int) -> list[int]:
    """Choose the oldest models where there are too many, but not the current one."""
    old = [number for number in sorted(numbers) if number != current]
    return old[: max(0, len(numbers) - MODELS)]
