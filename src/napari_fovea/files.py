"""Reading image files and writing results without leaving halves behind."""

from __future__ import annotations

import os
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import imageio.v3 as imageio
import numpy as np
import platformdirs
import tifffile
from PIL import Image

from napari_fovea.errors import ImageError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

IMAGE_SUFFIXES = (".png", ".tif", ".tiff", ".jpg", ".jpeg", ".bmp")
"""Endings of the image files that are read."""


def home() -> Path:
    """Return the folder of the user's own models and of work in progress.

    It is what the environment variable ``NAPARI_FOVEA_HOME`` says, else the system's
    place for a user's data. It need not exist yet.
    """
    chosen = os.environ.get("NAPARI_FOVEA_HOME")
    if chosen:
        return Path(chosen).expanduser().absolute()
    return platformdirs.user_data_path("napari-fovea", appauthor=False)


def read_image(path: str | os.PathLike[str]) -> NDArray[np.generic]:
    """Read an image file as it is stored.

    Parameters
    ----------
    path : path-like
        A PNG, TIFF, JPEG or BMP file.

    Raises
    ------
    ImageError
        If the file is missing, not an image, or damaged.
    """
    path = Path(path)
    if not path.is_file():
        raise ImageError(f"{path} is no file: check the name.")
    try:
        if path.suffix.lower() in (".tif", ".tiff"):
            image = np.asarray(tifffile.imread(path))
        else:
            with path.open("rb") as file:  # which some decoders would leave open
                image = np.asarray(imageio.imread(file, extension=path.suffix.lower()))
        if not image.size:  # tifffile passes over pages that it cannot find
            raise ValueError("no pixels")
        return image
    except Exception as error:  # every decoder has its own kinds
        raise ImageError(
            f"{path} cannot be read as an image ({type(error).__name__}); expected "
            f"{', '.join(IMAGE_SUFFIXES)}: open and save it again elsewhere."
        ) from error


def read_labels(path: str | os.PathLike[str]) -> NDArray[np.generic]:
    """Read a label image: one number per pixel.

    Of a PNG with a palette these are the indices, not the colours they stand for;
    of a gray image that was saved as RGB, one of its equal channels.

    Parameters
    ----------
    path : path-like
        A PNG, TIFF or BMP file.

    Raises
    ------
    ImageError
        If the file is missing, not an image, or damaged.
    """
    labels = read_image(path)
    if labels.ndim != 3 or labels.shape[-1] not in (3, 4):
        return labels
    if Path(path).suffix.lower() not in (".tif", ".tiff"):
        with Image.open(path) as file:
            if file.mode == "P":
                return np.asarray(file)
    gray = labels[..., :1]
    return labels[..., 0] if (labels[..., :3] == gray).all() else labels


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Write to a temporary file that takes the place of ``path`` when all is well.

    Yields
    ------
    Path
        Where to write, in the same folder.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=path.suffix)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        # mkstemp makes private files; results get what the user's umask says.
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
