"""What the Attention dock looks like."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, NamedTuple

from qtpy.QtCore import Qt, Signal
from qtpy.QtWidgets import (
    QCheckBox,
    QComboBox,
    QFormLayout,
    QHBoxLayout,
    QHeaderView,
    QLabel,
    QProgressBar,
    QPushButton,
    QSlider,
    QTreeWidget,
    QTreeWidgetItem,
    QVBoxLayout,
    QWidget,
)

from napari_fovea.widgets.model import ModelPicker

if TYPE_CHECKING:
    from collections.abc import Iterable

    from napari_fovea.inference import Attends
    from napari_fovea.widgets.session import Session

_UNIT = re.compile(r"(?P<group>(?:member \d+ )?(?:encoder|decoder)) (?P<rest>.*)")
_NAME = Qt.ItemDataRole.UserRole
OFF, BESIDE, BLINK = "one above the other", "side by side", "by blinking"


class MapTree(QTreeWidget):
    """The attention maps of a model, by name, with a tick for those to show."""

    ticked = Signal(str, bool)

    def __init__(self) -> None:
        super().__init__()
        self.setHeaderLabels(["Map", "Values"])
        self.setMinimumHeight(150)
        self.setIndentation(12)
        self.setToolTip("Tick a map to show it on the image")
        header = self.header()
        header.setStretchLastSection(False)
        header.setSectionResizeMode(0, QHeaderView.ResizeMode.Stretch)
        header.setSectionResizeMode(1, QHeaderView.ResizeMode.ResizeToContents)
        self.itemChanged.connect(self._changed)
        self.itemExpanded.connect(self._expanded)
        self._items: dict[str, QTreeWidgetItem] = {}

    def offer(self, maps: Iterable[Attends], ticked: Iterable[str]) -> None:
        """List maps; channels of a map appear when it is opened."""
        ticked = set(ticked)
        self.blockSignals(True)
        self.clear()
        self._items = {}
        groups: dict[str, QTreeWidgetItem] = {}
        for one in maps:
            parent: Any = self
            text = one.name
            found = _UNIT.fullmatch(one.name)
            if found:
                if found["group"] not in groups:
                    group = QTreeWidgetItem(self, [found["group"], ""])
                    group.setExpanded(True)
                    groups[found["group"]] = group
                parent, text = groups[found["group"]], found["rest"]
            item = self._add(parent, one.name, text)
            item.setToolTip(0, one.note or one.name)
            item.setText(1, one.value)
            if one.channels > 1:
                item.setText(1, _joined(one.value, f"mean of {one.channels}"))
                item.setData(1, _NAME, one.channels)
                item.setChildIndicatorPolicy(
                    QTreeWidgetItem.ChildIndicatorPolicy.ShowIndicator
                )
        self.blockSignals(False)
        for name in ticked & self._items.keys():
            self.tick(name, True)

    def _add(self, parent: Any, name: str, text: str) -> QTreeWidgetItem:
        item = QTreeWidgetItem(parent, [text, ""])
        item.setFlags(item.flags() | Qt.ItemFlag.ItemIsUserCheckable)
        item.setCheckState(0, Qt.CheckState.Unchecked)
        item.setData(0, _NAME, name)
        self._items[name] = item
        return item

    def _expanded(self, item: QTreeWidgetItem) -> None:
        channels = item.data(1, _NAME)
        if not channels or item.childCount():
            return
        self.blockSignals(True)
        name = item.data(0, _NAME)
        for i in range(channels):
            self._add(item, f"{name} [{i}]", f"channel {i}")
        self.blockSignals(False)

    def _changed(self, item: QTreeWidgetItem, column: int) -> None:
        name = item.data(0, _NAME)
        if column == 0 and name:
            self.ticked.emit(name, item.checkState(0) == Qt.CheckState.Checked)

    def tick(self, name: str, shown: bool) -> None:
        """Tick a map, as the user does."""
        item = self._items.get(name)
        if item is None and name.endswith("]"):
            whole = self._items.get(name.rsplit(" [", 1)[0])
            if whole is not None:
                whole.setExpanded(True)
                self._expanded(whole)
            item = self._items.get(name)
        if item is not None:
            state = Qt.CheckState.Checked if shown else Qt.CheckState.Unchecked
            item.setCheckState(0, state)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the maps on offer, opened channels included."""
        return tuple(self._items)

    @property
    def shown(self) -> tuple[str, ...]:
        """Names of the maps that are ticked."""
        checked = Qt.CheckState.Checked
        return tuple(n for n, i in self._items.items() if i.checkState(0) == checked)

    def tell(self, name: str, low: float, high: float) -> None:
        """Tell the range of a map's values beside its name."""
        item = self._items.get(name)
        if item is not None:
            self.blockSignals(True)
            item.setText(1, f"{low:.2g} … {high:.2g}")
            if item.data(1, _NAME):
                item.setToolTip(1, f"mean of {item.data(1, _NAME)} channels")
            self.blockSignals(False)


class Row(NamedTuple):
    """A row of an answer, the fixation it tells of, and rows below it."""

    texts: list[str]
    step: int | None = None
    parts: tuple[list[str], ...] = ()


class AttentionForm(QWidget):
    """Tree, buttons and labels of the Attention dock; it decides nothing."""

    def __init__(self, shared: Session) -> None:
        super().__init__()
        self.picker = ModelPicker(shared)
        self.images = QComboBox()
        self.images.setToolTip("The image to look at; follows the active layer")
        self.images.setMinimumContentsLength(18)
        self.region = QComboBox()
        self.region.setToolTip("How much of the plane to look at")
        self.tree = MapTree()
        self.look_button = QPushButton("Look")
        self.look_button.setToolTip("Run the model and keep the ticked maps")
        self.cancel_button = QPushButton("Cancel")
        self.progress = QProgressBar()
        self.progress.setRange(0, 1000)
        self.progress.setTextVisible(False)
        self.opacity = QSlider(Qt.Orientation.Horizontal)
        self.opacity.setRange(0, 100)
        self.opacity.setValue(70)
        self.opacity.setToolTip("Opacity of all maps")
        self.compare = QComboBox()
        self.compare.addItems([OFF, BESIDE, BLINK])
        self.compare.setToolTip("How the two maps that were ticked last are compared")
        self.measure_button = QPushButton("Measure objects")
        self.measure_button.setToolTip(
            "Write the mean of each shown map over each object into the features\n"
            "table of the instances layer"
        )
        self.ask = QCheckBox("Ask a place")
        self.ask.setToolTip("Click an object or a place to see what decided it")
        self.answers = QTreeWidget()
        self.answers.setIndentation(12)
        self.answers.setMinimumHeight(110)
        self.answers.hide()
        self.status = QLabel()
        self.status.setWordWrap(True)
        self.status.setAlignment(Qt.AlignmentFlag.AlignTop)
        self._lay_out()
        self.busy(False)

    def _lay_out(self) -> None:
        form = _form()
        form.addRow("Model", self.picker)
        form.addRow("Image", self.images)
        form.addRow("Region", self.region)
        below = _form()
        below.addRow("Opacity", self.opacity)
        below.addRow("Compare", self.compare)
        run = QHBoxLayout()
        run.addWidget(self.look_button)
        run.addWidget(self.cancel_button)
        act = QHBoxLayout()
        act.addWidget(self.ask)
        act.addWidget(self.measure_button)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addLayout(form)
        layout.addWidget(self.tree, stretch=2)
        layout.addLayout(run)
        layout.addWidget(self.progress)
        layout.addLayout(below)
        layout.addLayout(act)
        layout.addWidget(self.answers, stretch=1)
        layout.addWidget(self.status)

    def busy(self, busy: bool) -> None:
        """Show progress and a way to stop it."""
        self.progress.setVisible(busy)
        self.cancel_button.setEnabled(busy)

    def say(self, text: str, *, wrong: bool = False) -> None:
        """Say something below everything else."""
        self.status.setText(f"⚠ {text}" if wrong else text)

    @property
    def warns(self) -> bool:
        """Whether it says that something went wrong."""
        return self.status.text().startswith("⚠")

    def answer(self, headers: list[str], rows: list[Row]) -> None:
        """Show what decided a place."""
        self.answers.clear()
        self.answers.setColumnCount(len(headers))
        self.answers.setHeaderLabels(headers)
        self.answers.setRootIsDecorated(any(row.parts for row in rows))
        for row in rows:
            item = _item(self.answers, row.texts, row.step)
            for part in row.parts:
                _item(item, part, row.step)
        for column in range(len(headers)):
            self.answers.resizeColumnToContents(column)
        self.answers.setVisible(bool(rows))


def _item(parent: Any, texts: list[str], step: int | None) -> QTreeWidgetItem:
    item = QTreeWidgetItem(parent, texts)
    item.setData(0, _NAME, step)
    for column in range(1, len(texts)):
        item.setTextAlignment(column, Qt.AlignmentFlag.AlignRight)
    return item


def _form() -> QFormLayout:
    form = QFormLayout()
    form.setFieldGrowthPolicy(QFormLayout.FieldGrowthPolicy.AllNonFixedFieldsGrow)
    return form


def _joined(*parts: str) -> str:
    return ", ".join(p for p in parts if p)
