"""Animations of a focus path: where the retina looked, and what it made of it."""

from __future__ import annotations

import math
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import imageio_ffmpeg  # type: ignore[import-untyped]
import numpy as np
from PIL import Image

from napari_fovea.errors import PathError
from napari_fovea.files import replacing
from napari_fovea.views.scene import Scene

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Generator, Iterator

    from numpy.typing import NDArray

    from napari_fovea.retina import FocusPath, Replay

SUFFIXES = (".gif", ".mp4", ".png")
"""Endings of the names of files that `animate` writes."""

_HELD = 1.5  # seconds for which the last frame is shown
_LEAST, _FASTEST, _LONGEST = 0.1, 120, 3600  # frames per second, and seconds
_FASTEST_GIF = 50  # frames per second; viewers slow down what is faster
_PALETTE_FROM = (0.1, 0.4, 0.7, 1.0)  # parts of the way whose colours a GIF gets


@dataclass(frozen=True, slots=True)
class Frame:
    """A frame of an animation has been drawn.

    Attributes
    ----------
    done, total : int
        Frames drawn so far, and frames in all.
    """

    done: int
    total: int

    @property
    def fraction(self) -> float:
        """How much of the animation is drawn, in [0, 1]."""
        return self.done / self.total


class _Cancelled(Exception):
    """Leaves the file as it was."""


def check_animation(output: str | os.PathLike[str]) -> None:
    """Raise PathError unless an animation can be written under this name."""
    name = Path(output).name
    suffix = Path(output).suffix.lower()
    if suffix not in SUFFIXES:
        raise PathError(
            f"The animation is called {name}; expected a name ending in "
            f"{', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}: rename it."
        )
    if suffix == ".mp4":
        try:
            imageio_ffmpeg.get_ffmpeg_exe()
        except RuntimeError as error:
            raise PathError(
                f"{name} cannot be written because ffmpeg is missing; expected it to "
                "come with imageio-ffmpeg: install it again, or write a .gif."
            ) from error


def render(
    image: NDArray[np.generic],
    path: FocusPath | Replay,
    step: int,
    *,
    plane: int = 0,
    side: int = 512,
) -> NDArray[np.uint8]:
    """Draw an image, the map on it, the path walked so far, and the present look.

    Parameters
    ----------
    image : ndarray, shape (H, W) or (H, W, 3)
        One plane, of any numeric type; a fourth channel is left out. Its percentiles
        1 and 99.8 become black and white.
    path : FocusPath or Replay
        A path without pmfs is drawn without map, and its cells without colours.
    step : int
        Fixation, counted from 0 within the plane.
    plane : int
        Plane of a stack whose fixations are drawn. A replay has its own.
    side : int
        Longest side of the frame in pixels; where the image is enlarged, each of its
        pixels becomes a whole number of them, and the side is about this long.

    Returns
    -------
    ndarray of uint8, shape (h, w, 3)

    Raises
    ------
    FoveaError
        If image and path do not fit together, or there is no such fixation.
    """
    return Scene(image, path, plane=plane, side=side).frame(step)


def animate(
    image: NDArray[np.generic],
    path: FocusPath,
    output: str | os.PathLike[str],
    *,
    plane: int = 0,
    fps: float = 20,
    seconds: float = 10.0,
    side: int = 512,
    cancelled: Callable[[], bool] = lambda: False,
) -> Generator[Frame, None, Path | None]:
    """Write the animation of a focus path, reporting after each frame.

    The whole path is shown, evenly, in at most ``fps * seconds`` frames; the last
    one shows the last fixation and stands for a second and a half more. Frames of
    a film go to the encoder one by one; those of a GIF, which has one palette, are
    kept until the end, one byte for each pixel.

    Parameters
    ----------
    image, path, plane, side
        See `render`.
    output : path-like
        Ends in ``.gif``, ``.mp4`` (H.264; sides are made even), or ``.png``, which
        is the last frame alone. Is replaced when all is well.
    fps : float
        Frames per second; of a GIF, 50 at most.
    seconds : float
        Length of the animation at most, without the stand at its end.
    cancelled : callable
        Asked before every frame; where it says yes, nothing is written.

    Yields
    ------
    Frame

    Returns
    -------
    Path or None
        The file, or None where it was cancelled.

    Raises
    ------
    FoveaError
        If image and path do not fit together, or the file cannot be written.
    """
    output = Path(output)
    check_animation(output)
    for name, value, limit in (
        ("frames per second", fps, _FASTEST),
        ("length in seconds", seconds, _LONGEST),
    ):
        if not _LEAST <= value <= limit:  # neither is what is not a number
            raise PathError(
                f"The {name} of the animation is {value}; expected {_LEAST} to {limit}."
            )
    suffix = output.suffix.lower()
    if suffix == ".gif":
        fps = min(fps, _FASTEST_GIF)
    scene = Scene(image, path, plane=plane, side=side)
    # What is a whole number of frames may come out a little less.
    most = 1.0 if suffix == ".png" else fps * seconds + 1e-6
    steps = spread(len(scene), most)
    try:
        with replacing(output) as temporary:
            with _WRITERS[suffix](temporary, scene, fps) as add:
                for done, step in enumerate(steps, 1):
                    if cancelled():
                        raise _Cancelled
                    add(scene.frame(step))
                    yield Frame(done, len(steps))
            if cancelled():
                raise _Cancelled
    except _Cancelled:
        return None
    except OSError as error:
        reason = error.strerror or "the encoder stopped"
        raise PathError(
            f"{output} cannot be written ({reason}): free some space, or choose "
            "another folder."
        ) from error
    return output


def spread(count: int, most: float) -> list[int]:
    """Choose steps evenly, ``most`` of them at most, the last one among them."""
    frames = max(1, math.floor(min(count, most)))
    return [-(-(i + 1) * count // frames) - 1 for i in range(frames)]


@contextmanager
def _still(
    file: Path, scene: Scene, fps: float
) -> Iterator[Callable[[NDArray[np.uint8]], None]]:
    yield lambda frame: Image.fromarray(frame).save(file)


@contextmanager
def _film(
    file: Path, scene: Scene, fps: float
) -> Iterator[Callable[[NDArray[np.uint8]], None]]:
    height, width = scene.shape
    odd = ((0, height % 2), (0, width % 2), (0, 0))  # H.264 halves the colours' sides
    last = np.zeros(0, dtype=np.uint8)
    encoder = imageio_ffmpeg.write_frames(
        file,
        (width + width % 2, height + height % 2),
        fps=fps,
        quality=8,
        macro_block_size=2,
        ffmpeg_log_level="error",
        # The index first, so that browsers start to play at once.
        output_params=["-movflags", "+faststart"],
    )

    def add(frame: NDArray[np.uint8]) -> None:
        nonlocal last
        last = np.pad(frame, odd, mode="edge")
        encoder.send(last)

    with closing(encoder):
        encoder.send(None)
        yield add
        for _ in range(round(_HELD * fps)):
            encoder.send(last)
    if not file.stat().st_size:  # the encoder does not tell how it ended
        raise OSError


@contextmanager
def _gif(
    file: Path, scene: Scene, fps: float
) -> Iterator[Callable[[NDArray[np.uint8]], None]]:
    # One palette for all frames and no dithering: what stands still stays the same,
    # and costs nothing.
    palette = _palette(scene)
    frames: list[Image.Image] = []

    def add(frame: NDArray[np.uint8]) -> None:
        drawn = Image.fromarray(frame)
        none = Image.Dither.NONE
        frames.append(drawn.quantize(palette=palette, dither=none))

    yield add
    # The format counts hundredths of a second: rounded so that their sum is right.
    ends = [round((i + 1) * 100 / fps) for i in range(len(frames))]
    delays = [10 * (b - a) for a, b in zip([0, *ends], ends, strict=False)]
    delays[-1] += round(_HELD * 1000)
    frames[0].save(
        file, save_all=True, append_images=frames[1:], duration=delays, loop=0
    )


def _palette(scene: Scene) -> Image.Image:
    """Choose 255 colours; the last one of a GIF stands for what did not change."""
    # Lines are few pixels, whose colours would be lost among those of the image.
    lines = scene.line_colours()
    way = [scene.frame(round(part * (len(scene) - 1))) for part in _PALETTE_FROM]
    drawn = Image.fromarray(np.concatenate(way)).quantize(255 - len(lines))
    chosen = drawn.getpalette() or []
    palette = Image.new("P", (1, 1))
    palette.putpalette([*lines.flatten().tolist(), *chosen])
    return palette


_WRITERS = {".gif": _gif, ".mp4": _film, ".png": _still}
