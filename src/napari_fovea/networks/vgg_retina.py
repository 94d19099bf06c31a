"""S0's networks: a VGG that tells every cell's pmf, or only the central class."""

from __future__ import annotations

import torch
from pydantic import Field, model_validator
from torch import nn

from napari_fovea.networks.blocks import fold, he_initialise
from napari_fovea.networks.registry import NetworkConfig, register
from napari_fovea.retina.grid import RetinaGrid


class VGGConfig(NetworkConfig):
    """What the networks share that look at one subarea at a time."""

    d: int = Field(192, ge=4, le=1024, title="Side of a subarea in pixels")
    width: int = Field(64, ge=1, le=256, title="Channels of the first block")
    units: int = Field(1024, ge=1, le=8192, title="Units of the two dense layers")
    norm: bool = Field(False, title="Batch normalisation")


class RetinaConfig(VGGConfig):
    """Settings of `RetinaVGG`; the defaults are the paper's."""

    r: int = Field(4, ge=1, le=8, title="Resolution level")

    @model_validator(mode="after")
    def _legal_grid(self) -> RetinaConfig:
        _ = self.grid
        return self

    @property
    def grid(self) -> RetinaGrid:
        """The cells whose pmfs the network tells."""
        return RetinaGrid(self.d, self.r)


CONFIGS: dict[str, dict[str, object]] = {
    "paper": {"d": 192, "r": 4, "width": 64, "units": 1024, "norm": False},
    "small": {"d": 64, "r": 4, "width": 24, "units": 512, "norm": True},
}
"""Named settings: ``paper`` is the publication's, ``small`` runs on a laptop."""


@register("retina-vgg", RetinaConfig, system="S0", configs=CONFIGS)
class RetinaVGG(nn.Module):
    """VGG-16 with ten convolutions, two dense layers and N × K outputs.

    Parameters
    ----------
    config : RetinaConfig
        Settings.
    """

    def __init__(self, config: RetinaConfig) -> None:
        super().__init__()
        self.config = config
        self.grid = config.grid
        self.features, self.head = vgg(
            config, outputs=self.grid.n_cells * config.classes
        )

    def forward(self, crops: torch.Tensor) -> torch.Tensor:
        """Logits (B, N, K) of the cells of crops (B, C, d, d)."""
        x = self.features(crops)  # (B, 8·width, d/16, d/16)
        x = self.head(x)  # (B, N·K)
        logits: torch.Tensor = x.unflatten(1, (self.grid.n_cells, self.config.classes))
        return logits

    def folded(self) -> RetinaVGG:
        """Return the same function without batch normalisation, for inference."""
        return fold(self)


class PatchCenterConfig(VGGConfig):
    """Settings of `PatchCenter`."""

    step: int = Field(
        4, ge=1, le=64, title="Pixels between the patches that are classified"
    )


PATCH_CONFIGS: dict[str, dict[str, object]] = {
    "paper": {"d": 96},
    "small": {"d": 64, "width": 16, "units": 256, "norm": True},
}
"""Named settings of `PatchCenter`; the paper's best patch has 96 pixels."""


@register("patch-center", PatchCenterConfig, system="S0", configs=PATCH_CONFIGS)
class PatchCenter(nn.Module):
    """The same VGG, telling only the class of the patch's central pixel.

    Parameters
    ----------
    config : PatchCenterConfig
        Settings.
    """

    def __init__(self, config: PatchCenterConfig) -> None:
        super().__init__()
        self.config = config
        self.features, self.head = vgg(config, outputs=config.classes)

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        """Logits (B, K) of patches (B, C, d, d)."""
        logits: torch.Tensor = self.head(self.features(patches))
        return logits


def vgg(config: VGGConfig, *, outputs: int) -> tuple[nn.Sequential, nn.Sequential]:
    """Build ten convolutions in four blocks, and the dense layers after them."""
    layers: list[nn.Module] = []
    channels, side = config.channels, config.d
    for block, depth in enumerate((2, 2, 3, 3)):
        for _ in range(depth):
            layers += _convolution(channels, config.width << block, config.norm)
            channels = config.width << block
        layers.append(nn.MaxPool2d(2, ceil_mode=True))
        side = -(-side // 2)
    head = nn.Sequential(
        nn.Flatten(),
        nn.Linear(channels * side**2, config.units),
        nn.ReLU(inplace=True),
        nn.Linear(config.units, config.units),
        nn.ReLU(inplace=True),
        nn.Linear(config.units, outputs),
    )
    features = nn.Sequential(*layers)
    he_initialise(features)
    he_initialise(head)
    # Start from pmfs that are nearly uniform rather than nearly certain.
    nn.init.normal_(head[-1].weight, std=0.01)  # type: ignore[arg-type]
    return features, head


def _convolution(channels: int, width: int, norm: bool) -> list[nn.Module]:
    convolution = nn.Conv2d(channels, width, 3, padding=1, bias=not norm)
    if norm:
        return [convolution, nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
    return [convolution, nn.ReLU(inplace=True)]
