"""What a recipe says of a training run: optimiser, schedule, batch, what is shown."""

from __future__ import annotations

from dataclasses import dataclass, field
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
    last : float
        Share of the epochs, the last ones, in which ``last_augmentation`` takes the
        place of ``augmentation``: what was learned of all kinds of light is brought
        to bear on images as they are.
    last_augmentation : Augmentation or None
        None goes on as before.
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
    last: float = 0.0
    last_augmentation: Augmentation | None = None

    def light(self, epoch: int) -> Augmentation:
        """Tell how intensities vary in an epoch, counted from 0."""
        late = epoch >= self.epochs - round(self.last * self.epochs)
        if late and self.last_augmentation is not None:
            return self.last_augmentation
        return self.augmentation

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
