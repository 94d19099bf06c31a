"""Images that need not fit into memory: what they are, read piece by piece."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from napari_fovea.errors import ImageError
from napari_fovea.images import AXES, Planes, name_axes
from napari_fovea.scale import ome

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

MICRO = "micrometer"
_PRETENDED = 512  # a chunk of arrays that have none


@dataclass(frozen=True)
class Level:
    """An image at one resolution, of which any part can be read.

    Attributes
    ----------
    array : array
        numpy, memory-mapped, zarr or dask.
    axes : str
        A letter of ``"TZYXC"`` for each of its axes.
    scale, translate : mapping
        World units per pixel, and world coordinates of the centre of the first
        pixel, by letter.
    """

    array: Any
    axes: str
    scale: Mapping[str, float]
    translate: Mapping[str, float]

    def _sizes(self, letters: str) -> tuple[int, ...]:
        return tuple(int(self.array.shape[self.axes.index(a)]) for a in letters)

    @property
    def stack(self) -> str:
        """Letters of the stack axes, in the order T, Z."""
        return "".join(a for a in "TZ" if a in self.axes)

    @property
    def lead(self) -> tuple[int, ...]:
        """Shape of the stack axes, in the order T, Z."""
        return self._sizes(self.stack)

    @property
    def planes(self) -> int:
        """Number of planes."""
        return math.prod(self.lead)

    @property
    def plane(self) -> tuple[int, int]:
        """Height and width in pixels."""
        height, width = self._sizes("YX")
        return height, width

    @property
    def channels(self) -> int:
        """Number of channels."""
        return self._sizes("C")[0] if "C" in self.axes else 1

    @property
    def chunks(self) -> tuple[int, int]:
        """Height and width of the pieces in which it is stored."""
        of = getattr(self.array, "chunksize", None)  # dask's chunks are of many sizes
        of = of or getattr(self.array, "chunks", None)
        if of is None:
            return _PRETENDED, _PRETENDED
        return int(of[self.axes.index("Y")]), int(of[self.axes.index("X")])

    @property
    def unwritten(self) -> tuple[int, int]:
        """Pieces of a zarr array that were never written, and how many there are.

        They read as its fill value: background that need not be stored, or the rest
        of an image that is still being written.
        """
        store = getattr(self.array, "store", None)
        if not getattr(store, "supports_listing", False):  # or no zarr array at all
            return 0, 0
        count = int(self.array.nchunks)
        return count - int(self.array.nchunks_initialized), count

    def read(self, plane: int, rows: slice, columns: slice) -> NDArray[np.generic]:
        """Read a part of one plane.

        Parameters
        ----------
        plane : int
            Which one, counted through the stack.
        rows, columns : slice
            Which pixels.

        Returns
        -------
        ndarray, shape (h, w, C)
        """
        place = np.unravel_index(plane, self.lead) if self.lead else ()
        where: dict[str, Any] = {"Y": rows, "X": columns, "C": slice(None)}
        where |= {a: int(i) for a, i in zip(self.stack, place, strict=True)}
        part = self.array[tuple(where[a] for a in self.axes)]
        if hasattr(part, "dask"):
            # Its default might be a cluster, which would wait for itself.
            part = part.compute(scheduler="threads")
        left = "".join(a for a in self.axes if a in "YXC")
        pixels = np.asarray(part).transpose([left.index(a) for a in AXES if a in left])
        return pixels if "C" in left else pixels[..., None]

    def as_planes(self) -> Planes:
        """Lay out an array that is in memory, unchecked.

        Of any other image, one of zeros that takes no memory stands in, for where
        only shape and type matter.
        """
        array = self.array
        if not isinstance(array, np.ndarray):
            zero = np.zeros((), np.dtype(array.dtype))
            array = np.broadcast_to(zero, array.shape)
        data = array.transpose([self.axes.index(a) for a in AXES if a in self.axes])
        data = data if "C" in self.axes else data[..., None]
        return Planes(data.reshape(-1, *data.shape[-3:]), self.lead, self.axes)


@dataclass(frozen=True)
class Source:
    """An image at one or several resolutions, opened but not read.

    It is a context manager that closes the file it was opened from.

    Attributes
    ----------
    name : str
        Of its file, or what kind of array it is.
    levels : tuple of Level
        The finest first.
    units : mapping
        Units of axes by letter, where they are known.
    path : Path or None
        Where it was opened.
    close : callable
        Closes the file, if there is one.
    """

    name: str
    levels: tuple[Level, ...]
    units: Mapping[str, str] = field(default_factory=dict)
    path: Path | None = None
    close: Callable[[], None] = lambda: None

    @property
    def pixel_size(self) -> float | None:
        """Side of a pixel of the finest level in micrometres, if it is known."""
        scale = self.levels[0].scale
        sides = [ome.in_micrometres(scale[a], self.units.get(a)) for a in "YX"]
        if None in sides:
            return None
        return math.sqrt(math.prod(s for s in sides if s is not None))

    def shrunk(self, level: int) -> float:
        """Tell how many pixels of the finest level lie along one of this."""
        pairs = zip(self.levels[0].plane, self.levels[level].plane, strict=True)
        return math.sqrt(math.prod(n / m for n, m in pairs))

    @property
    def in_memory(self) -> bool:
        """Whether it is there only in this process."""
        return self.path is None and any(
            isinstance(level.array, np.ndarray) for level in self.levels
        )

    def __reduce__(self) -> tuple[Any, ...]:
        # Open files do not travel to other processes; their names do.
        if self.path is not None:
            return _reopened, (self.path.absolute(), self.levels[0].axes)
        return Source, (self.name, self.levels, self.units)

    def __enter__(self) -> Source:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_source(image: Any, *, axes: str | None = None) -> Source:
    """Open an image of any size without reading it.

    Parameters
    ----------
    image : path-like, array or list of arrays
        A zarr array, an OME-Zarr image (0.4 or 0.5), a TIFF or another image file;
        or an array of numpy, zarr or dask; or the levels of a pyramid, the finest
        first.
    axes : str, optional
        A letter of ``"TZYXC"`` for each axis. By default the metadata tell them,
        or else they are guessed from the shape.

    Returns
    -------
    Source

    Raises
    ------
    ImageError
        If there is no such image, or it is damaged or of axes that make no sense.
    """
    import zarr

    if isinstance(image, Source):
        return image
    if isinstance(image, str | os.PathLike):
        return _open_path(Path(image), axes)
    if isinstance(image, zarr.Group):
        return _of_group(image, str(image.store_path), axes)
    levels = isinstance(image, Sequence) and len(image) > 0
    if levels and all(hasattr(a, "shape") for a in image):
        return of_arrays("the pyramid", list(image), axes)
    array = image if hasattr(image, "shape") else np.asarray(image)
    return of_arrays("the array", [array], axes)


def _reopened(path: Path, axes: str) -> Source:
    return open_source(path, axes=axes)


def _open_path(path: Path, axes: str | None) -> Source:
    if not path.exists():
        raise ImageError(
            f"{path} is not there; expected a file or a zarr folder: check the name."
        )
    if path.is_dir():
        return _of_zarr(path, axes)
    if path.suffix.lower() in (".tif", ".tiff", ".svs", ".ndpi", ".scn"):
        from napari_fovea.scale.slides import open_tiff

        return open_tiff(path, axes)
    from napari_fovea.files import read_image

    return of_arrays(path.name, [read_image(path)], axes, path=path)


def _of_zarr(path: Path, axes: str | None) -> Source:
    import zarr

    try:
        node = zarr.open(path, mode="r")
    except Exception as error:  # damaged metadata raise many kinds
        raise ImageError(
            f"{path} cannot be opened as zarr ({type(error).__name__}); expected a "
            "zarr array or an OME-Zarr image with its metadata (zarr.json, .zarray or "
            ".zattrs): check the name, or write it again."
        ) from error
    if isinstance(node, zarr.Group):
        return _of_group(node, str(path), axes, path=path)
    return of_arrays(path.name, [node], axes, path=path)


def _of_group(
    group: Any, name: str, axes: str | None, path: Path | None = None
) -> Source:
    import zarr

    image = ome.read(group.attrs.asdict(), name)
    if image is None:
        inside = sorted(key for key, _ in group.members())
        hint = f"give one of {', '.join(inside[:4])} in it" if inside else "it is empty"
        raise ImageError(
            f"{name} is a zarr group without an image of its own; expected an array or "
            f"an OME-Zarr image with multiscales: {hint}."
        )
    arrays = []
    for level in image.levels:
        array = group.get(level.path)
        if not isinstance(array, zarr.Array):
            raise ImageError(
                f"{name} tells of an array {level.path!r} that is not there; expected "
                "all its levels: write it again, or give one of its arrays."
            )
        arrays.append(array)
    if axes is not None and len(axes) == len(image.axes):
        image = ome.Multiscale(axes.upper(), {}, image.levels)
    return of_arrays(name, arrays, image.axes, placed=image, path=path)


def of_arrays(
    name: str,
    arrays: Sequence[Any],
    axes: str | None,
    *,
    placed: ome.Multiscale | None = None,
    pixel: Mapping[str, float] | None = None,
    path: Path | None = None,
    close: Callable[[], None] = lambda: None,
) -> Source:
    """Make a source of the levels of an image; see `open_source`.

    Parameters
    ----------
    name : str
        What it is called.
    arrays : sequence of array
        The finest first.
    axes : str, optional
        Letters, the same for all levels.
    placed : Multiscale, optional
        Where they lie, if it is known.
    pixel : mapping, optional
        Otherwise the sides of the finest level's pixels in micrometres, by letter.
    path : Path, optional
        Where they can be opened again.
    close : callable
        Closes what is open.
    """
    shapes = [tuple(int(n) for n in a.shape) for a in arrays]
    axes = name_axes(shapes[0], np.dtype(arrays[0].dtype), axes=axes)
    levels = []
    for i, (array, shape) in enumerate(zip(arrays, shapes, strict=True)):
        name_axes(shape, np.dtype(array.dtype), axes=axes)
        if placed is not None:
            scale, shift = placed.levels[i].scale, placed.levels[i].translate
        else:
            ratio = [n / m for n, m in zip(shapes[0], shape, strict=True)]
            size = [(pixel or {}).get(a, 1.0) for a in axes]
            scale = tuple(r * s for r, s in zip(ratio, size, strict=True))
            # The edges of levels coincide, so centres of first pixels do not.
            shift = tuple((r - 1) / 2 * s for r, s in zip(ratio, size, strict=True))
        by, to = (dict(zip(axes, x, strict=True)) for x in (scale, shift))
        levels.append(Level(array, axes, by, to))
    for finer, coarser in pairwise(levels):
        larger = any(m > n for n, m in zip(finer.plane, coarser.plane, strict=True))
        if larger or coarser.channels != finer.channels:
            raise ImageError(
                f"{name} has levels of shapes {', '.join(map(str, shapes))}; expected "
                "the same image, smaller from level to level: give one of them."
            )
    units = placed.units if placed is not None else dict.fromkeys(pixel or {}, MICRO)
    return Source(name, tuple(levels), units, path, close)
