"""What the Segment dock looks like."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qtpy.QtWidgets import (
    QCheckBox,
    QComboBox,
    QFormLayout,
    QHBoxLayout,
    QProgressBar,
    QPushButton,
    QSpinBox,
    QVBoxLayout,
    QWidget,
)

from napari_fovea.widgets.diameter import DiameterField
from napari_fovea.widgets.model import ModelPicker
from napari_fovea.widgets.result_place import ResultPlace
from napari_fovea.widgets.telling import Telling

if TYPE_CHECKING:
    from collections.abc import Callable

    from napari_fovea.models import Entry
    from napari_fovea.widgets.layers import Region
    from napari_fovea.widgets.session import Session


class SegmentForm(QWidget):
    """Fields and buttons of the Segment dock; it decides nothing.

    Parameters
    ----------
    shared : Session
        What the docks share.
    region : callable
        Tells the part of an image that is to be measured; None if there is none.
    """

    def __init__(self, shared: Session, region: Callable[[], Region | None]) -> None:
        super().__init__()
        self.session = shared
        self._shown: Entry | None = None
        self.picker = ModelPicker(shared)
        self.images = QComboBox()
        self.images.setToolTip("The image layer to segment; follows the active layer")
        self.region = QComboBox()
        self.region.setToolTip("How much of the layer to segment")
        self.policy = QComboBox()
        self.policy.addItem("seek", "seek")
        self.policy.addItem("raster", "raster")
        self.policy.setToolTip(
            "seek looks again where the map is uncertain and coarsely seen;\n"
            "raster is the published scan"
        )
        self.budget = QSpinBox()
        self.budget.setRange(0, 10_000_000)
        self.budget.setSingleStep(100)
        self.budget.setSpecialValueText("automatic")
        self.budget.setToolTip("Most fixations per plane")
        self.diameter = DiameterField(shared, region)
        self.live = QCheckBox("Show it while it runs")
        self.live.setChecked(True)
        self.live.setToolTip("See the map sharpen and the path grow")
        self.run_button = QPushButton("Run")
        self.run_button.setToolTip("Segment the layer")
        self.cancel_button = QPushButton("Cancel")
        self.cancel_button.setToolTip("Stop now and keep what there is")
        self.cancel_button.setEnabled(False)
        self.progress = QProgressBar()
        self.progress.setRange(0, 1000)
        self.progress.setTextVisible(False)
        self.status = Telling("Ready")
        self.diameter.told.connect(self.status.setText)
        form = QFormLayout()
        form.setFieldGrowthPolicy(QFormLayout.FieldGrowthPolicy.AllNonFixedFieldsGrow)
        form.addRow("Model", self.picker)
        form.addRow("Image", self.images)
        form.addRow("Region", self.region)
        form.addRow("Policy", self.policy)
        form.addRow("Budget", self.budget)
        form.addRow("Diameter", self.diameter)
        self.place = ResultPlace()
        form.addRow("Result", self.place)
        self._form = form
        buttons = QHBoxLayout()
        buttons.addWidget(self.run_button)
        buttons.addWidget(self.cancel_button)
        layout = QVBoxLayout(self)
        layout.addLayout(form)
        layout.addWidget(self.live)
        layout.addLayout(buttons)
        layout.addWidget(self.progress)
        layout.addWidget(self.status)
        layout.addStretch()
        self.setMinimumWidth(280)

    def show_model(self, chosen: Entry | None) -> None:
        """Show the rows that this model needs, and how it likes to look."""
        if chosen is not None and chosen is not self._shown:
            self._shown = chosen
            liked = self.policy.findData(chosen.header.scan.policy or "seek")
            self.policy.setCurrentIndex(liked)
        # Only the retina has a focus that a policy moves.
        for row in (self.policy, self.budget):
            self._show_row(row, chosen is None or chosen.focused)
        self.diameter.show_model(chosen)

    def show_place(self, *, large: bool) -> None:
        """Ask where the result goes, if the image is large."""
        self._show_row(self.place, large)

    def _show_row(self, row: QWidget, shown: bool) -> None:
        row.setVisible(shown)
        self._form.labelForField(row).setVisible(shown)

    def settings(self) -> dict[str, Any]:
        """Read the form as arguments of `inference.segment`."""
        chosen = self.session.chosen
        focus = {}
        if chosen is None or chosen.focused:
            focus = {
                "policy": self.policy.currentData(),
                "budget": self.budget.value() or None,
            }
        return {
            **focus,
            "diameter": self.diameter.value(),
        }
