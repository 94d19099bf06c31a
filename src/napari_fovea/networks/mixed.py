"""Networks of different kinds that answer together."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import nn

from napari_fovea.errors import ModelError
from napari_fovea.networks.registry import (
    NetworkConfig,
    build,
    network_names,
    register,
    validate,
)

NAME = "mixed-ensemble"
MOST = 16
"""Members of an ensemble, at most."""


class Member(BaseModel):
    """A model in an ensemble; what it says of itself, as `Model` does."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    name: str
    network: str
    settings: dict[str, Any]
    outputs: tuple[int, ...] = Field(min_length=2, max_length=256)
    depths: tuple[float, ...] | None = None
    object_diameter: float | None = Field(None, gt=0)
    policy: Literal["seek", "raster"] | None = None
    tile: int | None = Field(None, ge=32, le=8192)
    score: float | None = Field(None, ge=0, le=1)


class MixedEnsembleConfig(NetworkConfig):
    """Settings of `MixedEnsemble`: what each member is."""

    members: tuple[Member, ...] = Field(min_length=2, max_length=MOST, title="Members")

    @model_validator(mode="after")
    def _of_members_that_fit(self) -> MixedEnsembleConfig:
        for member in self.members:
            # By name, before anything inside is looked at: nesting has no end.
            if member.network == NAME or member.network not in network_names():
                raise ValueError(f"{member.network!r} cannot be a member")
            try:
                settings = validate(member.network, member.settings)
            except ModelError as error:
                raise ValueError(str(error)) from error
            if settings.channels != self.channels:
                raise ValueError("members take other channels")
            if settings.classes != len(member.outputs):
                raise ValueError("members have other outputs")
        return self


@register(NAME, MixedEnsembleConfig, system="ensemble")
class MixedEnsemble(nn.Module):
    """Networks of any kinds, each of which is shown an image at its own scale.

    It holds them and cannot be run by itself: who reads an image asks each member as
    it wants to be asked, see `inference.joint`.

    Parameters
    ----------
    config : MixedEnsembleConfig
        Settings.
    """

    def __init__(self, config: MixedEnsembleConfig) -> None:
        super().__init__()
        self.config = config
        self.members = nn.ModuleList(
            build(member.network, member.settings) for member in config.members
        )
