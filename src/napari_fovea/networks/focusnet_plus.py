"""S3: FocusNet++, residual group attention at every scale."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field, field_validator, model_validator
from torch import nn
from torch.nn import functional

from napari_fovea.networks.blocks import (
    DenseConfig,
    SqueezeExcite,
    glorot_initialise,
    on_multiple,
)
from napari_fovea.networks.gates import Coefficients
from napari_fovea.networks.registry import register

_SLOPE = 0.3


class FocusNetPlusConfig(DenseConfig):
    """Settings of `FocusNetPlus`; the default is the released network."""

    stem: int = Field(32, ge=4, le=512, multiple_of=4, title="Stem channels")
    widths: tuple[int, ...] = Field(
        (48, 96, 156, 256, 512),
        min_length=2,
        max_length=7,
        title="Channels of each scale, the last is the bottleneck",
    )
    units: tuple[int, ...] = Field(
        (1, 3, 3, 3, 2),
        min_length=2,
        max_length=7,
        title="Units of the encoder at each scale; the decoder has one each",
    )
    squeeze: bool = Field(False, title="Squeeze and excitation in every unit")
    side: int = Field(32, ge=4, le=256, title="Channels of the finest low side output")
    last: tuple[Annotated[int, Field(ge=1, le=512)], ...] = Field(
        (16, 9, 3), max_length=8, title="Convolutions before the full-size side output"
    )
    dropout: float = Field(0.2, ge=0, lt=1, title="Dropout of the bottleneck")

    @field_validator("widths")
    @classmethod
    def _four_groups(cls, widths: tuple[int, ...]) -> tuple[int, ...]:
        odd = [w for w in widths if w < 4 or w % 4 or w > 2048]
        if odd:
            raise ValueError(f"width {odd[0]} does not divide into four groups")
        return widths

    @field_validator("units")
    @classmethod
    def _some_units(cls, units: tuple[int, ...]) -> tuple[int, ...]:
        if any(not 1 <= n <= 16 for n in units):
            raise ValueError("every scale needs 1 to 16 units")
        return units

    @model_validator(mode="after")
    def _units_of_every_scale(self) -> FocusNetPlusConfig:
        if len(self.units) != len(self.widths):
            raise ValueError(f"{len(self.units)} units for {len(self.widths)} widths")
        return self


CONFIGS: dict[str, dict[str, object]] = {
    "released": {},
    "paper": {
        "widths": (32, 64, 128, 192, 256),
        "units": (1, 1, 1, 1, 1),
        "squeeze": True,
    },
    "small": {
        # Four groups of 4, 8, 16 …: of other sizes normalisation is far slower.
        "stem": 16,
        "widths": (16, 32, 64, 128, 256),
        "units": (1, 1, 2, 3, 2),
        "squeeze": True,
        "side": 16,
        "last": (),
    },
}
"""Named settings: the authors' code, the publication's text, and a small one."""


def _normed(channels: int) -> list[nn.Module]:
    return [nn.BatchNorm2d(channels), nn.LeakyReLU(_SLOPE)]


def _chunks(x: torch.Tensor) -> list[torch.Tensor]:
    """Divide channels into four groups, each of which lies together in memory.

    As slices of x they would be scattered, where normalisation is slow.
    """
    last = x.is_contiguous(memory_format=torch.channels_last)
    layout = torch.channels_last if last else torch.contiguous_format
    return [group.contiguous(memory_format=layout) for group in x.chunk(4, dim=1)]


def _double(channels: int) -> nn.Sequential:
    """Two BN-LeakyReLU-3×3."""
    return nn.Sequential(
        *_normed(channels),
        nn.Conv2d(channels, channels, 3, padding=1),
        *_normed(channels),
        nn.Conv2d(channels, channels, 3, padding=1),
    )


class GroupPair(nn.Module):
    """Two groups of channels, the first of which attends to the second."""

    def __init__(self, channels: int, *, label: str) -> None:
        super().__init__()
        self.attention = nn.Sequential(
            _double(channels), nn.Conv2d(channels, channels, 1)
        )
        self.coefficients = Coefficients(label, channels=channels)
        self.residual = _double(channels)
        self.skip = nn.Sequential(nn.Conv2d(channels, channels, 1), *_normed(channels))
        self.out = nn.Sequential(
            nn.Conv2d(channels, 2 * channels, 1), *_normed(2 * channels)
        )

    def forward(self, attending: torch.Tensor, attended: torch.Tensor) -> torch.Tensor:
        """Two groups (B, g, H, W) → (B, 2g, H, W)."""
        alpha = self.coefficients(self.attention(attending))
        x = self.residual(attended) + self.skip(attended)
        out: torch.Tensor = self.out(alpha * x)
        return out


class GroupAttentionUnit(nn.Module):
    """Residual group attention: half of the channels decide what the others pass."""

    def __init__(self, channels: int, width: int, *, squeeze: bool, label: str) -> None:
        super().__init__()
        self.enter = nn.Conv2d(channels, channels, 1)
        self.pairs = nn.ModuleList(
            GroupPair(channels // 4, label=f"{label} {part}") for part in "ab"
        )
        self.leave = nn.Sequential(nn.Conv2d(channels, width, 1), nn.BatchNorm2d(width))
        self.squeeze = SqueezeExcite(width) if squeeze else nn.Identity()
        self.shortcut = (
            nn.Identity()
            if channels == width
            else nn.Sequential(nn.Conv2d(channels, width, 1), nn.BatchNorm2d(width))
        )
        self.activation = nn.LeakyReLU(_SLOPE)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, channels, H, W) → (B, width, H, W)."""
        one, two, three, four = _chunks(self.enter(x))  # (B, channels/4, H, W)
        first, second = self.pairs
        y = torch.cat([first(one, two), second(three, four)], dim=1)
        y = self.squeeze(self.leave(y))  # (B, width, H, W)
        out: torch.Tensor = self.activation(y + self.shortcut(x))
        return out


class SideOutput(nn.Module):
    """A decoder stage's own opinion, at full size."""

    def __init__(self, channels: int, inner: int, *, logits: int, scale: int) -> None:
        super().__init__()
        self.up = nn.Upsample(scale_factor=scale, mode="nearest")
        self.inner = nn.Sequential(nn.Conv2d(channels, inner, 1), *_normed(inner))
        self.out = nn.Conv2d(inner, logits, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, channels, H/scale, W/scale) → probabilities (B, logits, H, W)."""
        # Point by point, so the order does not matter and small maps cost less.
        return self.up(_activated(self.out(self.inner(x))))  # type: ignore[no-any-return]


def _activated(logits: torch.Tensor) -> torch.Tensor:
    return logits.sigmoid() if logits.shape[1] == 1 else logits.softmax(1)


@register("focusnet-plus", FocusNetPlusConfig, system="S3", configs=CONFIGS)
class FocusNetPlus(nn.Module):
    """U-shaped network of residual group attention units with joined side outputs.

    Parameters
    ----------
    config : FocusNetPlusConfig
        Settings.
    """

    def __init__(self, config: FocusNetPlusConfig) -> None:
        super().__init__()
        self.config = config
        k, widths, depth = config.logits, config.widths, len(config.widths)
        self.multiple = 1 << (depth - 1)
        self.stem = nn.Conv2d(config.channels, config.stem, 5, padding=2)

        def units(channels: int, width: int, count: int, label: str) -> nn.Sequential:
            return nn.Sequential(
                *(
                    GroupAttentionUnit(
                        width if i else channels,
                        width,
                        squeeze=config.squeeze,
                        label=f"{label} unit {i + 1}",
                    )
                    for i in range(count)
                )
            )

        before = (config.stem, *widths[:-1])
        self.encoder = nn.ModuleList(
            units(b, w, n, f"encoder 1/{1 << i}")
            for i, (b, w, n) in enumerate(
                zip(before, widths, config.units, strict=True)
            )
        )
        self.dropout = nn.Dropout(config.dropout)
        self.decoder = nn.ModuleList()
        self.merge = nn.ModuleList()
        for i in reversed(range(depth - 1)):
            self.decoder.append(
                units(widths[i + 1], widths[i], 1, f"decoder 1/{1 << i}")
            )
            if i:  # at full size the convolutions of the last output follow at once
                self.merge.append(nn.Conv2d(widths[i], widths[i], 3, padding=1))
        self.sides = nn.ModuleList(
            SideOutput(widths[i], config.side << (i - 1), logits=k, scale=1 << i)
            for i in reversed(range(1, depth - 1))
        )
        last: list[nn.Module] = []
        width = widths[0]
        for narrower in config.last:
            last += [nn.Conv2d(width, narrower, 3, padding=1), nn.ReLU()]
            width = narrower
        self.last = nn.Sequential(*last, nn.Conv2d(width, k, 1))
        joined = (depth - 1) * k
        self.join = nn.Sequential(nn.Conv2d(joined, 32, 1), *_normed(32))
        self.out = nn.Conv2d(32, k, 1)
        glorot_initialise(self)  # as the released code, by its framework's default

    @property
    def taps(self) -> dict[str, int]:
        """Parts whose feature maps tell most, and their channels."""
        widths = self.config.widths
        names = (f"decoder.{i}" for i in range(len(self.decoder)))
        decoder = dict(zip(names, widths[-2::-1], strict=True))
        return {"stem": self.config.stem, "encoder.0": widths[0], **decoder, "join": 32}

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Logits (B, 1 or K, H, W) of images (B, C, H, W) of any size."""
        return on_multiple(self._forward, image, self.multiple)

    def _forward(self, image: torch.Tensor) -> torch.Tensor:
        x = self.stem(image)  # (B, stem, H, W)
        skips = []
        for i, units in enumerate(self.encoder):
            x = units(functional.max_pool2d(x, 2) if i else x)
            skips.append(x)  # (B, widths[i], H/2ⁱ, W/2ⁱ)
        x = self.dropout(skips.pop())
        stages = []
        for i, units in enumerate(self.decoder):
            x = units(functional.interpolate(x, scale_factor=2, mode="nearest"))
            x = x + skips.pop()
            if i < len(self.merge):
                x = self.merge[i](x).relu()
            stages.append(x)
        sides = [side(x) for side, x in zip(self.sides, stages, strict=False)]
        sides.append(_activated(self.last(stages[-1])))
        logits: torch.Tensor = self.out(self.join(torch.cat(sides, dim=1)))
        return logits
