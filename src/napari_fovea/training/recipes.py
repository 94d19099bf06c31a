"""The recipes by name: the papers', small ones for any machine, those that ship."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from napari_fovea.training.augment import Augmentation, Geometry
from napari_fovea.training.recipe import Recipe

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
_brief = partial(
    Recipe,
    config="small",
    loss="bce-dice",
    learning_rate=2e-3,
    weight_decay=1e-4,
    clip=1.0,
    depth=True,
    side=256,
)
_small = partial(
    _brief,
    augmentation=_MILD,
    averaging=0.998,
    validate_every=4,
    geometry=Geometry(zoom=(0.7, 1.5), elastic=2.0),
)

_LESS = Augmentation(
    gamma=(0.5, 2.0),
    gain=(0.85, 1.15),
    offset=0.03,
    colour=0.05,
    gray=0.05,
    noise=0.03,
    blur=0.6,
)
# What the models that ship were trained with: 90 minutes on two cores at most. Objects
# are shown at one size, give or take, so a small network need not know all sizes;
# light varies as much as microscopes do.
# In the end it varies less, which makes outlines better.
_nuclei = partial(
    _brief,
    augmentation=Augmentation(gamma=(0.4, 2.5)),
    last=0.3,
    last_augmentation=_LESS,
    diameter=24.0,
    balance=0.3,
    averaging=0.999,
    batch_size=8,
    calibrate=True,
    validate_every=10,
    validate_images=50,
    geometry=Geometry(zoom=(0.7, 1.45), elastic=2.0),
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
    "unet-small": _small("unet", epochs=24, batch_size=8),
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
    "focusnet-small": _small("focusnet", epochs=24, batch_size=4),
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
    "r2-attention-unet-small": _small("r2-attention-unet", epochs=24, batch_size=4),
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
    "focusnet-plus-small": _small("focusnet-plus", epochs=14, batch_size=4),
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
        _small("mask-rcnn", epochs=28, batch_size=4),
        depth=False,  # it tells objects apart by itself
        learning_rate=1e-3,
        augmentation=Augmentation(),
    ),
    # The models that ship.
    # At twice the rate, and in batches of 8, it took all for background for 10 epochs.
    "focusnet-nuclei": _nuclei("focusnet", epochs=40, learning_rate=1e-3, batch_size=4),
    # From those weights, for it gave way to what is dark on light or of odd gamma.
    "focusnet-nuclei-more": _nuclei(
        "focusnet",
        epochs=8,
        learning_rate=5e-4,
        averaging=0.99,
        validate_every=4,
        augmentation=replace(_LESS, gamma=(0.35, 2.8), invert=0.2),
        last=0.0,
    ),
    # The largest of these networks withstands what it was hardly shown in the end.
    "r2-attention-unet-nuclei": _nuclei(
        "r2-attention-unet",
        epochs=60,
        augmentation=Augmentation(),
        last_augmentation=replace(_LESS, gamma=(0.75, 1.33)),
    ),
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
