"""The U-Net that S0's paper compares with, on patches and on whole images."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import nn
from torch.nn import functional

from napari_fovea.networks.blocks import (
    DenseConfig,
    he_initialise,
    on_multiple,
)
from napari_fovea.networks.registry import register


class UNetConfig(DenseConfig):
    """Settings of `UNet`; the default is the original's size."""

    width: int = Field(64, ge=1, le=256, title="Channels of the first block")
    depth: int = Field(5, ge=2, le=7, title="Scales, the bottleneck included")
    norm: bool = Field(True, title="Batch normalisation")


CONFIGS: dict[str, dict[str, object]] = {
    "paper": {"norm": False},
    "small": {"width": 16, "depth": 5},
}
"""Named settings: ``paper`` is the original's, ``small`` runs on a laptop."""


@register("unet", UNetConfig, system="S0", configs=CONFIGS)
class UNet(nn.Module):
    """Two 3×3 convolutions per scale, max-pooling down, skips concatenated.

    Parameters
    ----------
    config : UNetConfig
        Settings.
    """

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config = config
        widths = [config.width << i for i in range(config.depth)]
        self.multiple = 1 << (config.depth - 1)
        self.encoder = nn.ModuleList(
            _double(before, width, config.norm)
            for before, width in zip(
                [config.channels, *widths[:-1]], widths, strict=True
            )
        )
        self.up = nn.ModuleList(
            nn.ConvTranspose2d(2 * w, w, 2, stride=2) for w in widths[-2::-1]
        )
        self.decoder = nn.ModuleList(
            _double(2 * w, w, config.norm) for w in widths[-2::-1]
        )
        self.out = nn.Conv2d(widths[0], config.logits, 1)
        he_initialise(self)

    @property
    def taps(self) -> dict[str, int]:
        """Parts whose feature maps tell most, and their channels."""
        widths = [self.config.width << i for i in range(self.config.depth)]
        names = (f"decoder.{i}" for i in range(len(self.decoder)))
        return {"encoder.0": widths[0], **dict(zip(names, widths[-2::-1], strict=True))}

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Logits (B, 1 or K, H, W) of images (B, C, H, W) of any size."""
        return on_multiple(self._forward, image, self.multiple)

    def _forward(self, x: torch.Tensor) -> torch.Tensor:
        skips = []
        for i, block in enumerate(self.encoder):
            x = block(functional.max_pool2d(x, 2) if i else x)
            skips.append(x)  # (B, width·2ⁱ, H/2ⁱ, W/2ⁱ)
        skips.pop()
        for up, block in zip(self.up, self.decoder, strict=True):
            x = block(torch.cat([skips.pop(), up(x)], dim=1))
        logits: torch.Tensor = self.out(x)
        return logits


def _double(channels: int, width: int, norm: bool) -> nn.Sequential:
    layers: list[nn.Module] = []
    for before in (channels, width):
        layers.append(nn.Conv2d(before, width, 3, padding=1, bias=not norm))
        if norm:
            layers.append(nn.BatchNorm2d(width))
        layers.append(nn.ReLU(inplace=True))
    return nn.Sequential(*layers)
