"""What is tried where memory runs out: smaller batches, then smaller tiles."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch

from napari_fovea.device import give_back
from napari_fovea.errors import OutOfMemoryError

if TYPE_CHECKING:
    from napari_fovea.inference.tiles import Tiling

CPU = torch.device("cpu")

LEAST_TILE = 256
"""Tiles are not made smaller than this: most of one would be thrown away."""


@dataclass
class Retreat:
    """Steps back that were taken in a run.

    Attributes
    ----------
    told : list of str
        What was done, such as ``"batch 8 → 4"``, for the provenance.
    most : int or None
        Images that were seen together at most since a batch was too large.
    """

    told: list[str] = field(default_factory=list)
    most: int | None = None

    def batch(self, size: int) -> bool:
        """Halve batches; tell whether that is possible."""
        if size <= 1:
            return False
        self.most = size // 2
        self.step("batch", size, self.most)
        return True

    def tile(
        self, tiling: Tiling, shape: tuple[int, int], *, multiple: int
    ) -> Tiling | None:
        """Halve the tiles of a plane; None where they are as small as they may be."""
        size = min(tiling.size, max(shape))
        least = max(LEAST_TILE, tiling.overlap + 2 * multiple)
        if size <= least:
            return None
        half = max(least, size // 2)
        half += -half % multiple
        self.step("tile", size, half)
        return replace(tiling, size=half)

    def step(self, what: str, before: object, after: object) -> None:
        """Note a step back, and make room for what comes next.

        It is for when the error has been let go of, and with it what it held.
        """
        give_back()
        self.told.append(f"{what} {before} → {after}".strip())


def exhausted(device: torch.device, what: str) -> OutOfMemoryError:
    """Tell that nothing smaller is left to try."""
    return OutOfMemoryError(
        f"Memory ran out on {device} although only {what} was computed at a time; "
        "expected room for the features of that: close other programs, or segment a "
        "smaller image."
    )
