"""What stands in the Fine-tune dock."""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Any

from psygnal import Signal
from qtpy.QtCore import Qt
from qtpy.QtGui import QColor, QIcon, QPixmap
from qtpy.QtWidgets import (
    QButtonGroup,
    QCheckBox,
    QComboBox,
    QFormLayout,
    QFrame,
    QHBoxLayout,
    QLabel,
    QLineEdit,
    QListWidget,
    QProgressBar,
    QPushButton,
    QRadioButton,
    QScrollArea,
    QSizePolicy,
    QSpinBox,
    QToolButton,
    QVBoxLayout,
    QWidget,
)

from napari_fovea.errors import TrainingError
from napari_fovea.widgets.curve import Curve
from napari_fovea.widgets.diameter import DiameterField
from napari_fovea.widgets.model import ModelPicker
from napari_fovea.widgets.strokes import stroke_colours

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from napari.layers import Image, Labels, Layer

    from napari_fovea.training.guard import Verdict
    from napari_fovea.widgets.layers import Region
    from napari_fovea.widgets.session import Session

_ZERO: dict[str, dict[str, bool]] = {
    "unpainted (strokes)": {"unpainted": True, "objects": False},
    "background (every pixel has a class)": {"unpainted": False, "objects": False},
    "background (objects have numbers)": {"unpainted": False, "objects": True},
}
_LETTERS = 12  # of what is chosen that are always to be read
_FEW = 58  # pixels: height of lists of a few lines
_HINT = "At least two strokes of each class, so that one can be held out."


class Said(Enum):
    """How what is said is marked."""

    INFO = ""
    WARNING = "⚠ "
    ERROR = "✖ "


class FineTuneForm(QWidget):
    """All controls of the dock; it decides nothing.

    Parameters
    ----------
    shared : Session
        What the docks share.
    region : callable
        Tells the part of an image whose objects are measured.
    """

    painted_with = Signal(int)

    def __init__(self, shared: Session, region: Callable[[], Region | None]) -> None:
        super().__init__()
        self.picker = ModelPicker(shared)
        self.diameter = DiameterField(shared, region)
        self._make_layers()
        self._make_learning()
        self._make_history()
        inside = QWidget()
        layout = QVBoxLayout(inside)
        layout.setContentsMargins(6, 6, 6, 6)
        self._make_notice()
        layout.addWidget(self.notice)
        form = QFormLayout()
        form.setFieldGrowthPolicy(QFormLayout.FieldGrowthPolicy.AllNonFixedFieldsGrow)
        form.addRow("Model", self.picker)
        form.addRow("Image", self.images)
        form.addRow("Labels", _row(self.labels, self.new_button))
        form.addRow(
            "Pairs", _row(self.pair_list, _column(self.add_button, self.remove_button))
        )
        form.addRow("Diameter", self.diameter)
        form.addRow("0 means", self.zero)
        form.addRow("Classes", self.classes)
        form.addRow("Paint", self.brushes)
        layout.addLayout(form)
        layout.addWidget(_line())
        layout.addWidget(_row(self.instant, self.live, stretch=True))
        layout.addWidget(_row(self.thorough, self.seconds, self.freeze, stretch=True))
        layout.addWidget(_row(self.train_button, self.cancel_button))
        layout.addWidget(self.progress)
        layout.addWidget(self.status)
        layout.addWidget(self.curve)
        layout.addWidget(_row(self.verdict, self.anyway_button))
        layout.addWidget(_line())
        layout.addWidget(self.next_button)
        layout.addWidget(QLabel("Models one can go back to"))
        layout.addWidget(self.history)
        layout.addWidget(_row(self.back_button, self.save_button))
        layout.addWidget(_row(self.keep_project_button, self.open_project_button))
        layout.addStretch()
        scroll = QScrollArea()
        scroll.setWidgetResizable(True)
        scroll.setFrameShape(QFrame.Shape.NoFrame)
        scroll.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        scroll.setWidget(inside)
        whole = QVBoxLayout(self)
        whole.setContentsMargins(0, 0, 0, 0)
        whole.addWidget(scroll)
        # The dock gives its height to what can use it.
        self.setSizePolicy(QSizePolicy.Policy.Preferred, QSizePolicy.Policy.Expanding)

    def _make_notice(self) -> None:
        self.work = QLabel()
        self.work.setWordWrap(True)
        self.restore_button = QPushButton("Bring back")
        self.restore_button.setToolTip("Lay these strokes on their image again")
        self.forget_button = QPushButton("Throw away")
        self.forget_button.setToolTip("Forget these strokes for good")
        self.notice = _column(self.work, _row(self.restore_button, self.forget_button))
        self.notice.hide()

    def _make_layers(self) -> None:
        self.images = QComboBox()
        self.images.setToolTip("The image layer that is painted on")
        self.labels = QComboBox()
        self.labels.setToolTip("The labels layer that holds what was painted")
        self.new_button = QPushButton("New")
        self.new_button.setToolTip("Add an empty labels layer and take the brush")
        self.pair_list = QListWidget()
        self.pair_list.setMaximumHeight(_FEW)
        self.pair_list.setToolTip(
            "Images with labels to learn from together;\n"
            "with none in the list, those chosen above"
        )
        self.add_button, self.remove_button = QToolButton(), QToolButton()
        self.add_button.setText("+")
        self.add_button.setToolTip("Learn from the image and labels above too")
        self.remove_button.setText("−")
        self.remove_button.setToolTip("Do not learn from the chosen pair")
        self.zero = QComboBox()
        self.zero.addItems(list(_ZERO))
        # As wide as what is chosen most; the list itself shows all of each.
        policy = QComboBox.SizeAdjustPolicy.AdjustToMinimumContentsLengthWithIcon
        for box in (self.images, self.labels, self.zero):
            box.setSizeAdjustPolicy(policy)
            box.setMinimumContentsLength(_LETTERS)
        self.zero.setToolTip("What pixels with label 0 are")
        self.classes = QLineEdit()
        self.classes.setToolTip("Names of the classes with commas, background first")
        self.brushes = QWidget()
        row = QHBoxLayout(self.brushes)
        row.setContentsMargins(0, 0, 0, 0)
        self.brush_buttons: list[QToolButton] = []
        self.zero.currentIndexChanged.connect(self._offer_brushes)
        self.classes.editingFinished.connect(self._offer_brushes)

    def _make_learning(self) -> None:
        self.instant = QRadioButton("Instant")
        self.instant.setChecked(True)
        self.instant.setToolTip("Refit how the network's features are read: a second")
        self.live = QCheckBox("each time the brush lifts")
        self.live.setToolTip("Learn live, as you paint")
        self.thorough = QRadioButton("Thorough")
        self.thorough.setToolTip("Train the whole network in the background")
        self._speeds = QButtonGroup(self)
        self._speeds.addButton(self.instant)
        self._speeds.addButton(self.thorough)
        self.seconds = QSpinBox()
        self.seconds.setRange(5, 86_400)
        self.seconds.setValue(60)
        self.seconds.setSuffix(" s")
        self.seconds.setToolTip("Time to train")
        self.freeze = QCheckBox("hold on")
        self.freeze.setChecked(True)
        self.freeze.setToolTip(
            "Keep the statistics of the original training images,\n"
            "so that less of what the model knew is forgotten"
        )
        self.train_button = QPushButton("Train")
        self.train_button.setToolTip("Learn from what is painted")
        self.cancel_button = QPushButton("Cancel")
        self.cancel_button.setToolTip("Stop now and keep the last good model")
        self.cancel_button.setEnabled(False)
        self.progress = QProgressBar()
        self.progress.setRange(0, 1000)
        self.progress.setTextVisible(False)
        self.status = QLabel(_HINT)
        self.status.setWordWrap(True)
        self.curve = Curve()
        self.verdict = QLabel("Held-out strokes: not yet scored")
        self.verdict.setWordWrap(True)
        self.verdict.setToolTip(
            "Mean probability given to strokes that were not learned from,\n"
            "before and after; strokes and classes count alike"
        )
        self.anyway_button = QPushButton("Use it anyway")
        self.anyway_button.setToolTip("Let the new model take over all the same")
        self.anyway_button.hide()

    def _make_history(self) -> None:
        self.next_button = QPushButton("Next uncertain place (N)")
        self.next_button.setToolTip("Go where a stroke would teach most")
        self.history = QListWidget()
        self.history.setMaximumHeight(_FEW + 20)
        self.back_button = QPushButton("Go back to it")
        self.back_button.setToolTip("Use the chosen model of the list again")
        self.save_button = QPushButton("Save model…")
        self.save_button.setToolTip("Write the model in use to a file")
        self.keep_project_button = QPushButton("Save project…")
        self.keep_project_button.setToolTip("Write strokes and models to a folder")
        self.open_project_button = QPushButton("Open project…")
        self.open_project_button.setToolTip("Take up what was saved in a folder")

    # -- what is chosen -----------------------------------------------------------

    def how(self) -> dict[str, bool]:
        """How labels are to be read; see `Annotation`."""
        return _ZERO[self.zero.currentText()]

    def names(self) -> dict[int, str]:
        """Tell what each number means.

        Raises
        ------
        TrainingError
            If fewer than two classes are named, or one twice.
        """
        named = [n.strip() for n in self.classes.text().split(",") if n.strip()]
        if len(named) < 2 or len(set(named)) < len(named):
            raise TrainingError(
                f"The classes are {self.classes.text()!r}; expected at least two "
                "different names with commas between them, background first."
            )
        least = int(self.how()["unpainted"])
        return {least + i: name for i, name in enumerate(named)}

    def settings(self) -> dict[str, Any]:
        """Read the settings of thorough learning."""
        return {
            "seconds": float(self.seconds.value()),
            "freeze": self.freeze.isChecked(),
        }

    def name_classes(self, names: Sequence[str]) -> None:
        """Offer the names of a model's classes."""
        self.classes.setText(", ".join(names))
        self._offer_brushes()

    def state(self) -> dict[str, Any]:
        """All settings, as a project keeps them."""
        return {
            "zero": self.zero.currentText(),
            "diameter": self.diameter.value(),
            "instant": self.instant.isChecked(),
            "live": self.live.isChecked(),
            "seconds": self.seconds.value(),
            "freeze": self.freeze.isChecked(),
        }

    def set_state(self, state: Mapping[str, Any], classes: Mapping[int, str]) -> None:
        """Set what a project kept; what is odd is left as it is."""
        if state.get("zero") in _ZERO:
            self.zero.setCurrentText(str(state["zero"]))
        chosen = self.instant if state.get("instant", True) else self.thorough
        chosen.setChecked(True)
        self.live.setChecked(bool(state.get("live", False)))
        self.freeze.setChecked(bool(state.get("freeze", True)))
        size = state.get("diameter")
        self.diameter.setValue(float(size) if isinstance(size, int | float) else 0)
        if isinstance(state.get("seconds"), int):
            self.seconds.setValue(int(state["seconds"]))
        if classes:
            self.name_classes([classes[k] for k in sorted(classes)])

    # -- what is shown ------------------------------------------------------------

    def offer_layers(self, images: Iterable[Image], labels: Iterable[Labels]) -> None:
        """List layers; what was chosen stays chosen where it is still there."""
        for box, some in ((self.images, images), (self.labels, labels)):
            chosen = box.currentData()
            box.blockSignals(True)
            box.clear()
            for layer in some:
                box.addItem(layer.name, str(layer.unique_id))
            box.setCurrentIndex(max(0, box.findData(chosen)))
            box.blockSignals(False)

    def choose(self, box: QComboBox, layer: Layer) -> None:
        """Choose a layer in a list."""
        index = box.findData(str(layer.unique_id))
        if index >= 0:
            box.setCurrentIndex(index)

    def follow(self, active: Layer | None) -> None:
        """Choose what the user selected in the viewer."""
        for box in (self.images, self.labels):
            index = box.findData(str(getattr(active, "unique_id", "")))
            if index >= 0:
                box.setCurrentIndex(index)

    def show_pairs(self, told: Sequence[str]) -> None:
        """List the pairs that are learned from."""
        self.pair_list.clear()
        self.pair_list.addItems(list(told))

    def _offer_brushes(self) -> None:
        layout = self.brushes.layout()
        for button in self.brush_buttons:
            layout.removeWidget(button)
            button.deleteLater()
        self.brush_buttons = []
        try:
            names = self.names()
        except TrainingError:
            return
        colours = stroke_colours(len(names), first=min(names))
        for number, name in list(names.items())[:6]:
            button = QToolButton()
            button.setText(f"{number} {name}")
            button.setToolButtonStyle(Qt.ToolButtonStyle.ToolButtonTextBesideIcon)
            picture = QPixmap(12, 12)
            red, green, blue, _ = (float(x) for x in colours.map(number))
            picture.fill(QColor.fromRgbF(red, green, blue))
            button.setIcon(QIcon(picture))
            button.setToolTip(f"Paint {name}")
            button.clicked.connect(lambda _=False, n=number: self.painted_with.emit(n))
            layout.addWidget(button)
            self.brush_buttons.append(button)

    def show_history(self, names: Sequence[str], current: int) -> None:
        """List the models one can go back to."""
        self.history.clear()
        for i, name in enumerate(names):
            self.history.addItem(f"▸ {name}" if i == current else f"   {name}")
        self.history.setCurrentRow(current)

    def offer_work(self, told: str) -> None:
        """Offer strokes that were left behind; with nothing to tell, hide it."""
        self.work.setText(told)
        self.notice.setVisible(bool(told))

    def show_verdict(self, verdict: Verdict) -> None:
        """Say how the new model compares."""
        mark = "✔" if verdict.better else "✖"
        self.verdict.setText(f"{mark} {verdict}")

    def say(self, sentence: str, how: Said = Said.INFO) -> None:
        """Tell the user something."""
        self.status.setText(f"{how.value}{sentence}")


def _row(*parts: QWidget, stretch: bool = False) -> QWidget:
    row = QWidget()
    layout = QHBoxLayout(row)
    layout.setContentsMargins(0, 0, 0, 0)
    for i, part in enumerate(parts):
        layout.addWidget(part, 1 if i == 0 and not stretch else 0)
    if stretch:
        layout.addStretch()
    return row


def _column(*parts: QWidget) -> QWidget:
    column = QWidget()
    layout = QVBoxLayout(column)
    layout.setContentsMargins(0, 0, 0, 0)
    layout.setSpacing(2)
    for part in parts:
        layout.addWidget(part)
    layout.addStretch()
    return column


def _line() -> QFrame:
    line = QFrame()
    line.setFrameShape(QFrame.Shape.HLine)
    return line
