"""How each system is trained: optimiser, schedule, batch, and what it is shown."""

from __future__ import annotations

from dataclasses import dataclass, field

from napari_fovea.training.augment import Augmentation


@dataclass(frozen=True)
class Recipe:
    """Settings of a training run.

    Attributes
    ----------
    epochs : int
        Epochs to train.
    views : int
        Subareas shown per epoch.
    batch_size : int
        Subareas per step.
    learning_rate : float
        Highest rate; it warms up to this and falls to zero along a cosine
        unless ``constant_rate``.
    constant_rate : bool
        Keep the rate as it is.
    weight_decay : float
        Of AdamW; 0 is plain Adam.
    averaging : float
        Decay of the running average of the weights that is kept as the model;
        0 keeps the last weights.
    uncertain : float
        Share of views centred where the network's own scan was uncertain.
    boundary : float
        Share of views centred on boundaries between classes. The rest fall
        anywhere.
    rescan : int
        Training images scanned before each epoch to find where it is uncertain.
    validate_every : int
        Epochs between scans of the validation images.
    validate_images : int
        Most validation images that are scanned, evenly spread over them.
    augmentation : Augmentation
        Random changes.
    """

    epochs: int
    views: int
    batch_size: int
    learning_rate: float
    constant_rate: bool = False
    weight_decay: float = 0.0
    averaging: float = 0.0
    uncertain: float = 0.0
    boundary: float = 0.0
    rescan: int = 0
    validate_every: int = 1
    validate_images: int = 32
    augmentation: Augmentation = field(default_factory=Augmentation)

    @property
    def steps(self) -> int:
        """Batches per epoch, at least one."""
        return max(1, self.views // self.batch_size)


RECIPES: dict[str, Recipe] = {
    # The publication names no augmentation; turns and mirrors are ours.
    "retina-paper": Recipe(
        epochs=20,
        views=16_384,
        batch_size=16,
        learning_rate=1e-4,
        constant_rate=True,
        augmentation=Augmentation(
            scale=(1.0, 1.0),
            stretch=0.0,
            gamma=(1.0, 1.0),
            gain=(1.0, 1.0),
            offset=0.0,
            colour=0.0,
            invert=0.0,
            gray=0.0,
            noise=0.0,
            blur=0.0,
        ),
    ),
    "retina-small": Recipe(
        epochs=60,
        views=16_384,
        batch_size=64,
        learning_rate=2e-3,
        weight_decay=1e-4,
        averaging=0.999,
        uncertain=0.45,
        boundary=0.25,
        rescan=12,
        validate_every=10,
    ),
}
"""Recipes by name."""
