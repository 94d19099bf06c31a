"""Heads upon the pyramid: proposals, boxes and classes, masks."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from collections.abc import Sequence

BOX_SIZE = 7
"""Bins along each side of the features that the box head sees."""


class ProposalHead(nn.Module):
    """Region proposal network: the same few convolutions on every level.

    Parameters
    ----------
    channels : int
        N, the channels of the pyramid.
    anchors : int
        A, the anchors per cell.
    """

    def __init__(self, channels: int, *, anchors: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.objectness = nn.Conv2d(channels, anchors, 1)
        self.offsets = nn.Conv2d(channels, 4 * anchors, 1)
        for layer in (self.conv, self.objectness, self.offsets):
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
        # Without normalisation 0.01 throughout would let hardly a signal through.
        nn.init.kaiming_normal_(self.conv.weight, nonlinearity="relu")

    def forward(
        self, pyramid: Sequence[torch.Tensor]
    ) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Logits (B, H·W·A) and offsets (B, H·W·A, 4) of every level (B, N, H, W)."""
        logits, offsets = [], []
        for features in pyramid:
            x = self.conv(features).relu()  # (B, N, H, W)
            o = self.objectness(x).permute(0, 2, 3, 1)  # (B, H, W, A)
            d = self.offsets(x).permute(0, 2, 3, 1)  # (B, H, W, 4·A)
            logits.append(o.flatten(1).float())
            offsets.append(d.reshape(len(d), -1, 4).float())
        return logits, offsets


class BoxHead(nn.Module):
    """Class and box of every region, by two dense layers.

    Parameters
    ----------
    channels : int
        N, the channels of the pyramid.
    width : int
        Units of the dense layers.
    classes : int
        K, background included.
    """

    def __init__(self, channels: int, *, width: int, classes: int) -> None:
        super().__init__()
        self.classes = classes
        self.dense1 = nn.Linear(channels * BOX_SIZE**2, width)
        self.dense2 = nn.Linear(width, width)
        self.logits = nn.Linear(width, classes)
        self.offsets = nn.Linear(width, 4 * classes)
        for layer, std in ((self.logits, 0.01), (self.offsets, 0.001)):
            nn.init.normal_(layer.weight, std=std)
            nn.init.zeros_(layer.bias)
        for layer in (self.dense1, self.dense2):
            nn.init.kaiming_uniform_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)

    def forward(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits (R, K) and offsets (R, K, 4) of features (R, N, 7, 7)."""
        x = features.flatten(1)  # (R, 49·N)
        x = self.dense1(x).relu()
        x = self.dense2(x).relu()  # (R, width)
        logits, offsets = self.logits(x).float(), self.offsets(x).float()
        return logits, offsets.view(-1, self.classes, 4)


class MaskHead(nn.Sequential):
    """A mask per class of every region, at twice the resolution of its features.

    Turns features (R, N, m/2, m/2) into logits (R, K, m, m).

    Parameters
    ----------
    channels : int
        N, the channels of the pyramid.
    width : int
        Channels of the convolutions.
    layers : int
        How many of them there are before the transposed one.
    classes : int
        K, background included, whose mask means nothing.
    """

    def __init__(self, channels: int, *, width: int, layers: int, classes: int) -> None:
        modules: list[nn.Module] = []
        for _ in range(layers):
            modules += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU(inplace=True)]
            channels = width
        modules += [nn.ConvTranspose2d(channels, width, 2, 2), nn.ReLU(inplace=True)]
        super().__init__(*modules, nn.Conv2d(width, classes, 1))
        for module in self:
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                nn.init.kaiming_normal_(
                    module.weight, mode="fan_out", nonlinearity="relu"
                )
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]
        nn.init.normal_(self[-1].weight, std=0.01)  # type: ignore[arg-type]
