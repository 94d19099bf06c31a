"""What is decided before the first block: level, blocks, intensities, where to."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Literal
from uuid import uuid4

import numpy as np

from napari_fovea.device import as_backend, pick
from napari_fovea.errors import ImageError, OtherRunError, StoreError
from napari_fovea.images import Planes, resize, to_tensor
from napari_fovea.inference.choosing import reader_for
from napari_fovea.inference.dense import DenseReader
from napari_fovea.inference.provenance import provenance_of
from napari_fovea.inference.reading import Choice
from napari_fovea.inference.sizes import fitting, measured, resizing
from napari_fovea.inference.tiles import Tiling
from napari_fovea.scale.identity import same_marks, what_decides
from napari_fovea.scale.intensities import limits_of, marks_of
from napari_fovea.scale.job import Job, Settings
from napari_fovea.scale.measuring import diameter_of
from napari_fovea.scale.plan import Plan, chunk_of, cut, halo_of
from napari_fovea.scale.store import Store, look
from napari_fovea.scale.work import WORK, Work

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from napari_fovea.device import Backend
    from napari_fovea.inference.reading import Reader
    from napari_fovea.models import Model
    from napari_fovea.scale.source import Level, Source

_FEATURES = 5 * 2**28  # bytes planned for them on a CPU, so that a run takes no 2 GiB
_TRIED = 4  # blocks of which the one with most contrast tells how to compute
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
    reader : Reader
        Chooses how blocks are computed.
    factor : float
        By which they are resized.
    measured : float or None
        Diameter of the objects in pixels of the finest level, if it was measured.
    """

    source: Source
    index: int
    model: Model
    plan: Plan
    settings: Settings
    probabilities: bool
    provenance: dict[str, Any]
    reader: Reader
    factor: float
    measured: float | None = None

    @property
    def level(self) -> Level:
        """The level that is segmented."""
        return self.source.levels[self.index]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the result, stack axes first."""
        return (*self.level.lead, *self.level.plane)

    @property
    def note(self) -> str:
        """What the user should know of the image, in a sentence, or nothing."""
        source = self.provenance["source"]
        if not source["unwritten_chunks"]:
            return ""
        return (
            f"{source['unwritten_chunks']} of the {source['chunks']} chunks of "
            f"{self.source.name} were never written and are taken for empty: if it is "
            "not complete, wait until it is, and begin anew."
        )

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
        settings = self.provenance["settings"] | {"probabilities": self.probabilities}
        told = look(path)
        decides = what_decides(self.model, self.level, self.plan, settings)
        marks = marks_of(self.level)
        if told is not None and not overwrite:
            if told.get("plan") != decides or not same_marks(told["marks"], marks):
                raise OtherRunError(
                    f"{path} holds a result of another image, model or settings; "
                    "expected a new name, or the run that it belongs to: choose "
                    "another name, or overwrite it."
                )
            if told["complete"] or Work(path / WORK, self.plan).ready:
                return self._job(path, told), told
        limits = limits_of(self.source, self.index, self.model)
        record = {
            "plan": decides,
            "marks": marks,
            "limits": limits,
            "core": self.plan.core,
            "measured": self.measured,
            "computed": self._choose(limits),
            "complete": False,
            "run": uuid4().hex,
        }
        Store.create(
            path,
            self.plan,
            self.level,
            units=self.source.units,
            classes=len(self.model.classes),
            probabilities=self.probabilities,
            record=record,
        )
        return self._job(path, record), record

    def _choose(self, limits: tuple[float, float]) -> dict[str, Any]:
        """Choose once, for all blocks, workers and times, how they are computed.

        Memory that is free at another time, or what another block shows, would make
        other tiles or another precision, and seams between blocks.
        """
        blocks = self._some_blocks()
        if not blocks:
            return asdict(Choice("float32"))
        pixels = max(blocks, key=lambda block: float(block.std()))
        height, width = (max(1, round(n * self.factor)) for n in pixels.shape[:2])
        image = to_tensor(pixels, limits=limits, channels=self.model.channels)
        chosen = asdict(self.reader.choose(resize(image, (height, width))))
        # From which those choose who cannot say beforehand.
        return chosen | {"memory": self.settings.device.memory}

    def _some_blocks(self) -> list[NDArray[np.generic]]:
        """Read a few blocks, from end to end of the image."""
        count = len(self.plan)
        places = {(2 * i + 1) * count // (2 * _TRIED) for i in range(_TRIED)}
        read = []
        for block in (self.plan[index] for index in sorted(places)):
            rows, columns = slice(*block.seen_rows), slice(*block.seen_columns)
            try:
                pixels = self.level.read(block.plane, rows, columns)
            except Exception:  # that block will say so itself
                continue
            if pixels.dtype.kind != "f" or bool(np.isfinite(pixels).all()):
                planes = Planes(pixels[None], (), "YX")
                fitting = planes.for_network(self.model.channels, blank=True)
                read.append(fitting.data[0])
        return read

    def _job(self, path: Path, record: Mapping[str, Any]) -> Job:
        low, high = record["limits"]
        chosen = record["computed"]
        settings = replace(
            self.settings,
            device=replace(
                self.settings.device,
                precision=chosen["precision"],
                memory=chosen.get("memory") or self.settings.device.memory,
            ),
            tiling=Tiling(**chosen["tiling"]) if chosen["tiling"] else None,
        )
        return Job(
            self.source,
            self.index,
            self.model,
            path,
            self.plan,
            (low, high),
            settings,
            self.probabilities,
            str(record.get("run", "")),
        )


def prepare(
    source: Source,
    model: Model,
    *,
    level: int | str,
    diameter: float | Literal["auto"] | None,
    pixel_size: float | None,
    device: str | Backend,
    workers: int,
    chunk: int | None,
    left: Mapping[str, Any] | None,
    probabilities: bool,
    **focus: Any,
) -> Prepared:
    """Check that image, model and settings fit; see `segment_large`."""
    budget = focus["budget"]
    if budget is not None and budget < 1:
        raise ImageError(f"The budget is {budget}; give an integer of 1 or more.")
    if pixel_size is None and diameter is None and model.pixel_size is not None:
        pixel_size = source.pixel_size
    left, found = left or {}, None
    measures = measured(model, diameter=diameter, pixel_size=pixel_size)
    if diameter == "auto":
        diameter = None
    if measures:
        # Measured once: another precision would give another size.
        known = "measured" in left
        found = left["measured"] if known else diameter_of(source, model, device)
        assert model.object_diameter is not None
        diameter = model.object_diameter / fitting(model, found)
    index = choose_level(
        source, model, level=level, diameter=diameter, pixel_size=pixel_size
    )
    seen, shrunk = source.levels[index], source.shrunk(index)
    planes = seen.as_planes().for_network(model.channels, blank=True)
    sizes = _sizes(diameter, pixel_size, shrunk)
    factor = resizing(model, seen.plane, **sizes)
    scanned = tuple(max(1, round(n * factor)) for n in seen.plane)
    backend = as_backend(device)
    if backend.memory is None:
        place = pick(backend.device)
        share = backend.allowance(place) // workers
        most = _FEATURES if place.type == "cpu" else share
        backend = replace(backend, memory=max(1, min(share, most)))
    reader = reader_for(model, backend, (scanned[0], scanned[1]), **focus)
    where = reader.runner.device
    halo = halo_of(model, factor)
    core = left.get("core")
    if chunk is None and core:
        # What an earlier run has chosen, when there was more or less memory.
        plan = Plan(seen.planes, seen.plane, (int(core[0]), int(core[1])), halo)
    else:
        side = reader.largest if isinstance(reader, DenseReader) else None
        chunk = chunk or chunk_of(model, factor, halo, side=side)
        plan = cut(seen.planes, seen.plane, halo=halo, chunk=chunk)
    unwritten, chunks = seen.unwritten
    provenance = provenance_of(model, planes, where, settings=sizes | reader.settings)
    provenance |= {
        "diameter_estimated": measures,
        "resized_by": factor,
        "source": {
            "name": str(source.path or source.name),
            "level": index,
            "levels": len(source.levels),
            "unwritten_chunks": unwritten,
            "chunks": chunks,
        },
        "blocks": {
            "count": len(plan),
            "core": list(plan.core),
            "halo": plan.halo,
        },
    }
    options: dict[str, Any] = focus | sizes
    settings = Settings(device=backend, **options)
    return Prepared(
        source,
        index,
        model,
        plan,
        settings,
        probabilities,
        provenance,
        reader,
        factor,
        found,
    )


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
                f"{count - 1}: choose one of these."
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


def check_apart(source: Source, path: Path) -> None:
    """Raise StoreError if the result would take the place of the image."""
    if source.path is None:
        return
    image, result = source.path.resolve(), path.resolve()
    if image.is_relative_to(result) or result.is_relative_to(image):
        raise StoreError(
            f"{path} is the image itself, or holds it, or lies in it; expected another "
            "place for the result: choose another name."
        )
