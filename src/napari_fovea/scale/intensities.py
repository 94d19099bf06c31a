"""What a large image's values are like, from a sample of them."""

from __future__ import annotations

import hashlib
import math
from typing import TYPE_CHECKING

import numpy as np

from napari_fovea.errors import ImageError
from napari_fovea.images import Planes

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from napari_fovea.models import Model
    from napari_fovea.scale.source import Level, Source

_FITS = 2**28  # pixels of an array that are looked at as any image in memory
_SAMPLE = 1_000_000  # pixels that settle percentiles
_PIECES = 256  # chunks they are read from
_MARKS = 16  # places by which an image is known again
_MARK = 64  # their side


def limits_of(source: Source, level: int, model: Model) -> tuple[float, float]:
    """Tell which intensities become 0 and 1 in every block of an image.

    An array that fits into memory gets what it would get there. Otherwise they
    come from a coarse level, if it has a million pixels, or else from a regular
    sample of chunks. Chunks that cannot be read, and NaN, are left out.

    Parameters
    ----------
    source : Source
        The image.
    level : int
        Level that is segmented; finer ones are not read.
    model : Model
        Tells the percentiles and the channels.

    Raises
    ------
    ImageError
        If nothing of the sample can be read.
    """
    seen = source.levels[level]
    if isinstance(seen.array, np.ndarray) and math.prod(seen.array.shape) <= _FITS:
        whole = seen.as_planes().for_network(model.channels, blank=True)
        low, high = model.normalisation.limits(whole)
        if math.isfinite(low) and math.isfinite(high):
            return low, high
    enough = [x for x in source.levels[level:] if math.prod(x.plane) >= _SAMPLE]
    sample = _sample(enough[-1] if enough else seen, model.channels)
    if not sample.size:
        raise ImageError(
            f"{source.name} cannot be read at any of the places that were tried, or "
            "holds NaN only; expected a whole image: check its files."
        )
    values = Planes(sample.reshape(1, 1, -1, 1), (), "YX")
    return model.normalisation.limits(values)


def marks_of(level: Level) -> list[str | None]:
    """Hash the values at a few places, so that an image is known again.

    None stands for a place that cannot be read, or not be trusted, as it holds NaN:
    an image may be mended between two runs.
    """
    height, width = level.plane
    found: list[str | None] = []
    for plane, y, x in lattice((level.planes, height, width), _MARKS):
        try:
            part = level.read(plane, slice(y, y + _MARK), slice(x, x + _MARK))
        except Exception:  # whatever a store raises
            found.append(None)
            continue
        good = part.dtype.kind != "f" or bool(np.isfinite(part).all())
        text = hashlib.sha256(np.ascontiguousarray(part).tobytes()).hexdigest()
        found.append(text[:16] if good else None)
    return found


def _sample(level: Level, channels: int) -> NDArray[np.float64]:
    """Values of a regular sample of chunks that are spread evenly."""
    high, wide = level.chunks
    height, width = level.plane
    high, wide = min(high, height), min(wide, width)
    grid = (level.planes, -(-height // high), -(-width // wide))
    places = list(lattice(grid, _PIECES))
    each = max(1, _SAMPLE // len(places))
    steps = _steps((high, wide), each)
    parts = []
    for plane, row, column in places:
        rows = slice(row * high, (row + 1) * high)
        columns = slice(column * wide, (column + 1) * wide)
        try:
            pixels = level.read(plane, rows, columns)
        except Exception:  # that block will say so itself
            continue
        if level.channels == 4 and channels == 3:  # the last is alpha
            pixels = pixels[..., :3]
        values = pixels[:: steps[0], :: steps[1]].astype(np.float64).ravel()
        parts.append(values[np.isfinite(values)])
    return np.concatenate(parts) if parts else np.zeros(0)


def lattice(sizes: tuple[int, ...], most: int) -> Iterator[tuple[int, ...]]:
    """Places of an array, at most so many, evenly apart."""
    steps = _steps(sizes, most)
    for index in np.ndindex(*(-(-n // s) for n, s in zip(sizes, steps, strict=True))):
        # From the middle of each step, where there is one.
        yield tuple(
            min(i * s + s // 2, n - 1)
            for i, s, n in zip(index, steps, sizes, strict=True)
        )


def _steps(sizes: tuple[int, ...], most: int) -> tuple[int, ...]:
    """Strides along axes that leave at most so many entries, by halving."""
    steps = [1] * len(sizes)

    def taken(axis: int) -> int:
        return -(-sizes[axis] // steps[axis])

    while math.prod(map(taken, range(len(sizes)))) > most:
        steps[max(range(len(sizes)), key=taken)] *= 2
    return tuple(steps)
