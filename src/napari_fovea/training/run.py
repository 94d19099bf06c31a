"""Training from folders to a model, as the command line does it."""

from __future__ import annotations

import datetime
import json
import platform
from dataclasses import replace
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import torch

from napari_fovea.errors import TrainingError
from napari_fovea.models import Model
from napari_fovea.networks import build, name_of
from napari_fovea.networks.vgg_retina import CONFIGS
from napari_fovea.training.fit import EpochEnd, Trained, fit
from napari_fovea.training.recipes import RECIPES
from napari_fovea.training.retina import RetinaTask
from napari_fovea.training.samples import median_diameter, read_folder

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path


def train_retina(
    images: Path,
    labels: Path,
    *,
    val_images: Path | None = None,
    val_labels: Path | None = None,
    recipe: str = "retina-small",
    config: str = "small",
    name: str = "retina",
    classes: tuple[str, ...] = ("background", "object"),
    from_instances: bool = True,
    border: bool = True,
    ignore: int | None = None,
    pixel_size: float | None = None,
    channels: int = 3,
    epochs: int | None = None,
    views: int | None = None,
    seed: int = 0,
    device: str = "auto",
    precision: str = "float32",
    note: str = "",
    start: str | Path | None = None,
    learning_rate: float | None = None,
    checkpoint: Path | None = None,
) -> Generator[EpochEnd, None, Model]:
    """Train a retina network on folders of images and labels.

    Parameters
    ----------
    images, labels : Path
        Folders whose files pair up by stem.
    val_images, val_labels : Path, optional
        Images by which the best epoch is chosen.
    recipe : str
        A name of `RECIPES`.
    config : str
        A name of `CONFIGS`, or JSON with settings that differ from ``small``.
    name : str
        Name of the model.
    classes : tuple of str
        Names of the classes, background first.
    from_instances : bool
        Whether labels number objects; then there are two classes.
    border : bool
        With instances: learn borders between touching objects as well.
    ignore : int, optional
        Label that counts for nothing.
    pixel_size : float, optional
        Size of the images' pixels in micrometres, where all have the same.
    channels : int
        Image channels.
    epochs, views, learning_rate : int, int and float, optional
        In place of the recipe's.
    seed : int
        Same seed, same weights, on the same machine.
    device, precision : str
        See `fit`.
    note : str
        What the data are, for the provenance.
    start : str or Path, optional
        Model whose weights to start from; its settings take the place of
        ``config``.
    checkpoint : Path, optional
        Where to keep what is needed to go on after a break.

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
    """
    if recipe not in RECIPES:
        raise TrainingError(
            f"There is no recipe {recipe!r}; expected one of {', '.join(RECIPES)}."
        )
    if precision not in ("float32", "bfloat16"):
        raise TrainingError(
            f"There is no precision {precision!r}; expected float32 or bfloat16."
        )
    if (val_images is None) != (val_labels is None):
        raise TrainingError(
            "Validation needs both images and labels: give both folders, or neither."
        )
    if from_instances and len(classes) != 2:
        raise TrainingError(
            f"Labels that number objects make one class, but {len(classes) - 1} are "
            "named: name one, or say that the labels are classes."
        )
    outputs = (0, 1, 1) if from_instances and border else tuple(range(len(classes)))
    settings = _settings(config) | {"channels": channels, "classes": len(outputs)}
    first = Model.load(start) if start is not None else None
    if first is not None:
        _check_start(first, outputs=outputs, channels=channels)
    wanted = {"epochs": epochs, "views": views, "learning_rate": learning_rate}
    wanted = {k: v for k, v in wanted.items() if v is not None}
    plan = replace(RECIPES[recipe], **wanted)  # type: ignore[arg-type]

    def read(image_folder: Path, label_folder: Path) -> Any:
        return read_folder(
            image_folder,
            label_folder,
            channels=channels,
            outputs=len(outputs),
            from_instances=from_instances,
            ignore=ignore,
        )

    samples = read(images, labels)
    validation = read(val_images, val_labels) if val_images and val_labels else []
    torch.manual_seed(seed)
    model = Model(
        name=name,
        network=first.network if first else build("retina-vgg", settings),
        classes=classes,
        outputs=outputs,
        border=2 if from_instances and border else None,
        object_diameter=median_diameter(samples),
        pixel_size=pixel_size,
        scan={"policy": "seek"},
    )
    task = RetinaTask(model, samples, validation, recipe=plan, seed=seed)
    run = fit(
        model,
        task,
        plan,
        device=device,
        seed=seed,
        precision=precision,
        checkpoint=checkpoint,
    )
    while True:
        try:
            end = next(run)
        except StopIteration as stop:
            trained: Trained = stop.value
            break
        yield end
    return replace(
        trained.model,
        provenance={
            "data": note or f"{len(samples)} images",
            "training_images": len(samples),
            "validation_images": len(task.validation),
            "validation_dice": trained.score,
            "recipe": recipe,
            "epochs": plan.epochs,
            "views": plan.views,
            "learning_rate": plan.learning_rate,
            "started_from": dict(first.provenance) if first else None,
            "seed": seed,
            "precision": precision,
            "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
            "versions": {
                "python": platform.python_version(),
                "torch": torch.__version__,
                "napari-fovea": version("napari-fovea"),
            },
        },
    )


def _check_start(first: Model, *, outputs: tuple[int, ...], channels: int) -> None:
    fits = first.outputs == outputs and first.channels == channels
    if name_of(first.network) != "retina-vgg" or not fits:
        raise TrainingError(
            f"Model {first.name!r} has {first.channels} channels and outputs "
            f"{first.outputs}; expected {channels} channels and outputs {outputs} of "
            "a retina network: start from another model, or from none."
        )


def _settings(config: str) -> dict[str, Any]:
    if config in CONFIGS:
        return dict(CONFIGS[config])
    try:
        changes = json.loads(config)
        return CONFIGS["small"] | dict(changes)
    except (ValueError, TypeError) as error:
        raise TrainingError(
            f"There is no configuration {config!r}; expected "
            f"{' or '.join(CONFIGS)}, or JSON such as '{{\"d\": 64}}'."
        ) from error
