"""Several networks of one kind as one: the mean of their probabilities."""

from __future__ import annotations

import re
from typing import Any

import torch
from pydantic import Field, model_validator
from torch import nn

from napari_fovea.errors import ModelError
from napari_fovea.networks.blocks import DenseConfig, probabilities
from napari_fovea.networks.gates import Coefficients
from napari_fovea.networks.registry import build, name_of, register, validate

_LEAST = 1e-6


class EnsembleConfig(DenseConfig):
    """Settings of `Ensemble`: how many, and what each is."""

    member: str = Field(title="Network of each member")
    settings: dict[str, Any] = Field(title="Settings of each member")
    members: int = Field(3, ge=1, le=16, title="Members")

    @model_validator(mode="after")
    def _of_dense_members(self) -> EnsembleConfig:
        # By name, before anything inside is looked at: it may be nested without end.
        if self.member.endswith("ensemble") or self.member.startswith("adapted"):
            raise ValueError("an ensemble cannot hold ensembles, or adapted networks")
        try:
            settings = validate(self.member, self.settings)
        except ModelError as error:
            raise ValueError(str(error)) from error
        if not isinstance(settings, DenseConfig):
            raise ValueError(f"{self.member} does not give every pixel its logits")
        if (settings.channels, settings.classes) != (self.channels, self.classes):
            raise ValueError("members have other channels or classes")
        return self


@register("ensemble", EnsembleConfig, system="ensemble")
class Ensemble(nn.Module):
    """Checkpoints of one training run that answer together.

    Parameters
    ----------
    config : EnsembleConfig
        Settings.
    """

    def __init__(self, config: EnsembleConfig) -> None:
        super().__init__()
        self.config = config
        self.members = nn.ModuleList(
            build(config.member, config.settings) for _ in range(config.members)
        )
        self.multiple = int(getattr(self.members[0], "multiple", 1))
        _name_members(self.members)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Logits (B, 1 or K, H, W) of the members' mean probabilities."""
        mean = torch.stack([probabilities(m(image)) for m in self.members]).mean(0)
        mean = mean.clamp(min=_LEAST)
        if self.config.logits == 1:
            return mean[:, 1:].log() - mean[:, :1].log()
        return mean.log()


def gather(networks: list[nn.Module]) -> nn.Module:
    """Make one network of several of the same kind and settings.

    Networks that do not give every pixel its logits cannot be averaged so: of
    them the first is returned.
    """
    config = networks[0].config
    if len(networks) == 1 or not isinstance(config, DenseConfig):
        return networks[0]
    with torch.device("meta"):  # its first weights would be thrown away
        ensemble = Ensemble(
            EnsembleConfig(
                channels=config.channels,
                classes=config.classes,
                member=name_of(networks[0]),
                settings=config.model_dump(),
                members=len(networks),
            )
        )
    ensemble.members = nn.ModuleList(networks)
    _name_members(ensemble.members)
    return ensemble.eval()


def _name_members(members: nn.ModuleList) -> None:
    """Make the names of attention unique again."""
    for i, member in enumerate(members, start=1):
        for part in member.modules():
            if isinstance(part, Coefficients):
                own = re.sub(r"^member \d+ ", "", part.label)
                part.label = f"member {i} {own}"
