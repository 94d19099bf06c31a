"""Feature pyramid whose top-down blocks carry residual attention."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional

from napari_fovea.networks.gates import Coefficients

if TYPE_CHECKING:
    from collections.abc import Sequence

    from napari_fovea.networks.mask_rcnn.config import Attention


class AdditiveAttention(nn.Module):
    r"""Coefficients of a finer feature x by a coarser one y.

    .. math::

        \alpha = \sigma(\psi(\mathrm{ReLU}(\theta(x) + \phi(y)))) \quad (2)
        \qquad
        \alpha = \sigma(\psi(\mathrm{ReLU}([\theta(x), \phi(y)]))) \quad (6)

    Parameters
    ----------
    x, y : int
        Channels of the two features.
    inner : int
        Output channels of θ, φ and ψ, and so of α.
    concat : bool
        Whether (6) holds instead of (2).
    label : str
        Name of the coefficients.
    """

    def __init__(self, x: int, y: int, *, inner: int, concat: bool, label: str) -> None:
        super().__init__()
        self.concat = concat
        self.theta = nn.Conv2d(x, inner, 1)
        self.phi = nn.Conv2d(y, inner, 1)
        self.psi = nn.Conv2d(2 * inner if concat else inner, inner, 1)
        self.coefficients = Coefficients(label, channels=inner)

    @torch.no_grad()
    def make_positive(self) -> None:
        """Make the weights of θ and φ positive."""
        self.theta.weight.abs_()
        self.phi.weight.abs_()

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """α (B, inner, H, W) of x (B, ·, H, W) and y (B, ·, H/2, W/2)."""
        theta, phi = self.theta(x), upsample(self.phi(y))  # (B, inner, H, W)
        both = torch.cat((theta, phi), 1) if self.concat else theta + phi
        alpha: torch.Tensor = self.coefficients(self.psi(both.relu()))
        return alpha


class TopDownBlock(nn.Module):
    r"""A step down the pyramid, equation (4).

    .. math::

        z = h(\gamma \, \alpha(x, y) \, g(x) + g(x) + q(y))

    x is the lateral feature that the skip connection passes on, y the level above,
    twice as coarse. A γ of 0 leaves a plain feature pyramid, from which training
    moves it away.

    Parameters
    ----------
    x, y : int
        Channels of the two features.
    out : int
        N, the channels of z.
    attention : str
        ``"none"`` drops the first term; ``"no-gamma"`` has γ ≡ 1; ``"pixel"`` has
        one coefficient for all channels of a pixel; ``"concat"`` takes (6) for α;
        ``"proposed"`` is (4) with one coefficient per pixel and channel.
    label : str
        Name of the coefficients.
    """

    gamma: nn.Parameter | None

    def __init__(
        self, x: int, y: int, *, out: int, attention: Attention, label: str
    ) -> None:
        super().__init__()
        self.label = label
        self.g = nn.Conv2d(x, out, 1)
        self.q = nn.Conv2d(y, out, 1)
        self.h = nn.Conv2d(out, out, 3, padding=1)
        self.attention: AdditiveAttention | None = None
        if attention != "none":
            inner = 1 if attention == "pixel" else out
            self.attention = AdditiveAttention(
                x, y, inner=inner, concat=attention == "concat", label=label
            )
        learns = attention not in ("none", "no-gamma")
        self.gamma = nn.Parameter(torch.zeros(())) if learns else None

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Z (B, out, H, W) of x (B, ·, H, W) and y (B, ·, H/2, W/2)."""
        g = self.g(x)  # (B, out, H, W)
        # 1 × 1 convolutions and nearest upsampling commute; this order is cheaper.
        total = g + upsample(self.q(y))
        if self.attention is not None:
            weighed = self.attention(x, y) * g  # (B, out, H, W)
            total = total + (weighed if self.gamma is None else self.gamma * weighed)
        z: torch.Tensor = self.h(total)
        return z


class AttentionFPN(nn.Module):
    """P2, P3, P4 from C2 … C5 by three top-down blocks, the first one upon C5.

    Parameters
    ----------
    channels : sequence of int
        Channels of C2, C3, C4 and C5.
    out : int
        N, the channels of every level.
    attention : str
        Variant; see `TopDownBlock`.
    """

    def __init__(
        self, channels: Sequence[int], *, out: int, attention: Attention
    ) -> None:
        super().__init__()
        above = (out, out, channels[3])
        self.blocks = nn.ModuleList(
            TopDownBlock(
                channels[i],
                above[i],
                out=out,
                attention=attention,
                label=f"pyramid attention P{i + 2}",
            )
            for i in range(3)
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_uniform_(module.weight, a=1)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        if attention == "pixel":
            # A single channel of either sign lets ReLU silence half of all gates
            # for good. Features are positive, so positive weights keep it alive.
            for module in self.modules():
                if isinstance(module, AdditiveAttention):
                    module.make_positive()

    def forward(self, features: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """P2, P3, P4 (B, out, H/4 … H/16, ·) of C2 … C5."""
        z = features[3]  # (B, ·, H/32, W/32)
        levels = []
        for block, x in zip(reversed(self.blocks), features[2::-1], strict=True):
            z = block(x, z)  # (B, out, H/16, ·), then H/8, then H/4
            levels.append(z)
        return levels[::-1]


def upsample(x: torch.Tensor) -> torch.Tensor:
    """Double the side of x (B, C, H, W) by repetition; h smooths afterwards."""
    return functional.interpolate(x, scale_factor=2.0, mode="nearest")
