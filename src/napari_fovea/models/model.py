"""A Model: a network and all that is needed to use it on an image."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from napari_fovea.errors import ModelError
from napari_fovea.images import Normalisation
from napari_fovea.networks import (
    MixedEnsemble,
    NetworkConfig,
    name_of,
    system_of,
)

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping, Sequence

    import torch
    from torch import nn


@dataclass(frozen=True)
class Model:
    """A network, what goes in, what comes out, and where it came from.

    Attributes
    ----------
    name : str
        Short name.
    network : nn.Module
        A registered network with its ``config``.
    classes : tuple of str
        Names of the classes a user sees; the first is background.
    outputs : tuple of int
        Class that each output of the network belongs to. How deep inside an object
        pixels lie may be told by several outputs of one class.
    depths : tuple of float or None
        Depth of each output, if they tell depths: 0 at the edge of an object and in
        the background, 1 in its core. The mean of depths is a landscape in which
        every object is a hill, which tells touching objects apart.
    normalisation : Normalisation
        How intensities are scaled.
    object_diameter : float or None
        Typical diameter of the objects it was trained on, in pixels.
    pixel_size : float or None
        Size of the pixels it was trained on, in micrometres.
    scan : mapping
        How it likes to look: the ``policy`` that suits a retina network, the
        ``tile`` in pixels that a network was trained on which should see no more,
        the ``diameter`` ``"auto"`` where objects are to be brought to the size it
        knows, even if they have to be measured first, and the least ``score`` of what
        a detector is to tell.
    provenance : mapping
        What it was trained on, how, when, and how well it does.
    """

    name: str
    network: nn.Module
    classes: tuple[str, ...]
    outputs: tuple[int, ...]
    depths: tuple[float, ...] | None = None
    normalisation: Normalisation = field(default_factory=Normalisation)
    object_diameter: float | None = None
    pixel_size: float | None = None
    scan: Mapping[str, Any] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        n = self.config.classes
        if (
            len(self.outputs) != n
            or tuple(dict.fromkeys(self.outputs)) != tuple(range(len(self.classes)))
            or self.outputs.count(0) != 1
        ):
            raise ModelError(
                f"Model {self.name!r} has classes {self.classes} and outputs "
                f"{self.outputs} for a network with {n} outputs; expected one class "
                "index per output, each class at least once, in order and background "
                "once."
            )
        depths = self.depths
        if depths is not None and (
            len(depths) != n
            or not all(0 <= depth <= 1 for depth in depths)
            or len(set(depths[1:])) != n - 1
            or depths[0] != 0
        ):
            raise ModelError(
                f"Model {self.name!r} tells depths {depths} of {n} outputs; expected "
                "one for each, from 0 to 1, 0 for background, the others different."
            )
        _ = self.members  # what they are made of must be sound too

    @property
    def config(self) -> NetworkConfig:
        """Settings of the network."""
        return self.network.config  # type: ignore[return-value]

    @property
    def system(self) -> str:
        """Which of the five systems it is, ``"S0"`` to ``"S4"``, or ``"ensemble"``."""
        return system_of(name_of(self.network), self.config.model_dump())

    @cached_property
    def members(self) -> tuple[Model, ...]:
        """The models that an ensemble of systems is made of; others have none."""
        if not isinstance(self.network, MixedEnsemble):
            return ()
        each = zip(self.network.config.members, self.network.members, strict=True)
        return tuple(
            Model(
                name=told.name,
                network=network,
                classes=self.classes,
                outputs=told.outputs,
                depths=told.depths,
                normalisation=self.normalisation,
                object_diameter=told.object_diameter,
                scan=told.model_dump(
                    include={"policy", "tile", "score"}, exclude_none=True
                ),
            )
            for told, network in each
        )

    @property
    def channels(self) -> int:
        """Image channels the network takes."""
        return self.config.channels

    def class_probabilities(self, outputs: torch.Tensor) -> torch.Tensor:
        """Sum the network's outputs (C, …) into classes (K, …)."""
        if len(self.classes) == len(self.outputs):
            return outputs
        total = outputs.new_zeros(len(self.classes), *outputs.shape[1:])
        for plane, index in zip(outputs, self.outputs, strict=True):
            total[index] += plane
        return total

    def depth(self, outputs: torch.Tensor) -> torch.Tensor | None:
        """Mean depth inside objects (…), of outputs (C, …); None if unknown."""
        if self.depths is None:
            return None
        depth = outputs.new_zeros(outputs.shape[1:])
        for plane, value in zip(outputs, self.depths, strict=True):
            depth += value * plane
        return depth

    @classmethod
    def load(cls, source: str | os.PathLike[str]) -> Model:
        """Load a model by name or from a file.

        Parameters
        ----------
        source : str or path-like
            Name of a model that ships, such as ``"retina-nuclei"``, or a file.

        Raises
        ------
        ModelError
            If there is no such model.
        CheckpointError
            If the file is damaged or not a napari-fovea model.
        """
        from napari_fovea.models.zoo import load

        return load(source)

    @staticmethod
    def ensemble(models: Sequence[Model], *, name: str = "ensemble") -> Model:
        """Make one model of several, of any systems; see `models.ensemble.joined`.

        Parameters
        ----------
        models : sequence of Model
            Two or more, for the same classes and channels.
        name : str
            Name of what is made.

        Raises
        ------
        ModelError
            If they do not fit together.

        Examples
        --------
        >>> names = ("focusnet-nuclei", "r2-attention-unet-nuclei")
        >>> both = Model.ensemble([Model.load(n) for n in names])  # doctest: +SKIP
        """
        from napari_fovea.models.ensemble import joined

        return joined(models, name=name)

    def save(self, path: str | os.PathLike[str], *, half: bool = False) -> None:
        """Write the model to one safetensors file.

        Parameters
        ----------
        path : path-like
            File to write; it is replaced whole or not at all.
        half : bool
            Store weights as 16-bit floats, where these hold them; biases and the
            statistics of normalisations stay as they are.
        """
        from napari_fovea.models.checkpoint import save

        save(self, path, half=half)
