"""What one process does with one block: read, segment, write."""

from __future__ import annotations

import math
import time
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from napari_fovea.device import Backend
from napari_fovea.errors import StoreError
from napari_fovea.inference import Started, segment
from napari_fovea.models import Model
from napari_fovea.scale.store import Store, Written, run_of
from napari_fovea.scale.work import Objects, objects_of

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from napari_fovea.inference.tiles import Tiling
    from napari_fovea.retina import Fusion, Policy
    from napari_fovea.scale.plan import Block, Plan
    from napari_fovea.scale.source import Source


_NO_FACTS: Mapping[str, float | str] = {"fixations": 0, "seconds": 0, "recovered": ""}


@dataclass(frozen=True)
class Settings:
    """How blocks are segmented; see `segment`. Sizes are those of the level."""

    policy: str | Policy | None = None
    fusion: str | Fusion | None = None
    budget: int | None = None
    diameter: float | None = None
    pixel_size: float | None = None
    device: Backend = field(default_factory=Backend)
    tiling: Tiling | None = None


@dataclass(frozen=True)
class Failure:
    """A block that could not be segmented.

    Attributes
    ----------
    block : Block
        Which one.
    reason : str
        Why, in one sentence.
    """

    block: Block
    reason: str

    def facts(self) -> dict[str, Any]:
        """Tell it in a way that JSON holds."""
        return {**asdict(self.block), "reason": self.reason}


@dataclass(frozen=True)
class Found:
    """What was found in a block, and is to be written.

    Attributes
    ----------
    block : Block
        Which one.
    written : Written or None
        None where there is nothing but background.
    objects : Objects
        Its objects.
    facts : dict
        Fixations, seconds, and what was done where memory ran out.
    """

    block: Block
    written: Written | None
    objects: Objects
    facts: Mapping[str, float | str]


@dataclass(frozen=True)
class Job:
    """A large image to be segmented, block by block.

    Attributes
    ----------
    source : Source
        The image.
    level : int
        Which of its levels.
    model : Model or Path
        A model, or the file a worker loads it from.
    path : Path
        Folder of the store.
    plan : Plan
        How the image is cut.
    limits : tuple of float
        Intensities that become 0 and 1.
    settings : Settings
        How to segment.
    probabilities : bool
        Whether these are kept.
    run : str
        Which run the store has to belong to.
    """

    source: Source
    level: int
    model: Model | Path
    path: Path
    plan: Plan
    limits: tuple[float, float]
    settings: Settings
    probabilities: bool = False
    run: str = ""

    @cached_property
    def store(self) -> Store:
        """The store, opened in this process."""
        return Store(self.path, self.plan)

    @cached_property
    def loaded(self) -> Model:
        """The model, loaded in this process."""
        return self.model if isinstance(self.model, Model) else Model.load(self.model)

    @property
    def chosen(self) -> dict[str, Any]:
        """Settings that were not asked for but chosen, if there are any."""
        tiling = self.settings.tiling
        return {"tiling": asdict(tiling)} if tiling is not None else {}

    def read(self, block: Block) -> NDArray[np.generic]:
        """Read what a block sees, shape (h, w, C)."""
        level = self.source.levels[self.level]
        return level.read(
            block.plane, slice(*block.seen_rows), slice(*block.seen_columns)
        )

    def segment(
        self,
        block: Block,
        pixels: NDArray[np.generic],
        cancelled: Callable[[], bool] = lambda: False,
    ) -> Generator[float, None, Found | None]:
        """Segment what a block sees.

        Yields
        ------
        float
            How much of it is done, in [0, 1].

        Returns
        -------
        Found or None
            None if it was cancelled before its end.
        """
        started = time.perf_counter()
        classes = len(self.loaded.classes)
        if pixels.min() == pixels.max():
            nothing = np.zeros(pixels.shape[:2], np.int32)
            written = _background(block, classes) if self.probabilities else None
            objects = objects_of(nothing, block, self.plan)
            return Found(block, written, objects, _NO_FACTS)
        settings = self.settings
        share = math.prod(block.shape) / math.prod(self.plan.shape)
        budget = settings.budget and max(1, math.floor(settings.budget * share))
        run = segment(
            pixels,
            self.loaded,
            axes="YXC",
            policy=settings.policy,
            fusion=settings.fusion,
            budget=budget,
            diameter=settings.diameter,
            pixel_size=settings.pixel_size,
            device=settings.device,
            tiling=settings.tiling,
            blank=True,
            limits=self.limits,
            cancelled=cancelled,
        )
        try:
            while True:
                event = next(run)
                if not isinstance(event, Started):
                    yield event.fraction  # type: ignore[union-attr]
        except StopIteration as end:
            result = end.value
        if result.provenance["cancelled"]:
            return None
        rows, columns = block.inner
        return Found(
            block,
            Written(
                result.labels[rows, columns],
                result.uncertainty[rows, columns].astype(np.float16),
                result.probabilities[:, rows, columns].astype(np.float16)
                if self.probabilities
                else None,
            ),
            objects_of(result.instances, block, self.plan),
            {
                "fixations": result.provenance["fixations"] or 0,
                "seconds": time.perf_counter() - started,
                "recovered": "; ".join(result.provenance["recovered"]),
            },
        )

    def check(self) -> None:
        """Raise StoreError if the store is gone, or another run has replaced it.

        A worker may still be at a block of a run that has been given up.
        """
        if run_of(self.path) != self.run:
            raise StoreError(
                f"{self.path} is not there, or is another run's by now; expected to be "
                "left alone while it is written: run this again."
            )

    def write(self, found: Found) -> None:
        """Write what was found, and note that the block is finished.

        Raises
        ------
        StoreError
            If the store is gone, or another run has replaced it.
        """
        self.check()
        if found.written is not None:
            self.store.write(found.block, found.written)
        self.check()
        self.store.work.keep(found.block, found.objects, found.facts)


def _background(block: Block, classes: int) -> Written:
    probabilities = np.zeros((classes, *block.shape), np.float16)
    probabilities[0] = 1
    return Written(
        np.zeros(block.shape, np.uint8),
        np.zeros(block.shape, np.float16),
        probabilities,
    )
