"""Random crops for networks that see whole scenes, deformed by MONAI."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn import functional

from napari_fovea.training.samples import VOID, Sample, boundary_places

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from napari_fovea.training.augment import Geometry


@dataclass(frozen=True)
class View:
    """What the network is shown of one image.

    Attributes
    ----------
    image : Tensor of float32, shape (C, h, w)
    classes : Tensor of uint8, shape (h, w)
        255 counts for nothing.
    instances : Tensor of int32, shape (h, w)
        Objects; all 0 where the labels did not tell them apart.
    """

    image: torch.Tensor
    classes: torch.Tensor
    instances: torch.Tensor


class Views:
    """Draws crops of a set of images.

    Parameters
    ----------
    samples : sequence of Sample
        Images to learn from.
    side : int or None
        Side of a crop in pixels; by default whole images.
    geometry : Geometry
        Ranges of the random changes.
    boundary : float
        Share of crops centred on boundaries between classes.
    inside : bool
        Whether crops that are not resampled stay inside the image where it is large
        enough; else any pixel may be the centre of one.
    odds : ndarray, shape (n,), optional
        How often each image is drawn; by default as the root of its area.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        *,
        side: int | None,
        geometry: Geometry,
        boundary: float = 0.0,
        inside: bool = True,
        odds: NDArray[np.floating] | None = None,
    ) -> None:
        self.samples = samples
        self.side = side
        self.geometry = geometry
        self.boundary = boundary
        self.inside = inside
        self._boundaries: dict[int, NDArray[np.int64]] = {}
        # Large images have more to show, but not as much more as they are larger.
        self._odds = by_area(samples) if odds is None else odds

    def draw(self, rng: np.random.Generator) -> View:
        """Draw a crop; what is drawn depends on the generator alone."""
        i = int(rng.choice(len(self.samples), p=self._odds))
        sample = self.samples[i]
        planes = _stacked(sample)
        if self.side is None:
            return self._turned(planes, rng)
        centre = rng.uniform(0, planes.shape[1:])
        if rng.random() < self.boundary:
            if i not in self._boundaries:
                self._boundaries[i] = boundary_places(sample)
            places = self._boundaries[i]
            if len(places):
                centre = places[rng.integers(len(places))] + rng.uniform(-2, 2, size=2)
        if not self.geometry.resamples:
            if self.inside:
                half = self.side / 2
                room = np.maximum(np.array(planes.shape[1:]) - half, half)
                centre = np.clip(centre, half, room)
            window = _window(planes, centre, self.side)
        else:
            low = self.geometry.zoom[0]
            turn = math.radians(min(45, self.geometry.rotate))
            reach = (math.cos(turn) + math.sin(turn)) * (1 + self.geometry.shear)
            reach = math.ceil(self.side * reach / low)
            window = _window(planes, centre, reach)
            window = self._deformed(window, self.side, rng)
        return self._turned(window, rng)

    def _deformed(
        self, planes: torch.Tensor, side: int, rng: np.random.Generator
    ) -> torch.Tensor:
        from monai.transforms.spatial.array import RandAffineGrid, Resample

        geometry = self.geometry
        zoom = math.exp(rng.uniform(*np.log(geometry.zoom)))
        # MONAI's scale is that of the sampling grid: 1 + value, uniformly drawn.
        scale = 1 / zoom - 1
        affine = RandAffineGrid(
            rotate_range=math.radians(geometry.rotate),
            shear_range=(geometry.shear, geometry.shear),
            scale_range=((scale, scale), (scale, scale)),
        )
        affine.set_random_state(seed=int(rng.integers(2**31)))
        grid = _plain(affine((side, side)))  # (3, side, side), centred
        if geometry.elastic:
            # MONAI's own elastic grid interpolates places, which ripples even at
            # rest; displacements of 0 interpolate to 0.
            nodes = side // geometry.spacing + 2
            lattice = rng.uniform(-1, 1, (1, 2, nodes, nodes)).astype(np.float32)
            field = functional.interpolate(
                torch.from_numpy(lattice), (side, side), mode="bicubic"
            )[0]
            grid[:2] += rng.uniform(0, geometry.elastic) * field
        resample = Resample(padding_mode="reflection")
        image = resample(planes[:-2], grid, mode="bilinear")
        labels = resample(planes[-2:], grid, mode="nearest")
        return torch.cat([_plain(image), _plain(labels)])

    def _turned(self, planes: torch.Tensor, rng: np.random.Generator) -> View:
        quarter = int(rng.integers(4))
        rows, columns = rng.random(2) < 0.5
        if self.geometry.turn:
            planes = planes.rot90(quarter, (1, 2))
        if self.geometry.flip:
            planes = planes.flip([1] * bool(rows) + [2] * bool(columns))
        planes = planes.contiguous()
        return View(planes[:-2], planes[-2].to(torch.uint8), planes[-1].to(torch.int32))


def by_area(samples: Sequence[Sample]) -> NDArray[np.floating]:
    """How often each image is drawn: as the root of its area."""
    areas = np.array([s.classes.numel() for s in samples], dtype=float)
    odds: NDArray[np.floating] = np.sqrt(areas) / np.sqrt(areas).sum()
    return odds


def _plain(made: Any) -> torch.Tensor:
    """Make a plain tensor of MONAI's, which remembers where it came from."""
    return torch.as_tensor(made).as_subclass(torch.Tensor)


def _stacked(sample: Sample) -> torch.Tensor:
    """Image, classes and instances as planes (C + 2, H, W)."""
    instances = sample.instances
    if instances is None:
        instances = np.zeros(sample.classes.shape, dtype=np.int32)
    labels = torch.stack(
        [sample.classes.float(), torch.from_numpy(instances.astype(np.float32))]
    )
    return torch.cat([sample.image, labels])


def _window(
    planes: torch.Tensor, centre: NDArray[np.floating], side: int
) -> torch.Tensor:
    """Cut out a square, reflected where it leaves the image."""
    height, width = planes.shape[1:]
    top, left = (round(float(c) - side / 2) for c in centre)
    rows = _reflected(top, side, height)
    columns = _reflected(left, side, width)
    return planes[:, rows][:, :, columns]


def _reflected(start: int, count: int, length: int) -> torch.Tensor:
    """Count on from start, mirrored into 0 … length − 1."""
    period = max(1, 2 * length - 2)
    index = torch.arange(start, start + count) % period
    return torch.where(index < length, index, period - index)


def together(views: Sequence[View]) -> View:
    """Join views to a batch, the smaller ones filled up with nothing to learn."""
    height = max(v.image.shape[1] for v in views)
    width = max(v.image.shape[2] for v in views)

    def filled(plane: torch.Tensor, value: int) -> torch.Tensor:
        right, below = width - plane.shape[-1], height - plane.shape[-2]
        return functional.pad(plane, (0, right, 0, below), value=value)

    return View(
        torch.stack([filled(v.image, 0) for v in views]),
        torch.stack([filled(v.classes, VOID) for v in views]),
        torch.stack([filled(v.instances, 0) for v in views]),
    )
