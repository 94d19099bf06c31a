"""Where the result of a large image goes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from qtpy.QtWidgets import QFileDialog, QHBoxLayout, QLineEdit, QPushButton, QWidget

from napari_fovea.errors import StoreError
from napari_fovea.files import home

if TYPE_CHECKING:
    from napari.layers import Image


def usual_path(layer: Image, model: str) -> Path:
    """Choose where a result goes, unless the user says otherwise."""
    name = re.sub(r"[^\w +-]+", "-", f"{layer.name} {model}").strip(" -")
    return home() / "segmentations" / f"{name}.zarr"


class ResultPlace(QWidget):
    """Asks where the result of a large image goes."""

    def __init__(self) -> None:
        super().__init__()
        self.edit = QLineEdit()
        self.edit.setToolTip(
            "Large images are segmented block by block into this folder (OME-Zarr);\n"
            "a run that was broken off goes on where it was"
        )
        browse = QPushButton("…")
        browse.setToolTip("Choose a folder")
        browse.setMaximumWidth(32)
        browse.clicked.connect(self._browse)
        row = QHBoxLayout(self)
        row.setContentsMargins(0, 0, 0, 0)
        row.addWidget(self.edit)
        row.addWidget(browse)

    def suggest(self, path: Path) -> None:
        """Show where it goes unless the user says otherwise."""
        self.edit.setPlaceholderText(path.name)
        self._usual = path

    @property
    def path(self) -> Path:
        """Where the result goes: beside the others, unless a folder is told too.

        Raises
        ------
        StoreError
            If it begins with a user who is not known.
        """
        try:
            return self._usual.parent / Path(self._text).expanduser()
        except RuntimeError as error:
            raise StoreError(
                f"{self._text} begins with a user that is not known here; expected a "
                "name or a whole path: write it without the ~."
            ) from error

    @property
    def chosen(self) -> bool:
        """Whether the user has said so."""
        return bool(self.edit.text().strip())

    @property
    def _text(self) -> str:
        return self.edit.text().strip() or self._usual.name

    def _browse(self) -> None:
        start = str(self._usual.parent / self._text)
        path, _ = QFileDialog.getSaveFileName(
            self, "Write the result to", start, "OME-Zarr (*.zarr)"
        )
        if path:
            self.edit.setText(path)
