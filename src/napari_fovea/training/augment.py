"""Random views of training images: place, pose, scale, and how light fell."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn import functional

if TYPE_CHECKING:
    from napari_fovea.training.samples import Sample


@dataclass(frozen=True)
class Augmentation:
    """Ranges of the random changes; each interval is drawn from uniformly.

    Attributes
    ----------
    scale : tuple of float
        Magnification, drawn on a logarithmic scale.
    stretch : float
        Largest relative difference between the two axes' magnifications.
    gamma : tuple of float
        Exponent of intensities, on a logarithmic scale.
    gain : tuple of float
        Factor of intensities.
    offset : float
        Largest shift of intensities, either way.
    colour : float
        Largest relative gain and shift of single channels.
    invert : float
        Probability of turning dark into bright.
    gray : float
        Probability of taking the colour away.
    noise : float
        Largest standard deviation of Gaussian noise.
    blur : float
        Largest standard deviation of Gaussian blur in pixels.
    """

    scale: tuple[float, float] = (0.55, 1.8)
    stretch: float = 0.15
    gamma: tuple[float, float] = (0.5, 2.0)
    gain: tuple[float, float] = (0.6, 1.4)
    offset: float = 0.1
    colour: float = 0.15
    invert: float = 0.1
    gray: float = 0.15
    noise: float = 0.08
    blur: float = 1.2


@dataclass(frozen=True)
class Geometry:
    """Ranges of the random changes of place and shape, made in one resampling.

    Attributes
    ----------
    turn : bool
        Quarter turns.
    flip : bool
        Mirror along either axis.
    rotate : float
        Largest rotation in degrees, either way.
    zoom : tuple of float
        Magnification, drawn on a logarithmic scale.
    shear : float
        Largest shear, either way; skew is a shear of both axes.
    elastic : float
        Largest displacement of the nodes of a deformed lattice in pixels; 0 for
        none.
    spacing : int
        Pixels between the lattice's nodes.
    """

    turn: bool = True
    flip: bool = True
    rotate: float = 180.0
    zoom: tuple[float, float] = (0.6, 1.7)
    shear: float = 0.1
    elastic: float = 0.0
    spacing: int = 32

    @property
    def resamples(self) -> bool:
        """Whether pixels move by other than whole steps."""
        still = self.zoom == (1.0, 1.0) and not self.rotate
        return not still or bool(self.shear) or bool(self.elastic)


def sample_view(
    sample: Sample,
    centre: tuple[float, float],
    side: int,
    *,
    augmentation: Augmentation,
    rng: np.random.Generator,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cut out a randomly turned, mirrored and scaled square.

    Parameters
    ----------
    sample : Sample
        Image (C, H, W) and classes (H, W).
    centre : tuple of float
        Row and column that come to lie in the middle.
    side : int
        Side of the square in pixels.
    augmentation : Augmentation
        Ranges of scale and stretch.
    rng : numpy.random.Generator
        Where chance comes from.

    Returns
    -------
    image : Tensor of float32, shape (C, side, side)
    classes : Tensor of uint8, shape (side, side)
        Both reflected where the square leaves the image.
    """
    low, high = np.log(augmentation.scale)
    scale = math.exp(rng.uniform(low, high))
    stretch = math.exp(rng.uniform(-1, 1) * math.log1p(augmentation.stretch) / 2)
    angle = rng.uniform(0, 2 * math.pi)
    mirror = 1.0 if rng.random() < 0.5 else -1.0
    cos, sin = math.cos(angle), math.sin(angle)
    # Rows of the matrix: x and y in the image, from x and y in the square.
    matrix = torch.tensor(
        [
            [cos / (scale * stretch), -sin * mirror / (scale / stretch)],
            [sin / (scale * stretch), cos * mirror / (scale / stretch)],
        ],
        dtype=torch.float32,
    )
    height, width = sample.classes.shape
    steps = torch.arange(side) - (side - 1) / 2
    offsets = torch.stack([steps.expand(side, side), steps[:, None].expand(side, side)])
    place = torch.einsum("ij,jhw->hwi", matrix, offsets)
    place = place + torch.tensor([centre[1], centre[0]], dtype=torch.float32)
    # To the [-1, 1] of grid_sample, pixel edges at the ends.
    grid = (2 * place + 1) / torch.tensor([width, height]) - 1
    image = functional.grid_sample(
        sample.image[None], grid[None], padding_mode="reflection", align_corners=False
    )[0]
    classes = functional.grid_sample(
        sample.classes[None, None].float(),
        grid[None],
        mode="nearest",
        padding_mode="reflection",
        align_corners=False,
    )[0, 0]
    return image, classes.to(torch.uint8)


def vary_light(
    images: torch.Tensor, *, augmentation: Augmentation, rng: np.random.Generator
) -> torch.Tensor:
    """Change intensity, colour, sharpness and noise of a batch (B, C, H, W)."""
    b, c = images.shape[:2]

    def uniform(low: float, high: float, *shape: int) -> torch.Tensor:
        return torch.from_numpy(rng.uniform(low, high, shape).astype(np.float32))

    def chance(probability: float) -> torch.Tensor:
        return torch.from_numpy(rng.random((b, 1, 1, 1)) < probability)

    gray = images.mean(1, keepdim=True).expand_as(images)
    x = torch.where(chance(augmentation.gray), gray, images)
    gamma = uniform(*np.log(augmentation.gamma), b, 1, 1, 1).exp()
    x = torch.where(chance(0.5), x.clamp(min=1e-4) ** gamma, x)
    gain = uniform(*augmentation.gain, b, 1, 1, 1)
    shift = uniform(-augmentation.offset, augmentation.offset, b, 1, 1, 1)
    x = x * gain + shift
    # Gray images stay gray: stains and lamps tint only what has colour.
    coloured = (x - x.mean(1, keepdim=True)).abs().amax((1, 2, 3), keepdim=True) > 0.02
    amount = augmentation.colour * coloured
    x = x * (1 + amount * uniform(-1, 1, b, c, 1, 1)) + amount * uniform(
        -1, 1, b, c, 1, 1
    )
    x = torch.where(chance(augmentation.invert), 1 - x, x)
    soft = chance(0.3).flatten()
    if augmentation.blur and soft.any():
        x[soft] = _blur(x[soft], float(rng.uniform(0.2, 1.0)) * augmentation.blur)
    noise = torch.from_numpy(rng.standard_normal(tuple(x.shape), dtype=np.float32))
    gray_noise = noise[:, :1].expand_as(noise)
    noise = torch.where(coloured, noise, gray_noise)
    sigma = uniform(0, augmentation.noise, b, 1, 1, 1) * chance(0.5)
    return (x + sigma * noise).clamp(-0.5, 2.0)


def _blur(images: torch.Tensor, sigma: float) -> torch.Tensor:
    reach = max(1, math.ceil(2.5 * sigma))
    steps = torch.arange(-reach, reach + 1, dtype=torch.float32)
    kernel = torch.exp(-(steps**2) / (2 * sigma**2))
    kernel = (kernel / kernel.sum()).expand(images.shape[1], 1, 1, -1)
    padded = functional.pad(images, (reach,) * 4, mode="replicate")
    rows = functional.conv2d(padded, kernel, groups=images.shape[1])
    return functional.conv2d(rows, kernel.transpose(2, 3), groups=images.shape[1])
