"""Training from folders to a model, as the command line does it."""

from __future__ import annotations

import datetime
import json
import platform
from dataclasses import asdict, replace
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import torch

from napari_fovea.errors import TrainingError
from napari_fovea.losses import LOSSES
from napari_fovea.models import Model
from napari_fovea.networks import (
    DenseConfig,
    MaskRCNNConfig,
    PatchCenterConfig,
    RetinaConfig,
    SharedRetinaConfig,
    build,
    name_of,
    named_configs,
    validate,
)
from napari_fovea.networks.mask_rcnn import MaskRCNN, load_backbone
from napari_fovea.training.calibration import calibrated
from napari_fovea.training.fit import (
    EpochEnd,
    LossNotFinite,
    Trained,
    fit,
)
from napari_fovea.training.labelling import Labelling
from napari_fovea.training.processes import check_precision
from napari_fovea.training.recipes import RECIPES
from napari_fovea.training.samples import (
    Sample,
    check_samples,
    common_diameter,
    read_folder,
)
from napari_fovea.training.sizing import to_diameter

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Sequence
    from pathlib import Path

    from lightning_fabric import Fabric

    from napari_fovea.networks import NetworkConfig
    from napari_fovea.training.recipe import Recipe
    from napari_fovea.training.task import Task


def train(
    images: Path,
    labels: Path,
    *,
    val_images: Path | None = None,
    val_labels: Path | None = None,
    recipe: str | Recipe = "retina-small",
    config: str | None = None,
    name: str = "model",
    labelling: Labelling | None = None,
    pixel_size: float | None = None,
    channels: int = 3,
    changes: dict[str, Any] | None = None,
    seed: int = 0,
    device: str = "auto",
    precision: str = "float32",
    accumulate: int = 1,
    fabric: Fabric | None = None,
    note: str = "",
    start: str | Path | None = None,
    backbone: Path | None = None,
    checkpoint: Path | None = None,
    cancelled: Callable[[], bool] = lambda: False,
) -> Generator[EpochEnd, None, Model]:
    """Train a network on folders of images and labels.

    Parameters
    ----------
    images, labels : Path
        Folders whose files pair up by stem.
    val_images, val_labels : Path, optional
        Images by which the best epoch is chosen.
    recipe : str or Recipe
        A name of `RECIPES`, or a recipe.
    config : str, optional
        A named setting of the recipe's network, or JSON with what differs from
        the recipe's.
    name : str
        Name of the model.
    labelling : Labelling, optional
        What the labels mean; by default they number objects of one class.
    pixel_size : float, optional
        Size of the images' pixels in micrometres, where all have the same.
    channels : int
        Image channels.
    changes : dict, optional
        Settings in place of the recipe's, such as ``{"epochs": 5}``.
    seed : int
        Same seed, same weights, on the same machine.
    device, precision, accumulate, fabric
        See `fit`.
    note : str
        What the data are, for the provenance.
    start : str or Path, optional
        Model whose weights to start from; its settings take the place of
        ``config``.
    backbone : Path, optional
        File with a torchvision-format ResNet to start a detector from.
    checkpoint : Path, optional
        Where to keep what is needed to go on after a break.
    cancelled : callable
        See `fit`.

    Yields
    ------
    EpochEnd

    Returns
    -------
    Model

    Raises
    ------
    TrainingError
        If folders, labels or settings cannot be used.
    LossNotFinite
        If the loss is no longer finite; its model has a provenance too.
    """
    plan = find_recipe(recipe, changes or {})
    labelling = labelling or Labelling()
    check_seed(seed)
    check_precision(precision)
    if (val_images is None) != (val_labels is None):
        raise TrainingError(
            "Validation needs both images and labels: give both folders, or neither."
        )
    model = fresh_model(
        plan,
        config=config,
        name=name,
        labelling=labelling,
        channels=channels,
        pixel_size=pixel_size,
        seed=seed,
        start=start,
        backbone=backbone,
    )

    def read(image_folder: Path, label_folder: Path) -> list[Sample]:
        return read_folder(
            image_folder,
            label_folder,
            channels=channels,
            outputs=len(model.outputs),
            depths=model.depths,
            from_instances=labelling.from_instances,
            ignore=labelling.ignore,
        )

    samples = read(images, labels)
    validation = read(val_images, val_labels) if val_images and val_labels else []
    return (
        yield from train_on(
            model,
            samples,
            validation,
            recipe=plan,
            seed=seed,
            device=device,
            precision=precision,
            accumulate=accumulate,
            fabric=fabric,
            note=note,
            checkpoint=checkpoint,
            cancelled=cancelled,
        )
    )


def train_on(
    model: Model,
    samples: Sequence[Sample],
    validation: Sequence[Sample],
    *,
    recipe: Recipe,
    seed: int = 0,
    note: str = "",
    **settings: Any,
) -> Generator[EpochEnd, None, Model]:
    """Train a model on samples; see `train` and, for the settings, `fit`."""
    check_samples(samples, model)
    check_samples(validation, model)
    if recipe.diameter is None:
        model = replace(model, object_diameter=common_diameter(samples))
    else:
        samples, validation = (
            to_diameter(s, recipe.diameter, depths=model.depths)
            for s in (samples, validation)
        )
        known = common_diameter(samples)
        model = replace(model, object_diameter=known and recipe.diameter)
    task = task_for(model, samples, validation, recipe=recipe, seed=seed)

    def stamped(trained: Trained) -> Model:
        chosen, shift = trained.model, 0.0
        if recipe.calibrate:
            chosen, shift = calibrated(chosen, task.validation)
        return replace(
            chosen,
            provenance={
                "data": note or f"{len(samples)} images",
                "training_images": len(samples),
                "validation_images": len(task.validation),
                "validation_score": trained.score,
                "background_shift": shift,
                "recipe": asdict(recipe),
                "started_from": dict(model.provenance) or None,
                "seed": seed,
                "precision": settings.get("precision", "float32"),
                "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
                "versions": {
                    "python": platform.python_version(),
                    "torch": torch.__version__,
                    "napari-fovea": version("napari-fovea"),
                },
            },
        )

    try:
        trained = yield from fit(model, task, recipe, seed=seed, **settings)
    except LossNotFinite as error:
        error.trained = replace(error.trained, model=stamped(error.trained))
        raise
    return stamped(trained)


def check_seed(seed: int) -> None:
    """Raise TrainingError unless all generators of random numbers take it."""
    if not 0 <= seed < 1 << 32:
        raise TrainingError(
            f"The seed is {seed}; expected a whole number from 0 to {(1 << 32) - 1}."
        )


def find_recipe(recipe: str | Recipe, changes: dict[str, Any]) -> Recipe:
    """Look a recipe up and change some of its settings."""
    if isinstance(recipe, str):
        if recipe not in RECIPES:
            raise TrainingError(
                f"There is no recipe {recipe!r}; expected one of {', '.join(RECIPES)}."
            )
        recipe = RECIPES[recipe]
    plan = replace(recipe, **changes)
    if plan.loss not in LOSSES:
        raise TrainingError(
            f"There is no loss {plan.loss!r}; expected one of {', '.join(LOSSES)}."
        )
    if "loss" in changes and plan.told_loss != plan.loss:
        raise TrainingError(
            f"{plan.network} always learns by {plan.told_loss}; expected no other "
            "loss: leave it out, or choose another recipe."
        )
    return plan


def fresh_model(
    recipe: Recipe,
    *,
    config: str | None = None,
    name: str = "model",
    labelling: Labelling | None = None,
    channels: int = 3,
    pixel_size: float | None = None,
    seed: int = 0,
    start: str | Path | None = None,
    backbone: Path | None = None,
) -> Model:
    """Build the model that a recipe starts from; see `train`."""
    labelling = labelling or Labelling()
    settings = _settings(recipe, config) | {"channels": channels}
    first = Model.load(start) if start is not None else None
    torch.manual_seed(seed)
    if first is not None:
        network = first.network
        depths = labelling.depths(first.config, depth=recipe.depth)
        if depths is not None and first.depths is not None:
            depths = first.depths
        outputs = labelling.outputs(depths)
        _check_start(first, recipe=recipe, outputs=outputs, channels=channels)
    else:
        # The kind of network tells how many outputs it needs.
        kind = validate(recipe.network, settings)
        depths = labelling.depths(kind, depth=recipe.depth)
        outputs = labelling.outputs(depths)
        network = build(recipe.network, settings | {"classes": len(outputs)})
    if backbone is not None:
        if not isinstance(network, MaskRCNN):
            raise TrainingError(
                f"A backbone belongs into mask-rcnn; expected none for {recipe.network}"
                ": leave it out, or choose another recipe."
            )
        load_backbone(network, backbone)
    scan: dict[str, Any] = {}
    if recipe.diameter is not None and labelling.from_instances:
        scan["diameter"] = "auto"
    if isinstance(network.config, RetinaConfig):
        scan["policy"] = recipe.policy
    elif recipe.tiles and recipe.side:
        scan["tile"] = recipe.side
    return Model(
        name=name,
        network=network,
        classes=labelling.classes,
        outputs=outputs,
        depths=depths,
        pixel_size=pixel_size,
        scan=scan,
        provenance=dict(first.provenance) if first else {},
    )


def task_for(
    model: Model,
    samples: Sequence[Sample],
    validation: Sequence[Sample],
    *,
    recipe: Recipe,
    seed: int,
) -> Task[Any]:
    """Choose what a model of this kind learns from."""
    from napari_fovea.training.dense import DenseTask, PatchTask
    from napari_fovea.training.detection import DetectionTask
    from napari_fovea.training.retina import RetinaTask
    from napari_fovea.training.shared import SharedRetinaTask

    kinds: tuple[tuple[type[NetworkConfig], type[Task[Any]]], ...] = (
        (SharedRetinaConfig, SharedRetinaTask),
        (RetinaConfig, RetinaTask),
        (PatchCenterConfig, PatchTask),
        (MaskRCNNConfig, DetectionTask),
        (DenseConfig, DenseTask),
    )
    for config, task in kinds:
        if isinstance(model.config, config):
            return task(model, samples, validation, recipe=recipe, seed=seed)
    raise TrainingError(
        f"Nothing is known of how to train {name_of(model.network)}; expected a "
        "network of one of the five systems."
    )


def _check_start(
    first: Model, *, recipe: Recipe, outputs: tuple[int, ...], channels: int
) -> None:
    fits = first.outputs == outputs and first.channels == channels
    if name_of(first.network) != recipe.network or not fits:
        raise TrainingError(
            f"Model {first.name!r} has {first.channels} channels and outputs "
            f"{first.outputs} of {name_of(first.network)}; expected {channels} "
            f"channels and outputs {outputs} of {recipe.network}: start from another "
            "model, or from none."
        )


def _settings(recipe: Recipe, config: str | None) -> dict[str, Any]:
    named = named_configs(recipe.network)
    usual = dict(named[recipe.config])
    if config is None or config in named:
        return dict(named[config]) if config else usual
    try:
        return usual | dict(json.loads(config))
    except (ValueError, TypeError) as error:
        raise TrainingError(
            f"There is no configuration {config!r}; expected "
            f"{' or '.join(named)}, or JSON such as '{{\"width\": 16}}'."
        ) from error
