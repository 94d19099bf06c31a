"""The Model dock: what is there, what it learned from, and what computes."""

from __future__ import annotations

from functools import partial
from html import escape
from pathlib import Path
from typing import Any

from qtpy.compat import isalive
from qtpy.QtCore import QSize, Qt, QTimer
from qtpy.QtWidgets import (
    QCheckBox,
    QComboBox,
    QDoubleSpinBox,
    QFileDialog,
    QFormLayout,
    QFrame,
    QLabel,
    QPushButton,
    QScrollArea,
    QVBoxLayout,
    QWidget,
)

from napari_fovea.widgets.job import Job, Jobs, call
from napari_fovea.widgets.session import Session, computing, session, survey
from napari_fovea.widgets.telling import Telling

_SYSTEMS = {
    "S0": "retina-like sequential attention",
    "S1": "FocusNet",
    "S2": "recurrent residual attention U-Net",
    "S3": "FocusNet++",
    "S4": "residual attention FPN Mask R-CNN",
    "ensemble": "several systems that answer together",
}


_SOON, _AT_LATEST = 50, 1000  # ms until models are listed: once seen, if never seen
_PRECISIONS = ("auto", "float32", "bfloat16", "float16")
_NARROW = 200
_NAME = 30  # letters of a model's name and system that are always to be read


class ModelPicker(QComboBox):
    """A list of the session's models; every one shows and sets the same choice.

    Parameters
    ----------
    shared : Session
        What the docks share. If nobody has listed the models yet, this does, in
        a job.
    """

    def __init__(self, shared: Session) -> None:
        super().__init__()
        self.setToolTip("Models that ship, your own, and those loaded from files")
        self.setMinimumContentsLength(_NAME)
        self.session = shared
        self.currentIndexChanged.connect(self._choose)
        shared.listed.connect(self._list)
        shared.changed.connect(self._show)
        self._job: Job | None = None
        self._wait = QTimer(self, singleShot=True)
        if shared.entries:
            self._list()
            self._show()
        else:
            self.addItem("looking…")
            # Importing torch in a thread slows this one: first let the dock be seen.
            self._wait.timeout.connect(self._survey)
            self._wait.start(_AT_LATEST)

    def minimumSizeHint(self) -> QSize:
        """Give way where a dock is narrow: the list itself shows whole names."""
        hint: QSize = super().minimumSizeHint()
        return QSize(min(hint.width(), _NARROW), hint.height())

    def paintEvent(self, event: Any) -> None:
        """Look for models soon after it was seen for the first time."""
        super().paintEvent(event)
        if self._wait.isActive() and self._wait.interval() > _SOON:
            self._wait.start(_SOON)

    def _survey(self) -> None:
        if self.session.entries:
            return  # another dock was quicker
        self._job = Job(lambda _: survey())
        self._job.returned.connect(self._surveyed)
        self._job.errored.connect(lambda error: self.setItemText(0, f"⚠ {error}"))
        self._job.start()

    def _surveyed(self, found: Any) -> None:
        entries, self.session.devices = found
        self.session.offer(entries)

    def _list(self) -> None:
        if not isalive(self):
            return  # its window was closed; the session goes on
        self.blockSignals(True)
        self.clear()
        for entry in self.session.entries:
            self.addItem(f"{entry.name} · {entry.system}", entry)
        self.blockSignals(False)

    def _show(self) -> None:
        if self.session.chosen is not None and isalive(self):
            self.setCurrentIndex(self.session.entries.index(self.session.chosen))

    def _choose(self, index: int) -> None:
        if 0 <= index < len(self.session.entries):
            self.session.choose(self.session.entries[index])


class ModelDock(QWidget):
    """Choose a model and a device.

    Parameters
    ----------
    napari_viewer : napari.Viewer
        Not used: the choice holds for all docks.
    shared : Session, optional
        What the docks share; one for all by default.
    """

    def __init__(
        self, napari_viewer: Any = None, *, shared: Session | None = None
    ) -> None:
        super().__init__()
        self.session = shared or session()
        self.models = ModelPicker(self.session)
        self.devices = QComboBox()
        self.devices.setToolTip("Where the network computes")
        self.precision = QComboBox()
        self.precision.addItems(_PRECISIONS)
        self.precision.setToolTip(
            "What it computes in; auto is 16 bits where the device is fast at them\n"
            "and the network gives nearly the same"
        )
        self.memory = QDoubleSpinBox()
        self.memory.setRange(0, 1024)
        self.memory.setDecimals(2)
        self.memory.setSingleStep(0.5)
        self.memory.setSuffix(" GiB")
        self.memory.setSpecialValueText("auto")
        self.memory.setToolTip("Most that features may take; auto is half of the free")
        self.compiled = QCheckBox("Compile the network")
        self.compiled.setToolTip(
            "Takes up to minutes before the first result; the next ones are faster"
        )
        self.computing = QLabel()
        self.computing.setWordWrap(True)
        self.open_button = QPushButton("Load model file…")
        self.facts = QLabel("Looking for models…")
        self.facts.setWordWrap(True)
        self.facts.setTextFormat(Qt.TextFormat.RichText)
        self.facts.setTextInteractionFlags(Qt.TextInteractionFlag.TextSelectableByMouse)
        self.facts.setAlignment(Qt.AlignmentFlag.AlignTop)
        self.message = Telling()
        self.message.hide()
        scroll = QScrollArea()
        scroll.setWidgetResizable(True)
        scroll.setFrameShape(QFrame.Shape.NoFrame)
        scroll.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        scroll.setWidget(self.facts)
        form = QFormLayout()
        form.setFieldGrowthPolicy(QFormLayout.FieldGrowthPolicy.AllNonFixedFieldsGrow)
        form.addRow("Model", self.models)
        form.addRow("Device", self.devices)
        form.addRow("Precision", self.precision)
        form.addRow("Memory", self.memory)
        form.addRow("", self.compiled)
        layout = QVBoxLayout(self)
        layout.addLayout(form)
        layout.addWidget(self.computing)
        layout.addWidget(self.open_button)
        layout.addWidget(self.message)
        layout.addWidget(scroll, stretch=1)
        self.setMinimumWidth(280)

        self.devices.currentIndexChanged.connect(self._use_device)
        self.precision.currentTextChanged.connect(
            lambda name: self.session.use(precision=name)
        )
        self.memory.valueChanged.connect(lambda gib: self.session.use(memory=gib))
        self.compiled.toggled.connect(lambda on: self.session.use(compiled=on))
        self.open_button.clicked.connect(self._ask_for_file)
        self.session.listed.connect(self._list_devices)
        self.session.changed.connect(self._show)
        self._jobs = Jobs()
        self._told: tuple[Any, ...] = ()
        self._list_devices()
        self._show()

    def load_file(self, path: str | Path) -> None:
        """Add a model file to the list and choose it.

        Parameters
        ----------
        path : str or Path
            A napari-fovea model. What is wrong with it, if anything, is shown
            in the dock, and the choice stays as it was.
        """

        def read() -> Any:
            from napari_fovea.models import Entry, Model
            from napari_fovea.models.checkpoint import read_header

            Model.load(path)  # the weights too must be sound
            return Entry(Path(path), read_header(path))

        self.message.hide()
        self._start(call(read), self.session.add)

    def _start(self, make: Any, then: Any) -> None:
        self._jobs.begin(make, then, self._complain)

    def _complain(self, error: Exception) -> None:
        self.message.setText(f"⚠ {error}")
        self.message.show()

    def _list_devices(self) -> None:
        if not isalive(self):
            return
        self.devices.blockSignals(True)
        self.devices.clear()
        best = self.session.devices[0] if self.session.devices else "cpu"
        self.devices.addItem(f"auto ({best})", "auto")
        for name in self.session.devices:
            self.devices.addItem(name, name)
        mine = self.session.device
        if self.session.devices and self.devices.findData(mine) < 0:
            self.devices.addItem(f"{mine} (not here)", mine)
        self.devices.setCurrentIndex(max(0, self.devices.findData(self.session.device)))
        self.devices.blockSignals(False)

    def _show(self) -> None:
        if not isalive(self):
            return
        self._show_computing()
        entry = self.session.chosen
        if entry is None:
            return
        self.message.hide()
        self.facts.setText(_describe(entry))

    def _show_computing(self) -> None:
        """Show how it is computed, as soon as that is known."""
        shared = self.session
        self.precision.setCurrentText(shared.precision)
        self.memory.blockSignals(True)  # what it rounds is not what was chosen
        self.memory.setValue(shared.memory)
        self.memory.blockSignals(False)
        self.compiled.setChecked(shared.compiled)
        if self.devices.currentData() != shared.device:
            self._list_devices()
        asked = (shared.chosen, shared.device, shared.precision, shared.memory)
        if asked == self._told or shared.chosen is None:
            return
        self._told = asked

        def tell(text: str) -> None:
            if isalive(self) and asked == self._told:
                self.computing.setText(text)

        make = call(partial(computing, shared))
        self._jobs.begin(make, tell, lambda error: tell(f"⚠ {error}"))

    def _use_device(self, index: int) -> None:
        self.session.use_device(self.devices.itemData(index) or "auto")

    def _ask_for_file(self) -> None:
        path, _ = QFileDialog.getOpenFileName(
            self, "Load a model", "", "Models (*.safetensors);;All files (*)"
        )
        if path:
            self.load_file(path)


_ATTENTION = {
    "retina-vgg": "focus path, overlap of looks",
    "retina-shared": "focus path, overlap of looks",
    "focusnet": "gates at three scales",
    "r2-attention-unet": "gates on the deeper skips",
    "focusnet-plus": "two groups in every unit",
    "mask-rcnn": "three levels of the pyramid",
}


def _score(made: Any) -> str:
    """Tell how good a model is on its validation images, if it says so."""
    told = made.get("validation")
    every = told.get("all") if isinstance(told, dict) else None
    if not isinstance(every, dict):
        return "not told"
    parts = []
    for key, name in (("dice", "Dice"), ("ap", "AP")):
        score = every.get(key)
        mean = score.get("mean") if isinstance(score, dict) else None
        if isinstance(mean, int | float):
            parts.append(f"{name} {mean:.3f}")
    images = every.get("images")
    return f"{', '.join(parts)} on {images} validation images" if parts else "not told"


def _describe(entry: Any) -> str:
    header = entry.header
    config, made = header.config, header.provenance
    size = header.object_diameter
    there = f"{entry.megabytes:.1f} MB" if entry.path.is_file() else "no longer there"
    rows = [
        ("System", f"{entry.system}, {_SYSTEMS.get(entry.system, header.network)}"),
        ("Classes", ", ".join(header.classes)),
        ("Channels", f"1 (repeated) or {config['channels']}"),
        ("Object size", f"{size:.0f} px across" if size else "not known"),
    ]
    if made.get("members"):
        rows.append(("Members", ", ".join(map(str, made["members"]))))
    if "r" in config:
        rows.append(("Retina", f"d = {config['d']} px, r = {config['r']}"))
    if header.network in _ATTENTION:
        rows.append(("Attention", _ATTENTION[header.network]))
    rows += [
        ("Trained on", made.get("data", "not told")),
        ("Scores", _score(made)),
        ("File", f"{entry.path.name}, {there}"),
    ]
    cells = "".join(
        f"<tr><td style='padding: 2px 10px 2px 0'><b>{escape(k)}</b></td>"
        f"<td style='padding: 2px 0'>{escape(str(v))}</td></tr>"
        for k, v in rows
    )
    return f"<table>{cells}</table>"
