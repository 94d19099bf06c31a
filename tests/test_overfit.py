"""Every network learns four real images by heart, as a recipe trains it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from napari_fovea import complete, segment
from napari_fovea.files import read_image
from napari_fovea.metrics import dice, instance_scores
from napari_fovea.training.augment import Augmentation, Geometry
from napari_fovea.training.fit import fit
from napari_fovea.training.labelling import Labelling
from napari_fovea.training.recipe import Recipe
from napari_fovea.training.run import fresh_model, task_for
from napari_fovea.training.samples import make_sample

if TYPE_CHECKING:
    from pathlib import Path

    from napari_fovea.inference import Segmentation
    from napari_fovea.models import Model

SIDE = 128

# Every view is shown as it is.
AS_IS = Augmentation(
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
UPRIGHT = Geometry(turn=False, flip=False, rotate=0.0, zoom=(1.0, 1.0), shear=0.0)

Pair = tuple[np.ndarray, np.ndarray]


@pytest.fixture(scope="module")
def four(nuclei: Path) -> list[Pair]:
    """Crops of four real images of large bright nuclei, with their labels."""
    found: list[Pair] = []
    for path in sorted((nuclei / "val" / "images").glob("*.png")):
        image, labels = (
            read_image(nuclei / "val" / kind / path.name)[64:, 64:][:SIDE, :SIDE]
            for kind in ("images", "labels")
        )
        _, areas = np.unique(labels[labels > 0], return_counts=True)
        inside = labels > 0
        if len(areas) > 2 and np.median(areas) > 700 and 0.18 < inside.mean() < 0.5:
            light = image.reshape(SIDE, SIDE, -1).mean(-1)
            contrast = light[inside].mean() - light[~inside].mean()
            if contrast > 1.95 * light.std():
                found.append((image, labels))
        if len(found) == 4:
            return found
    pytest.skip("too few images of large bright nuclei")


def learn(
    network: str, settings: dict[str, Any], pairs: list[Pair], **changes: Any
) -> Model:
    recipe = Recipe(
        **{
            "network": network,
            "config": "small",
            "epochs": 4,
            "batch_size": 4,
            "learning_rate": 3e-3,
            "choice": "last",
            "validate_every": 100,
            "augmentation": AS_IS,
            "geometry": UPRIGHT,
        }
        | changes
    )
    labelling = Labelling(depth=False)
    model = fresh_model(recipe, config=json.dumps(settings), labelling=labelling)
    samples = [
        make_sample(image, truth, channels=3, outputs=len(model.outputs))
        for image, truth in pairs
    ]
    task = task_for(model, samples, [], recipe=recipe, seed=0)
    return complete(fit(model, task, recipe, device="cpu")).model


def found_in(model: Model, pairs: list[Pair], **options: Any) -> list[Segmentation]:
    return [complete(segment(i, model, device="cpu", **options)) for i, _ in pairs]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("network", "settings", "changes"),
    [
        ("unet", {"width": 8, "depth": 4}, {"views": 360}),
        ("focusnet", {"width": 8, "dropout": 0}, {"views": 280, "loss": "bce-dice"}),
        (
            "r2-attention-unet",
            {"width": 8, "depth": 4},
            {"views": 200, "batch_size": 2, "loss": "focal-tversky"},
        ),
        (
            "focusnet-plus",
            {
                "stem": 8,
                "widths": (8, 16, 32, 64),
                "units": (1, 1, 1, 1),
                "side": 8,
                "last": (8,),
                "dropout": 0,
            },
            {"views": 180, "loss": "log-hybrid"},
        ),
    ],
)
def test_dense_networks_learn_by_heart(
    network: str, settings: dict[str, Any], changes: dict[str, Any], four: list[Pair]
) -> None:
    model = learn(network, settings, four, **changes)
    results = found_in(model, four)
    scores = [dice(r.labels, t) for r, (_, t) in zip(results, four, strict=True)]
    assert np.mean(scores) >= 0.97, scores


@pytest.mark.slow
def test_the_patch_classifier_learns_by_heart(four: list[Pair]) -> None:
    model = learn(
        "patch-center",
        {"d": 32, "width": 8, "units": 64, "norm": True, "step": 2},
        four,
        views=12000,
        batch_size=64,
        boundary=0.6,
    )
    results = found_in(model, four)
    scores = [dice(r.labels, t) for r, (_, t) in zip(results, four, strict=True)]
    assert np.mean(scores) >= 0.97, scores


@pytest.mark.slow
def test_the_retina_network_learns_by_heart(four: list[Pair]) -> None:
    model = learn(
        "retina-vgg",
        {"d": 32, "r": 4, "width": 8, "units": 128, "norm": True},
        four,
        views=9600,
        batch_size=32,
        boundary=0.6,
    )
    results = found_in(model, four, budget=1500)
    scores = [dice(r.labels, t) for r, (_, t) in zip(results, four, strict=True)]
    assert np.mean(scores) >= 0.97, scores


@pytest.mark.slow
def test_the_detector_learns_by_heart(four: list[Pair]) -> None:
    model = learn(
        "mask-rcnn",
        {
            "backbone": "resnet18",
            "width": 16,
            "norm": "group",
            "pyramid": 32,
            "head_width": 64,
            "mask_width": 16,
            "mask_layers": 1,
            "mask_side": 28,
            "rois_per_image": 48,
            "anchors_per_image": 128,
            "before_training": 200,
            "after_training": 200,
            "before_inference": 200,
            "after_inference": 200,
        },
        four,
        views=640,
        epochs=2,
        optimiser="adam",
    )
    results = found_in(model, four)
    scores = [
        instance_scores(result.instances, truth)["ap50"]
        for result, (_, truth) in zip(results, four, strict=True)
    ]
    assert np.mean(scores) >= 0.9, scores
