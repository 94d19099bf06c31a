"""S1: FocusNet, a segmenting branch gated by an attention branch."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import nn
from torch.nn import functional

from napari_fovea.networks.blocks import (
    DenseConfig,
    Pointwise,
    SqueezeExcite,
    glorot_initialise,
    on_multiple,
)
from napari_fovea.networks.gates import Coefficients
from napari_fovea.networks.registry import register


class FocusNetConfig(DenseConfig):
    """Settings of `FocusNet`; the default is the published network."""

    width: int = Field(64, ge=4, le=256, multiple_of=4, title="Base channels")
    dropout: float = Field(0.2, ge=0, lt=1, title="Dropout of the attention branch")
    normalise: bool = Field(False, title="Normalise what sigmoids make gates of")


CONFIGS: dict[str, dict[str, object]] = {
    "paper": {"width": 64},
    "small": {"width": 16},
}
"""Named settings: ``paper`` is the publication's, ``small`` runs on a laptop."""


class ResidualUnit(nn.Module):
    """Two 3×3 convolutions around which the input is passed by.

    Full pre-activation: normalisation and ReLU stand before each convolution, but
    a unit that keeps the size has none before its first.
    """

    def __init__(self, channels: int, width: int, *, stride: int = 1) -> None:
        super().__init__()
        self.before = (
            nn.Sequential(nn.BatchNorm2d(channels), nn.ReLU())
            if stride > 1
            else nn.Identity()
        )
        self.first = nn.Conv2d(channels, width, 3, stride=stride, padding=1)
        self.norm = nn.BatchNorm2d(width)
        self.second = nn.Conv2d(width, width, 3, padding=1)
        same = channels == width and stride == 1
        self.shortcut = (
            nn.Identity() if same else Pointwise(channels, width, step=stride)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, channels, H, W) → (B, width, H/stride, W/stride)."""
        y = self.first(self.before(x))
        y = self.second(self.norm(y).relu())
        out: torch.Tensor = y + self.shortcut(x)
        return out


class UpStep(nn.Module):
    """Nearest doubling, a 2×2 convolution, the skip beside it, and a unit."""

    def __init__(self, channels: int, width: int, *, skip: int) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(channels, width, 2)
        self.unit = ResidualUnit(width + skip, width)

    def forward(self, x: torch.Tensor, skip: torch.Tensor) -> torch.Tensor:
        """(B, channels, H, W) and (B, skip, 2H, 2W) → (B, width, 2H, 2W)."""
        x = functional.interpolate(x, scale_factor=2, mode="nearest")
        # An even kernel needs one more row and column, here below and right.
        x = self.convolution(functional.pad(x, (0, 1, 0, 1))).relu()
        out: torch.Tensor = self.unit(torch.cat([x, skip], dim=1))
        return out


class AttentionBranch(nn.Module):
    """An autoencoder whose decoder tells where the other branch should look."""

    def __init__(self, channels: int, width: int, dropout: float) -> None:
        super().__init__()
        w = width // 2
        self.stem = nn.Sequential(
            nn.Conv2d(channels, w, 3, padding=1, bias=False),
            nn.BatchNorm2d(w),
            nn.LeakyReLU(0.3),
        )
        self.down = nn.ModuleList(
            nn.Sequential(
                ResidualUnit(w << i, w << i, stride=2),
                ResidualUnit(w << i, w << (i + 1)),
            )
            for i in range(3)
        )
        self.dropout = nn.Dropout(dropout)
        self.up = nn.ModuleList(
            [
                UpStep(8 * w, 8 * w, skip=4 * w),
                UpStep(8 * w, 4 * w, skip=2 * w),
                UpStep(4 * w, 2 * w, skip=w),
            ]
        )

    def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
        """Features of full, half and quarter size, (B, width·2ⁱ, H/2ⁱ, W/2ⁱ)."""
        features = [self.stem(image)]  # (B, width/2, H, W)
        for down in self.down:
            features.append(down(features[-1]))
        x = self.dropout(features.pop())  # (B, 4·width, H/8, W/8)
        gates = []
        for up in self.up:
            x = up(x, features.pop())
            gates.append(x)
        return gates[::-1]


class FocusScale(nn.Module):
    """One scale of the segmenting branch: unit, gate between squeezes, unit down."""

    def __init__(
        self, channels: int, width: int, *, label: str | None, normalise: bool
    ) -> None:
        super().__init__()
        self.unit = ResidualUnit(channels, width)
        self.before = SqueezeExcite(width)
        norm = normalise and label is not None
        self.norm = nn.BatchNorm2d(width) if norm else nn.Identity()
        self.coefficients = Coefficients(label, channels=width) if label else None
        self.after = SqueezeExcite(width) if label else None
        self.down = ResidualUnit(width, width, stride=2)

    def forward(self, x: torch.Tensor, gate: torch.Tensor | None) -> torch.Tensor:
        """(B, channels, H, W), gated by (B, width, H, W) → (B, width, H/2, W/2)."""
        x = self.before(self.unit(x))
        if self.coefficients is not None and self.after is not None:
            x = self.after(x * self.coefficients(self.norm(gate)))
        out: torch.Tensor = self.down(x)
        return out


class SideOutput(nn.Module):
    """A decoder stage's own opinion, at full size."""

    def __init__(
        self, channels: int, logits: int, *, scale: int, inner: int, normalise: bool
    ) -> None:
        super().__init__()
        self.scale = scale
        self.enlarged = min(scale, 3)  # see _stretched
        self.norm = nn.BatchNorm2d(channels) if normalise else nn.Identity()
        self.convolution = (
            nn.Conv2d(channels, inner, 3, padding=1) if scale > 1 else None
        )
        self.out = nn.Conv2d(inner if scale > 1 else channels, logits, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, channels, H/scale, W/scale) → probabilities (B, logits, H, W)."""
        x = self.norm(x)
        if self.convolution is not None:
            x = functional.interpolate(x, scale_factor=self.enlarged, mode="nearest")
            x = self.convolution(x).relu()
        x = self.out(x)
        x = x.sigmoid() if x.shape[1] == 1 else x.softmax(1)
        return self._stretched(x) if self.scale > self.enlarged else x

    def _stretched(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, 3h, 3w) → (B, C, scale·h, scale·w), the middle of each three repeated.

        A 3×3 convolution of features enlarged by more than three gives every pixel
        between the first and the last of a feature's own the same; so once is enough.
        """
        times = torch.tensor([1, self.scale - 2, 1], device=x.device)
        for dim in (2, 3):
            n = x.shape[dim] // 3
            size = n * self.scale
            x = x.repeat_interleave(times.repeat(n), dim, output_size=size)
        return x


@register("focusnet", FocusNetConfig, system="S1", configs=CONFIGS)
class FocusNet(nn.Module):
    """Two branches: one attends, its features gate the other, which segments.

    Parameters
    ----------
    config : FocusNetConfig
        Settings.
    """

    multiple = 16

    def __init__(self, config: FocusNetConfig) -> None:
        super().__init__()
        self.config = config
        w, k = config.width, config.logits
        self.attention = AttentionBranch(config.channels, w, config.dropout)
        self.stem = nn.Sequential(
            nn.Conv2d(config.channels, w, 7, padding=3), nn.BatchNorm2d(w), nn.ReLU()
        )
        self.scales = nn.ModuleList(
            FocusScale(
                w << max(0, i - 1),
                w << i,
                label=f"gate 1/{1 << i}" if i < 3 else None,
                normalise=config.normalise,
            )
            for i in range(4)
        )
        self.up = nn.ModuleList(
            [
                UpStep(8 * w, 4 * w, skip=4 * w),
                UpStep(4 * w, 2 * w, skip=2 * w),
                UpStep(2 * w, w, skip=w),
                UpStep(w, w // 2, skip=w),
            ]
        )
        last = max(4, w // 16)
        self.refine = nn.Sequential(
            ResidualUnit(w // 2, w // 4), ResidualUnit(w // 4, last)
        )
        inner = w // 2
        self.sides = nn.ModuleList(
            SideOutput(c, k, scale=s, inner=inner, normalise=config.normalise)
            for c, s in ((4 * w, 8), (2 * w, 4), (w, 2), (last, 1))
        )
        self.join = nn.Conv2d(4 * k, inner, 3, padding=1)
        self.out = nn.Conv2d(inner, k, 1)
        glorot_initialise(self)  # as the released code, by its framework's default

    @property
    def taps(self) -> dict[str, int]:
        """Parts whose feature maps tell most, and their channels."""
        w = self.config.width
        own = {"stem": w, "scales.0.unit": w, "up.0": 4 * w, "up.1": 2 * w, "up.2": w}
        return {**own, "refine": max(4, w // 16), "join": w // 2}

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Logits (B, 1 or K, H, W) of images (B, C, H, W) of any size."""
        return on_multiple(self._forward, image, self.multiple)

    def _forward(self, image: torch.Tensor) -> torch.Tensor:
        gates = [*self.attention(image), None]
        x = self.stem(image)  # (B, w, H, W)
        skips = [x]
        for scale, gate in zip(self.scales, gates, strict=True):
            x = scale(x, gate)
            skips.append(x)
        skips.pop()  # (B, 8w, H/16, W/16) is where the decoder starts
        stages = []
        for up in self.up:
            x = up(x, skips.pop())
            stages.append(x)
        stages[-1] = self.refine(stages[-1])
        sides = [side(x) for side, x in zip(self.sides, stages, strict=True)]
        x = self.join(torch.cat(sides, dim=1)).relu()  # (B, w/2, H, W)
        logits: torch.Tensor = self.out(x)
        return logits
