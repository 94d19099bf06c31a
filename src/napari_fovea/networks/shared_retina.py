"""S0 with a shared trunk: features of the image once, read anew at every fixation."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import nn
from torch.nn import functional

from napari_fovea.networks.blocks import fold, he_initialise
from napari_fovea.networks.registry import register
from napari_fovea.networks.vgg_retina import RetinaConfig

STRIDES = (2, 4, 8, 16)
"""Pixels per feature of the trunk's four scales, along each axis."""

_POINTS = 16  # places of a level: 4×4
_CENTRAL = (5, 6, 9, 10)  # those of them that the next level takes


class SharedRetinaConfig(RetinaConfig):
    """Settings of `SharedRetina`."""

    pyramid: int = Field(48, ge=1, le=512, title="Channels that fixations read")


CONFIGS: dict[str, dict[str, object]] = {
    "paper": {
        "d": 192,
        "r": 4,
        "width": 64,
        "units": 1024,
        "norm": True,
        "pyramid": 128,
    },
    "small": {"d": 64, "r": 4, "width": 32, "units": 256, "norm": True, "pyramid": 48},
}
"""Named settings: subareas and dense layers of `RetinaVGG`'s."""


@register("retina-shared", SharedRetinaConfig, system="S0", configs=CONFIGS)
class SharedRetina(nn.Module):
    """A retina that is laid on features of the image, not on its pixels.

    The first paper shows each subarea to ten convolutions; where subareas overlap,
    the same pixels are seen again and again. Here the ten convolutions see the image
    once, at strides of 2, 4, 8 and 16 pixels, coarse scales are added to finer ones,
    and a fixation reads 4×4 places of every level of the grid from the coarsest scale
    of which the level's cells hold whole features: the subarea as a retina sees it.
    Corners are pixels, so places fall between features and are interpolated.

    What is read is told twice and added: a linear reading of each cell, the same for
    all cells of a level, and two dense layers that see the whole window, as in the
    paper.

    Parameters
    ----------
    config : SharedRetinaConfig
        Settings.
    """

    multiple = STRIDES[-1]

    def __init__(self, config: SharedRetinaConfig) -> None:
        super().__init__()
        self.config = config
        self.grid = config.grid
        w, p = config.width, config.pyramid
        widths = (w, 2 * w, 4 * w, 8 * w)
        stem = [
            *_convolution(config.channels, w, config.norm, side=5, stride=2),
            *_convolution(w, w, config.norm),
        ]
        self.blocks = nn.ModuleList([nn.Sequential(*stem)])
        for width, depth in zip(widths[1:], (2, 3, 3), strict=True):
            layers: list[nn.Module] = [nn.MaxPool2d(2)]
            for i in range(depth):
                layers += _convolution(width if i else width // 2, width, config.norm)
            self.blocks.append(nn.Sequential(*layers))
        self._places = [places_of(config, level) for level in range(config.r)]
        # Scales that no level reads are not made, but coarser ones add to finer.
        read = {stride for stride, _ in self._places}
        self.across = nn.ModuleList(
            nn.Conv2d(c, p, 1) if stride >= min(read) else nn.Identity()
            for stride, c in zip(STRIDES, widths, strict=True)
        )
        self.smooth = nn.ModuleList(
            nn.Sequential(*_convolution(p, p, config.norm) if stride in read else ())
            for stride in STRIDES
        )
        n, k = self.grid.n_cells, config.classes
        self.cells = nn.ModuleList(nn.Linear(p, k) for _ in range(config.r))
        self.window = nn.Sequential(
            nn.Linear(config.r * _POINTS * p, config.units),
            nn.ReLU(inplace=True),
            nn.Linear(config.units, config.units),
            nn.ReLU(inplace=True),
            nn.Linear(config.units, n * k),
        )
        he_initialise(self)
        # Start from pmfs that are nearly uniform rather than nearly certain.
        for last in (self.window[-1], *self.cells):
            nn.init.normal_(last.weight, std=0.01)

    @property
    def reach(self) -> int:
        """Pixels beyond a place that its features depend on, a multiple of 16."""
        own = 2 + 2  # 5×5 on pixels, 3×3 at stride 2
        for stride, depth in zip(STRIDES[1:], (2, 3, 3), strict=True):
            own += stride * depth
        # A coarse feature stands for up to 15 pixels beside it, and is smoothed.
        own += 2 * STRIDES[-1]
        own += max(stride * (over - 1) for stride, over in self._places)
        return -(-own // self.multiple) * self.multiple

    def forward(
        self, images: torch.Tensor, corners: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Logits of the cells of subareas.

        Parameters
        ----------
        images : Tensor, shape (B, C, H, W)
            Any size from d×d on.
        corners : Tensor of int64, shape (B, n, 2), optional
            Top-left corners in pixels, n on each image, every subarea inside it. By
            default images are subareas of d×d, and are reflected by a quarter of that:
            the trunk was never shown where subareas end.

        Returns
        -------
        Tensor, shape (B·n, N, K)
        """
        if corners is None:
            around = self.grid.d // 4
            images = functional.pad(images, (around,) * 4, mode="reflect")
            corners = torch.full((len(images), 1, 2), around, device=images.device)
        features = self.features(images)
        count = corners.shape[1]
        index = torch.arange(len(images), device=corners.device)
        return self.read(
            features, corners.flatten(0, 1), index.repeat_interleave(count)
        )

    def features(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Compute what fixations read: for each level of the grid (B, p, h, w).

        Sides are multiples of 16 or are padded below and to the right.
        """
        height, width = images.shape[-2:]
        below, right = -height % self.multiple, -width % self.multiple
        if below or right:
            images = functional.pad(images, (0, right, 0, below), mode="replicate")
        scales, x = [], images
        for block in self.blocks:
            x = block(x)
            scales.append(x)
        levels: dict[int, torch.Tensor] = {}
        above: torch.Tensor | None = None
        finest = min(stride for stride, _ in self._places)
        for i in reversed(range(len(STRIDES))):
            if STRIDES[i] < finest:
                break
            x = self.across[i](scales[i])
            if above is not None:
                x = x + functional.interpolate(above, scale_factor=2, mode="nearest")
            above = x
            levels[STRIDES[i]] = self.smooth[i](x)
        # A cell that is larger than a feature is read as the mean of several.
        read = []
        for stride, over in self._places:
            mean = levels[stride]
            read.append(functional.avg_pool2d(mean, over, 1) if over > 1 else mean)
        return tuple(read)

    def read(
        self,
        features: tuple[torch.Tensor, ...],
        corners: torch.Tensor,
        index: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Lay the retina on features.

        Parameters
        ----------
        features : tuple of Tensor
            From `features`.
        corners : Tensor of int64, shape (n, 2)
            Top-left corners in pixels.
        index : Tensor of int64, shape (n,), optional
            Which image of the batch each lies on; by default the first.

        Returns
        -------
        Tensor, shape (n, N, K)
            Logits.
        """
        told, seen = [], []
        d = self.grid.d
        for level, (stride, over) in enumerate(self._places):
            steps = torch.arange(4, device=corners.device) - 1.5
            centres = d / 2 + (d >> (level + 2)) * steps
            # Feature i stands for pixels from i·stride on, a mean for those of several.
            where = (corners[..., None] + centres) / stride - over / 2  # (n, 2, 4)
            places = _interpolate(features[level], where, index)
            cells = self.cells[level](places)  # (n, 16, K)
            if level < self.grid.r - 1:
                outer = [i for i in range(_POINTS) if i not in _CENTRAL]
                cells = cells[:, outer]
            told.append(cells)
            seen.append(places.flatten(1))
        window: torch.Tensor = self.window(torch.cat(seen, dim=1))
        own = torch.cat(told, dim=1)
        return own + window.view_as(own)

    def folded(self) -> SharedRetina:
        """Return the same function without batch normalisation, for inference."""
        return fold(self)


def places_of(config: SharedRetinaConfig, level: int) -> tuple[int, int]:
    """Stride of the features that a level's cells are read from, and their number.

    Parameters
    ----------
    config : SharedRetinaConfig
        Settings.
    level : int
        Level of the grid, counted from 0.

    Returns
    -------
    stride, over : int
        Pixels per feature, and features along each axis that a cell is the mean of.
    """
    side = config.d >> (level + 2)
    # Whole features: a mean that reaches into the next cell would blur them.
    whole = [stride for stride in STRIDES if side % stride == 0]
    stride = whole[-1] if whole else STRIDES[0]
    return stride, max(1, round(side / stride))


def _interpolate(
    features: torch.Tensor, where: torch.Tensor, index: torch.Tensor | None
) -> torch.Tensor:
    """Read features (B, p, h, w) at 4 rows × 4 columns each, (n, 2, 4) → (n, 16, p)."""
    _, channels, height, width = features.shape
    low = where.floor()
    part = (where - low).to(features.dtype)
    low = low.long()
    rows = torch.stack([low[:, 0], low[:, 0] + 1], -1).clamp(0, height - 1)
    columns = torch.stack([low[:, 1], low[:, 1] + 1], -1).clamp(0, width - 1)
    if index is not None:
        rows = rows + (index * height)[:, None, None]
    flat = rows[:, :, None, :, None] * width + columns[:, None, :, None, :]
    down = torch.stack([1 - part[:, 0], part[:, 0]], -1)
    right = torch.stack([1 - part[:, 1], part[:, 1]], -1)
    weights = down[:, :, None, :, None] * right[:, None, :, None, :]
    # Bags of four neighbours with their weights: a bilinear reading in one call.
    read = functional.embedding_bag(
        flat.reshape(-1, 4),
        features.permute(0, 2, 3, 1).reshape(-1, channels),
        mode="sum",
        per_sample_weights=weights.reshape(-1, 4),
    )
    return read.view(len(where), _POINTS, channels)


def _convolution(
    channels: int, width: int, norm: bool, *, side: int = 3, stride: int = 1
) -> list[nn.Module]:
    convolution = nn.Conv2d(
        channels, width, side, stride=stride, padding=side // 2, bias=not norm
    )
    if norm:
        return [convolution, nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
    return [convolution, nn.ReLU(inplace=True)]
