"""What the numbers in label images mean."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from napari_fovea.errors import TrainingError
from napari_fovea.networks import MaskRCNNConfig

if TYPE_CHECKING:
    from napari_fovea.networks import NetworkConfig


@dataclass(frozen=True)
class Labelling:
    """What the numbers in label images mean, and what is to be learned of them.

    Attributes
    ----------
    classes : tuple of str
        Names of the classes, background first.
    from_instances : bool
        Whether labels number objects; then there are two classes.
    border : bool or None
        With instances: learn borders between touching objects as well; by default
        as the recipe has it.
    ignore : int or None
        Label that counts for nothing.
    """

    classes: tuple[str, ...] = ("background", "object")
    from_instances: bool = True
    border: bool | None = None
    ignore: int | None = None

    def __post_init__(self) -> None:
        if self.from_instances and len(self.classes) != 2:
            raise TrainingError(
                "Labels that number objects make one class, but "
                f"{len(self.classes) - 1} are named: name one, or say that the labels "
                "are classes."
            )

    def outputs(self, config: NetworkConfig, *, border: bool) -> tuple[int, ...]:
        """Class that each output of a network with such settings belongs to.

        Parameters
        ----------
        config : NetworkConfig
            Settings of the network.
        border : bool
            Whether to learn borders where this does not say.
        """
        border = border if self.border is None else self.border
        detects = isinstance(config, MaskRCNNConfig)
        if detects and not self.from_instances:
            raise TrainingError(
                "A detector learns single objects, but the labels are classes; "
                "expected labels that number objects: choose another recipe, or label "
                "the objects."
            )
        # A detector tells objects apart by itself.
        if self.from_instances and border and not detects:
            return (0, 1, 1)
        return tuple(range(len(self.classes)))
