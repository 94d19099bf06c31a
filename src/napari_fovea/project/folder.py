"""A project as a folder: written whole or not at all, read with suspicion."""

from __future__ import annotations

import math
import shutil
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import ValidationError

from napari_fovea.errors import ProjectError
from napari_fovea.files import replacing
from napari_fovea.project.identity import plain
from napari_fovea.project.manifest import (
    Manifest,
    NewerFormatError,
    Part,
    Record,
    Stored,
    inside,
    read_manifest,
    remove,
    store,
    write_manifest,
    writing,
)
from napari_fovea.project.painted import check_labels, read_painted, write_painted
from napari_fovea.project.work import Project, Strokes

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator, Mapping

    from numpy.typing import NDArray

    from napari_fovea.models import Model
    from napari_fovea.project.work import Step


def save_project(
    folder: str | os.PathLike[str],
    project: Project,
    models: Mapping[str, Model],
    *,
    source: str | os.PathLike[str] | None = None,
) -> None:
    """Write a project; what was in the folder is replaced whole or not at all.

    Parameters
    ----------
    folder : path-like
        Where to; it is made if need be.
    project : Project
        What to write.
    models : mapping
        Model of each step's ``file``. Those that are not among them are taken from
        ``source``.
    source : path-like, optional
        The project or journal that the other models lie in; the folder itself if
        not given.

    Raises
    ------
    ProjectError
        If the folder cannot be written, holds a project of a newer format, or a
        step's model is nowhere.
    """
    folder = Path(folder)
    old = _replaced(folder)
    found = _models_of(folder if source is None else Path(source), project, models)
    written: list[str] = []
    try:
        with writing(folder):
            names = _free_names(folder)
            manifest = Manifest(
                base=plain(project.base),
                classes={int(k): str(v) for k, v in project.classes.items()},
                settings=project.settings,
                strokes=tuple(
                    _write_strokes(folder, s, names, written) for s in project.strokes
                ),
                steps=_write_models(folder, project.steps, found, names, written),
                current=project.current,
            )
            write_manifest(folder, manifest)
    except BaseException as error:
        remove(folder, written)
        if isinstance(error, ValidationError):
            raise ProjectError(
                f"The project cannot be kept ({error.errors()[0]['msg']}): leave out "
                "what is not as expected."
            ) from error
        raise
    remove(folder, old - manifest.files())


def open_project(folder: str | os.PathLike[str]) -> Project:
    """Read a project.

    Raises
    ------
    ProjectError
        If it is missing, damaged, or of a newer format.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    return Project(
        base=manifest.base,
        strokes=tuple(_read_strokes(folder, record) for record in manifest.strokes),
        classes=manifest.classes,
        settings=manifest.settings,
        steps=tuple(stored.step for stored in manifest.steps),
        current=manifest.current,
    )


def load_step(folder: str | os.PathLike[str], step: Step) -> Model:
    """Load the model of a step; the project's base for one without a file.

    Raises
    ------
    ProjectError
        If the project has no such step.
    FoveaError
        If its model cannot be loaded.
    """
    from napari_fovea.models import Model

    folder = Path(folder)
    if step.file is None:
        return Model.load(read_manifest(folder).base)
    return Model.load(step_file(folder, step))


def step_file(folder: str | os.PathLike[str], step: Step) -> Path:
    """Tell where the model of a step lies.

    Raises
    ------
    ProjectError
        If the project has no such step, or its file is missing.
    """
    folder = Path(folder)
    for stored in read_manifest(folder).steps:
        if stored.file is not None and stored.step.file == step.file:
            path = folder / stored.file
            if path.is_file():
                return path
    raise ProjectError(
        f"{folder} holds no model of step {step.name!r}; expected {step.file}: go back "
        "to another step, or get the project again."
    )


def write_model(path: Path, model: Model | Path) -> None:
    """Write a model, or copy its file, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(model, Path):
        with replacing(path) as temporary:
            shutil.copyfile(model, temporary)
    else:
        model.save(path)


def _replaced(folder: Path) -> frozenset[str]:
    """Files of the project that is to be replaced, if there is one."""
    try:
        return read_manifest(folder).files()
    except NewerFormatError:
        raise  # it may hold what this program cannot see
    except ProjectError:
        return frozenset()


def _models_of(
    source: Path, project: Project, models: Mapping[str, Model]
) -> dict[str, Model | Path]:
    found: dict[str, Model | Path] = {}
    for step in project.steps:
        if step.file is not None:
            known = step.file in models
            found[step.file] = models[step.file] if known else step_file(source, step)
    return found


def _free_names(folder: Path) -> Iterator[int]:
    """Numbers of files that are not there yet."""
    taken = {
        path.stem for kind in ("strokes", "models") for path in folder.glob(f"{kind}/*")
    }
    return (n for n in count() if f"{n:03}" not in taken)


def _write_strokes(
    folder: Path, strokes: Strokes, names: Iterator[int], written: list[str]
) -> Record:
    labels = strokes.labels
    check_labels(labels)
    name = f"strokes/{next(names):03}.npz"
    written.append(name)
    painted = write_painted(inside(folder, name), labels)
    return Record(
        image=strokes.image,
        layer=plain(strokes.layer),
        shape=labels.shape,
        dtype=labels.dtype.str,
        parts=(Part(file=name, painted=painted),),
    )


def _write_models(
    folder: Path,
    steps: tuple[Step, ...],
    found: Mapping[str, Model | Path],
    names: Iterator[int],
    written: list[str],
) -> tuple[Stored, ...]:
    places: dict[str, str] = {}
    for file, model in found.items():
        if isinstance(model, Path) and model.parent.parent == folder:
            places[file] = f"models/{model.name}"
            continue
        name = f"models/{next(names):03}.safetensors"
        written.append(name)
        write_model(inside(folder, name), model)
        places[file] = name
    return tuple(
        store(step, None if step.file is None else places[step.file]) for step in steps
    )


def _read_strokes(folder: Path, record: Record) -> Strokes:
    try:
        labels: NDArray[Any] = np.zeros(record.shape, record.dtype)
    except MemoryError as error:
        raise ProjectError(
            f"Labels {record.layer!r} of {folder} have {math.prod(record.shape)} "
            "pixels, more than there is memory for: open them on a larger machine."
        ) from error
    for number, part in enumerate(record.parts):
        index: tuple[Any, ...] = (*part.plane, ...)
        plane = labels[index]
        if number:
            # Zeros are read but not written, so that empty planes take no memory.
            flat = plane.reshape(-1)
            flat[np.flatnonzero(flat)] = 0
        read_painted(folder / part.file, plane)
    return Strokes(record.image, record.layer, labels)
