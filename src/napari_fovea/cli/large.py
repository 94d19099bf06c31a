"""Segmenting an image larger than memory from the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from napari_fovea.cli.common import complain, out, progress_bar
from napari_fovea.errors import FoveaError

SUFFIX = ".zarr"
"""Ending of outputs that are written block by block."""

# Options of segment for such an output.
Chunk = Annotated[
    int | None, typer.Option(min=32, help="Side of a block in pixels (.zarr only).")
]
Level = Annotated[
    str | None, typer.Option(help="Level of a pyramid, or auto (.zarr only).")
]
Workers = Annotated[
    int | None, typer.Option(min=1, help="Processes to share the work (.zarr only).")
]
Scheduler = Annotated[
    str | None,
    typer.Option(help="dask scheduler, such as tcp://host:8786 (.zarr only)."),
]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Replace an earlier result (.zarr only).")
]


def refuse_files(options: dict[str, Any], output: Path) -> None:
    """Raise FoveaError for options that only an output of files has."""
    for name, value in options.items():
        if value:
            raise FoveaError(
                f"--{name} is for many images; {output} holds the result of one: give "
                "a folder as output, or leave the option out."
            )


def refuse(options: dict[str, Any], images: list[Path], output: Path) -> None:
    """Raise FoveaError for options and images that need an output in blocks."""
    for image in images:
        if image.suffix == SUFFIX:
            raise FoveaError(
                f"{image} is a zarr image, and {output} a folder of results; expected "
                f"an output ending in {SUFFIX}: rename it."
            )
    for name, value in options.items():
        if value:
            raise FoveaError(
                f"--{name} is for results that are written in blocks; expected an "
                f"output ending in {SUFFIX}: rename it, or leave the option out."
            )


def segment_into(
    output: Path, images: list[Path], model: str, *, attention: Any, **options: Any
) -> None:
    """Segment one image into an OME-Zarr image; see `segment_large`.

    Raises
    ------
    FoveaError
        If there is not exactly one image, or something cannot be used.
    Exit
        With 1, if blocks failed.
    """
    from napari_fovea.scale import Finished, Opened, segment_large

    if len(images) != 1:
        raise FoveaError(
            f"{output} is to hold the results of {len(images)} images; expected one: "
            "segment them one by one, or into a folder."
        )
    if attention:
        raise FoveaError(
            f"Attention maps are not written to {output}; expected a folder as output: "
            "leave --attention out, or segment a part of the image."
        )
    level = options.pop("level") or "auto"
    run = segment_large(
        images[0],
        model,
        output,
        level=int(level) if level.isdecimal() else level,
        **options,
    )
    with progress_bar() as progress:
        opened = next(run)
        assert isinstance(opened, Opened)
        if opened.note:
            out.print(opened.note)
        if 0 < opened.finished < opened.blocks:
            kept = f"{opened.finished} of {opened.blocks} blocks"
            out.print(f"{output} holds {kept} of an earlier run: going on")
        elif opened.finished == opened.blocks:
            out.print(f"{output} holds all blocks of an earlier run already")
        bar = progress.add_task(images[0].name, total=1.0)
        progress.update(bar, completed=opened.fraction)
        finished = opened.finished
        try:
            while True:
                event = next(run)
                progress.update(bar, completed=event.fraction)
                if isinstance(event, Finished):
                    finished = event.done
        except StopIteration as end:
            result = end.value
        except KeyboardInterrupt:
            run.close()
            progress.stop()
            complain(
                "interrupted",
                f"{output} keeps what is finished ({finished} of {opened.blocks} "
                "blocks): the same command goes on with the rest",
            )
            raise typer.Exit(130) from None
    for failure in result.failures:
        complain("failed", f"{failure.block}: {failure.reason}")
    done = opened.blocks - len(result.failures)
    count = "1 object" if result.objects == 1 else f"{result.objects} objects"
    out.print(f"{count} in {done} of {opened.blocks} blocks segmented into {output}")
    if result.failures:
        out.print(f"{len(result.failures)} blocks failed: run this again to redo them")
        raise typer.Exit(1)
