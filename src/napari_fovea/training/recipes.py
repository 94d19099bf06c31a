"""How each system is trained: optimiser, schedule, batch, and what it is shown."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal

from napari_fovea.training.augment import Augmentation, Geometry


@dataclass(frozen=True)
class Recipe:
    """Settings of a training run.

    Attributes
    ----------
    network : str
        A registered network.
    config : str
        One of its named settings.
    epochs : int
        Epochs to train.
    views : int or None
        Crops shown per epoch; by default each training image once.
    batch_size : int
        Crops per step, over all processes and accumulated parts.
    learning_rate : float
        Highest rate.
    optimiser : str
        ``"adam"``, ``"adamw"``, ``"nadam"`` or ``"sgd"`` (momentum 0.9).
    schedule : str
        ``"cosine"`` warms up and falls to zero, ``"constant"`` stays, ``"plateau"``
        is multiplied by ``plateau_factor`` when the validation score (or without
        one the training loss) has not improved for ``patience`` epochs by 0.001.
    rate_decay : float
        Share by which the rate falls after every epoch, beside the schedule.
    weight_decay : float
        Of the optimiser.
    clip : float or None
        Largest norm of the gradients; longer ones are shortened to it.
    side : int or None
        Side of a crop in pixels; whole images by default. The retina network and
        the patch classifier take theirs from their settings.
    depth : bool
        Whether labels that number objects also teach how deep inside an object a
        pixel lies, by outputs of their own.
    diameter : float or None
        Diameter in pixels to which the typical objects of each image are brought,
        where labels number objects. The model then wants to be shown objects of
        about this size.
    balance : float
        How much more often rare looks are shown than they occur, from 0 to 1; see
        `sizing.odds_of`.
    policy : str
        How a retina network is scanned, for its scores and from then on.
    tiles : bool
        Whether the model is to see tiles of this side only, ever.
    loss : str
        A name of `losses.LOSSES`, for networks that give every pixel its logits.
    averaging : float
        Decay of the running average of the weights that is kept as the model;
        0 keeps the last weights.
    choice : str
        ``"best"`` keeps the epoch with the best validation score, ``"ensemble"``
        the mean of the ``members`` best, ``"last"`` the last.
    members : int
        Checkpoints of an ensemble.
    uncertain : float
        Share of views centred where the network's own scan was uncertain (retina).
    boundary : float
        Share of views centred on boundaries between classes. The rest fall
        anywhere.
    looks : int
        Fixations on each scene (retina with a shared trunk).
    rescan : int
        Training images scanned before each epoch to find where it is uncertain.
    calibrate : bool
        Whether, in the end, the logit of background is shifted by what is best on the
        validation images; see `calibration.calibrated`.
    validate_every : int
        Epochs between validations.
    validate_images : int
        Most validation images that are scored, evenly spread over them.
    augmentation : Augmentation
        Random changes of intensity, and of scale for the retina's own views.
    geometry : Geometry
        Random changes of place and shape for all other networks.
    """

    network: str
    config: str
    epochs: int
    batch_size: int
    learning_rate: float
    views: int | None = None
    optimiser: Literal["adam", "adamw", "nadam", "sgd"] = "adamw"
    schedule: Literal["cosine", "constant", "plateau"] = "cosine"
    patience: int = 5
    plateau_factor: float = 0.5
    rate_decay: float = 0.0
    weight_decay: float = 0.0
    clip: float | None = None
    side: int | None = None
    depth: bool = False
    diameter: float | None = None
    balance: float = 0.0
    policy: Literal["seek", "raster"] = "seek"
    tiles: bool = False
    loss: str = "bce"
    averaging: float = 0.0
    choice: Literal["best", "ensemble", "last"] = "best"
    members: int = 3
    uncertain: float = 0.0
    boundary: float = 0.0
    looks: int = 0
    rescan: int = 0
    calibrate: bool = False
    validate_every: int = 1
    validate_images: int = 32
    augmentation: Augmentation = field(default_factory=Augmentation)
    geometry: Geometry = field(default_factory=Geometry)

    @property
    def told_loss(self) -> str:
        """Its loss, for people."""
        own = {
            "retina-vgg": "cell cross-entropy",
            "retina-shared": "cell cross-entropy",
            "patch-center": "cross-entropy",
            "mask-rcnn": "Mask R-CNN's five",
        }
        return own.get(self.network, self.loss)


_AS_IS = Augmentation(
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
)
_TURNS = Geometry(turn=True, flip=True, rotate=0.0, zoom=(1.0, 1.0), shear=0.0)
_UPRIGHT = Geometry(turn=False, flip=False, rotate=0.0, zoom=(1.0, 1.0), shear=0.0)

# One schedule and loss for everything that is to be good after little time on any
# machine: the losses that weigh misses more make outlines too wide for long.
_MILD = Augmentation(
    gamma=(0.67, 1.5), gain=(0.75, 1.25), offset=0.05, invert=0.05, noise=0.05, blur=0.8
)
_small = partial(
    Recipe,
    loss="bce-dice",
    augmentation=_MILD,
    learning_rate=2e-3,
    weight_decay=1e-4,
    clip=1.0,
    depth=True,
    averaging=0.998,
    side=256,
    validate_every=4,
    geometry=Geometry(zoom=(0.7, 1.5), elastic=2.0),
)

# What the models that ship were trained with: 90 minutes on two cores at most. Objects
# are shown at one size, give or take, so a small network need not know all sizes;
# light varies as much as microscopes do.
_nuclei = partial(
    Recipe,
    config="small",
    loss="bce-dice",
    augmentation=Augmentation(),
    learning_rate=2e-3,
    weight_decay=1e-4,
    clip=1.0,
    depth=True,
    diameter=24.0,
    balance=0.3,
    averaging=0.999,
    batch_size=8,
    side=256,
    calibrate=True,
    validate_every=10,
    validate_images=50,
    geometry=Geometry(zoom=(0.6, 1.6), elastic=2.0),
)

RECIPES: dict[str, Recipe] = {
    # S0. The publication names no augmentation; turns and mirrors are ours.
    "retina-paper": Recipe(
        "retina-vgg",
        "paper",
        epochs=20,
        views=16_384,
        batch_size=16,
        learning_rate=1e-4,
        optimiser="adam",
        schedule="constant",
        policy="raster",
        augmentation=_AS_IS,
    ),
    "retina-small": Recipe(
        "retina-vgg",
        "small",
        epochs=60,
        views=16_384,
        batch_size=64,
        learning_rate=2e-3,
        weight_decay=1e-4,
        clip=1.0,
        depth=True,
        averaging=0.999,
        uncertain=0.45,
        boundary=0.25,
        rescan=12,
        validate_every=10,
    ),
    "retina-shared-small": Recipe(
        "retina-shared",
        "small",
        epochs=120,
        batch_size=8,
        learning_rate=2e-3,
        weight_decay=1e-4,
        clip=1.0,
        side=288,
        depth=True,
        averaging=0.998,
        boundary=0.6,
        looks=64,
        validate_every=10,
        geometry=Geometry(zoom=(0.6, 1.7)),
    ),
    "retina-shared-paper": Recipe(
        "retina-shared",
        "paper",
        epochs=200,
        batch_size=8,
        learning_rate=1e-4,
        optimiser="adam",
        schedule="constant",
        side=512,
        policy="raster",
        looks=64,
        augmentation=_AS_IS,
        geometry=_TURNS,
    ),
    "patch-center-paper": Recipe(
        "patch-center",
        "paper",
        epochs=20,
        views=16_384,
        batch_size=16,
        learning_rate=1e-4,
        optimiser="adam",
        schedule="constant",
        augmentation=_AS_IS,
        geometry=_TURNS,
    ),
    "unet-patch-paper": Recipe(
        "unet",
        "paper",
        epochs=15,
        views=4_096,
        batch_size=16,
        learning_rate=1e-4,
        optimiser="adam",
        schedule="constant",
        side=192,
        tiles=True,
        augmentation=_AS_IS,
        geometry=_TURNS,
    ),
    "unet-image-paper": Recipe(
        "unet",
        "paper",
        epochs=200,
        batch_size=16,
        learning_rate=1e-4,
        optimiser="adam",
        schedule="constant",
        augmentation=_AS_IS,
        geometry=_TURNS,
    ),
    "unet-small": _small("unet", "small", epochs=24, batch_size=8),
    # S1. Zooms and flips; rate halved on a plateau.
    "focusnet-paper": Recipe(
        "focusnet",
        "paper",
        epochs=80,
        batch_size=8,
        learning_rate=1e-3,
        optimiser="adam",
        schedule="plateau",
        side=256,
        loss="dice",
        augmentation=_AS_IS,
        geometry=Geometry(turn=False, rotate=0.0, zoom=(0.8, 1.25), shear=0.0),
    ),
    "focusnet-small": _small("focusnet", "small", epochs=24, batch_size=4),
    # S2. Skew, rotation, zoom, flip, shear, shift and elastic deformation.
    "r2-attention-unet-paper": Recipe(
        "r2-attention-unet",
        "paper",
        epochs=20,
        batch_size=4,
        learning_rate=1e-4,
        optimiser="nadam",
        schedule="plateau",
        rate_decay=1e-5,
        side=256,
        loss="focal-tversky",
        choice="ensemble",
        augmentation=_AS_IS,
        geometry=Geometry(elastic=3.0),
    ),
    "r2-attention-unet-small": _small(
        "r2-attention-unet", "small", epochs=24, batch_size=4
    ),
    # S3. No augmentation; best validation weights.
    "focusnet-plus-paper": Recipe(
        "focusnet-plus",
        "paper",
        epochs=50,
        batch_size=8,
        learning_rate=1e-3,
        optimiser="adam",
        schedule="plateau",
        side=256,
        loss="log-hybrid",
        augmentation=_AS_IS,
        geometry=_UPRIGHT,
    ),
    "focusnet-plus-small": _small("focusnet-plus", "small", epochs=14, batch_size=4),
    # S4. Random crops, flips and rotations.
    "mask-rcnn-paper": Recipe(
        "mask-rcnn",
        "paper",
        epochs=50,
        batch_size=2,
        learning_rate=5e-3,
        optimiser="sgd",
        schedule="plateau",
        weight_decay=1e-4,
        side=512,
        augmentation=_AS_IS,
        geometry=Geometry(zoom=(1.0, 1.0), shear=0.0),
    ),
    "mask-rcnn-small": replace(
        _small("mask-rcnn", "small", epochs=28, batch_size=4),
        depth=False,  # it tells objects apart by itself
        learning_rate=1e-3,
        augmentation=Augmentation(),
    ),
    # The models that ship.
    "focusnet-nuclei": _nuclei("focusnet", epochs=80),
    "r2-attention-unet-nuclei": _nuclei("r2-attention-unet", epochs=80),
    "focusnet-plus-nuclei": _nuclei("focusnet-plus", epochs=40),
    "mask-rcnn-nuclei": replace(
        _nuclei("mask-rcnn", epochs=80),
        depth=False,
        diameter=32.0,
        learning_rate=1e-3,
        batch_size=4,
    ),
    "retina-nuclei": replace(
        _nuclei("retina-vgg", epochs=60),
        diameter=20.0,
        views=16_384,
        batch_size=64,
        side=None,
        uncertain=0.45,
        boundary=0.25,
        rescan=12,
    ),
    "retina-shared-nuclei": replace(
        _nuclei("retina-shared", epochs=120),
        diameter=20.0,
        side=288,
        boundary=0.6,
        looks=64,
    ),
}
"""Recipes by name."""


# Images to come look much like those that were painted on.
_SAME_LIGHT = Augmentation(
    gamma=(0.87, 1.15),
    gain=(0.92, 1.08),
    offset=0.02,
    colour=0.03,
    invert=0.0,
    gray=0.0,
    noise=0.02,
    blur=0.5,
)
_stroke = partial(
    Recipe,
    config="",
    epochs=100_000,  # the time ends it
    learning_rate=3e-4,
    weight_decay=1e-4,
    clip=1.0,
    averaging=0.9,
    boundary=0.5,
    loss="bce-dice",
    choice="last",  # a few held-out strokes judge better than they choose
    augmentation=_SAME_LIGHT,
    geometry=_TURNS,
)

STROKES: dict[str, Recipe] = {
    "retina-vgg": _stroke(
        "retina-vgg",
        batch_size=48,
        views=4 * 48,
        augmentation=replace(_SAME_LIGHT, scale=(0.8, 1.25), stretch=0.1),
    ),
    "mask-rcnn": _stroke("mask-rcnn", batch_size=2, views=8, side=256),
    "": _stroke("", learning_rate=1e-3, batch_size=4, views=16, side=192),
}
"""How models learn on from what is painted, by network; "" stands for the others."""
