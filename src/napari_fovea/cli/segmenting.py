"""The commands that use models: list them, and segment images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from napari_fovea.cli.common import (
    Axes,
    Budget,
    Compile,
    Device,
    Diameter,
    Memory,
    PixelSize,
    Policy,
    Precision,
    PrecisionName,
    app,
    backend_of,
    complain,
    diameter_of,
    duration,
    err,
    interruptible,
    out,
    progress_bar,
)
from napari_fovea.cli.large import (
    SUFFIX,
    Chunk,
    Level,
    Overwrite,
    Scheduler,
    Workers,
    refuse,
    refuse_files,
    segment_into,
)

if TYPE_CHECKING:
    from collections.abc import Generator

    from napari_fovea.inference import Batch, Failed
    from napari_fovea.models import Model


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
    table = Table(box=None)
    table.add_column("name", no_wrap=True)  # it is to be copied
    for heading in ("system", "classes", "MB", "object size"):
        table.add_column(heading)
    table.add_column("file", overflow="fold")
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
    out.print(table)


@app.command()
def segment(
    images: Annotated[
        list[Path],
        typer.Argument(help="Image files, folders, and patterns such as 'a/*/*.tif'."),
    ],
    model: Annotated[str, typer.Option(help="Name of a model, or its file.")],
    output: Annotated[
        Path, typer.Option(help="Folder for the results, or NAME.zarr for a large one.")
    ],
    policy: Policy = None,
    budget: Budget = None,
    device: Device = "auto",
    precision: Precision = PrecisionName.auto,
    memory: Memory = "auto",
    compiled: Compile = False,
    diameter: Diameter = None,
    pixel_size: PixelSize = None,
    axes: Axes = None,
    probabilities: Annotated[
        bool, typer.Option("--probabilities", help="Write class probabilities too.")
    ] = False,
    attention: Annotated[
        list[str] | None,
        typer.Option(
            help="Attention map to write, or all. May be given several times."
        ),
    ] = None,
    recursive: Annotated[
        bool,
        typer.Option(
            "--recursive",
            help="Look into folders in folders, too; results keep the subfolders.",
        ),
    ] = False,
    skip_existing: Annotated[
        bool,
        typer.Option("--skip-existing", help="Leave out images that have results."),
    ] = False,
    chunk: Chunk = None,
    level: Level = None,
    workers: Workers = None,
    scheduler: Scheduler = None,
    overwrite: Overwrite = False,
) -> None:
    """Segment image files.

    For x.png, writes x_classes.tif (0 is background), x_instances.tif, x.json
    and, if asked for, x_probabilities.tif and x_attention_NAME.tif. An image that is
    larger than memory goes block by block into an OME-Zarr image, NAME.zarr.
    """
    blocks: dict[str, Any] = {
        "chunk": chunk,
        "level": level,
        "workers": workers,
        "scheduler": scheduler,
        "overwrite": overwrite,
    }
    backend = backend_of(device, precision, memory, compiled)
    if output.suffix == SUFFIX:
        refuse_files({"recursive": recursive, "skip-existing": skip_existing}, output)
        focus = {"policy": policy.value if policy else None, "budget": budget}
        sizes = {
            "diameter": diameter_of(diameter),
            "pixel_size": pixel_size,
            "axes": axes,
        }
        more = {"device": backend, "probabilities": probabilities}
        options = blocks | focus | sizes | more
        segment_into(output, images, model, attention=attention, **options)
        return
    refuse(blocks, images, output)
    from napari_fovea.inference import segment_files
    from napari_fovea.models import Model

    loaded = Model.load(model)
    with interruptible() as interrupted:
        run = segment_files(
            images,
            loaded,
            output,
            recursive=recursive,
            skip_existing=skip_existing,
            probabilities=probabilities,
            attention=_maps(loaded, attention or []),
            cancelled=interrupted,
            policy=policy.value if policy else None,
            budget=budget,
            device=backend,
            diameter=diameter_of(diameter),
            pixel_size=pixel_size,
            axes=axes,
        )
        batch = _follow(run)
    done, skipped = len(batch.written), batch.skipped
    total = done + len(batch.failed) + batch.left
    rate = f"{done / batch.seconds:.3g} images per second"
    out.print(
        f"{done} of {total} images segmented into {output} in "
        f"{duration(batch.seconds)} ({rate})"
        + (f"; {skipped} had results" if skipped else "")
    )
    if batch.left:
        complain("interrupted", f"{batch.left} left; --skip-existing goes on with them")
        raise typer.Exit(130)
    if batch.failed:
        raise typer.Exit(1)


def _follow(run: Generator[Any, None, Batch]) -> Batch:
    """Show how far it is; tell what fails at once, and again in the end."""
    from napari_fovea.inference import Computing, Failed

    failed: list[Failed] = []
    with progress_bar() as progress:
        every = progress.add_task("images", total=1.0)
        bar = progress.add_task("", total=1.0)
        try:
            while True:
                event = next(run)
                progress.update(every, completed=event.fraction)
                if isinstance(event, Computing):
                    name = event.path.name
                    progress.update(bar, description=name, completed=event.part)
                elif isinstance(event, Failed):
                    failed.append(event)
                    _tell(event)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]
        finally:
            progress.stop()
            if len(failed) > 1:
                err.print(f"{len(failed)} images failed:")
                for one in failed:
                    _tell(one)


def _tell(failed: Failed) -> None:
    complain("failed", f"{failed.path}: {failed.reason}")


def _maps(model: Model, names: list[str]) -> tuple[str, ...]:
    """Check names of attention maps before any image is read."""
    from napari_fovea.inference import attends
    from napari_fovea.inference.attention import wanted

    # Where there are none, the word itself is refused as any other.
    known = [a.name for a in attends(model)] or ["all"]
    meant = [m for name in names for m in (known if name == "all" else [name])]
    return tuple(w.name for w in wanted(model, meant))
