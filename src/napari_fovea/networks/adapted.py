r"""A network that answers to strokes: its own opinion, and evidence read beside it.

What a network says of a place is bounded, so that a few strokes can overrule it, and
a linear reading of its features and of the image is added:

.. math:: z_k = \\tanh(\\log p_k - \\overline{\\log p}) + w_k \\cdot f + b_k

where *p* are the class probabilities of the network and *f* its feature maps, the
image at a few scales, and the bounded opinion itself. The weights *w* can be found
in a fraction of a second, since all that stands before them stays as it is.
"""

from __future__ import annotations

from abc import abstractmethod
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from pydantic import Field, model_validator
from torch import nn
from torch.nn import functional

from napari_fovea.errors import ModelError
from napari_fovea.networks.blocks import (
    DenseConfig,
    fold,
    on_multiple,
    probabilities,
)
from napari_fovea.networks.registry import (
    NetworkConfig,
    build,
    register,
    validate,
)
from napari_fovea.networks.vgg_retina import RetinaConfig

if TYPE_CHECKING:
    from collections.abc import Iterable

SIGMAS = (1.0, 2.0, 4.0)
"""Scales at which the image is read, in pixels."""

_SHAPE = 4  # features of shape per scale: slope, two curvatures, spread
_LEAST = 1e-6


class _Base(NetworkConfig):
    """What is told of the network whose opinion is taken."""

    base: str = Field(title="Network whose opinion is taken")
    settings: dict[str, Any] = Field(title="Its settings")
    belongs: tuple[int, ...] = Field(title="Class of each of its outputs")
    kept: bool = Field(True, title="Whether its classes are these")

    @model_validator(mode="after")
    def _fits_base(self) -> _Base:
        # By name, before anything inside is looked at: it may be nested without end.
        if self.base.startswith("adapted") or self.base == "mixed-ensemble":
            raise ValueError("an adapted network cannot hold another, or several")
        try:
            settings = validate(self.base, self.settings)
        except ModelError as error:
            raise ValueError(str(error)) from error
        if settings.channels != self.channels:
            raise ValueError(f"{self.base} has other channels")
        used = set(self.belongs)
        if len(self.belongs) != settings.classes or used != set(range(len(used))):
            raise ValueError(f"{self.base} has {settings.classes} outputs to belong")
        if len(used) < 2:
            raise ValueError("outputs belong to at least two classes")
        if self.kept and self.classes != settings.classes:
            raise ValueError(f"{self.base} has other classes")
        self._check_kind(settings)
        return self

    @abstractmethod
    def _check_kind(self, settings: NetworkConfig) -> None:
        """Refuse a base of another kind with a ValueError."""

    @property
    def spoken(self) -> int:
        """Classes that the base tells apart."""
        return max(self.belongs) + 1

    @property
    def told(self) -> int:
        """Classes that are told apart in the end."""
        return self.spoken if self.kept else self.classes

    @property
    def evidence(self) -> int:
        """Numbers that are read: the last class against the first, or one each."""
        return 1 if self.told == 2 else self.told


class AdaptedConfig(_Base, DenseConfig):
    """Settings of `Adapted`."""

    def _check_kind(self, settings: NetworkConfig) -> None:
        if not isinstance(settings, DenseConfig):
            raise ValueError(f"{self.base} does not give every pixel its logits")


class AdaptedRetinaConfig(_Base, RetinaConfig):
    """Settings of `AdaptedRetina`."""

    def _check_kind(self, settings: NetworkConfig) -> None:
        if not isinstance(settings, RetinaConfig):
            raise ValueError(f"{self.base} is no retina network")
        if (settings.d, settings.r) != (self.d, self.r):
            raise ValueError(f"{self.base} has another grid")


@dataclass(frozen=True)
class Looked:
    """What stands before the evidence; all of it is found without the strokes.

    Attributes
    ----------
    outputs : Tensor, shape (B, C, …)
        Probabilities of the base's outputs.
    maps : tuple of Tensor, shape (B, F, …)
        The image at several scales and the bounded opinion; then feature maps of
        the base, each at its own resolution.
    """

    outputs: torch.Tensor
    maps: tuple[torch.Tensor, ...]


class ImageFeatures(nn.Module):
    """An image at several scales, and its shape there.

    Parameters
    ----------
    channels : int
        Of the image.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.light = channels * (1 + len(SIGMAS))
        self.count = self.light + _SHAPE * len(SIGMAS)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) → (B, count, H, W): intensities first, then shapes."""
        gray = image.mean(1, keepdim=True)
        light, shape = [image], []
        for sigma in SIGMAS:
            light.append(_smooth(image, sigma))
            soft = light[-1].mean(1, keepdim=True)
            down, right = _slopes(soft)
            (dd, dr), (_, rr) = _slopes(down), _slopes(right)
            middle, half = (dd + rr) / 2, (((dd - rr) / 2) ** 2 + dr**2).sqrt()
            spread = _smooth(gray**2, sigma) - soft**2
            shape += [
                sigma * (down**2 + right**2).sqrt(),
                sigma**2 * (middle + half),
                sigma**2 * (middle - half),
                spread.clamp(min=0).sqrt(),
            ]
        return torch.cat([*light, *shape], dim=1)


def _slopes(image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Central differences along rows and columns; edges are repeated."""
    x = functional.pad(image, (1, 1, 1, 1), mode="replicate")
    down = (x[..., 2:, 1:-1] - x[..., :-2, 1:-1]) / 2
    right = (x[..., 1:-1, 2:] - x[..., 1:-1, :-2]) / 2
    return down, right


def _smooth(image: torch.Tensor, sigma: float) -> torch.Tensor:
    reach = int(3 * sigma + 0.5)
    steps = torch.arange(-reach, reach + 1, dtype=image.dtype, device=image.device)
    kernel = torch.exp(-(steps**2) / (2 * sigma**2))
    kernel = kernel / kernel.sum()
    # One plane at a time: grouped convolutions of few channels are slow.
    planes = image.flatten(0, 1)[:, None]
    planes = functional.pad(planes, (reach,) * 4, mode="replicate")
    planes = functional.conv2d(planes, kernel.view(1, 1, 1, -1))
    planes = functional.conv2d(planes, kernel.view(1, 1, -1, 1))
    return planes[:, 0].reshape(image.shape)


def opinion(outputs: torch.Tensor, belongs: Iterable[int]) -> torch.Tensor:
    """Bounded opinion (B, K, …) on classes, from probabilities of outputs (B, C, …)."""
    classes = class_sums(outputs, belongs)
    logs = classes.clamp(min=_LEAST).log()
    return (logs - logs.mean(1, keepdim=True)).tanh()


def class_sums(outputs: torch.Tensor, belongs: Iterable[int]) -> torch.Tensor:
    """Sum outputs (B, C, …) to the classes (B, K, …) they belong to."""
    belongs = tuple(belongs)
    total = outputs.new_zeros(len(outputs), max(belongs) + 1, *outputs.shape[2:])
    index = torch.tensor(belongs, device=outputs.device)
    return total.index_add(1, index, outputs)


class _Reading(nn.Module):
    """What both kinds share: from opinion and evidence to logits of outputs."""

    config: Any
    base: nn.Module
    image: ImageFeatures

    def _begin(self, config: _Base, taps: Iterable[int]) -> None:
        self.base = build(config.base, config.settings)
        self.image = ImageFeatures(config.channels)
        first = self.image.count + config.spoken
        self.reads = nn.ModuleList(
            nn.Conv2d(width, config.evidence, 1, bias=not i)
            for i, width in enumerate((first, *taps))
        )
        for read in self.reads:
            for value in read.parameters():
                nn.init.zeros_(value)

    @property
    def weights(self) -> torch.Tensor:
        """Evidence that is read, (F + 1, E): a row for each feature, and the bias.

        The features are those of all maps, one after the other.
        """
        rows = [value.flatten(1).T for value, _ in self._values()]
        bias = self._values()[0][1]
        assert bias is not None
        return torch.cat([*rows, bias[None]]).detach().double().cpu()

    @weights.setter
    def weights(self, weights: torch.Tensor) -> None:
        start = 0
        with torch.no_grad():
            for value, bias in self._values():
                stop = start + value.shape[1]
                part = weights[start:stop].T.to(value)
                value.copy_(part.reshape(value.shape))
                start = stop
                if bias is not None:
                    bias.copy_(weights[-1].to(bias))

    def _values(self) -> list[tuple[torch.Tensor, torch.Tensor | None]]:
        convolutions = (part for part in self.reads if isinstance(part, nn.Conv2d))
        return [(part.weight, part.bias) for part in convolutions]

    def class_logits(self, looked: Looked, evidence: torch.Tensor) -> torch.Tensor:
        """Logits (B, K, …) of the classes, before their soft-max."""
        z = self.prior(looked)
        if evidence.shape[1] == 1:
            evidence = torch.cat([-evidence / 2, evidence / 2], dim=1)
        return z + evidence

    def prior(self, looked: Looked) -> torch.Tensor:
        """Logits (B, K, …) of the classes where there is no evidence."""
        if self.config.kept:
            return opinion(looked.outputs, self.config.belongs)
        shape = (len(looked.outputs), self.config.told, *looked.outputs.shape[2:])
        return looked.outputs.new_zeros(shape)

    def output_logs(self, looked: Looked, evidence: torch.Tensor) -> torch.Tensor:
        """Logarithms (B, C, …) of the outputs' probabilities.

        Outputs of one class share its probability as they did before.
        """
        classes = self.class_logits(looked, evidence).log_softmax(1)
        if not self.config.kept or self.config.spoken == self.config.classes:
            return classes
        index = torch.tensor(self.config.belongs, device=classes.device)
        outputs = looked.outputs.clamp(min=_LEAST)
        sums = class_sums(outputs, self.config.belongs)
        share = outputs / sums.index_select(1, index)
        return classes.index_select(1, index) + share.log()


@register("adapted", AdaptedConfig, system="adapted")
class Adapted(_Reading):
    """A network of pixels, and evidence from its features and the image.

    Parameters
    ----------
    config : AdaptedConfig
        Settings.
    """

    def __init__(self, config: AdaptedConfig) -> None:
        super().__init__()
        self.config = config
        with torch.device("meta"):
            taps: dict[str, int] = getattr(
                build(config.base, config.settings), "taps", {}
            )
        self._taps = taps
        self._begin(config, taps.values())
        self.multiple = int(getattr(self.base, "multiple", 1))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Logits (B, 1 or K, H, W) of images (B, C, H, W) of any size."""
        return on_multiple(lambda x: self.decide(self.look(x)), image, self.multiple)

    def look(self, image: torch.Tensor) -> Looked:
        """All that stands before the evidence; sides must be multiples."""
        found: dict[str, torch.Tensor] = {}
        with ExitStack() as stack:
            for name in self._taps:
                part = self.base.get_submodule(name)

                def keep(_: Any, __: Any, out: torch.Tensor, name: str = name) -> None:
                    found[name] = out

                stack.callback(part.register_forward_hook(keep).remove)
            outputs = probabilities(self.base(image))
        first = [self.image(image.float()), opinion(outputs, self.config.belongs)]
        taps = (found[name].float() for name in self._taps)
        return Looked(outputs, (torch.cat(first, dim=1), *taps))

    def evidence(self, looked: Looked) -> torch.Tensor:
        """Evidence (B, E, H, W), read at each map's own resolution."""
        size = looked.outputs.shape[2:]
        total = looked.outputs.new_zeros(1)
        for read, features in zip(self.reads, looked.maps, strict=True):
            part = read(features)
            if part.shape[2:] != size:
                part = functional.interpolate(
                    part, size=size, mode="bilinear", align_corners=False
                )
            total = total + part
        return total

    def decide(self, looked: Looked) -> torch.Tensor:
        """Logits (B, 1 or K, H, W) of what was looked at."""
        logs = self.output_logs(looked, self.evidence(looked))
        if self.config.logits == 1:
            return logs[:, 1:] - logs[:, :1]
        return logs


@register("adapted-retina", AdaptedRetinaConfig, system="S0")
class AdaptedRetina(_Reading):
    """A retina network, and evidence from the image within each cell.

    Parameters
    ----------
    config : AdaptedRetinaConfig
        Settings.
    """

    cell_index: torch.Tensor
    areas: torch.Tensor

    def __init__(self, config: AdaptedRetinaConfig) -> None:
        super().__init__()
        self.config = config
        self.grid = config.grid
        self._begin(config, ())
        index = torch.from_numpy(self.grid.cell_index).flatten()
        self.register_buffer("cell_index", index, persistent=False)
        areas = torch.from_numpy(self.grid.areas).float()
        self.register_buffer("areas", areas, persistent=False)

    def forward(self, crops: torch.Tensor) -> torch.Tensor:
        """Logits (B, N, K) of the cells of crops (B, C, d, d)."""
        return self.decide(self.look(crops))

    def look(self, crops: torch.Tensor) -> Looked:
        """All that stands before the evidence, cells along the last axis."""
        outputs = self.base(crops).float().softmax(-1).transpose(1, 2)  # (B, C, N)
        pixels = self.image(crops.float()).flatten(2)  # (B, F, d²)
        cells = pixels.new_zeros(*pixels.shape[:2], len(self.areas))
        cells = cells.index_add(2, self.cell_index, pixels) / self.areas
        maps = torch.cat([cells, opinion(outputs, self.config.belongs)], dim=1)
        return Looked(outputs, (maps,))

    def evidence(self, looked: Looked) -> torch.Tensor:
        """Evidence (B, E, N)."""
        read, features = self.reads[0], looked.maps[0]
        evidence: torch.Tensor = read(features[..., None])[..., 0]
        return evidence

    def decide(self, looked: Looked) -> torch.Tensor:
        """Logits (B, N, K) of what was looked at."""
        return self.output_logs(looked, self.evidence(looked)).transpose(1, 2)

    def folded(self) -> AdaptedRetina:
        """Return the same function without batch normalisation, for inference."""
        return fold(self)
