"""Which image files are meant, where results belong, and writing them."""

from __future__ import annotations

import errno
import glob
import json
import os
import re
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tifffile

from napari_fovea.errors import ImageError, OutputError
from napari_fovea.files import IMAGE_SUFFIXES, replacing

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator

    from numpy.typing import NDArray

    from napari_fovea.inference.result import Segmentation

_FULL = {errno.ENOSPC, errno.EDQUOT}


@dataclass(frozen=True, slots=True)
class ImageFile:
    """An image file, and what its results are called.

    Attributes
    ----------
    path : Path
        The image.
    folder : Path
        Where its results belong.
    stem : str
        What their names begin with.
    """

    path: Path
    folder: Path
    stem: str

    @property
    def record(self) -> Path:
        """The JSON file that is written last: where it is, the results are whole."""
        return self.folder / f"{self.stem}.json"


def find_images(
    inputs: Iterable[str | os.PathLike[str]],
    output: str | os.PathLike[str],
    *,
    recursive: bool = False,
) -> tuple[ImageFile, ...]:
    """Find the images that files, folders and patterns stand for, each once.

    Parameters
    ----------
    inputs : iterable of path-like
        Files, folders, and patterns with ``*``, ``?``, ``[...]`` and ``**``. Of
        folders and patterns, files whose endings tell of an image are taken, hidden
        ones left out.
    output : path-like
        Folder for the results. Results keep the subfolders, counted from the folder
        that was given or from the part of a pattern that holds no sign.
    recursive : bool
        Whether to look into folders in folders, too.

    Returns
    -------
    tuple of ImageFile
        In the order of ``inputs``, those of a folder by name. A pattern that fits
        nothing is taken for the name of a file.

    Raises
    ------
    ImageError
        If a folder holds no images.
    OutputError
        If results would lie among the images of a folder.
    """
    output = Path(output)
    found: dict[str, tuple[Path, Path]] = {}
    for given in map(Path, inputs):
        for path, below in _meant(given, output, recursive=recursive):
            found.setdefault(os.path.abspath(path), (path, output / below))
    pairs = list(found.values())
    # Where two images would have results of the same name, both keep their endings.
    stems = Counter((folder, path.stem) for path, folder in pairs)
    images = tuple(
        ImageFile(p, f, p.stem if stems[f, p.stem] == 1 else p.name) for p, f in pairs
    )
    records = Counter(image.record for image in images)
    for image in images:
        if records[image.record] > 1:
            raise OutputError(
                f"Two images are called {image.stem}, and so would be their results: "
                "segment them into different folders."
            )
    return images


def _meant(
    given: Path, output: Path, *, recursive: bool
) -> Iterator[tuple[Path, Path]]:
    """Tell paths, and the folders of their results relative to the output."""
    if given.is_dir():
        if given.resolve() == output.resolve():
            raise OutputError(
                f"Results in {output} would lie among the images, and be taken for "
                "images the next time: choose another folder for them."
            )
        top = given
        inside = _in_folder(given, recursive=recursive)
        images = _without_results(inside, top, output)
        if not images:
            deeper = "" if recursive else ", or have it searched recursively"
            raise ImageError(
                f"{given} holds no images; expected files that end in "
                f"{', '.join(IMAGE_SUFFIXES)}: choose another folder{deeper}."
            )
    else:
        top, images = _plain_part(given), []
        if not given.exists():  # else the signs are part of its name
            fitting = map(Path, glob.iglob(str(given), recursive=True))
            images = _without_results(fitting, top, output)
        if not images:
            top, images = given.parent, [given]
    for path in images:
        yield path, path.parent.relative_to(top)


def _in_folder(folder: Path, *, recursive: bool) -> Iterator[Path]:
    for name, folders, files in os.walk(folder):
        folders[:] = [f for f in folders if recursive and not f.startswith(".")]
        yield from (Path(name, file) for file in files)


def _without_results(paths: Iterable[Path], top: Path, output: Path) -> list[Path]:
    """Sort images by name, leaving out those that earlier runs wrote below."""
    results = os.path.abspath(output) + os.sep
    below = os.path.abspath(output) != os.path.abspath(top)
    return sorted(
        path
        for path in paths
        if path.suffix.lower() in IMAGE_SUFFIXES
        and not path.name.startswith(".")
        and not (below and os.path.abspath(path).startswith(results))
        and path.is_file()
    )


def _plain_part(pattern: Path) -> Path:
    """Return the folders of a pattern before the first that holds a sign."""
    top = Path()
    for part in pattern.parts[:-1]:
        if glob.has_magic(part):
            break
        top /= part
    return top


def prepare_folder(folder: Path) -> None:
    """Make a folder for results.

    Raises
    ------
    OutputError
        If nothing can be written there.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"something")
    except OSError as error:
        what = "free some space" if is_full(error) else "choose another folder"
        raise OutputError(
            f"Results cannot be written to {folder} ({error.strerror}): {what}."
        ) from error


def is_full(error: BaseException) -> bool:
    """Whether a disk is full, or what a user may fill of it."""
    return isinstance(error, OSError) and error.errno in _FULL


def write_results(
    result: Segmentation,
    image: ImageFile,
    *,
    maps: Collection[str] = (),
    probabilities: bool = False,
) -> None:
    """Write what was found in an image; the JSON file last.

    Parameters
    ----------
    result : Segmentation
        What was found.
    image : ImageFile
        Tells where to.
    maps : collection of str
        Names of the attention maps to write.
    probabilities : bool
        Whether to write class probabilities.
    """
    arrays: dict[str, NDArray[Any]] = {
        "classes": result.labels,
        "instances": result.instances,
    }
    if probabilities:
        arrays["probabilities"] = result.probabilities
    laid = {}
    for one in result.attention:
        if one.name in maps:
            slug = re.sub(r"[^A-Za-z0-9]+", "-", one.name).strip("-")
            arrays[f"attention_{slug}"] = one.array
            laid[one.name] = {"scale": one.scale, "offset": one.offset}
    for name, array in arrays.items():
        with replacing(image.folder / f"{image.stem}_{name}.tif") as temporary:
            # Three planes are a stack, not red, green and blue.
            tifffile.imwrite(
                temporary, array, compression="zlib", photometric="minisblack"
            )
    made = {"file": str(image.path), **result.provenance}
    made["objects"] = int(result.instances.max())
    if laid:
        made["attention"] = laid
    with replacing(image.record) as temporary:
        temporary.write_text(json.dumps(made, indent=2) + "\n", encoding="utf-8")
