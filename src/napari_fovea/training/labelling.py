"""What the numbers in label images mean."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from napari_fovea.errors import TrainingError
from napari_fovea.networks import MaskRCNNConfig
from napari_fovea.training.samples import DEPTHS

if TYPE_CHECKING:
    from napari_fovea.networks import NetworkConfig

Depths = tuple[float, ...]


@dataclass(frozen=True)
class Labelling:
    """What the numbers in label images mean, and what is to be learned of them.

    Attributes
    ----------
    classes : tuple of str
        Names of the classes, background first.
    from_instances : bool
        Whether labels number objects; then there are two classes.
    depth : bool or None
        With instances: learn how deep inside its object a pixel lies as well, which
        tells touching objects apart; by default as the recipe has it.
    ignore : int or None
        Label that counts for nothing.
    """

    classes: tuple[str, ...] = ("background", "object")
    from_instances: bool = True
    depth: bool | None = None
    ignore: int | None = None

    def __post_init__(self) -> None:
        if self.from_instances and len(self.classes) != 2:
            raise TrainingError(
                "Labels that number objects make one class, but "
                f"{len(self.classes) - 1} are named: name one, or say that the labels "
                "are classes."
            )

    def depths(self, config: NetworkConfig, *, depth: bool) -> Depths | None:
        """Depth of each output of a network with such settings, if they have any.

        Parameters
        ----------
        config : NetworkConfig
            Settings of the network.
        depth : bool
            Whether to learn depths where this does not say.
        """
        depth = depth if self.depth is None else self.depth
        detects = isinstance(config, MaskRCNNConfig)
        if detects and not self.from_instances:
            raise TrainingError(
                "A detector learns single objects, but the labels are classes; "
                "expected labels that number objects: choose another recipe, or label "
                "the objects."
            )
        # A detector tells objects apart by itself.
        return DEPTHS if self.from_instances and depth and not detects else None

    def outputs(self, depths: Depths | None) -> tuple[int, ...]:
        """Class that each output belongs to, where outputs have depths or not."""
        if depths is None:
            return tuple(range(len(self.classes)))
        return (0, *[1] * (len(depths) - 1))
