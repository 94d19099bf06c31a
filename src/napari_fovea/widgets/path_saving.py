"""Saving from the Focus path dock: animations, tables, paths and views."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from qtpy.QtWidgets import QFileDialog

from napari_fovea.errors import PathError
from napari_fovea.widgets.job import Job, call
from napari_fovea.widgets.layers import array_of
from napari_fovea.widgets.path_choice import identity_of, index_in_view, offset_of

if TYPE_CHECKING:
    from napari_fovea.widgets.focus_path import FocusPathDock

_FILTERS = {
    "animation": "Animations (*.mp4 *.gif)",
    "table": "Tables (*.csv)",
    "path": "Focus paths (*.focus)",
    "view": "Images (*.png)",
}
_ENDINGS = {"animation": ".mp4", "table": ".csv", "path": ".focus", "view": ".png"}


class Saving:
    """Asks for a name, and writes in the background.

    Parameters
    ----------
    dock : FocusPathDock
        What is saved.
    """

    def __init__(self, dock: FocusPathDock) -> None:
        self.dock = dock
        self.job: Job | None = None
        form = dock.form
        form.animation_button.clicked.connect(lambda: self._ask("animation"))
        form.table_button.clicked.connect(lambda: self._ask("table"))
        form.save_button.clicked.connect(lambda: self._ask("path"))
        form.view_button.clicked.connect(lambda: self._ask("view"))
        form.cancel_button.clicked.connect(self.cancel)

    def _ask(self, what: str) -> None:
        choice = self.dock.shelf.choice
        stem = Path(choice.name.replace("/", "-")).stem if choice else "path"
        name, _ = QFileDialog.getSaveFileName(
            self.dock, f"Save the {what}", stem + _ENDINGS[what], _FILTERS[what]
        )
        if name:
            file = Path(name)
            self.save(what, file if file.suffix else file.with_suffix(_ENDINGS[what]))

    def save(self, what: str, file: Path) -> None:
        """Write one of ``"animation"``, ``"table"``, ``"path"`` and ``"view"``."""
        if self.job is not None or self.dock.path is None:
            return
        {
            "animation": self._animate,
            "table": self._table,
            "path": self._path,
            "view": self._view,
        }[what](file)

    def cancel(self) -> None:
        """Stop writing; nothing is left of the file."""
        if self.job is not None:
            self.job.cancel()

    def stop(self) -> None:
        """Stop for good: the dock is closed."""
        if self.job is not None:
            self.job.quit()

    def _run(self, make: Any, file: Path) -> None:
        form = self.dock.form
        self.job = Job(make)
        safely = self.dock.safely
        self.job.yielded.connect(
            safely(lambda e: form.progress.setValue(round(1000 * e.fraction)))
        )
        self.job.returned.connect(
            safely(
                lambda made: form.say(
                    f"{file.name} was not saved." if made is None else f"Saved {file}"
                )
            )
        )
        self.job.errored.connect(self.dock.complain)
        self.job.finished.connect(safely(self._finished))
        form.progress.setValue(0)
        form.busy(True)
        form.say(f"Saving {file.name}…")
        self.job.start()

    def _finished(self) -> None:
        self.job = None
        self.dock.form.busy(False)
        self.dock.form.enable(self.dock.path is not None)

    def _animate(self, file: Path) -> None:
        dock = self.dock
        choice, image, path = dock.shelf.choice, dock.shelf.image, dock.path
        if choice is None or image is None or path is None:
            return
        plane = self._plane()
        speed = dock.form.steps_per_second

        def make(cancelled: Any) -> Any:
            from napari_fovea.views.animation import animate

            seconds = min(60.0, max(2.0, len(path) / speed))
            return animate(
                np.asarray(plane), path, file, seconds=seconds, cancelled=cancelled
            )

        self._run(make, file)

    def _plane(self) -> Any:
        """Return the scanned region of the plane in view, as it lies in the image."""
        dock = self.dock
        choice, image, path = dock.shelf.choice, dock.shelf.image, dock.path
        assert choice is not None
        assert image is not None
        assert path is not None
        data = array_of(image)
        index = index_in_view(image, dock.viewer.dims)
        top, left = (round(v) for v in offset_of(choice, image)[-2:])
        height, width = path.image_shape or data.shape[len(index) : len(index) + 2]
        return data[(*index, slice(top, top + height), slice(left, left + width))]

    def _table(self, file: Path) -> None:
        choice = self.dock.shelf.choice
        assert choice is not None

        def write() -> Path:
            from napari_fovea.retina import write_table

            write_table(choice.path, file)
            return file

        self._run(call(write), file)

    def _path(self, file: Path) -> None:
        choice, image = self.dock.shelf.choice, self.dock.shelf.image
        assert choice is not None
        assert image is not None
        tell = identity_of(choice, image)

        def write() -> Path:
            from napari_fovea.retina import Recorded, save_path

            save_path(Recorded(choice.path, tell(), choice.provenance), file)
            return file

        self._run(call(write), file)

    def _view(self, file: Path) -> None:
        dock = self.dock
        try:
            dock.viewer.screenshot(str(file), canvas_only=True, flash=False)
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            dock.complain(
                PathError(
                    f"{file} cannot be written ({reason}); expected a name ending in "
                    ".png in a folder that takes files: choose another."
                )
            )
            return
        dock.form.say(f"Saved {file}")
