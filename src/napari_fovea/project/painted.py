"""Painted pixels as files: only those that are painted."""

from __future__ import annotations

import math
import zipfile
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.lib import format as npy

from napari_fovea.errors import ProjectError
from napari_fovea.files import replacing

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    Labels = NDArray[np.integer[Any]]

PIXELS = 2**34
"""Pixels that the labels of a project have at most."""

PAINTED = 2**28
"""Painted pixels that one file holds at most."""


def check_labels(labels: NDArray[Any]) -> None:
    """Check that labels can be kept.

    Raises
    ------
    ProjectError
        If they are no integers.
    """
    if labels.dtype.kind not in "iu":
        raise ProjectError(
            f"Labels hold {labels.dtype}; expected whole numbers: convert the layer."
        )


def write_painted(path: Path, labels: Labels) -> int:
    """Write what is painted, and tell how many pixels that are.

    Raises
    ------
    ProjectError
        If more is painted than a file holds.
    """
    flat = np.ascontiguousarray(labels).reshape(-1)
    where = np.flatnonzero(flat)
    if len(where) > PAINTED:
        raise ProjectError(
            f"{len(where)} pixels of one labels layer are painted; expected up to "
            f"{PAINTED}: paint fewer, or on a part of the image."
        )
    smallest = np.min_scalar_type(max(flat.size - 1, 0))
    with replacing(path) as temporary, temporary.open("wb") as stream:
        np.savez_compressed(
            stream,
            indices=where.astype(smallest),
            values=flat[where],
            shape=np.array(labels.shape, np.int64),
        )
    return len(where)


def read_painted(path: Path, labels: Labels) -> None:
    """Fill labels with what a file says was painted.

    Parameters
    ----------
    path : Path
        The file.
    labels : ndarray
        Zeros, contiguous, of the shape and type that the file should have.

    Raises
    ------
    ProjectError
        If the file is missing, damaged, or does not fit.
    """
    if not path.is_file():
        raise ProjectError(
            f"{path} is missing; expected strokes: get the project again."
        )
    try:
        with zipfile.ZipFile(path) as file:
            shape = _member(file, "shape", 64)
            indices = _member(file, "indices", min(labels.size, PAINTED))
            values = _member(file, "values", min(labels.size, PAINTED))
        if tuple(shape) != labels.shape or values.dtype != labels.dtype:
            raise ValueError(
                f"{values.dtype} of shape {tuple(map(int, shape))}, where the project "
                f"has {labels.dtype} of shape {labels.shape}"
            )
        if indices.dtype.kind != "u" or len(indices) != len(values):
            raise ValueError("indices and values do not fit")
        if len(indices) and int(indices.max()) >= labels.size:
            raise ValueError("pixels outside the image")
    except Exception as error:  # archives have many kinds
        raise ProjectError(
            f"{path} is damaged ({error}); expected strokes: get the project again."
        ) from error
    labels.reshape(-1)[indices] = values


def _member(file: zipfile.ZipFile, name: str, most: int) -> Labels:
    """Read one list of integers, whose header is checked before memory is taken."""
    with file.open(f"{name}.npy") as stream:
        version = npy.read_magic(stream)
        if version == (1, 0):
            shape, _, dtype = npy.read_array_header_1_0(stream)
        else:
            shape, _, dtype = npy.read_array_header_2_0(stream)
        if len(shape) != 1 or shape[0] > most or dtype.kind not in "iu":
            raise ValueError(f"{name} of shape {shape} and type {dtype}")
        size = math.prod(shape) * dtype.itemsize
        content = stream.read(size + 1)  # to the end, where the checksum is compared
        if len(content) != size:
            raise ValueError(f"{name} are not as many as they say")
        return np.frombuffer(content, dtype)
