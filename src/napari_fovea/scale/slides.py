"""TIFF files as lazy sources: mapped into memory where they can be, else by pieces."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any

import tifffile

from napari_fovea.errors import ImageError
from napari_fovea.scale import ome
from napari_fovea.scale.source import Source, of_arrays

if TYPE_CHECKING:
    from pathlib import Path

_UNITS = {"nm": "nanometer", "µm": "micrometer", "mm": "millimeter"}


def open_tiff(path: Path, axes: str | None) -> Source:
    """Open a TIFF file with its pyramid, if it has one; see `open_source`.

    Raises
    ------
    ImageError
        If it is missing, damaged, or compressed in a way that is not known here.
    """
    import zarr

    try:
        file = tifffile.TiffFile(path)
    except Exception as error:  # damaged files raise many kinds
        raise _unreadable(path, error) from error
    try:
        series = file.series[0]
        levels = [level.shape for level in series.levels]
        arrays: list[Any]
        if len(levels) == 1 and series.dataoffset is not None:
            arrays = [tifffile.memmap(path, mode="r")]
        else:
            arrays = [
                zarr.open_array(series.aszarr(level=i), mode="r")
                for i in range(len(levels))
            ]
        # Whether it can be decoded shows only when it is.
        arrays[0][(slice(0, 1),) * arrays[0].ndim]
        letters = axes or _letters(series.axes)
        size = _pixel_size(file)
        return of_arrays(
            path.name, arrays, letters, pixel=size, path=path, close=file.close
        )
    except ImageError:
        file.close()
        raise
    except Exception as error:
        file.close()
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> ImageError:
    why = str(error).strip().split("\n")[0]
    return ImageError(
        f"{path} cannot be read as TIFF ({type(error).__name__}: {why}); expected a "
        "whole file of a compression that tifffile knows: install imagecodecs, or "
        "save it as zarr."
    )


def _letters(axes: str) -> str | None:
    """Bring tifffile's letters to ours: samples are channels, pages are a stack."""
    if "S" in axes and "C" not in axes:
        axes = axes.replace("S", "C")
    for letter in axes:
        if letter in "QI":
            axes = axes.replace(letter, "Z" if "Z" not in axes else "T", 1)
    return axes if set(axes) <= set("TZYXC") else None


_MICRONS = ("micron", "microns", "micrometer", "um", "µm", "\\u00B5m")
"""How ImageJ names micrometres."""


def _pixel_size(file: tifffile.TiffFile) -> dict[str, float] | None:
    """Sides of a pixel in micrometres, where the file tells them for sure."""
    if file.is_ome and file.ome_metadata:
        image = tifffile.xml2dict(file.ome_metadata)["OME"]["Image"]
        image = image[0] if isinstance(image, list) else image
        found: dict[str, float] = {}
        for letter in "ZYX":
            size = image["Pixels"].get(f"PhysicalSize{letter}")
            unit = image["Pixels"].get(f"PhysicalSize{letter}Unit", "µm")
            if isinstance(size, int | float) and size > 0:
                length = ome.in_micrometres(float(size), _UNITS.get(unit))
                if length is not None:
                    found[letter] = length
        return found if {"Y", "X"} <= set(found) else None
    if file.is_svs:
        told = re.search(r"MPP\s*=\s*([\d.]+)", file.pages.first.description)
        size = float(told[1]) if told else math.nan
        return {"Y": size, "X": size} if size > 0 else None
    if file.is_imagej and (file.imagej_metadata or {}).get("unit") in _MICRONS:
        # Of other files the resolution is mostly that of a printer.
        tags = file.pages.first.tags
        sides = {}
        for letter in "YX":
            tag = tags.get(f"{letter}Resolution")
            pixels, length = tag.value if tag is not None else (0, 0)
            sides[letter] = length / pixels if pixels else 0.0
        return sides if min(sides.values()) > 0 else None
    return None
