"""S2: the recurrent residual U-Net with attention gates, and its ablations."""

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
from napari_fovea.networks.gates import AdditiveGate
from napari_fovea.networks.registry import register


class R2AttentionUNetConfig(DenseConfig):
    """Settings of `R2AttentionUNet`; the default is the published network."""

    width: int = Field(64, ge=1, le=256, title="Channels of the first block")
    depth: int = Field(5, ge=2, le=7, title="Scales, the bottleneck included")
    steps: int = Field(2, ge=0, le=5, title="Steps of the recurrence; 0 leaves it out")
    residual: bool = Field(True, title="Residual connection around every block")
    attention: bool = Field(True, title="Attention gates on the deeper skips")


CONFIGS: dict[str, dict[str, object]] = {
    "paper": {},
    "no-attention": {"attention": False},
    "no-residual": {"residual": False},
    "plain": {"steps": 0, "residual": False, "attention": False},
    "small": {"width": 16},
}
"""Named settings: the publication's, its ablations, and one for a laptop."""


class RecurrentConvolution(nn.Module):
    r"""A convolution that sees its own output of the step before.

    .. math::

        z(t) = \theta^g * x + \theta^r * p(t-1) + b, \quad
        p(t) = \mathrm{BN}(\mathrm{ReLU}(z(t)))

    Equations (4) and (5), with p(-1) = 0. The weights are the same at every step;
    the normalisation is each step's own, as features grow from step to step.
    """

    def __init__(self, channels: int, width: int, *, steps: int) -> None:
        super().__init__()
        self.forward_weights = nn.Conv2d(channels, width, 3, padding=1)
        self.recurrent_weights = (
            nn.Conv2d(width, width, 3, padding=1, bias=False) if steps else None
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for _ in range(steps + 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, channels, H, W) → (B, width, H, W)."""
        fed = self.forward_weights(x)  # the same at every step
        p: torch.Tensor = self.norms[0](fed.relu())
        if self.recurrent_weights is not None:
            for norm in self.norms[1:]:
                p = norm((fed + self.recurrent_weights(p)).relu())
        return p


class Block(nn.Module):
    """Two recurrent convolutions, and the projected input added (equation 7)."""

    def __init__(
        self, channels: int, width: int, *, steps: int, residual: bool
    ) -> None:
        super().__init__()
        self.project = nn.Conv2d(channels, width, 1) if residual else None
        self.convolutions = nn.Sequential(
            RecurrentConvolution(width if residual else channels, width, steps=steps),
            RecurrentConvolution(width, width, steps=steps),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, channels, H, W) → (B, width, H, W)."""
        if self.project is None:
            return self.convolutions(x)  # type: ignore[no-any-return]
        x = self.project(x)
        out: torch.Tensor = x + self.convolutions(x)
        return out


@register("r2-attention-unet", R2AttentionUNetConfig, system="S2", configs=CONFIGS)
class R2AttentionUNet(nn.Module):
    """U-Net of recurrent residual blocks whose deeper skips pass attention gates.

    Parameters
    ----------
    config : R2AttentionUNetConfig
        Settings.
    """

    def __init__(self, config: R2AttentionUNetConfig) -> None:
        super().__init__()
        self.config = config
        widths = [config.width << i for i in range(config.depth)]
        self.multiple = 1 << (config.depth - 1)

        def block(channels: int, width: int) -> Block:
            return Block(channels, width, steps=config.steps, residual=config.residual)

        self.encoder = nn.ModuleList(
            block(before, width)
            for before, width in zip(
                [config.channels, *widths[:-1]], widths, strict=True
            )
        )
        self.up = nn.ModuleList()
        self.gates = nn.ModuleList()
        self.decoder = nn.ModuleList()
        for i in reversed(range(config.depth - 1)):
            w = widths[i]
            self.up.append(nn.ConvTranspose2d(2 * w, w, 2, stride=2))
            # The shallowest features are not mature enough to be gated.
            if i and config.attention:
                gate: nn.Module = AdditiveGate(
                    w, signal=w, inner=max(1, w // 2), label=f"skip 1/{1 << i}"
                )
            else:
                gate = Plain()
            self.gates.append(gate)
            self.decoder.append(block(2 * w, w))
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
        for up, gate, block in zip(self.up, self.gates, self.decoder, strict=True):
            g = up(x)  # (B, width·2ⁱ, H/2ⁱ, W/2ⁱ)
            x = block(torch.cat([gate(skips.pop(), g), g], dim=1))
        logits: torch.Tensor = self.out(x)
        return logits


class Plain(nn.Module):
    """A skip that passes everything."""

    def forward(self, x: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
        """Return x as it is; the gating signal is not asked."""
        return x
