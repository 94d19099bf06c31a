"""Parts that networks of several papers share."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_eval

from napari_fovea.networks.registry import NetworkConfig

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


Network = TypeVar("Network", bound=nn.Module)


class DenseConfig(NetworkConfig):
    """What networks share that give every pixel its logits."""

    @property
    def logits(self) -> int:
        """Outputs per pixel: one (sigmoid) for two classes, else one each (soft-max).

        Two classes need one number: how much the foreground outweighs the ground.
        """
        return 1 if self.classes == 2 else self.classes


def probabilities(logits: torch.Tensor) -> torch.Tensor:
    """Class probabilities (B, K, H, W) from logits (B, 1 or K, H, W), in float32."""
    logits = logits.float()
    if logits.shape[1] == 1:
        foreground = logits.sigmoid()
        return torch.cat([1 - foreground, foreground], dim=1)
    return logits.softmax(1)


def on_multiple(
    forward: Callable[[torch.Tensor], torch.Tensor], image: torch.Tensor, multiple: int
) -> torch.Tensor:
    """Run a network on an image padded to a multiple, and crop what comes out.

    Parameters
    ----------
    forward : callable
        (B, C, H, W) → (B, K, H, W), for sizes that are multiples.
    image : Tensor, shape (B, C, H, W)
        Any size.
    multiple : int
        What the network's sides must divide by. Edges are repeated to the right
        and below. Sides are at least twice this, or the coarsest features would be
        a single pixel, of which normalisation learns nothing.
    """
    height, width = image.shape[-2:]
    least = 2 * multiple
    below = max(least - height, -height % multiple)
    right = max(least - width, -width % multiple)
    if below or right:
        image = functional.pad(image, (0, right, 0, below), mode="replicate")
    return forward(image)[..., :height, :width]


def fold(network: Network) -> Network:
    """Copy a network, each batch normalisation made part of the convolution before it.

    That changes the outputs by rounding only, and saves a pass over every feature.
    """
    folded = copy.deepcopy(network).eval().requires_grad_(False)
    for part in folded.modules():
        if not isinstance(part, nn.Sequential):
            continue
        for i in range(len(part) - 1):
            layer, norm = part[i], part[i + 1]
            if isinstance(layer, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                part[i] = fuse_conv_bn_eval(layer, norm)
                part[i + 1] = nn.Identity()
    return folded


class Pointwise(nn.Conv2d):
    """A 1×1 convolution of every `step`-th pixel along each axis.

    The input is sliced, not strided over: torch 2.13 writes past its memory in the
    backward pass of a strided 1×1 convolution of few channels, channels last.

    Parameters
    ----------
    channels, width : int
        Channels in and out.
    step : int
        Pixels from one to the next.
    bias : bool
        Whether there is one.
    """

    def __init__(
        self, channels: int, width: int, *, step: int = 1, bias: bool = True
    ) -> None:
        super().__init__(channels, width, 1, bias=bias)
        self.step = step

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, channels, H, W) → (B, width, ⌈H/step⌉, ⌈W/step⌉)."""
        return super().forward(x[..., :: self.step, :: self.step])


class SqueezeExcite(nn.Module):
    """Channels weighed by what the whole image says of them.

    Parameters
    ----------
    channels : int
        Channels in and out.
    ratio : int
        Division of channels in the middle layer, which has at least four: a single
        unit may be dead from the start.
    """

    def __init__(self, channels: int, *, ratio: int = 16) -> None:
        super().__init__()
        inner = max(4, channels // ratio)
        self.squeeze = nn.Linear(channels, inner, bias=False)
        self.excite = nn.Linear(inner, channels, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Weigh x (B, C, H, W)."""
        s = x.mean((2, 3))  # (B, C)
        s = self.excite(self.squeeze(s).relu()).sigmoid()
        out: torch.Tensor = x * s[:, :, None, None]
        return out


def he_initialise(module: nn.Module) -> None:
    """Draw weights for layers that a ReLU follows; empty their biases."""
    for part in _layers(module):
        nn.init.kaiming_normal_(part.weight, nonlinearity="relu")
        if part.bias is not None:
            nn.init.zeros_(part.bias)


def glorot_initialise(module: nn.Module) -> None:
    """Draw weights uniformly, as Keras does unless it is told otherwise."""
    for part in _layers(module):
        nn.init.xavier_uniform_(part.weight)
        if part.bias is not None:
            nn.init.zeros_(part.bias)


def _layers(
    module: nn.Module,
) -> Iterator[nn.Conv2d | nn.ConvTranspose2d | nn.Linear]:
    for part in module.modules():
        if isinstance(part, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            yield part
