"""The command that lets a model learn from what was painted."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from napari_fovea.cli.common import (
    Device,
    Diameter,
    LabelKind,
    app,
    check_output,
    diameter_of,
    duration,
    interruptible,
    out,
    progress_bar,
)
from napari_fovea.errors import FoveaError


@app.command()
def finetune(
    model: Annotated[str, typer.Option(help="Model to start from: a name or a file.")],
    images: Annotated[Path, typer.Option(help="Folder of images.")],
    labels: Annotated[
        Path, typer.Option(help="Folder of what was painted, same stems.")
    ],
    output: Annotated[Path, typer.Option(help="Model file to write (.safetensors).")],
    unpainted: Annotated[
        int | None,
        typer.Option(
            help="Number of pixels of which nothing is known; the other numbers are "
            "classes, the lowest background. Without it the labels are complete."
        ),
    ] = None,
    labels_are: Annotated[
        LabelKind, typer.Option(help="What the numbers in complete labels mean.")
    ] = LabelKind.classes,
    classes: Annotated[
        str | None,
        typer.Option(help="Names of the classes, background first, with commas."),
    ] = None,
    diameter: Diameter = None,
    instant: Annotated[
        bool, typer.Option("--instant", help="Refit in about a second; do not train.")
    ] = False,
    seconds: Annotated[
        float | None, typer.Option(min=1, help="Time to train; a minute by default.")
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="Name of the model; by default the file's.")
    ] = None,
    replay_images: Annotated[
        Path | None,
        typer.Option(help="Images it learned from before, to be shown again."),
    ] = None,
    replay_labels: Annotated[
        Path | None, typer.Option(help="Objects on these images, same stems.")
    ] = None,
    anyway: Annotated[
        bool, typer.Option("--anyway", help="Write it even if it is no better.")
    ] = False,
    seed: Annotated[int, typer.Option()] = 0,
    device: Device = "auto",
    precision: Annotated[
        str, typer.Option(help="float32, bfloat16 or float16.")
    ] = "float32",
) -> None:
    """Let a model learn from strokes or labels. Ctrl+C keeps what it has learned."""
    from napari_fovea.models import Model
    from napari_fovea.training.finetune import fine_tune
    from napari_fovea.training.run import check_seed
    from napari_fovea.training.tuner import SECONDS

    check_output(output)
    check_seed(seed)
    if instant and seconds is not None:
        raise FoveaError(
            "Both --instant and --seconds were given; expected one: an instant refit "
            "takes no time to train."
        )
    if (replay_images is None) != (replay_labels is None):
        raise FoveaError(
            "Replay needs both images and labels: give both folders, or neither."
        )
    first = Model.load(model)
    annotations = _read(images, labels, unpainted=unpainted, labels_are=labels_are)
    if diameter is not None:
        size = diameter_of(diameter)
        annotations = [replace(a, diameter=size) for a in annotations]
    names = _names(annotations, classes)
    replay = []
    if replay_images is not None and replay_labels is not None:
        from napari_fovea.training.samples import read_folder

        replay = read_folder(
            replay_images,
            replay_labels,
            channels=first.channels,
            outputs=len(first.outputs),
            depths=first.depths,
        )
    with interruptible() as interrupted, progress_bar() as bar:
        run = fine_tune(
            annotations,
            first,
            mode="instant" if instant else "thorough",
            names=names,
            seconds=seconds or SECONDS,
            name=name or output.stem,
            device=device,
            precision=precision,
            seed=seed,
            replay=replay,
            cancelled=interrupted,
        )
        task = bar.add_task("looking", total=1.0)
        while True:
            try:
                event = next(run)
                bar.update(task, completed=event.fraction, description=_told(event))
            except KeyboardInterrupt:
                raise typer.Exit(130) from None
            except StopIteration as end:
                tuned = end.value
                break
    _tell(tuned)
    if not tuned.verdict.better and not anyway:
        raise FoveaError(
            f"The new model scores {tuned.verdict}; nothing was written: paint more, "
            "or give --anyway to keep it all the same."
        )
    tuned.model.save(output, half=True)
    out.print(f"saved {output}, {output.stat().st_size / 1e6:.1f} MB")


def _read(
    images: Path, labels: Path, *, unpainted: int | None, labels_are: LabelKind
) -> list[Any]:
    from napari_fovea.files import read_image, read_labels
    from napari_fovea.training.painted import Annotation
    from napari_fovea.training.samples import pair_files

    found = []
    for image, painted in pair_files(images, labels):
        numbers = read_labels(painted)
        if unpainted:
            # What nothing is known of becomes 0, and a 0 that is a class moves up.
            raised = numbers.astype(np.int64) + 1
            numbers = np.where(numbers == unpainted, 0, raised)
        found.append(
            Annotation(
                read_image(image),
                numbers,
                name=image.name,
                unpainted=unpainted is not None,
                objects=unpainted is None and labels_are is LabelKind.instances,
            )
        )
    return found


def _names(annotations: list[Any], classes: str | None) -> dict[int, str] | None:
    """Give the numbers that are painted names, in their order."""
    if classes is None:
        return None
    names = [name.strip() for name in classes.split(",")]
    if annotations and annotations[0].objects:
        return dict(enumerate(names))
    least = int(bool(annotations) and annotations[0].unpainted)
    seen = sorted({int(v) for a in annotations for v in np.unique(a.labels)})
    numbers = [v for v in seen if v >= least]
    if len(numbers) != len(names):
        raise FoveaError(
            f"{len(names)} classes are named ({', '.join(names)}), but "
            f"{len(numbers)} numbers are painted; expected as many names."
        )
    return dict(zip(numbers, names, strict=True))


def _told(event: Any) -> str:
    parts = [event.phase]
    if event.loss is not None:
        parts.append(f"loss {event.loss:.3f}")
    if event.score is not None:
        parts.append(f"score {event.score:.3f}")
    return ", ".join(parts)


def _tell(tuned: Any) -> None:
    made = tuned.model.provenance["fine_tuned"]
    counts = ", ".join(
        f"{count} of {name} ({made['pixels'][name]} pixels)"
        for name, count in made["strokes"].items()
    )
    out.print(f"strokes: {counts}", highlight=False)
    out.print(
        f"{tuned.mode}, {duration(made['seconds'])} on {made['device']}: score "
        f"{tuned.verdict}",
        highlight=False,
    )
