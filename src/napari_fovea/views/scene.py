"""What a frame of an animation shows, drawn without a viewer."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw

from napari_fovea.device import leaving_a_core
from napari_fovea.errors import ImageError, PathError
from napari_fovea.retina import Replay
from napari_fovea.views.colours import DOUBT, cell_colours, map_colours
from napari_fovea.views.contrast import to_rgb

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from napari_fovea.retina import FocusPath

_FINE = 2  # lines are drawn this much larger and shrunk, which smooths them
_RECENT = 60  # steps of the path that are drawn brighter
_OLD = 0.35  # opacity of the path before them
_SEAM = 0.6  # opacity of what parts these from a bright image
_OUTLINED = 4  # pixels of the side of the smallest cells that have outlines
_SMALLEST, _LARGEST = 16, 4096  # pixels of the longest side of a frame
_PLAIN = (1.0, 1.0, 1.0, 0.35)  # outline of cells of which nothing is known
_FRAME = np.array((1.0, 1.0, 1.0, 0.9))
_SHADE = np.array((0.0, 0.0, 0.0, 0.5))
_VIRIDIS = np.array(
    [
        (68, 1, 84),
        (72, 36, 117),
        (65, 68, 135),
        (53, 95, 141),
        (42, 120, 142),
        (33, 145, 140),
        (34, 168, 132),
        (68, 191, 112),
        (122, 209, 81),
        (189, 223, 38),
        (253, 231, 37),
    ]
)


class Scene:
    """Draws frames of one focus path on one image.

    The path is drawn on as steps advance, so frames in their order are fastest.

    Parameters
    ----------
    image : ndarray, shape (H, W) or (H, W, 3)
        One plane, of any numeric type; a fourth channel is left out.
    path : FocusPath or Replay
        What to draw.
    plane : int
        Plane of a stack whose fixations are drawn. A replay has its own.
    side : int
        Longest side of a frame in pixels.

    Raises
    ------
    FoveaError
        If image and path do not fit together.
    """

    def __init__(
        self,
        image: NDArray[np.generic],
        path: FocusPath | Replay,
        *,
        plane: int = 0,
        side: int = 512,
    ) -> None:
        image = np.asarray(image)
        self.path = path.path if isinstance(path, Replay) else path.of_plane(plane)
        _check(image, self.path, plane=plane, side=side)
        if image.ndim == 3:
            image = image[..., :3]  # what alpha there is says nothing
        size = image.shape[:2]
        self.shape = _frame_shape((size[0], size[1]), side=side)
        self._factor = np.array(self.shape) / size
        self._line = max(1, round(max(self.shape) / 512))
        self._image = self._resized(Image.fromarray(to_rgb(image)))
        self._replay: Replay | None = None
        if isinstance(path, Replay):
            self._replay = path
        elif path.pmfs is not None and path.shape is not None:
            # A map finer than the frame would be thrown away.
            most = math.prod(self.shape)
            self._replay = Replay(self.path, most=most)
        self._places = (self.path.centres + 0.5) * self._factor * _FINE
        self._walked = self._sheet()
        self._done = 0

    def __len__(self) -> int:
        return len(self.path)

    def frame(self, step: int) -> NDArray[np.uint8]:
        """Draw one frame, uint8 of shape (h, w, 3)."""
        if not 0 <= step < len(self):
            raise PathError(
                f"There is no fixation {step}; expected 0 to {len(self) - 1}."
            )
        drawn = self._image.copy()
        if self._replay is not None:
            _lay(drawn, self._map(self._replay, step))
        _lay(drawn, self._way(step))
        frame = np.array(drawn)
        self._draw_cells(frame, step)
        self._draw_progress(frame, step)
        return frame

    def line_colours(self) -> NDArray[np.uint8]:
        """Colours (n, 3) of lines and outlines, which are few pixels of a frame."""
        way = viridis(np.linspace(0, 1, 20))
        rest = np.array([(255, 255, 255), (0, 0, 0), np.array(DOUBT) * 255])
        return np.concatenate([way, _brighter(way, 0.8), rest.astype(np.uint8)])

    def _resized(
        self,
        picture: Image.Image,
        part: tuple[float, float, float, float] | None = None,
    ) -> Image.Image:
        """Bring to the size of frames: whole pixels larger, means of them smaller."""
        height, width = self.shape
        return picture.resize((width, height), Image.Resampling.BOX, box=part)

    def _map(self, replay: Replay, step: int) -> Image.Image:
        # Maps are small: on a busy machine, threads would but wait for each other.
        with leaving_a_core():
            moment = replay.at(step)
        colours = Image.fromarray(map_colours(moment.probabilities))
        # Of a shrunk map, the last row and column may reach beyond the image.
        covered = np.array(self.shape) / self._factor / replay.scale
        height, width = np.minimum(covered, replay.shape).tolist()
        return self._resized(colours, (0, 0, width, height))

    def _sheet(self) -> Image.Image:
        height, width = self.shape
        return Image.new("RGBA", (width * _FINE, height * _FINE))

    def _way(self, step: int) -> Image.Image:
        """Draw the path as it was walked so far, coloured by time."""
        old = max(0, step - _RECENT)
        if old < self._done:
            self._walked, self._done = self._sheet(), 0
        self._draw_way(self._walked, self._done, old)
        self._done = old
        sheet = self._walked.copy()
        self._draw_way(sheet, old, step, recent=True)
        return sheet.reduce(_FINE)

    def _draw_way(
        self, sheet: Image.Image, start: int, stop: int, *, recent: bool = False
    ) -> None:
        ends = self._places[start : stop + 1, ::-1]  # x before y
        legs = np.concatenate([ends[:-1], ends[1:]], axis=1).tolist()
        colours = viridis(np.arange(start, stop) / max(1, len(self) - 1))
        fresh = np.zeros(stop - start)
        width = _FINE * self._line
        draw = ImageDraw.Draw(sheet)
        if recent:
            fresh = 1 - np.arange(stop - start, 0, -1) / _RECENT
            width *= 2
            for leg, share in zip(legs, fresh, strict=True):
                seam = (0, 0, 0, round(255 * _SEAM * (0.5 + 0.5 * share)))
                draw.line(leg, fill=seam, width=width + _FINE)
        for leg, colour, share in zip(legs, colours, fresh, strict=True):
            opacity = round(255 * (_OLD + (1 - _OLD) * share))
            fill = (*_brighter(colour, share).tolist(), opacity)
            draw.line(leg, fill=fill, width=width)

    def _draw_cells(self, frame: NDArray[np.uint8], step: int) -> None:
        """Fill and outline the cells of a fixation, as much of them as is inside."""
        boxes = (self.path.cells(step) + 0.5) * np.tile(self._factor, 2)
        boxes = np.rint(boxes).astype(np.int64)
        if self.path.pmfs is None:
            faces, edges = np.zeros((2, len(boxes), 4))
            edges[:] = _PLAIN
        else:
            faces, edges = cell_colours(self.path.pmfs[step].astype(np.float32))
        thick = self._line
        for box, face, edge in zip(boxes.tolist(), faces, edges, strict=True):
            top, left, bottom, right = box
            _fill(frame, box, face)
            if min(bottom - top, right - left) >= _OUTLINED * thick:
                _fill(frame, (top, left, top + thick, right), edge)
                _fill(frame, (top + thick, left, bottom, left + thick), edge)
        top, left = boxes[:, :2].min(0).tolist()
        bottom, right = boxes[:, 2:].max(0).tolist()
        # White, and dark around it: one of them is seen on any image.
        for away, colour in ((thick, _FRAME), (2 * thick, _SHADE)):
            box = (top - away, left - away, bottom + away, right + away)
            _outline(frame, box, colour, thick=thick)

    def _draw_progress(self, frame: NDArray[np.uint8], step: int) -> None:
        """Draw a line along the bottom that is also the key to the path's colours."""
        height, width = self.shape
        line = frame[-min(height, 2 * self._line + 1) :]
        line //= 4
        times = np.linspace(0, 1, width)
        done = max(1, round(width * (step + 1) / len(self)))
        line[:, :done] = viridis(times[:done])


def viridis(times: NDArray[np.floating]) -> NDArray[np.uint8]:
    """Colours (n, 3) of times in [0, 1], from dark violet to yellow."""
    knots = np.linspace(0, 1, len(_VIRIDIS))
    channels = [np.interp(times, knots, channel) for channel in _VIRIDIS.T]
    return np.asarray(np.rint(np.stack(channels, axis=-1)).astype(np.uint8))


def _brighter(colours: NDArray[np.uint8], share: float) -> NDArray[np.uint8]:
    return np.asarray((colours + (255.0 - colours) * (0.35 * share)).astype(np.uint8))


def _lay(picture: Image.Image, sheet: Image.Image) -> None:
    picture.paste(sheet, (0, 0), sheet)


def _fill(
    frame: NDArray[np.uint8],
    box: Sequence[int],
    colour: NDArray[np.float64],
) -> None:
    """Lay a colour (r, g, b, opacity) over top, left, bottom, right."""
    top, left, bottom, right = (max(0, n) for n in box)
    part = frame[top:bottom, left:right]
    part[:] = part + (colour[:3] * 255 - part) * colour[3] + 0.5


def _outline(
    frame: NDArray[np.uint8],
    box: Sequence[int],
    colour: NDArray[np.float64],
    *,
    thick: int,
) -> None:
    """Draw the four sides of a box, inside it."""
    top, left, bottom, right = box
    for side in (
        (top, left, top + thick, right),
        (bottom - thick, left, bottom, right),
        (top + thick, left, bottom - thick, left + thick),
        (top + thick, right - thick, bottom - thick, right),
    ):
        _fill(frame, side, colour)


def _frame_shape(size: tuple[int, int], *, side: int) -> tuple[int, int]:
    """Height and width of frames: whole multiples where they are enlarged."""
    factor = side / max(size)
    if factor >= 1:
        factor = round(factor)
    height, width = (max(1, round(n * factor)) for n in size)
    return height, width


def _check(
    image: NDArray[np.generic], path: FocusPath, *, plane: int, side: int
) -> None:
    colours = image.ndim == 3 and image.shape[2] in (3, 4)
    if not (image.ndim == 2 or colours) or image.dtype.kind not in "buif":
        raise ImageError(
            f"The image is {image.dtype} of shape {image.shape}; expected numbers of "
            "shape (H, W) or (H, W, 3): choose one plane of it."
        )
    if not image.size:
        raise ImageError(
            f"The image is empty (shape {image.shape}); give at least one pixel."
        )
    if not _SMALLEST <= side <= _LARGEST:
        raise PathError(
            f"The side of the frames is {side} pixels; expected {_SMALLEST} to "
            f"{_LARGEST}."
        )
    expected = path.image_shape
    if expected is not None and expected != image.shape[:2]:
        (height, width), (tall, wide) = expected, image.shape[:2]
        raise PathError(
            f"The focus path is of an image of {height}×{width} pixels, this one has "
            f"{tall}×{wide}; expected the same: open the image it was made on, or "
            f"stretch the path over this one with path.laid_on(({tall}, {wide}))."
        )
    if not len(path):
        raise PathError(
            f"The focus path has no fixation in plane {plane}; expected at least one: "
            "choose a plane that was scanned."
        )
