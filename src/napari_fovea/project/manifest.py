"""project.json: all of a project but its arrays."""

from __future__ import annotations

import json
import math
import re
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from safetensors import SafetensorError

from napari_fovea.errors import ProjectError
from napari_fovea.files import replacing
from napari_fovea.project.identity import ImageId
from napari_fovea.project.painted import PIXELS
from napari_fovea.project.work import Step

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

FORMAT = 1
"""Version of the project that this program writes; it reads this and older ones."""

NAME = "project.json"


class NewerFormatError(ProjectError):
    """The project was written by a newer program."""


_MODEL = re.compile(r"models/\w[\w -]*\.safetensors", re.ASCII)
_Size = Annotated[int, Field(ge=0)]


class Part(BaseModel):
    """A file of strokes, and which plane of the labels it replaces.

    Attributes
    ----------
    plane : tuple of int
        Index on the leading axes; empty for all of the labels.
    file : str
        The file, in the project's folder.
    painted : int
        Pixels that are painted.
    """

    model_config = ConfigDict(frozen=True)

    plane: tuple[_Size, ...] = ()
    file: str = Field(pattern=r"^strokes/[0-9]+\.npz$")
    painted: _Size = 0


class Record(BaseModel):
    """One labels layer; its parts replace each other in their order."""

    model_config = ConfigDict(frozen=True)

    image: ImageId
    layer: str
    shape: tuple[_Size, ...] = Field(max_length=32)
    dtype: str = Field(pattern=r"^[<>|][iu][1248]$")
    parts: tuple[Part, ...] = ()

    @model_validator(mode="after")
    def _planes_exist(self) -> Record:
        for part in self.parts:
            within = zip(part.plane, self.shape, strict=False)
            if len(part.plane) > len(self.shape) or any(i >= n for i, n in within):
                raise ValueError(f"no plane {part.plane} in shape {self.shape}")
        return self


class Stored(BaseModel):
    """A step, and the file that holds its model.

    The step's own ``file`` is what the program knows the model by. Where that name
    is taken by a model of the project that is replaced, the new one lies in another
    file, so that the old project is whole until the new one is.
    """

    model_config = ConfigDict(frozen=True)

    step: Step
    file: str | None = None

    @model_validator(mode="after")
    def _makes_sense(self) -> Stored:
        for name in (self.file, self.step.file):
            check_model_name(name)
        if (self.file is None) != (self.step.file is None):
            raise ValueError("a step has a file or none")
        if any(map(_odd, (self.step.before, self.step.after))):
            raise ValueError("scores are finite")
        datetime.fromisoformat(self.step.date)
        return self


class Manifest(BaseModel):
    """What stands in project.json."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    format: int = FORMAT
    base: str
    classes: dict[int, str] = {}
    settings: dict[str, Any] = {}
    strokes: tuple[Record, ...] = ()
    steps: tuple[Stored, ...] = ()
    current: int = Field(-1, ge=-1)

    @model_validator(mode="after")
    def _makes_sense(self) -> Manifest:
        if self.current >= len(self.steps):
            raise ValueError(f"step {self.current} of {len(self.steps)} is current")
        if sum(math.prod(r.shape) for r in self.strokes) > PIXELS:
            raise ValueError(f"labels have more than {PIXELS} pixels")
        return self

    def files(self) -> frozenset[str]:
        """Files that belong to the project."""
        strokes = (part.file for record in self.strokes for part in record.parts)
        return frozenset((*strokes, *(s.file for s in self.steps if s.file)))


def store(step: Step, file: str | None) -> Stored:
    """Note where a step's model lies; scores that are no numbers are left out.

    Raises
    ------
    ProjectError
        If the step's date or file cannot be.
    """
    before, after = (
        None if score is None or _odd(score) else float(score)
        for score in (step.before, step.after)
    )
    try:
        return Stored(step=replace(step, before=before, after=after), file=file)
    except ValidationError as error:
        raise ProjectError(
            f"Step {step.name!r} cannot be kept ({error.errors()[0]['msg']}): give it "
            "a date in ISO format and a file like 'models/001.safetensors'."
        ) from error


def _odd(score: float | None) -> bool:
    return score is not None and not math.isfinite(score)


def check_model_name(name: str | None) -> None:
    """Raise ValueError for a name that leads out of the folder of models."""
    if name is not None and not _MODEL.fullmatch(name):
        raise ValueError(f"{name!r} is no file like 'models/001.safetensors'")


def read_manifest(folder: Path) -> Manifest:
    """Read and check project.json.

    Raises
    ------
    ProjectError
        If it is missing, damaged, or of a newer format.
    """
    path = folder / NAME
    if not path.is_file():
        raise ProjectError(
            f"{folder} is no project; expected a folder with {NAME} in it: choose "
            "another folder."
        )
    try:
        raw = json.loads(path.read_bytes())
        newer = raw["format"] > FORMAT
    except OSError as error:
        raise ProjectError(
            f"{path} cannot be read ({reason(error)}): check its permissions."
        ) from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ProjectError(
            f"{path} is damaged; expected JSON with a format number: get the project "
            "again."
        ) from error
    if newer:
        raise NewerFormatError(
            f"{path} has format {raw['format']}, this napari-fovea reads up to "
            f"{FORMAT}: update napari-fovea to open it."
        )
    try:
        manifest = Manifest.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        raise ProjectError(
            f"{path} is damaged ({'.'.join(map(str, first['loc']))}: {first['msg']}): "
            "get the project again."
        ) from error
    for name in manifest.files():
        inside(folder, name)
    return manifest


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Replace project.json."""
    content = json.dumps(manifest.model_dump(), indent=1)
    with replacing(folder / NAME) as temporary:
        temporary.write_text(content, encoding="utf-8")


def inside(folder: Path, name: str) -> Path:
    """Lay a file's name in a folder, which no link may lead out of.

    Raises
    ------
    ProjectError
        If it does.
    """
    path = folder / name
    if not path.resolve().is_relative_to(folder.resolve()):
        raise ProjectError(
            f"{path} lies outside the project; expected a file of its own: get the "
            "project again."
        )
    return path


def remove(folder: Path, names: frozenset[str] | set[str] | list[str]) -> None:
    """Remove files, as far as that goes: what is left over does no harm."""
    for name in names:
        try:
            inside(folder, name).unlink(missing_ok=True)
        except (OSError, ProjectError):
            continue


def reason(error: BaseException) -> str:
    """Tell in a few words why something could not be written or read."""
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Tell in a sentence what keeps a project from being written."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise ProjectError(
            f"{folder} cannot be written ({reason(error)}): free some space or choose "
            "another folder; nothing that was there is lost."
        ) from error
