"""The command that shows and records where a retina model looked."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

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
    follow,
    out,
)
from napari_fovea.errors import FoveaError, ImageError, ModelError, PathError

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    from numpy.typing import NDArray

    from napari_fovea.images import Planes
    from napari_fovea.inference import Segmentation
    from napari_fovea.models import Model
    from napari_fovea.project.identity import ImageId
    from napari_fovea.retina import Recorded


@app.command()
def focus(
    image: Annotated[Path, typer.Argument(help="Image file.")],
    output: Annotated[
        list[Path],
        typer.Option(
            help="File for the path: .gif, .mp4 or .png to look at, .csv for tables, "
            ".focus to replay. May be given several times."
        ),
    ],
    model: Annotated[
        str | None, typer.Option(help="Name of a retina model, or its file.")
    ] = None,
    path: Annotated[
        Path | None,
        typer.Option(help="Saved path (.focus) to show in place of a model's."),
    ] = None,
    stretch: Annotated[
        bool,
        typer.Option("--stretch", help="Lay the saved path on an image of any size."),
    ] = False,
    policy: Policy = None,
    budget: Budget = None,
    device: Device = "auto",
    precision: Precision = PrecisionName.auto,
    memory: Memory = "auto",
    compiled: Compile = False,
    diameter: Diameter = None,
    pixel_size: PixelSize = None,
    axes: Axes = None,
    plane: Annotated[
        int, typer.Option(min=0, help="Plane of a stack to show, counted from 0.")
    ] = 0,
    fps: Annotated[float, typer.Option(min=1, max=120, help="Frames per second.")] = 20,
    seconds: Annotated[
        float,
        typer.Option(min=0.1, max=3600, help="Length of the animation at most."),
    ] = 10,
    side: Annotated[
        int,
        typer.Option(min=16, max=4096, help="Longest side of the frames in pixels."),
    ] = 512,
) -> None:
    """Show where a retina model looked, as an animation, a table or a file.

    With --path, a saved path is shown and no model is run.
    """
    from napari_fovea.files import read_image
    from napari_fovea.images import read_planes
    from napari_fovea.inference import segment
    from napari_fovea.project.identity import identify
    from napari_fovea.views.animation import SUFFIXES

    for file in output:
        _check_output(file, [image, path] if path else [image])
    settings: dict[str, Any] = {
        "policy": policy.value if policy else None,
        "budget": budget,
        "diameter": diameter_of(diameter),
        "pixel_size": pixel_size,
    }
    _check_source(model, path, stretch=stretch, settings=settings)
    loaded = None if model is None else _retina_model(model)
    if loaded is not None:
        settings["device"] = backend_of(device, precision, memory, compiled)
    pixels = read_image(image)
    planes = read_planes(pixels, axes=axes)
    if plane >= len(planes):
        raise ImageError(
            f"There is no plane {plane} in {image.name}; expected 0 to "
            f"{len(planes) - 1}: choose another."
        )
    known = identify(pixels, image.name)
    if loaded is not None:
        events = segment(pixels, loaded, axes=axes, **settings)
        recorded = _record(follow(events, image.name), known)
    else:
        assert path is not None
        recorded = _replayed(path, image.name, planes, known, stretch=stretch)
    shown = _picture(planes.data[plane])
    look = {"plane": plane, "fps": fps, "seconds": seconds, "side": side}
    # What cannot fail for what the path looks like comes first.
    for file in sorted(output, key=lambda f: f.suffix.lower() in SUFFIXES):
        count = _write(recorded, file, shown, look)
        fixations = f"{count} fixation{'s' if count != 1 else ''}"
        out.print(f"wrote {escape(str(file))} ({fixations})", highlight=False)


def _check_output(file: Path, inputs: list[Path]) -> None:
    """Raise unless the file can be written, before time is spent on what is in it."""
    from napari_fovea.retina.path_file import SUFFIX
    from napari_fovea.views.animation import SUFFIXES, check_animation

    known = (*SUFFIXES, ".csv", SUFFIX)
    if file.suffix.lower() not in known:
        raise PathError(
            f"The output is called {file.name}; expected a name ending in "
            f"{', '.join(known[:-1])} or {known[-1]}: rename it."
        )
    if file.suffix.lower() in SUFFIXES:
        check_animation(file)
    if any(file.resolve() == other.resolve() for other in inputs):
        raise PathError(
            f"{file} is what is read; expected another name for what is written: "
            "choose one."
        )
    folder = next(p for p in file.absolute().parents if p.exists())
    if file.is_dir() or not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        what = "it is a folder" if file.is_dir() else f"{folder} takes no files"
        raise PathError(f"{file} cannot be written ({what}): choose another place.")


def _check_source(
    model: str | None,
    path: Path | None,
    *,
    stretch: bool,
    settings: Mapping[str, Any],
) -> None:
    """Raise unless it is clear where the path comes from."""
    if (model is None) == (path is None):
        given = "neither" if model is None else "both"
        raise FoveaError(
            f"There is {given} of --model and --path; expected one: a model to scan "
            "the image with, or a saved path to show."
        )
    if path is None and stretch:
        raise FoveaError(
            "A path that a model makes fits its image; expected --stretch with --path "
            "alone: leave it out."
        )
    for name, value in settings.items():
        if path is not None and value is not None:
            option = name.replace("_", "-")
            raise FoveaError(
                f"A saved path is not scanned again; expected no --{option} with "
                "--path: leave it out."
            )


def _retina_model(name: str) -> Model:
    from napari_fovea.models import Model
    from napari_fovea.networks import RetinaConfig

    model = Model.load(name)
    if not isinstance(model.config, RetinaConfig):
        raise ModelError(
            f"Model {model.name!r} is an {model.system} network that moves no focus; "
            "expected a retina model (S0), such as retina-nuclei: choose one of those."
        )
    return model


def _record(result: Segmentation, known: ImageId) -> Recorded:
    from napari_fovea.retina import Recorded

    assert result.path is not None
    about = {
        "name": known.name,
        "shape": known.shape,
        "dtype": known.dtype,
        "digest": known.digest,
    }
    return Recorded(result.path, about, result.provenance)


def _replayed(
    file: Path, name: str, planes: Planes, known: ImageId, *, stretch: bool
) -> Recorded:
    """Read a saved path, and see whether it is this image's."""
    from napari_fovea.retina import load_path

    recorded = load_path(file)
    size = recorded.path.image_shape
    if size is not None and size != planes.shape:
        if not stretch:
            (height, width), (tall, wide) = size, planes.shape
            raise PathError(
                f"{file.name} is the path of an image of {height}×{width} pixels, "
                f"{name} has {tall}×{wide}; expected the same: give the image it was "
                "made on, or --stretch it over this one."
            )
        return replace(recorded, path=recorded.path.laid_on(planes.shape))
    if recorded.image.get("digest", known.digest) != known.digest:
        other = recorded.image.get("name") or "without a name"
        complain(
            "note",
            f"{file.name} was made on other pixels than those of {name} (its image was "
            f"{other}): check that this is the image you mean.",
        )
    return recorded


def _picture(plane: NDArray[np.generic]) -> NDArray[np.generic]:
    """Make of a plane (H, W, C) what can be shown: grey, or red, green and blue."""
    if plane.shape[2] in (3, 4):
        return plane[..., :3]
    return plane[..., 0] if plane.shape[2] == 1 else plane.mean(-1)


def _write(
    recorded: Recorded,
    file: Path,
    image: NDArray[np.generic],
    look: Mapping[str, Any],
) -> int:
    """Write one file, and tell how many fixations are in it."""
    from napari_fovea.retina import save_path, write_table
    from napari_fovea.views.animation import SUFFIXES, animate

    path, suffix = recorded.path, file.suffix.lower()
    if suffix in SUFFIXES:
        follow(animate(image, path, file, **look), file.name)
        return int((path.planes == look["plane"]).sum())
    if suffix == ".csv":
        write_table(path, file)
    else:
        save_path(recorded, file)
    return len(path)
