"""The command line: the same functions as the docks, without a window."""

from __future__ import annotations

import json
import os
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from napari_fovea.errors import FoveaError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from napari_fovea.inference import Segmentation
    from napari_fovea.models import Model

app = typer.Typer(
    name="napari-fovea",
    help="Attention networks for biomedical segmentation.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
)
_out = Console()
_err = Console(stderr=True, soft_wrap=True)


class PolicyName(StrEnum):
    """Policies a scan can follow."""

    seek = "seek"
    raster = "raster"


class LabelKind(StrEnum):
    """What the numbers in label images mean."""

    instances = "instances"
    classes = "classes"


def main() -> None:
    """Run the command line; bad input ends in one sentence and exit code 1."""
    try:
        app()
    except FoveaError as error:
        _complain("error", str(error))
        sys.exit(1)


@app.command()
def models(
    as_json: Annotated[
        bool, typer.Option("--json", help="Print everything as JSON.")
    ] = False,
) -> None:
    """List the models that ship."""
    from napari_fovea.models import entries

    facts = [entry.facts() for entry in entries()]
    if as_json:
        typer.echo(json.dumps(facts, indent=2))
        return
    table = Table("name", "system", "classes", "MB", "object size", "file", box=None)
    for fact in facts:
        size = fact["object_diameter"]
        table.add_row(
            str(fact["name"]),
            str(fact["system"]),
            ", ".join(fact["classes"]),  # type: ignore[arg-type]
            str(fact["megabytes"]),
            f"{size:.0f} px" if size else "",
            str(fact["file"]),
        )
    _out.print(table)


@app.command()
def segment(
    images: Annotated[list[Path], typer.Argument(help="Image files.")],
    model: Annotated[str, typer.Option(help="Name of a model, or its file.")],
    output: Annotated[Path, typer.Option(help="Folder for the results.")],
    policy: Annotated[
        PolicyName | None, typer.Option(help="How to scan; by default the model's.")
    ] = None,
    budget: Annotated[
        int | None, typer.Option(min=1, help="Most fixations per plane.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, mps, …")] = "auto",
    diameter: Annotated[
        float | None, typer.Option(help="Typical diameter of the objects in pixels.")
    ] = None,
    pixel_size: Annotated[
        float | None, typer.Option(help="Size of the pixels in micrometres.")
    ] = None,
    axes: Annotated[
        str | None, typer.Option(help="Axes of the images, such as ZYX; guessed.")
    ] = None,
    probabilities: Annotated[
        bool, typer.Option("--probabilities", help="Write class probabilities too.")
    ] = False,
) -> None:
    """Segment image files.

    For x.png, writes x_classes.tif (0 is background), x_instances.tif, x.json
    and, if asked for, x_probabilities.tif.
    """
    from napari_fovea.device import pick
    from napari_fovea.files import read_image
    from napari_fovea.inference import segment as run
    from napari_fovea.models import Model

    loaded = Model.load(model)
    pick(device)  # an unknown device is no image's fault
    failed = 0
    stems = _distinct_stems(images)
    with _progress() as progress:
        files = progress.add_task("images", total=len(images), visible=len(images) > 1)
        for path, stem in zip(images, stems, strict=True):
            bar = progress.add_task(path.name, total=1.0)
            try:
                events = run(
                    read_image(path),
                    loaded,
                    axes=axes,
                    policy=policy.value if policy else None,
                    budget=budget,
                    diameter=diameter,
                    pixel_size=pixel_size,
                    device=device,
                )
                result = _follow(events, progress, bar)
                _write(result, output, stem, path, probabilities=probabilities)
            except Exception as error:  # whatever it is, the rest goes on
                failed += 1
                _complain("failed", f"{path}: {_sentence(error)}")
            finally:
                progress.remove_task(bar)
                progress.advance(files)
    done = len(images) - failed
    _out.print(f"{done} of {len(images)} images segmented into {output}")
    if failed:
        raise typer.Exit(1)


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
    border: Annotated[
        bool, typer.Option(help="Learn borders between touching objects (instances).")
    ] = True,
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
    device: Annotated[str, typer.Option()] = "auto",
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
    from napari_fovea.training.fit import LossNotFinite, launch
    from napari_fovea.training.run import Labelling
    from napari_fovea.training.run import train as run

    if output.suffix != ".safetensors":
        raise FoveaError(
            f"The model file is called {output.name}; expected a name ending in "
            ".safetensors: rename it."
        )
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
        labelling=Labelling(
            classes=("background", *(c.strip() for c in classes.split(","))),
            from_instances=labels_are is LabelKind.instances,
            border=border,
            ignore=ignore,
        ),
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
        if first:
            error.trained.model.save(output, half=True)
        raise
    if first:
        model.save(output, half=True)
        checkpoint.unlink(missing_ok=True)
        _out.print(f"saved {output}, {output.stat().st_size / 1e6:.1f} MB")


@app.command()
def demo(
    headless: Annotated[
        bool, typer.Option("--headless", help="Write files instead of opening napari.")
    ] = False,
    output: Annotated[Path, typer.Option(help="Folder for the files.")] = Path("demo"),
) -> None:
    """Segment a sample image in napari and show where the network looked."""
    display = os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    if sys.platform.startswith("linux") and not display:
        _on_virtual_display(output)
        return
    from napari_fovea.widgets.demo import run_demo

    for path in run_demo(output if headless else None):
        _out.print(f"wrote {path}")


def _on_virtual_display(output: Path) -> None:
    """Start again under Xvfb."""
    import shutil
    import subprocess

    runner = shutil.which("xvfb-run")
    if runner is None:
        raise FoveaError(
            "There is no display and no xvfb-run to make a virtual one; expected "
            "either: set DISPLAY, or install the package xvfb."
        )
    command = [runner, "-a", "-s", "-screen 0 1600x1000x24"]
    again = [sys.executable, "-m", "napari_fovea.cli", "demo", "--headless"]
    code = subprocess.call([*command, *again, "--output", str(output)])
    if code:
        raise typer.Exit(code)


def _complain(what: str, sentence: str) -> None:
    # File names may hold brackets, which are no markup.
    _err.print(f"[red]{what}:[/red] {escape(sentence)}", highlight=False)


def _sentence(error: Exception) -> str:
    """Say what went wrong in one line."""
    first = str(error).strip().split("\n")[0]
    return (
        first if isinstance(error, FoveaError) else f"{type(error).__name__}: {first}"
    )


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TaskProgressColumn(),
        TimeRemainingColumn(),
        console=_err,
        transient=True,
    )


def _follow(events: Any, progress: Progress, bar: Any) -> Segmentation:
    result: Segmentation
    try:
        while True:
            event = next(events)
            progress.update(bar, completed=getattr(event, "fraction", None))
    except StopIteration as end:
        result = end.value
    return result


def _train(events: Any, *, quiet: bool = False) -> Model:
    model: Model
    try:
        while True:
            end = next(events)
            if quiet:
                continue
            score = f", score {end.score:.4f}" if end.score is not None else ""
            typer.echo(
                f"epoch {end.epoch}/{end.epochs}: loss {end.loss:.4f}{score}, "
                f"{end.seconds:.0f} s, {_duration(end.seconds_left)} left"
            )
    except StopIteration as stop:
        model = stop.value
    return model


def _duration(seconds: float) -> str:
    """Tell a time roughly, as people do."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def _distinct_stems(paths: list[Path]) -> list[str]:
    """Names for the results: the stem, or the whole name where stems repeat."""
    stems = [p.stem for p in paths]
    names = [p.stem if stems.count(p.stem) == 1 else p.name for p in paths]
    twice = sorted({n for n in names if names.count(n) > 1})
    if twice:
        raise FoveaError(
            f"Two images are called {twice[0]}, and so would be their results: "
            "segment them into different folders."
        )
    return names


def _write(
    result: Segmentation,
    folder: Path,
    stem: str,
    source: Path,
    *,
    probabilities: bool,
) -> None:
    import tifffile

    from napari_fovea.files import replacing

    arrays: dict[str, NDArray[Any]] = {
        "classes": result.labels,
        "instances": result.instances,
    }
    if probabilities:
        arrays["probabilities"] = result.probabilities
    for name, array in arrays.items():
        with replacing(folder / f"{stem}_{name}.tif") as temporary:
            # Three planes are a stack, not red, green and blue.
            tifffile.imwrite(
                temporary, array, compression="zlib", photometric="minisblack"
            )
    made = {"file": str(source), **result.provenance}
    made["objects"] = int(result.instances.max())
    with replacing(folder / f"{stem}.json") as temporary:
        temporary.write_text(json.dumps(made, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
