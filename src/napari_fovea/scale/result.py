"""What segmenting a large image tells, and what comes of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from napari_fovea.scale.store import (
    CLASSES,
    INSTANCES,
    PROBABILITIES,
    UNCERTAINTY,
)

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from napari_fovea.scale.job import Failure
    from napari_fovea.scale.plan import Block


@dataclass(frozen=True, slots=True)
class Opened:
    """Image, model, settings and store fit together; nothing has been computed yet.

    Attributes
    ----------
    path : Path
        Folder of the result; it can be opened in a viewer from now on.
    shape : tuple of int
        Shape of the result, stack axes first.
    blocks : int
        Number of blocks.
    finished : int
        Those that an earlier run has left.
    fraction : float
        How much of the whole is done, in [0, 1].
    note : str
        What should be known of the image, in a sentence; mostly nothing.
    """

    path: Path
    shape: tuple[int, ...]
    blocks: int
    finished: int
    fraction: float
    note: str = ""


@dataclass(frozen=True, slots=True)
class Segmenting:
    """Some of a block has been seen.

    Attributes
    ----------
    block : Block
        Which one.
    fraction : float
        Estimate of how much of the whole is done, in [0, 1].
    """

    block: Block
    fraction: float


@dataclass(frozen=True, slots=True)
class Finished:
    """A block has been written, or has failed.

    Attributes
    ----------
    block : Block
        Which one; its core can be read from the store.
    done : int
        Blocks that are finished by now, those of earlier runs included.
    total : int
        Number of blocks.
    fraction : float
        Estimate of how much of the whole is done, in [0, 1].
    failure : Failure or None
        Why it could not be segmented.
    """

    block: Block
    done: int
    total: int
    fraction: float
    failure: Failure | None = None


@dataclass(frozen=True, slots=True)
class Joining:
    """Objects of neighbouring blocks are being joined.

    Attributes
    ----------
    fraction : float
        Estimate of how much of the whole is done, in [0, 1].
    """

    fraction: float


Event = Opened | Segmenting | Finished | Joining
"""What a running segmentation of a large image reports."""


@dataclass(frozen=True)
class LargeResult:
    """Result of segmenting a large image, on disk.

    Attributes
    ----------
    path : Path
        Folder of the OME-Zarr image that holds it.
    shape : tuple of int
        Shape of the result, stack axes first.
    objects : int or None
        Number of objects; None where the run was cancelled before they were joined.
    fixations : int or None
        Looks of a network that moves a focus.
    failures : tuple of Failure
        Blocks that are left out.
    cancelled : bool
        Whether blocks are missing because the run was cancelled.
    provenance : mapping
        What made it, ready for JSON; it stands in the group's attributes too.
    """

    path: Path
    shape: tuple[int, ...]
    objects: int | None
    fixations: int | None
    failures: tuple[Failure, ...] = ()
    cancelled: bool = False
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def _levels(self, name: str) -> tuple[Any, ...]:
        import zarr

        group = zarr.open_group(self.path, mode="r")
        if name not in group:
            return ()
        inner = group[name]
        names = sorted(inner.array_keys(), key=int)  # type: ignore[union-attr]
        return tuple(inner[name] for name in names)

    @property
    def labels(self) -> tuple[Any, ...]:
        """Most probable classes: zarr arrays of uint8, the finest level first."""
        return self._levels(CLASSES)

    @property
    def instances(self) -> tuple[Any, ...]:
        """Objects, numbered from 1: zarr arrays of int32, the finest level first."""
        return self._levels(INSTANCES)

    @property
    def uncertainty(self) -> tuple[Any, ...]:
        """Entropy in nats: zarr arrays of float16, the finest level first."""
        return self._levels(UNCERTAINTY)

    @property
    def probabilities(self) -> tuple[Any, ...]:
        """Class probabilities, if they were kept: zarr arrays of float16.

        Classes are an axis after time and before depth.
        """
        return self._levels(PROBABILITIES)


class Tally:
    """Counts blocks, and tells of them.

    Parameters
    ----------
    total : int
        Number of blocks.
    done : int
        Those that an earlier run has left.
    share : float
        Share of the blocks in the whole.
    """

    def __init__(self, total: int, done: int, share: float) -> None:
        self.total, self.done, self._share = total, done, share
        self.failures: list[Failure] = []

    @property
    def fraction(self) -> float:
        """How much of the whole is done."""
        return self._share * (self.done + len(self.failures)) / self.total

    def segmenting(self, block: Block, part: float) -> Segmenting:
        """Tell that a part of a block has been seen."""
        return Segmenting(block, self.fraction + self._share * part / self.total)

    def finished(self, block: Block, failure: Failure | None = None) -> Finished:
        """Count a block."""
        if failure is None:
            self.done += 1
        else:
            self.failures.append(failure)
        return Finished(block, self.done, self.total, self.fraction, failure)
