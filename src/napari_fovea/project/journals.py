"""The folder of journals: which are unfinished, and how many there may be."""

from __future__ import annotations

import re
import shutil
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

from filelock import FileLock, Timeout

from napari_fovea.errors import ProjectError
from napari_fovea.files import home
from napari_fovea.project.folder import open_project
from napari_fovea.project.manifest import NAME, read_manifest, reason

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator

    from napari_fovea.project.work import Project

JOURNALS = 10
"""Journals that are kept at most."""

BYTES = 10**9
"""Bytes that all journals together take at most."""

_NAME = re.compile(r"\d{8}-\d{6}-\d{6}-[0-9a-f]{8}")
_PATIENCE = 10.0  # seconds for others to look through the folder


@dataclass(frozen=True)
class Unfinished:
    """Work that nobody holds: its program was killed, or left it behind.

    Attributes
    ----------
    folder : Path
        Its journal, a project.
    project : Project
        What was done.
    changed : datetime
        When it was last written.
    """

    folder: Path
    project: Project
    changed: datetime


def default_root() -> Path:
    """Return the folder of all journals of this user."""
    return home() / "journal"


def unfinished(root: Path | None = None) -> tuple[Unfinished, ...]:
    """List journals with strokes that nobody writes any more, newest first.

    Damaged ones are left out.
    """
    root = root or default_root()
    found = []
    for folder in _free(root):
        with suppress(ProjectError, OSError):
            manifest = read_manifest(folder)
            if any(part.painted for r in manifest.strokes for part in r.parts):
                changed = datetime.fromtimestamp((folder / NAME).stat().st_mtime)
                work = Unfinished(folder, open_project(folder), changed.astimezone())
                found.append(work)
    return tuple(sorted(found, key=lambda work: work.changed, reverse=True))


def discard(folder: str | os.PathLike[str]) -> None:
    """Remove a journal; one that is gone already is no error.

    Raises
    ------
    ProjectError
        If it is no journal, somebody writes it, or it cannot be removed.
    """
    folder = Path(folder)
    if not _NAME.fullmatch(folder.name):
        raise ProjectError(
            f"{folder} is no journal; expected a folder from the list of unfinished "
            "work: remove other folders by hand."
        )
    if not folder.is_dir():
        return
    try:
        with _looking(folder.parent):
            removed = _remove(folder)
    except OSError as error:
        raise ProjectError(
            f"{folder} cannot be removed ({reason(error)}): check its permissions."
        ) from error
    if not removed:
        raise ProjectError(
            f"{folder} is in use; expected work that nobody does any more: close the "
            "other napari first."
        )


def prune(root: Path | None = None) -> None:
    """Remove the oldest journals that nobody writes, as long as there are too many.

    The newest of them stays however large it is: it is what a crash left behind.
    """
    root = root or default_root()
    with suppress(OSError):
        if root.is_dir():
            with _looking(root):
                _prune(root)


def create(root: Path) -> tuple[Path, FileLock]:
    """Make a journal's folder, which is held as long as the lock is.

    Raises
    ------
    OSError
        If that cannot be written.
    """
    root.mkdir(parents=True, exist_ok=True)
    # While the folder has no lock yet, nobody else may look through the root.
    with _looking(root):
        now = datetime.now()
        folder = root / f"{now:%Y%m%d-%H%M%S-%f}-{uuid4().hex[:8]}"
        folder.mkdir()
        lock = _lock(folder)
        lock.acquire(timeout=_PATIENCE)
        with suppress(OSError):
            _prune(root)
    return folder, lock


def _lock(folder: Path) -> FileLock:
    return FileLock(folder / "lock", thread_local=False)


@contextmanager
def _looking(root: Path) -> Iterator[None]:
    """Keep others from trying locks at the same time: each would see them taken."""
    with FileLock(root / ".lock", timeout=_PATIENCE):
        yield


def _journals(root: Path) -> list[Path]:
    """List journals, oldest first: their names begin with when they were made."""
    return sorted(p for p in root.glob("*") if _NAME.fullmatch(p.name) and p.is_dir())


@contextmanager
def _held(folder: Path) -> Iterator[bool]:
    """Hold a journal if nobody else does."""
    lock = _lock(folder)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


def _free(root: Path) -> list[Path]:
    free = []
    with suppress(OSError):
        if root.is_dir():
            with _looking(root):
                for folder in _journals(root):
                    with suppress(OSError), _held(folder) as held:
                        if held:
                            free.append(folder)
    return free


def _remove(folder: Path) -> bool:
    with _held(folder) as held:
        if held:
            # First what makes it a journal, in case the rest cannot be removed.
            (folder / NAME).unlink(missing_ok=True)
    if held:
        shutil.rmtree(folder)
    return held


def _prune(root: Path) -> None:
    kept = _journals(root)
    sizes = {folder: _size(folder) for folder in kept}
    idle = []
    for folder in kept:
        with suppress(OSError), _held(folder) as held:
            if held:
                idle.append(folder)
    newest = [folder for folder in idle if (folder / NAME).is_file()][-1:]
    for folder in idle:
        hollow = not (folder / NAME).is_file()
        many = len(sizes) > JOURNALS or sum(sizes.values()) > BYTES
        if hollow or (many and folder not in newest):
            with suppress(OSError):
                _remove(folder)
                del sizes[folder]


def _size(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        with suppress(OSError):  # it may just have been replaced
            total += path.stat().st_size
    return total
