"""The commands that train models."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from napari_fovea.cli.common import (
    Device,
    LabelKind,
    app,
    check_output,
    epoch_line,
    labelling_of,
    out,
)

if TYPE_CHECKING:
    from napari_fovea.models import Model


@app.command()
def recipes() -> None:
    """List the recipes that train knows."""
    from napari_fovea.networks import system_of
    from napari_fovea.training.recipes import RECIPES

    table = Table(box=None)
    table.add_column("recipe", no_wrap=True)
    for heading in ("system", "network", "epochs", "batch", "optimiser", "loss"):
        table.add_column(heading)
    for name, recipe in RECIPES.items():
        table.add_row(
            name,
            system_of(recipe.network),
            f"{recipe.network} ({recipe.config})",
            str(recipe.epochs),
            str(recipe.batch_size),
            f"{recipe.optimiser} {recipe.learning_rate:g}, {recipe.schedule}",
            recipe.told_loss,
        )
    out.print(table)


@app.command()
def train(
    images: Annotated[Path, typer.Option(help="Folder of training images.")],
    labels: Annotated[Path, typer.Option(help="Folder of labels, same stems.")],
    output: Annotated[Path, typer.Option(help="Model file to write (.safetensors).")],
    val_images: Annotated[
        Path | None, typer.Option(help="Folder of images to choose the best epoch by.")
    ] = None,
    val_labels: Annotated[
        Path | None, typer.Option(help="Labels of those images, same stems.")
    ] = None,
    recipe: Annotated[
        str, typer.Option(help="How to train; 'recipes' lists them.")
    ] = "retina-small",
    config: Annotated[
        str | None,
        typer.Option(help="Network settings: a name, or JSON over the recipe's."),
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="Name of the model; by default the file's.")
    ] = None,
    classes: Annotated[
        str, typer.Option(help="Names of the classes but background, with commas.")
    ] = "object",
    labels_are: Annotated[
        LabelKind, typer.Option(help="What the numbers in the labels mean.")
    ] = LabelKind.instances,
    depth: Annotated[
        bool | None,
        typer.Option(
            help="Learn depths inside objects (instances), which tell touching ones "
            "apart; by default as the recipe has it."
        ),
    ] = None,
    ignore: Annotated[
        int | None, typer.Option(help="Label that counts for nothing.")
    ] = None,
    pixel_size: Annotated[
        float | None, typer.Option(min=0, help="Size of the pixels in micrometres.")
    ] = None,
    channels: Annotated[int, typer.Option(min=1, max=4)] = 3,
    epochs: Annotated[int | None, typer.Option(min=1)] = None,
    views: Annotated[
        int | None, typer.Option(min=1, help="Crops shown per epoch.")
    ] = None,
    batch_size: Annotated[int | None, typer.Option(min=1)] = None,
    learning_rate: Annotated[float | None, typer.Option(min=0)] = None,
    loss: Annotated[
        str | None, typer.Option(help="Another loss, such as focal-tversky.")
    ] = None,
    backbone: Annotated[
        Path | None, typer.Option(help="ResNet weights to start mask-rcnn from.")
    ] = None,
    start: Annotated[
        str | None, typer.Option(help="Start from this model's weights.")
    ] = None,
    seed: Annotated[int, typer.Option()] = 0,
    device: Device = "auto",
    precision: Annotated[
        str, typer.Option(help="float32, bfloat16 or float16.")
    ] = "float32",
    accumulate: Annotated[
        int, typer.Option(min=1, help="Parts of a batch, to save memory.")
    ] = 1,
    devices: Annotated[int, typer.Option(min=1, help="Processes of this machine.")] = 1,
    nodes: Annotated[int, typer.Option(min=1, help="Machines.")] = 1,
    note: Annotated[
        str, typer.Option(help="What the data are, for the model's provenance.")
    ] = "",
) -> None:
    """Train a model. Run it again after a break: it goes on where it was."""
    from napari_fovea.training.fit import LossNotFinite
    from napari_fovea.training.processes import launch
    from napari_fovea.training.run import train as run

    check_output(output)
    changes = {
        "epochs": epochs,
        "views": views,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "loss": loss,
    }
    fabric = None
    if devices * nodes > 1:
        fabric = launch(
            accelerator=device, devices=devices, nodes=nodes, precision=precision
        )
    first = fabric is None or fabric.is_global_zero
    checkpoint = output.with_name(f"{output.name}.checkpoint")
    events = run(
        images,
        labels,
        val_images=val_images,
        val_labels=val_labels,
        recipe=recipe,
        config=config,
        name=name or output.stem,
        labelling=labelling_of(classes, labels_are, depth=depth, ignore=ignore),
        pixel_size=pixel_size,
        channels=channels,
        changes={k: v for k, v in changes.items() if v is not None},
        start=start,
        backbone=backbone,
        seed=seed,
        device=device,
        precision=precision,
        accumulate=accumulate,
        fabric=fabric,
        note=note,
        checkpoint=checkpoint,
    )
    try:
        model = _train(events, quiet=not first)
    except LossNotFinite as error:
        if first and error.epochs:
            error.trained.model.save(output, half=True)
        raise
    if first:
        model.save(output, half=True)
        checkpoint.unlink(missing_ok=True)
        out.print(f"saved {output}, {output.stat().st_size / 1e6:.1f} MB")


def _train(events: Any, *, quiet: bool = False) -> Model:
    model: Model
    try:
        while True:
            end = next(events)
            if not quiet:
                typer.echo(epoch_line(end))
    except StopIteration as stop:
        model = stop.value
    return model
