"""Results on disk: an OME-Zarr image with labels, written block by block."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from napari_fovea.errors import StoreError
from napari_fovea.scale import ome, shrinking
from napari_fovea.scale.work import WORK, Work

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from napari_fovea.scale.plan import Block, Plan
    from napari_fovea.scale.source import Level

FORMAT = 1
"""Version of the stores that this program writes."""

KEY = "napari-fovea"
"""Where a store tells what made it, in the attributes of its group."""

CLASSES = "labels/classes"
INSTANCES = "labels/instances"
UNCERTAINTY = "uncertainty"
PROBABILITIES = "probabilities"

_TYPES = {
    CLASSES: "uint8",
    INSTANCES: "int32",
    UNCERTAINTY: "float16",
    PROBABILITIES: "float16",
}
_OURS = ("labels", UNCERTAINTY, PROBABILITIES, "zarr.json")


@dataclass(frozen=True)
class Written:
    """What is written of one block: its core.

    Attributes
    ----------
    classes : ndarray of uint8, shape (h, w)
    uncertainty : ndarray of float16, shape (h, w)
    probabilities : ndarray of float16, shape (K, h, w), or None
    """

    classes: NDArray[np.uint8]
    uncertainty: NDArray[np.float16]
    probabilities: NDArray[np.float16] | None


class Store:
    """A group on disk that results are written to.

    Parameters
    ----------
    path : Path
        Its folder; see `create` and `resume`.
    plan : Plan
        How the image is cut.
    """

    def __init__(self, path: Path, plan: Plan) -> None:
        import zarr

        self.path, self.plan = path, plan
        self._group = zarr.open_group(path, mode="r+", zarr_format=3)
        self._arrays: dict[str, Any] = {}
        self.work = Work(path / WORK, plan)

    @classmethod
    def create(
        cls,
        path: Path,
        plan: Plan,
        level: Level,
        *,
        units: Mapping[str, str],
        classes: int,
        probabilities: bool,
        record: Mapping[str, Any],
    ) -> Store:
        """Make an empty store.

        Parameters
        ----------
        path : Path
            A folder that does not exist, is empty, or holds a store to replace.
        plan : Plan
            How the image is cut.
        level : Level
            Whose place in the world the result takes.
        units : mapping
            Units of its axes.
        classes : int
            Number of classes K.
        probabilities : bool
            Whether these are kept too.
        record : mapping
            What is to be known when the run is resumed, ready for JSON.
        """
        import zarr

        _remove(path, plan)
        axes = level.stack + "YX"
        shape = (*level.lead, *level.plane)
        names = [CLASSES, INSTANCES, UNCERTAINTY]
        told = {KEY: {"format": FORMAT, **record}}  # from the first, or it is not ours
        group = zarr.create_group(path, zarr_format=3, attributes=told)
        for name in [*names, PROBABILITIES] if probabilities else names:
            many = name == PROBABILITIES
            own = axes.replace("Z", "CZ") if "Z" in axes else axes.replace("Y", "CY")
            letters = own if many else axes
            full = dict(zip(axes, shape, strict=True)) | {"C": classes}
            cores = dict(zip("YX", plan.core, strict=True))
            inner = group.create_group(name)
            placed = []
            for i in range(plan.levels):
                by = {a: 2**i if a in "YX" else 1 for a in letters}
                scale = tuple(level.scale.get(a, 1.0) * by[a] for a in letters)
                shift = tuple(
                    level.translate.get(a, 0.0)
                    + level.scale.get(a, 1.0) * (by[a] - 1) / 2
                    for a in letters
                )
                placed.append(ome.Placed(str(i), scale, shift))
                inner.create_array(
                    str(i),
                    shape=tuple(-(-full[a] // by[a]) for a in letters),
                    chunks=tuple(cores.get(a, by[a]) // by[a] for a in letters),
                    dtype=_TYPES[name],
                    fill_value=0,
                    dimension_names=[a.lower() for a in letters],
                )
            image = ome.Multiscale(letters, units, tuple(placed))
            told = ome.multiscale(image, name.split("/")[-1])
            if name.startswith("labels/"):
                told["image-label"] = {"source": {"image": "../../"}}
            inner.attrs["ome"] = told
            if name == UNCERTAINTY:
                # A viewer that opens the whole shows it, with the labels upon it.
                group.attrs["ome"] = ome.multiscale(
                    ome.Multiscale(
                        letters,
                        units,
                        tuple(
                            ome.Placed(f"{name}/{p.path}", p.scale, p.translate)
                            for p in placed
                        ),
                    ),
                    path.stem,
                )
        labels = [name.split("/")[1] for name in names if "/" in name]
        group["labels"].attrs["ome"] = {"version": ome.VERSION, "labels": labels}
        Work.create(path / WORK, plan)  # comes last: there is all that it needs
        return cls(path, plan)

    @property
    def record(self) -> dict[str, Any]:
        """What is known of the run that made it."""
        told: Any = self._group.attrs[KEY]
        return dict(told)

    def array(self, name: str, level: int = 0) -> Any:
        """Open one of the arrays, as ``INSTANCES``; it is not read.

        Raises
        ------
        StoreError
            If it is not there.
        """
        key = f"{name}/{level}"
        if key not in self._arrays:
            try:
                self._arrays[key] = self._group[key]
            except KeyError as error:
                raise StoreError(
                    f"{self.path} has lost {key} while it was written; expected to be "
                    "left alone: remove what is left of it, and run this again."
                ) from error
        return self._arrays[key]

    def write(self, block: Block, found: Written) -> None:
        """Write a block's core at all levels."""
        self._put(CLASSES, block, found.classes)
        self._put(UNCERTAINTY, block, found.uncertainty)
        if found.probabilities is not None:
            self._put(PROBABILITIES, block, found.probabilities)

    def write_instances(self, block: Block, instances: NDArray[np.int32]) -> None:
        """Write a block's objects at all levels."""
        self._put(INSTANCES, block, instances)

    def _put(self, name: str, block: Block, values: NDArray[Any]) -> None:
        shrink = shrinking.nearest if _TYPES[name][0] != "f" else shrinking.mean
        stack = self.array(CLASSES).metadata.dimension_names[:-2]
        place = np.unravel_index(block.plane, self.array(CLASSES).shape[:-2])
        where: dict[str, Any] = dict(zip(stack, map(int, place), strict=True))
        where["c"] = slice(None)
        for level in range(self.plan.levels):
            for letter, (low, high) in (("y", block.rows), ("x", block.columns)):
                where[letter] = slice(low >> level, -(-high // 2**level))
            array = self.array(name, level)
            small = shrink(values, 2**level) if level else values
            array[tuple(where[a] for a in array.metadata.dimension_names)] = (
                small.astype(array.dtype, copy=False)
            )

    def tell(self, record: Mapping[str, Any]) -> None:
        """Keep what is known of the run, ready for JSON, in the attributes."""
        self._group.attrs[KEY] = {**self.record, **record}

    def clear(self) -> None:
        """Remove what is needed no more, once nothing is left to be done."""
        self.work.remove()
        for half in self.path.rglob("*.partial"):  # of a process that was killed
            half.unlink(missing_ok=True)


def look(path: Path) -> dict[str, Any] | None:
    """Tell what made the store in a folder; None where there is nothing.

    Raises
    ------
    StoreError
        If there is something else.
    """
    import zarr

    if not path.exists() or (
        path.is_dir() and {p.name for p in path.iterdir()} <= {WORK}
    ):
        return None
    told: Any = None
    if (path / "zarr.json").is_file():
        try:
            told = zarr.open_group(path, mode="r").attrs.get(KEY)
        except Exception:  # whatever it is, it is not ours
            told = None
    if not isinstance(told, dict) or not isinstance(told.get("format"), int):
        raise StoreError(
            f"{path} is there already and was not written by napari-fovea; expected a "
            "new name, or a result to replace: choose another name."
        )
    if told["format"] > FORMAT:
        raise StoreError(
            f"{path} was written by a newer napari-fovea (format {told['format']}, "
            f"this one knows {FORMAT}): update it, or choose another name."
        )
    return told


def run_of(path: Path) -> str | None:
    """Tell which run a store belongs to by now; None where there is no store.

    It is read anew: the store may have been replaced since it was opened.
    """
    try:
        told = json.loads((path / "zarr.json").read_bytes())
        return str(told["attributes"][KEY].get("run", ""))
    except (OSError, ValueError, KeyError):
        return None


def _remove(path: Path, plan: Plan) -> None:
    """Remove a store; what else lies in its folder stays."""
    if look(path) is None:
        return
    Work(path / WORK, plan).remove()
    for name in _OURS:
        part = path / name
        if part.is_dir():
            shutil.rmtree(part)
        else:
            part.unlink(missing_ok=True)
