"""ResNet in torchvision's layout, so that its state dicts load."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from napari_fovea.networks.blocks import Pointwise

if TYPE_CHECKING:
    import torch

    from napari_fovea.networks.mask_rcnn.config import Backbone, Norm

DEPTHS: dict[Backbone, tuple[int, int, int, int]] = {
    "resnet18": (2, 2, 2, 2),
    "resnet34": (3, 4, 6, 3),
    "resnet50": (3, 4, 6, 3),
    "resnet101": (3, 4, 23, 3),
}
"""Blocks in each of the four stages."""

_GROUP = 8  # channels that one group of a GroupNorm shares


class FrozenBatchNorm2d(nn.BatchNorm2d):
    """Batch normalisation by the stored statistics, in training too.

    Weight and bias stay trainable. Batches of two say too little about the
    statistics of weights that were trained on large ones.
    """

    def train(self, mode: bool = True) -> FrozenBatchNorm2d:
        """Ignore `mode` as far as the statistics are concerned."""
        del mode
        super().train(False)
        return self


def normalisation(channels: int, kind: Norm) -> nn.Module:
    """Layer that normalises (B, channels, H, W)."""
    if kind == "group":
        return nn.GroupNorm(channels // _GROUP, channels)
    layer = nn.BatchNorm2d if kind == "batch" else FrozenBatchNorm2d
    return layer(channels)


class BasicBlock(nn.Module):
    """Two 3 × 3 convolutions around which the input runs."""

    expansion = 1

    def __init__(self, channels: int, *, width: int, stride: int, norm: Norm) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, stride, 1, bias=False)
        self.bn1 = normalisation(width, norm)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = normalisation(width, norm)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _shortcut(channels, width, stride, norm)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Turn (B, channels, H, W) into (B, width, H/stride, W/stride)."""
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        y += x if self.downsample is None else self.downsample(x)
        out: torch.Tensor = self.relu(y)
        return out


class Bottleneck(nn.Module):
    """A 3 × 3 convolution between two of 1 × 1, around which the input runs."""

    expansion = 4

    def __init__(self, channels: int, *, width: int, stride: int, norm: Norm) -> None:
        super().__init__()
        out = width * self.expansion
        self.conv1 = nn.Conv2d(channels, width, 1, bias=False)
        self.bn1 = normalisation(width, norm)
        # torchvision strides here and not in conv1; its weights are trained so.
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn2 = normalisation(width, norm)
        self.conv3 = nn.Conv2d(width, out, 1, bias=False)
        self.bn3 = normalisation(out, norm)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _shortcut(channels, out, stride, norm)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Turn (B, channels, H, W) into (B, 4·width, H/stride, W/stride)."""
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        y += x if self.downsample is None else self.downsample(x)
        out: torch.Tensor = self.relu(y)
        return out


class ResNet(nn.Module):
    """The bottom-up pathway: features C2, C3, C4, C5 at strides 4, 8, 16, 32.

    Parameters
    ----------
    backbone : str
        Which ResNet; see `DEPTHS`.
    channels : int
        Image channels.
    width : int
        Channels of the first stage; torchvision's is 64.
    norm : {"batch", "group", "frozen"}
        Normalisation, held under torchvision's names ``bn1`` and so on.
    """

    def __init__(
        self, backbone: Backbone, *, channels: int, width: int, norm: Norm
    ) -> None:
        super().__init__()
        block: type[BasicBlock | Bottleneck]
        block = BasicBlock if backbone in ("resnet18", "resnet34") else Bottleneck
        self.conv1 = nn.Conv2d(channels, width, 7, 2, 3, bias=False)
        self.bn1 = normalisation(width, norm)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        self.channels = tuple(width * block.expansion << stage for stage in range(4))
        before, stages = width, []
        for stage, depth in enumerate(DEPTHS[backbone]):
            blocks: list[nn.Module] = []
            for i in range(depth):
                stride = 2 if stage and not i else 1
                blocks.append(
                    block(before, width=width << stage, stride=stride, norm=norm)
                )
                before = self.channels[stage]
            stages.append(nn.Sequential(*blocks))
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(
                    module.weight, mode="fan_out", nonlinearity="relu"
                )
        # Blocks start as identities, which is what trains best from scratch.
        for module in self.modules():
            if isinstance(module, BasicBlock | Bottleneck):
                last = module.bn2 if isinstance(module, BasicBlock) else module.bn3
                nn.init.zeros_(last.weight)  # type: ignore[arg-type]

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        """C2 … C5 of images (B, C, H, W)."""
        x = self.relu(self.bn1(self.conv1(images)))  # (B, width, H/2, W/2)
        x = self.maxpool(x)  # (B, width, H/4, W/4)
        features = []
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = stage(x)  # (B, channels[i], H/2ⁱ⁺², W/2ⁱ⁺²)
            features.append(x)
        return features


def _shortcut(channels: int, out: int, stride: int, norm: Norm) -> nn.Sequential | None:
    if stride == 1 and channels == out:
        return None
    return nn.Sequential(
        Pointwise(channels, out, step=stride, bias=False), normalisation(out, norm)
    )
