"""The metadata of OME-Zarr: where an image lies in the world, and its levels.

The libraries for it pin old versions of pydantic, and little of it is needed here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, Field, ValidationError

from napari_fovea.errors import ImageError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

VERSION = "0.5"
"""What is written; 0.4 is read too."""

_MICROMETRES = {
    "angstrom": 1e-4,
    "nanometer": 1e-3,
    "micrometer": 1.0,
    "millimeter": 1e3,
    "centimeter": 1e4,
    "meter": 1e6,
}
_TYPES = {"T": "time", "C": "channel"}


class _Axis(BaseModel):
    name: str
    unit: str | None = None


class _Transformation(BaseModel):
    type: str
    scale: tuple[float, ...] | None = None
    translation: tuple[float, ...] | None = None


class _Dataset(BaseModel):
    path: str
    coordinateTransformations: tuple[_Transformation, ...] = ()


class _Multiscale(BaseModel):
    axes: tuple[_Axis, ...] = Field(min_length=2)
    datasets: tuple[_Dataset, ...] = Field(min_length=1)
    coordinateTransformations: tuple[_Transformation, ...] = ()


@dataclass(frozen=True)
class Placed:
    """One level of an image: which array, and where it lies.

    Attributes
    ----------
    path : str
        Of the array in its group.
    scale : tuple of float
        World units per pixel, along each axis.
    translate : tuple of float
        World coordinates of the centre of the first pixel.
    """

    path: str
    scale: tuple[float, ...]
    translate: tuple[float, ...]


@dataclass(frozen=True)
class Multiscale:
    """An image at several levels.

    Attributes
    ----------
    axes : str
        Letters, in the order of the arrays' axes.
    units : mapping
        Units of axes by letter, where they are told.
    levels : tuple of Placed
        The finest first.
    """

    axes: str
    units: Mapping[str, str]
    levels: tuple[Placed, ...]


def read(attributes: Mapping[str, Any], name: str) -> Multiscale | None:
    """Read the metadata of a group.

    Parameters
    ----------
    attributes : mapping
        Attributes of the group.
    name : str
        What to call it in an error.

    Returns
    -------
    Multiscale or None
        None where the group is no image.

    Raises
    ------
    ImageError
        If the metadata make no sense.
    """
    told = attributes.get("ome", attributes)  # from 0.5 on, under "ome"
    images = told.get("multiscales") if isinstance(told, dict) else None
    if not images:
        return None
    try:
        image = _Multiscale.model_validate(images[0])
        n = len(image.axes)
        levels = tuple(
            Placed(d.path, *_composed(d, image.coordinateTransformations, n))
            for d in image.datasets
        )
    except (ValidationError, ValueError, TypeError, LookupError) as error:
        if isinstance(error, ValidationError):
            first = error.errors()[0]
            why = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
        else:
            why = str(error)
        raise ImageError(
            f"{name} has metadata that make no sense ({why}); expected OME-Zarr 0.4 or "
            "0.5: give one of its arrays, or write it again."
        ) from error
    axes = "".join(a.name.upper()[:1] for a in image.axes)
    units = {a.name.upper()[:1]: a.unit for a in image.axes if a.unit}
    return Multiscale(axes, units, levels)


def _composed(
    dataset: _Dataset, after: Sequence[_Transformation], axes: int
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    scale, shift = (1.0,) * axes, (0.0,) * axes
    for step in (*dataset.coordinateTransformations, *after):
        by = step.scale or (1.0,) * axes
        to = step.translation or (0.0,) * axes
        if step.type not in ("identity", "scale", "translation"):
            raise ValueError(f"unknown transformation {step.type!r}")
        if not len(by) == len(to) == axes or min(by) <= 0:
            raise ValueError(f"a {step.type} for {axes} axes of {by} and {to}")
        scale = tuple(s * b for s, b in zip(scale, by, strict=True))
        shift = tuple(s * b + t for s, b, t in zip(shift, by, to, strict=True))
    return scale, shift


def in_micrometres(size: float, unit: str | None) -> float | None:
    """Bring a length to micrometres, where its unit is known."""
    factor = _MICROMETRES.get(unit or "")
    return None if factor is None else size * factor


def multiscale(image: Multiscale, name: str) -> dict[str, Any]:
    """Write the metadata of an image, for the attributes of its group.

    Parameters
    ----------
    image : Multiscale
        Its axes, units and levels.
    name : str
        What viewers call it.
    """
    axes = []
    for letter in image.axes:
        axis = {"name": letter.lower(), "type": _TYPES.get(letter, "space")}
        if letter in image.units:
            axis["unit"] = image.units[letter]
        axes.append(axis)
    datasets = [
        {
            "path": level.path,
            "coordinateTransformations": [
                {"type": "scale", "scale": list(level.scale)},
                {"type": "translation", "translation": list(level.translate)},
            ],
        }
        for level in image.levels
    ]
    told = {"name": name, "axes": axes, "datasets": datasets}
    return {"version": VERSION, "multiscales": [told]}
