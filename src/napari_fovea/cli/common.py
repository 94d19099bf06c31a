"""What the commands share: where they print, and how they tell things."""

from __future__ import annotations

import signal
import threading
from contextlib import contextmanager
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any, Literal

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

from napari_fovea.errors import FoveaError, ImageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from napari_fovea.device import Backend
    from napari_fovea.training.fit import EpochEnd
    from napari_fovea.training.labelling import Labelling

app = typer.Typer(
    name="napari-fovea",
    help="Attention networks for biomedical segmentation.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
)
out = Console(soft_wrap=True)
err = Console(stderr=True, soft_wrap=True)


class PolicyName(StrEnum):
    """Policies a scan can follow."""

    seek = "seek"
    raster = "raster"


class PrecisionName(StrEnum):
    """Precisions a network can be run in."""

    auto = "auto"
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


class LabelKind(StrEnum):
    """What the numbers in label images mean."""

    instances = "instances"
    classes = "classes"


# Options that several commands have.
Policy = Annotated[
    PolicyName | None, typer.Option(help="How to scan; by default the model's.")
]
Budget = Annotated[int | None, typer.Option(min=1, help="Most fixations per plane.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, mps, …")]
Precision = Annotated[
    PrecisionName,
    typer.Option(
        help="Of the network; auto is 16 bits where they are fast and agree with 32."
    ),
]
Memory = Annotated[
    str,
    typer.Option(
        help="Most for the network's features, such as 2GiB; auto is half of what is "
        "free."
    ),
]
Compile = Annotated[
    bool,
    typer.Option(
        "--compile", help="Compile the network first, which may take minutes."
    ),
]
Diameter = Annotated[
    str | None,
    typer.Option(
        help="Typical diameter of the objects in pixels; auto estimates it, which is "
        "what models do by default that know objects of one size."
    ),
]
PixelSize = Annotated[
    float | None, typer.Option(help="Size of the pixels in micrometres.")
]
Axes = Annotated[
    str | None, typer.Option(help="Axes of an image, such as ZYX; guessed.")
]


def complain(what: str, sentence: str) -> None:
    """Print what went wrong."""
    # File names may hold brackets, which are no markup.
    err.print(f"[red]{what}:[/red] {escape(sentence)}", highlight=False)


def backend_of(
    device: str, precision: PrecisionName, memory: str, compiled: bool
) -> Backend:
    """Make of the options where and how to compute; DeviceError if that cannot be."""
    from napari_fovea.device import Backend, memory_of, pick

    backend = Backend(device, precision.value, memory_of(memory), compiled)
    pick(backend.device)  # an unknown device is no image's fault
    return backend


def check_output(output: Path) -> None:
    """Raise FoveaError unless a model can be written under this name."""
    if output.suffix != ".safetensors":
        raise FoveaError(
            f"The model file is called {output.name}; expected a name ending in "
            ".safetensors: rename it."
        )


def progress_bar() -> Progress:
    """Make a bar with the time that is left."""
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TaskProgressColumn(),
        TimeRemainingColumn(),
        console=err,
        transient=True,
    )


@contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """Let the first Ctrl-C ask for an end in order; the second ends it hard.

    Yields
    ------
    callable
        Tells whether an end was asked for.
    """
    asked = threading.Event()

    def ask(*_: object) -> None:
        signal.signal(signal.SIGINT, before)
        asked.set()
        err.print("stopping; what is done is kept (Ctrl-C again: at once)")

    before = signal.signal(signal.SIGINT, ask)
    try:
        yield asked.is_set
    finally:
        signal.signal(signal.SIGINT, before)


def follow(events: Any, what: str) -> Any:
    """Run a generator of events to its end under a bar; return its result."""
    with progress_bar() as progress:
        bar = progress.add_task(what, total=1.0)
        try:
            while True:
                progress.update(bar, completed=next(events).fraction)
        except StopIteration as end:
            return end.value


def duration(seconds: float) -> str:
    """Tell a time roughly, as people do."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def epoch_line(end: EpochEnd) -> str:
    """Tell of an epoch in one line."""
    score = f", score {end.score:.4f}" if end.score is not None else ""
    return (
        f"epoch {end.epoch}/{end.epochs}: loss {end.loss:.4f}{score}, "
        f"{end.seconds:.0f} s, {duration(end.seconds_left)} left"
    )


def labelling_of(
    classes: str, kind: LabelKind, *, depth: bool | None, ignore: int | None
) -> Labelling:
    """Make of the options what the numbers in the labels mean."""
    from napari_fovea.training.labelling import Labelling

    return Labelling(
        classes=("background", *(c.strip() for c in classes.split(","))),
        from_instances=kind is LabelKind.instances,
        depth=depth,
        ignore=ignore,
    )


def diameter_of(text: str | None) -> float | Literal["auto"] | None:
    """Read a diameter: a number, ``auto``, or nothing.

    Raises
    ------
    ImageError
        If it is none of these.
    """
    if text is None:
        return None
    if text == "auto":
        return "auto"
    try:
        return float(text)
    except ValueError:
        raise ImageError(
            f"The diameter is {text!r}; expected a number of pixels, or auto."
        ) from None
