"""The commands that use models: list them, and segment images."""

from __future__ import annotations

import json
import re
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
    out,
    progress_bar,
    sentence,
)
from napari_fovea.errors import FoveaError

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from rich.progress import Progress

    from napari_fovea.inference import Segmentation
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
    out.print(table)


@app.command()
def segment(
    images: Annotated[list[Path], typer.Argument(help="Image files.")],
    model: Annotated[str, typer.Option(help="Name of a model, or its file.")],
    output: Annotated[Path, typer.Option(help="Folder for the results.")],
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
) -> None:
    """Segment image files.

    For x.png, writes x_classes.tif (0 is background), x_instances.tif, x.json
    and, if asked for, x_probabilities.tif and x_attention_NAME.tif.
    """
    from napari_fovea.files import read_image
    from napari_fovea.inference import segment as run
    from napari_fovea.models import Model

    loaded = Model.load(model)
    backend = backend_of(device, precision, memory, compiled)
    maps = _maps(loaded, attention or [])
    failed = 0
    stems = _distinct_stems(images)
    with progress_bar() as progress:
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
                    device=backend,
                    attention=maps,
                )
                result = _follow(events, progress, bar)
                _write(
                    result,
                    output,
                    stem,
                    path,
                    probabilities=probabilities,
                    maps=maps,
                )
            except Exception as error:  # whatever it is, the rest goes on
                failed += 1
                complain("failed", f"{path}: {sentence(error)}")
            finally:
                progress.remove_task(bar)
                progress.advance(files)
    done = len(images) - failed
    out.print(f"{done} of {len(images)} images segmented into {output}")
    if failed:
        raise typer.Exit(1)


def _maps(model: Model, names: list[str]) -> tuple[str, ...]:
    """Check names of attention maps before any image is read."""
    from napari_fovea.inference import attends
    from napari_fovea.inference.attention import wanted

    # Where there are none, the word itself is refused as any other.
    known = [a.name for a in attends(model)] or ["all"]
    meant = [m for name in names for m in (known if name == "all" else [name])]
    return tuple(w.name for w in wanted(model, meant))


def _slug(name: str) -> str:
    """Make of a map's name a part of a file's name."""
    return re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-")


def _follow(events: Any, progress: Progress, bar: Any) -> Segmentation:
    result: Segmentation
    try:
        while True:
            event = next(events)
            progress.update(bar, completed=getattr(event, "fraction", None))
    except StopIteration as end:
        result = end.value
    return result


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
    maps: tuple[str, ...],
) -> None:
    import tifffile

    from napari_fovea.files import replacing

    arrays: dict[str, NDArray[Any]] = {
        "classes": result.labels,
        "instances": result.instances,
    }
    if probabilities:
        arrays["probabilities"] = result.probabilities
    laid = {}
    for one in result.attention:
        if one.name in maps:
            arrays[f"attention_{_slug(one.name)}"] = one.array
            laid[one.name] = {"scale": one.scale, "offset": one.offset}
    for name, array in arrays.items():
        with replacing(folder / f"{stem}_{name}.tif") as temporary:
            # Three planes are a stack, not red, green and blue.
            tifffile.imwrite(
                temporary, array, compression="zlib", photometric="minisblack"
            )
    made = {"file": str(source), **result.provenance}
    made["objects"] = int(result.instances.max())
    if laid:
        made["attention"] = laid
    with replacing(folder / f"{stem}.json") as temporary:
        temporary.write_text(json.dumps(made, indent=2) + "\n", encoding="utf-8")
