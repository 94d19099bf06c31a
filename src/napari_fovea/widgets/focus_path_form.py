"""What the Focus path dock looks like."""

from __future__ import annotations

import math
from html import escape
from typing import Any

from qtpy.QtCore import Qt
from qtpy.QtWidgets import (
    QCheckBox,
    QComboBox,
    QFormLayout,
    QGridLayout,
    QHBoxLayout,
    QLabel,
    QProgressBar,
    QPushButton,
    QSizePolicy,
    QSlider,
    QStyle,
    QVBoxLayout,
    QWidget,
)

from napari_fovea.views.colours import DOUBT, class_colours

_SLOWEST, _FASTEST = 1.0, 2000.0
_NOTCHES = 200


class FocusPathForm(QWidget):
    """Buttons, slider and labels of the Focus path dock; it decides nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.paths = QComboBox()
        self.paths.setToolTip("Paths of results in this viewer, and of opened files")
        self.paths.setMinimumContentsLength(18)
        self.open_button = QPushButton("Open…")
        self.open_button.setToolTip("Open a focus path that was saved (.focus)")
        self.images = QComboBox()
        self.images.setToolTip("The image that the path is laid on")
        self.images.setMinimumContentsLength(18)
        self.fit_button = QPushButton("Scale the path to this image")
        self.fit_button.hide()
        self.play_button = QPushButton("Play")
        self.play_button.setToolTip("Play or pause (space)")
        self.back_button = QPushButton("−1")
        self.back_button.setToolTip("One fixation back (left arrow)")
        self.on_button = QPushButton("+1")
        self.on_button.setToolTip("One fixation on (right arrow)")
        self.doubt_button = QPushButton("Most uncertain")
        self.doubt_button.setToolTip(
            "Go to the fixation that was least sure; press again for the next"
        )
        self.slider = QSlider(Qt.Orientation.Horizontal)
        self.slider.setToolTip("Go to any fixation")
        self.speed = QSlider(Qt.Orientation.Horizontal)
        self.speed.setRange(0, _NOTCHES)
        self.speed.setToolTip("Fixations shown per second")
        self.pace = QLabel()
        self.pace.setMinimumWidth(self.pace.fontMetrics().horizontalAdvance("2000 /s "))
        self.map = QCheckBox("Map so far")
        self.map.setChecked(True)
        self.map.setToolTip("Show the map as it stood at this fixation")
        self.loop = QCheckBox("Loop")
        self.loop.setToolTip("Begin again at the end")
        self.follow = QCheckBox("Follow")
        self.follow.setToolTip("Keep the retina in the middle of the view")
        self.click = QCheckBox("Click to go")
        self.click.setChecked(True)
        self.click.setToolTip(
            "A click on the image goes to the fixation that saw that place best"
        )
        self.told = QLabel()
        self.told.setWordWrap(True)
        self.legend = QLabel()
        self.legend.setWordWrap(True)
        self.legend.setTextFormat(Qt.TextFormat.RichText)
        self.animation_button = QPushButton("Animation…")
        self.animation_button.setToolTip("Save the replay as MP4 or GIF")
        self.table_button = QPushButton("Table…")
        self.table_button.setToolTip("Save a row for each fixation as CSV")
        self.save_button = QPushButton("Path…")
        self.save_button.setToolTip("Save the path, to be replayed later (.focus)")
        self.view_button = QPushButton("View…")
        self.view_button.setToolTip("Save what the canvas shows as PNG")
        self.cancel_button = QPushButton("Cancel")
        self.progress = QProgressBar()
        self.progress.setRange(0, 1000)
        self.progress.setTextVisible(False)
        self.status = QLabel()
        self.status.setWordWrap(True)
        self.status.setSizePolicy(
            QSizePolicy.Policy.Preferred, QSizePolicy.Policy.MinimumExpanding
        )
        self.status.setAlignment(Qt.AlignmentFlag.AlignTop)
        self._lay_out()
        self.busy(False)
        self.playing(False)

    def _lay_out(self) -> None:
        form = QFormLayout()
        form.setFieldGrowthPolicy(QFormLayout.FieldGrowthPolicy.AllNonFixedFieldsGrow)
        form.addRow("Path", _row(self.paths, self.open_button, stretch=0))
        form.addRow("Image", self.images)
        speed = _row(self.speed, self.pace, stretch=0)
        ticks = QGridLayout()
        for i, box in enumerate((self.map, self.click, self.follow, self.loop)):
            ticks.addWidget(box, i // 2, i % 2)
        pace = QFormLayout()
        pace.setFieldGrowthPolicy(QFormLayout.FieldGrowthPolicy.AllNonFixedFieldsGrow)
        pace.addRow("Speed", speed)
        save = QGridLayout()
        buttons = (
            self.animation_button,
            self.table_button,
            self.save_button,
            self.view_button,
        )
        self._saves, self._ready = buttons, False
        for i, button in enumerate(buttons):
            save.addWidget(button, i // 2, i % 2)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addLayout(form)
        layout.addWidget(self.fit_button)
        layout.addLayout(_row(self.back_button, self.play_button, self.on_button))
        layout.addWidget(self.slider)
        layout.addWidget(self.told)
        layout.addWidget(self.doubt_button)
        layout.addLayout(pace)
        layout.addLayout(ticks)
        layout.addWidget(self.legend)
        layout.addWidget(QLabel("Save"))
        layout.addLayout(save)
        layout.addLayout(_row(self.progress, self.cancel_button, stretch=0))
        layout.addWidget(self.status, stretch=1)

    def enable(self, ready: bool) -> None:
        """Enable what needs a path."""
        for widget in (
            self.play_button,
            self.back_button,
            self.on_button,
            self.doubt_button,
            self.slider,
        ):
            widget.setEnabled(ready)
        self._ready = ready
        self._enable_saving()

    def busy(self, busy: bool) -> None:
        """Show progress and a way to stop it."""
        self.progress.setVisible(busy)
        self.cancel_button.setVisible(busy)
        self._busy = busy
        self._enable_saving()

    def _enable_saving(self) -> None:
        for button in self._saves:
            button.setEnabled(self._ready and not self._busy)

    def playing(self, playing: bool) -> None:
        """Let the button say what it does."""
        kind = QStyle.StandardPixmap
        icon = kind.SP_MediaPause if playing else kind.SP_MediaPlay
        self.play_button.setIcon(self.style().standardIcon(icon))
        self.play_button.setText("Pause" if playing else "Play")

    def say(self, text: str, *, wrong: bool = False) -> None:
        """Say something below everything else."""
        self.status.setText(f"⚠ {text}" if wrong else text)

    @property
    def steps_per_second(self) -> float:
        """What the speed slider says."""
        share = self.speed.value() / _NOTCHES
        return _SLOWEST * (_FASTEST / _SLOWEST) ** share

    @steps_per_second.setter
    def steps_per_second(self, speed: float) -> None:
        share = math.log(speed / _SLOWEST) / math.log(_FASTEST / _SLOWEST)
        self.speed.setValue(round(_NOTCHES * min(1.0, max(0.0, share))))

    def explain_colours(self, classes: tuple[str, ...]) -> None:
        """Tell what the colours of cells and map mean."""
        marks = [
            f"{_square(colour)} {escape(name)}"
            for colour, name in zip(
                class_colours(max(1, len(classes))), classes, strict=False
            )
        ]
        self.legend.setText("&ensp;".join([*marks, f"{_square(DOUBT)} unsure"]))


def _square(colour: Any) -> str:
    red, green, blue = (round(255 * float(c)) for c in colour)
    return f"<span style='color: rgb({red}, {green}, {blue})'>■</span>"


def _row(*widgets: QWidget, stretch: int | None = None) -> QHBoxLayout:
    """Lay widgets side by side; ``stretch`` names the one that grows."""
    row = QHBoxLayout()
    for i, widget in enumerate(widgets):
        row.addWidget(widget, stretch=int(stretch is None or i == stretch))
    return row
