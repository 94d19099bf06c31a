"""Segmenting many image files: read ahead, and written behind."""

from __future__ import annotations

import inspect
import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from napari_fovea import device as devices
from napari_fovea.errors import OutputError, sentence
from napari_fovea.files import read_image
from napari_fovea.inference.attention import wanted
from napari_fovea.inference.folders import (
    ImageFile,
    find_images,
    is_full,
    prepare_folder,
    write_results,
)
from napari_fovea.inference.result import Preview
from napari_fovea.inference.segmenting import segment
from napari_fovea.models import Model

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Generator, Iterable, Iterator

    import numpy as np
    from numpy.typing import NDArray

    from napari_fovea.inference.result import Segmentation

_AHEAD = 1
"""Images that are read while another is computed."""

_BEHIND = 2
"""Results that are written, or wait for it, while another image is computed."""


@dataclass(frozen=True, slots=True)
class Found:
    """The images are known; nothing has been computed yet.

    Attributes
    ----------
    images : int
        Images to segment.
    skipped : int
        Images whose results are there.
    fraction : float
        0.
    """

    images: int
    skipped: int
    fraction: float = 0.0


@dataclass(frozen=True, slots=True)
class Computing:
    """Some of an image has been computed.

    Attributes
    ----------
    path : Path
        The image.
    part : float
        Estimate of how much of this image is done, in [0, 1].
    fraction : float
        Estimate of how much of all is done, in [0, 1].
    """

    path: Path
    part: float
    fraction: float


@dataclass(frozen=True, slots=True)
class Written:
    """The results of an image are written.

    Attributes
    ----------
    path : Path
        The image.
    record : Path
        The JSON file that tells of them.
    fraction : float
        Estimate of how much of all is done, in [0, 1].
    """

    path: Path
    record: Path
    fraction: float


@dataclass(frozen=True, slots=True)
class Failed:
    """An image could not be read, segmented or written; the rest goes on.

    Attributes
    ----------
    path : Path
        The image.
    reason : str
        Why, in one line.
    fraction : float
        Estimate of how much of all is done, in [0, 1].
    """

    path: Path
    reason: str
    fraction: float


@dataclass(frozen=True, slots=True)
class Batch:
    """What became of many images.

    Attributes
    ----------
    written : tuple of Path
        Images whose results are written.
    failed : tuple of Failed
        Those that could not be segmented, and why.
    skipped : int
        Images whose results were there.
    left : int
        Images that were not begun, or not finished, before it was cancelled.
    seconds : float
        Time it took.
    """

    written: tuple[Path, ...]
    failed: tuple[Failed, ...]
    skipped: int
    left: int
    seconds: float


def segment_files(
    inputs: Iterable[str | os.PathLike[str]],
    model: Model | str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    recursive: bool = False,
    skip_existing: bool = False,
    probabilities: bool = False,
    attention: Iterable[str] = (),
    cancelled: Callable[[], bool] = lambda: False,
    **settings: Any,
) -> Generator[Found | Computing | Written | Failed, None, Batch]:
    """Segment image files into a folder, reporting as it goes.

    While an image is computed, a thread reads the next one and another compresses
    and writes the results before it. At most two images and three results are in
    memory, however many files there are.

    For x.png, x_classes.tif, x_instances.tif and, if asked for, x_probabilities.tif
    and x_attention_NAME.tif are written, and x.json last, each whole or not at all.

    Parameters
    ----------
    inputs : iterable of path-like
        Files, folders and patterns; see `find_images`.
    model : Model, str or path-like
        A model, its name, or its file.
    output : path-like
        Folder for the results, made if need be.
    recursive : bool
        Whether to look into folders in folders, too; results keep the subfolders.
    skip_existing : bool
        Whether to leave out images whose JSON file is there, whatever model and
        settings it was made with.
    probabilities : bool
        Whether to write class probabilities.
    attention : iterable of str
        Names of attention maps to write; see `segment`.
    cancelled : callable
        Asked after every batch; where it says yes, the image at hand is given up
        and what was computed before is written.
    **settings
        Further arguments of `segment`.

    Yields
    ------
    Found, then Computing, Written, Failed

    Returns
    -------
    Batch

    Raises
    ------
    FoveaError
        If the model or the device cannot be used, a folder holds no images, or the
        results cannot be written; the disk being full ends it at once.
    """
    begun = time.perf_counter()
    if not isinstance(model, Model):
        model = Model.load(model)
    # What is wrong for every image is not told of each.
    devices.pick(devices.as_backend(settings.get("device", "auto")).device)
    maps = tuple(w.name for w in wanted(model, attention))
    given: dict[str, Any] = {**settings, "attention": maps, "cancelled": cancelled}
    inspect.signature(segment).bind(None, model, **given)
    every = find_images(inputs, output, recursive=recursive)
    prepare_folder(Path(output))
    images = [i for i in every if not (skip_existing and i.record.is_file())]
    skipped = len(every) - len(images)
    yield Found(len(images), skipped)

    written: list[Path] = []
    failed: list[Failed] = []
    behind: deque[tuple[ImageFile, Future[None]]] = deque()

    def share(part: float = 0.0) -> float:
        # What waits to be written is computed.
        done = len(written) + len(failed) + len(behind) + part
        return min(1.0, done / len(images))

    def failure(image: ImageFile, error: Exception) -> Failed:
        told = Failed(image.path, sentence(error), share(1))
        failed.append(told)
        return told

    def outcome(image: ImageFile, writing: Future[None]) -> Written | Failed:
        try:
            writing.result()
        except Exception as error:
            if is_full(error):
                raise OutputError(
                    f"There is no space left for results in {output}, and "
                    f"{len(written)} of {len(images)} images are done: free some, and "
                    "go on with those whose results are not there yet."
                ) from error
            return failure(image, error)
        written.append(image.path)
        return Written(image.path, image.record, share())

    with ThreadPoolExecutor(1) as reader, ThreadPoolExecutor(1) as writer:
        for image, reading in _ahead(images, reader):
            if cancelled():
                break
            try:
                run = segment(reading.result(), model, **given)
                while True:
                    try:
                        event = next(run)
                    except StopIteration as end:
                        result: Segmentation = end.value
                        break
                    if not isinstance(event, Preview):
                        part = event.fraction
                        yield Computing(image.path, part, share(part))
            except Exception as error:  # whatever it is, the rest goes on
                yield failure(image, error)
            else:
                if result.provenance["cancelled"]:
                    break
                writing = writer.submit(
                    write_results, result, image, maps=maps, probabilities=probabilities
                )
                behind.append((image, writing))
            while behind and (len(behind) > _BEHIND or behind[0][1].done()):
                yield outcome(*behind.popleft())
        while behind:
            yield outcome(*behind.popleft())
    left = len(images) - len(written) - len(failed)
    seconds = time.perf_counter() - begun
    return Batch(tuple(written), tuple(failed), skipped, left, seconds)


def _ahead(
    images: list[ImageFile], reader: ThreadPoolExecutor
) -> Iterator[tuple[ImageFile, Future[NDArray[np.generic]]]]:
    """Give images in turn while those after them are read."""
    waiting: deque[tuple[ImageFile, Future[NDArray[np.generic]]]] = deque()
    for image in images:
        waiting.append((image, reader.submit(read_image, image.path)))
        if len(waiting) > _AHEAD:
            yield waiting.popleft()
    while waiting:
        yield waiting.popleft()
