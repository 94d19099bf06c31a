"""A Model: a network and all that is needed to use it on an image."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from napari_fovea.errors import ModelError
from napari_fovea.images import Normalisation
from napari_fovea.networks import NetworkConfig, name_of, system_of

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping

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
        Class that each output of the network belongs to. Interior and border of
        one kind of object are two outputs of one class.
    border : int or None
        The output that marks borders between touching objects, if there is one.
    normalisation : Normalisation
        How intensities are scaled.
    object_diameter : float or None
        Typical diameter of the objects it was trained on, in pixels.
    pixel_size : float or None
        Size of the pixels it was trained on, in micrometres.
    scan : mapping
        How it likes to look: the ``policy`` that suits a retina network, the
        ``tile`` in pixels that a network was trained on which should see no more.
    provenance : mapping
        What it was trained on, how, when, and how well it does.
    """

    name: str
    network: nn.Module
    classes: tuple[str, ...]
    outputs: tuple[int, ...]
    border: int | None = None
    normalisation: Normalisation = field(default_factory=Normalisation)
    object_diameter: float | None = None
    pixel_size: float | None = None
    scan: Mapping[str, Any] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        n = self.config.classes
        if len(self.outputs) != n or set(self.outputs) != set(range(len(self.classes))):
            raise ModelError(
                f"Model {self.name!r} has classes {self.classes} and outputs "
                f"{self.outputs} for a network with {n} outputs; expected one class "
                "index per output, each class at least once."
            )
        if self.border is not None and not 0 < self.border < n:
            raise ModelError(
                f"Model {self.name!r} names output {self.border} as border; expected "
                f"1 to {n - 1}."
            )

    @property
    def config(self) -> NetworkConfig:
        """Settings of the network."""
        return self.network.config  # type: ignore[return-value]

    @property
    def system(self) -> str:
        """Which of the five systems it is, ``"S0"`` to ``"S4"``."""
        return system_of(name_of(self.network), self.config.model_dump())

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
