"""Focus paths as files: one that can be replayed, and a table of fixations."""

from __future__ import annotations

import csv
import json
import math
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from napari_fovea.errors import FoveaError, PathError
from napari_fovea.files import replacing
from napari_fovea.retina.fusion import Fusion
from napari_fovea.retina.grid import RetinaGrid
from napari_fovea.retina.path import FocusPath

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator, Mapping

    from numpy.typing import NDArray

FORMAT = 1
"""Version of the header that this program writes; it reads this and older ones."""

SUFFIX = ".focus"
"""Ending of the names of files that can be replayed."""

_KEY = "napari_fovea_path"
_LONGEST = 2**31  # pixels along an axis, which bounds what is computed from it
_TYPES = {
    "corners": np.int64,
    "entropies": np.float32,
    "steps": np.int64,
    "planes": np.int64,
    "pmfs": np.float16,
}


class _Image(BaseModel):
    """What is known of the image that was scanned."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)

    name: str | None = None
    shape: tuple[int, ...] | None = None
    dtype: str | None = None
    digest: str | None = None
    offset: tuple[float, ...] | None = None
    region: bool = False


class _Header(BaseModel):
    """What a file says about its path."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)

    format: int = Field(ge=1, le=FORMAT)
    d: int = Field(ge=1, le=4096)
    r: int = Field(ge=1, le=10)
    scale: tuple[float, float]
    shape: tuple[int, int] | None = None
    lead: tuple[int, ...] = ()
    power: float = Field(0.0, ge=0, le=4)
    linear: bool = False
    classes: tuple[str, ...] = ()
    image: _Image = _Image()
    provenance: dict[str, Any] = {}


@dataclass(frozen=True)
class Recorded:
    """A focus path as a file tells it.

    Attributes
    ----------
    path : FocusPath
        The path.
    image : mapping
        What tells its image from others: ``name``, ``shape``, ``dtype`` and
        ``digest``, where they are known.
    provenance : mapping
        Model and settings of the scan, where they are known.
    """

    path: FocusPath
    image: Mapping[str, Any] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)


def save_path(recorded: Recorded, file: str | os.PathLike[str]) -> None:
    """Write a focus path that can be replayed.

    Parameters
    ----------
    recorded : Recorded
        The path, and what is known of its image and its making.
    file : path-like
        Is replaced when all is well.

    Raises
    ------
    PathError
        If the file cannot be written.
    """
    path = recorded.path
    arrays: dict[str, NDArray[Any]] = {
        name: np.ascontiguousarray(getattr(path, name), dtype)
        for name, dtype in _TYPES.items()
        if getattr(path, name) is not None
    }
    header = _Header(
        format=FORMAT,
        d=path.grid.d,
        r=path.grid.r,
        scale=path.scale,
        shape=path.shape,
        lead=path.lead,
        power=path.fusion.power,
        linear=path.fusion.linear,
        classes=path.classes,
        image=_Image.model_validate(dict(recorded.image)),
        provenance=dict(recorded.provenance),
    )
    with _writing(file) as temporary:
        save_file(arrays, temporary, metadata={_KEY: header.model_dump_json()})


@contextmanager
def _writing(file: str | os.PathLike[str]) -> Iterator[Path]:
    try:
        with replacing(file) as temporary:
            yield temporary
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise PathError(
            f"{file} cannot be written ({reason}): free some space, or choose another "
            "folder."
        ) from error


def load_path(file: str | os.PathLike[str]) -> Recorded:
    """Read a focus path.

    Parameters
    ----------
    file : path-like
        From `save_path`.

    Raises
    ------
    PathError
        If the file is missing, truncated, damaged, or of another kind.
    """
    file = Path(file)
    if not file.is_file():
        raise PathError(f"{file} is no file: check the name of the focus path.")
    try:
        with safe_open(file, framework="np") as opened:
            header = _header(opened.metadata(), file)
            arrays = {
                name: opened.get_tensor(name)
                for name in _TYPES
                if name in opened.keys()  # noqa: SIM118
            }
    except (SafetensorError, OSError, TypeError, AttributeError) as error:
        # The last two come of types that numpy lacks, such as bfloat16.
        raise PathError(
            f"{file} is truncated or no focus path; expected a file that was saved "
            f"from the Focus path dock ({SUFFIX}): get it again."
        ) from error
    try:
        _check(arrays, header)
        path = FocusPath(
            **arrays,
            grid=RetinaGrid(header.d, header.r),
            scale=header.scale,
            shape=header.shape,
            lead=header.lead,
            fusion=Fusion(header.power, header.linear),
            classes=header.classes,
        )
    except FoveaError as error:
        raise PathError(f"{file} is damaged: {error}") from error
    image = header.image.model_dump(mode="json", exclude_defaults=True)
    return Recorded(path, image, header.provenance)


def _header(metadata: Mapping[str, str] | None, file: Path) -> _Header:
    text = (metadata or {}).get(_KEY)
    if text is None:
        raise PathError(
            f"{file} holds no focus path; expected a file that was saved from the "
            f"Focus path dock ({SUFFIX}): choose another."
        )
    try:
        raw = json.loads(text)
        if isinstance(raw, dict) and isinstance(raw.get("format"), int):
            version = raw["format"]
            if version > FORMAT:
                raise PathError(
                    f"{file} has format {version}, this napari-fovea reads up to "
                    f"{FORMAT}: update napari-fovea to open it."
                )
        return _Header.model_validate(raw)
    except (ValidationError, ValueError, RecursionError) as error:
        if isinstance(error, PathError):
            raise
        raise PathError(
            f"{file} has a damaged header; expected that of a focus path: get the "
            "file again."
        ) from error


def _check(arrays: Mapping[str, NDArray[Any]], header: _Header) -> None:
    """Refuse what a scan cannot have made."""
    missing = [name for name in _TYPES if name != "pmfs" and name not in arrays]
    if missing:
        raise PathError(f"it holds no {missing[0]}; get it again.")
    for name, array in arrays.items():
        if array.dtype != _TYPES[name]:
            raise PathError(f"its {name} are {array.dtype}; get it again.")
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise PathError(f"its {name} hold NaN or infinity; get it again.")
    if not all(1e-6 <= s <= 1e6 for s in header.scale):
        raise PathError(f"its scale is {header.scale}; get it again.")
    if header.shape is not None:
        height, width = header.shape
        if not (1 <= height <= _LONGEST and 1 <= width <= _LONGEST):
            raise PathError(f"its image is {height}×{width} pixels; get it again.")
        corners = arrays["corners"]
        if corners.ndim == 2 and corners.shape[1:] == (2,) and len(corners):
            low, high = -header.d, np.array(header.shape) + header.d
            if (corners < low).any() or (corners > high).any():
                raise PathError("its fixations lie outside its image; get it again.")
    pmfs = arrays.get("pmfs")
    if pmfs is not None:
        if pmfs.size and (pmfs.min() < 0 or pmfs.max() > 1.001):
            raise PathError("its pmfs leave [0, 1]; get it again.")
        classes = pmfs.shape[-1] if pmfs.ndim else 0
        if not classes or len(header.classes) not in (0, classes):
            raise PathError("its pmfs do not fit its classes; get it again.")
    if not all(1 <= n <= _LONGEST for n in header.lead):
        raise PathError(f"its stack is {header.lead}; get it again.")
    planes = arrays["planes"]
    if planes.size and (planes.min() < 0 or planes.max() >= math.prod(header.lead)):
        raise PathError("its planes lie outside its stack; get it again.")


def write_table(path: FocusPath, file: str | os.PathLike[str]) -> None:
    """Write one row for each fixation, as comma-separated values.

    The columns are the fixation's number, its plane, its centre (y, x) in pixels
    of the image, its mean entropy in nats, the step that follows from it in pixels
    of the scanned image and, where the path tells what was seen, the most probable
    class of the fovea and its probability there.

    Parameters
    ----------
    path : FocusPath
        The path.
    file : path-like
        Is replaced when all is well.

    Raises
    ------
    PathError
        If the file cannot be written.
    """
    columns: dict[str, Any] = {
        "fixation": range(len(path)),
        "plane": path.planes.tolist(),
        "y": path.centres[:, 0].round(3).tolist(),
        "x": path.centres[:, 1].round(3).tolist(),
        "entropy": [f"{v:.6g}" for v in path.entropies.tolist()],
        "step": path.steps.tolist(),
    }
    if path.pmfs is not None:
        # The sixteen smallest cells come last.
        fovea = path.pmfs[:, -16:].astype(np.float32).mean(1)
        best = fovea.argmax(1)
        names = path.classes or tuple(map(str, range(fovea.shape[1])))
        columns["class"] = [names[i] for i in best]
        columns["probability"] = [f"{v:.4f}" for v in fovea.max(1).tolist()]
    with (
        _writing(file) as temporary,
        temporary.open("w", newline="", encoding="utf-8") as stream,
    ):
        writer = csv.writer(stream)
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))
