"""What is decided before the first block: level, blocks, intensities, where to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from napari_fovea import device as devices
from napari_fovea.errors import ImageError, StoreError
from napari_fovea.inference.segmenting import provenance_of, reader_for, resizing
from napari_fovea.scale.identity import same_marks, what_decides
from napari_fovea.scale.intensities import limits_of, marks_of
from napari_fovea.scale.job import Job, Settings
from napari_fovea.scale.plan import Plan, chunk_of, cut, halo_of
from napari_fovea.scale.store import Store, look
from napari_fovea.scale.work import Work

if TYPE_CHECKING:
    from pathlib import Path

    from napari_fovea.models import Model
    from napari_fovea.scale.source import Level, Source

_TOLERANCE = 1.1  # a level may show objects a little smaller than the model wants


@dataclass(frozen=True)
class Prepared:
    """A run that fits together; nothing has been written or computed.

    Attributes
    ----------
    source : Source
        The image.
    index : int
        Which of its levels is segmented.
    model : Model
        What segments it.
    plan : Plan
        How it is cut.
    settings : Settings
        How blocks are segmented.
    probabilities : bool
        Whether these are kept.
    provenance : dict
        What makes the result, as far as it is known now.
    """

    source: Source
    index: int
    model: Model
    plan: Plan
    settings: Settings
    probabilities: bool
    provenance: dict[str, Any]

    @property
    def level(self) -> Level:
        """The level that is segmented."""
        return self.source.levels[self.index]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the result, stack axes first."""
        return (*self.level.lead, *self.level.plane)

    def open(self, path: Path, *, overwrite: bool) -> tuple[Job, dict[str, Any]]:
        """Make the store, or go on with one that an earlier run has left.

        Returns
        -------
        Job
            What is to be done.
        dict
            What the store tells of the run; ``"complete"`` if nothing is left.

        Raises
        ------
        StoreError
            If the folder holds something else.
        """
        _check_apart(self.source, path)
        settings = self.provenance["settings"] | {"probabilities": self.probabilities}
        told = look(path)
        decides = what_decides(self.model, self.level, self.plan, settings)
        marks = marks_of(self.level)
        if told is not None and not overwrite:
            if told.get("plan") != decides or not same_marks(told["marks"], marks):
                raise StoreError(
                    f"{path} holds a result of another image, model or settings; "
                    "expected a new name, or the run that it belongs to: choose "
                    "another name, or overwrite it."
                )
            if told["complete"] or Work(path / ".work", self.plan).ready:
                return self._job(path, told["limits"]), told
        limits = limits_of(self.source, self.index, self.model)
        record = {"plan": decides, "marks": marks, "limits": limits, "complete": False}
        Store.create(
            path,
            self.plan,
            self.level,
            units=self.source.units,
            classes=len(self.model.classes),
            probabilities=self.probabilities,
            record=record,
        )
        return self._job(path, limits), record

    def _job(self, path: Path, limits: tuple[float, float]) -> Job:
        low, high = limits
        return Job(
            self.source,
            self.index,
            self.model,
            path,
            self.plan,
            (low, high),
            self.settings,
            self.probabilities,
        )


def prepare(
    source: Source,
    model: Model,
    *,
    level: int | str,
    diameter: float | None,
    pixel_size: float | None,
    device: str,
    chunk: int | None,
    probabilities: bool,
    **focus: Any,
) -> Prepared:
    """Check that image, model and settings fit; see `segment_large`."""
    budget = focus["budget"]
    if budget is not None and budget < 1:
        raise ImageError(f"The budget is {budget}; give an integer of 1 or more.")
    if pixel_size is None and diameter is None and model.pixel_size is not None:
        pixel_size = source.pixel_size
    index = choose_level(
        source, model, level=level, diameter=diameter, pixel_size=pixel_size
    )
    seen, shrunk = source.levels[index], source.shrunk(index)
    planes = seen.as_planes().for_network(model.channels, blank=True)
    sizes = _sizes(diameter, pixel_size, shrunk)
    factor = resizing(model, seen.plane, **sizes)
    where = devices.pick(device)
    scanned = tuple(max(1, round(n * factor)) for n in seen.plane)
    reader = reader_for(model, where, (scanned[0], scanned[1]), **focus)
    halo = halo_of(model, factor)
    chunk = chunk_of(model, factor, halo) if chunk is None else chunk
    plan = cut(seen.planes, seen.plane, halo=halo, chunk=chunk)
    provenance = provenance_of(model, planes, where, settings=sizes | reader.settings)
    provenance |= {
        "resized_by": factor,
        "source": {
            "name": str(source.path or source.name),
            "level": index,
            "levels": len(source.levels),
        },
        "blocks": {
            "count": len(plan),
            "core": list(plan.core),
            "halo": plan.halo,
        },
    }
    options: dict[str, Any] = focus | sizes
    settings = Settings(device=device, **options)
    return Prepared(source, index, model, plan, settings, probabilities, provenance)


def choose_level(
    source: Source,
    model: Model,
    *,
    level: int | str = "auto",
    diameter: float | None = None,
    pixel_size: float | None = None,
) -> int:
    """Choose the level of a pyramid that a model sees best.

    Parameters
    ----------
    source : Source
        The image.
    model : Model
        Tells how large objects or pixels should be.
    level : int or ``"auto"``
        A level, or the coarsest that need not be enlarged for the model, if sizes
        are known, else the finest.
    diameter, pixel_size : float, optional
        In pixels of the finest level, and in micrometres.

    Raises
    ------
    ImageError
        If there is no such level.
    """
    count = len(source.levels)
    if level != "auto":
        if not isinstance(level, int) or not 0 <= level < count:
            raise ImageError(
                f"{source.name} has no level {level}; expected 'auto' or 0 to "
                f"{count - 1}."
            )
        return level
    if diameter is None and (pixel_size is None or model.pixel_size is None):
        return 0
    for index in reversed(range(1, count)):
        sizes = _sizes(diameter, pixel_size, source.shrunk(index))
        try:
            factor = resizing(model, source.levels[index].plane, **sizes)
        except ImageError:  # farther from what the model wants than any resizing
            continue
        if factor <= _TOLERANCE:
            return index
    return 0


def _sizes(
    diameter: float | None, pixel_size: float | None, shrunk: float
) -> dict[str, float | None]:
    """Bring sizes from the finest level to one that is so much smaller."""
    return {
        "diameter": None if diameter is None else diameter / shrunk,
        "pixel_size": None if pixel_size is None else pixel_size * shrunk,
    }


def _check_apart(source: Source, path: Path) -> None:
    """Raise StoreError if the result would take the place of the image."""
    if source.path is None:
        return
    image, result = source.path.resolve(), path.resolve()
    if image.is_relative_to(result):
        raise StoreError(
            f"{path} is the image itself, or holds it; expected another place for the "
            "result: choose another name."
        )
