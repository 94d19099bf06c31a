"""What is kept of finished blocks until their objects are joined."""

from __future__ import annotations

import re
import shutil
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from filelock import FileLock, Timeout

from napari_fovea.errors import StoreError
from napari_fovea.files import replacing

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from napari_fovea.scale.plan import Block, Plan

WORK = ".work"
"""Name of the folder, within that of the store."""

_LOCK = "lock"

SIDES = ("top", "bottom", "left", "right")


@dataclass(frozen=True)
class Objects:
    """Objects of one block, numbered from 1 within it.

    Only those that have pixels in the core.

    Attributes
    ----------
    core : ndarray of int32, shape (h, w)
        Objects of the core.
    bands : mapping
        By side, the objects on both sides of a border with another block; ``top``
        and ``bottom`` are as wide as the core and a band either way, ``left`` and
        ``right`` as high.
    inside : ndarray of int64, shape (n + 1,)
        Pixels of each object in the core.
    areas : ndarray of int64, shape (n + 1,)
        All pixels of each object that the block saw.
    """

    core: NDArray[np.int32]
    bands: dict[str, NDArray[np.int32]]
    inside: NDArray[np.int64]
    areas: NDArray[np.int64]

    @property
    def count(self) -> int:
        """Number of objects."""
        return len(self.inside) - 1


def objects_of(instances: NDArray[np.integer], block: Block, plan: Plan) -> Objects:
    """Take what is to be kept of a block's objects.

    Parameters
    ----------
    instances : ndarray of int, shape (h, w)
        Objects of all that the block sees.
    block : Block
        Which one.
    plan : Plan
        Tells its neighbours.
    """
    present = np.unique(instances[block.inner])
    present = present[present > 0]
    numbers = np.zeros(int(instances.max(initial=0)) + 1, np.int32)
    numbers[present] = np.arange(1, len(present) + 1)
    own = numbers[instances]
    top, left = block.seen_rows[0], block.seen_columns[0]
    (height, width), band = plan.shape, plan.band

    def strip(rows: tuple[int, int], columns: tuple[int, int]) -> NDArray[np.int32]:
        y = slice(max(rows[0], 0) - top, min(rows[1], height) - top)
        x = slice(max(columns[0], 0) - left, min(columns[1], width) - left)
        part: NDArray[np.int32] = own[y, x]
        return part

    down = block.rows[0] - band, block.rows[1] + band
    across = block.columns[0] - band, block.columns[1] + band
    bands = {}
    for name, edge, end in (
        ("top", block.rows[0], 0),
        ("bottom", block.rows[1], height),
    ):
        if edge != end:
            bands[name] = strip((edge - band, edge + band), across)
    for name, edge, end in (
        ("left", block.columns[0], 0),
        ("right", block.columns[1], width),
    ):
        if edge != end:
            bands[name] = strip(down, (edge - band, edge + band))
    core = own[block.inner]
    count = len(present) + 1
    return Objects(
        core,
        bands,
        np.bincount(core.ravel(), minlength=count),
        np.bincount(own.ravel(), minlength=count),
    )


@contextmanager
def held(path: Path) -> Iterator[None]:
    """Keep other runs away from a folder, whether there is a store in it or not.

    Parameters
    ----------
    path : Path
        Folder of the store.

    Raises
    ------
    StoreError
        If another run is at work here.
    OSError
        If nothing can be written here.
    """
    work = path / WORK
    work.mkdir(parents=True, exist_ok=True)
    lock = FileLock(work / _LOCK, timeout=0, thread_local=False)
    try:
        lock.acquire()
    except Timeout as error:
        raise StoreError(
            f"{path} is being written by another run; expected to be the only one: "
            "wait for it, or choose another name."
        ) from error
    try:
        yield
    finally:
        lock.release()
        with suppress(OSError):  # it is gone, or a store lies in it
            if {p.name for p in work.iterdir()} <= {_LOCK}:  # not begun, or all done
                shutil.rmtree(work, ignore_errors=True)
                path.rmdir()


class Work:
    """A folder of what is finished: a file for each block, and its raw objects.

    Parameters
    ----------
    path : Path
        The folder.
    plan : Plan
        How the image is cut.
    """

    def __init__(self, path: Path, plan: Plan) -> None:
        self.path, self.plan = path, plan
        self._raw: Any = None

    @classmethod
    def create(cls, path: Path, plan: Plan) -> Work:
        """Make an empty one."""
        import zarr

        height, width = plan.core
        zarr.create_array(
            path / "raw",
            shape=(plan.planes, *plan.shape),
            chunks=(1, height, width),
            dtype="int32",
            fill_value=0,
        )
        (path / "blocks").mkdir()
        return cls(path, plan)

    @property
    def ready(self) -> bool:
        """Whether it is there."""
        return (self.path / "blocks").is_dir()

    def finished(self) -> set[int]:
        """Tell which blocks need not be done again."""
        names = (re.fullmatch(r"(\d+)\.npz", p.name) for p in self._files())
        return {int(n[1]) for n in names if n}

    def _files(self) -> list[Path]:
        folder = self.path / "blocks"
        return list(folder.iterdir()) if folder.is_dir() else []

    def _array(self) -> Any:
        import zarr

        if self._raw is None:
            self._raw = zarr.open_array(self.path / "raw", mode="r+")
        return self._raw

    def _where(self, block: Block) -> tuple[Any, ...]:
        return block.plane, slice(*block.rows), slice(*block.columns)

    def keep(
        self, block: Block, objects: Objects, facts: Mapping[str, float | str]
    ) -> None:
        """Note that a block is finished; it comes after all else of it is written."""
        self._array()[self._where(block)] = objects.core
        told = {f"fact_{k}": np.asarray(v) for k, v in facts.items()}
        with replacing(self.path / "blocks" / f"{block.index}.npz") as temporary:
            np.savez_compressed(
                temporary,
                allow_pickle=False,
                inside=objects.inside,
                areas=objects.areas,
                **objects.bands,
                **told,
            )

    def raw(self, block: Block) -> NDArray[np.int32]:
        """Read the objects of a block's core, as the block has numbered them."""
        return np.asarray(self._array()[self._where(block)])

    def read(self, index: int, *names: str) -> list[NDArray[Any]]:
        """Read what was kept of a finished block.

        Parameters
        ----------
        index : int
            Which block.
        *names : str
            ``"inside"``, ``"areas"``, one of `SIDES`, or ``"fact_"`` and a name.

        Raises
        ------
        StoreError
            If its file is damaged.
        """
        path = self.path / "blocks" / f"{index}.npz"
        try:
            with np.load(path, allow_pickle=False) as file:
                return [file[name] for name in names]
        except Exception as error:  # damaged archives raise many kinds
            raise StoreError(
                f"{path} is damaged ({type(error).__name__}); expected what was kept "
                "of a finished block: delete it and run this again."
            ) from error

    def remove(self) -> None:
        """Remove it all but what keeps other runs away."""
        if self.path.is_dir():
            for part in self.path.iterdir():
                if part.is_dir():
                    shutil.rmtree(part, ignore_errors=True)
                elif part.name != _LOCK:
                    part.unlink(missing_ok=True)
