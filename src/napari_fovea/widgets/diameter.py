"""How large the objects of an image are: typed, or estimated by the model."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from qtpy.QtCore import Signal
from qtpy.QtWidgets import QDoubleSpinBox, QHBoxLayout, QPushButton, QWidget

from napari_fovea.errors import FoveaError
from napari_fovea.widgets.job import Job
from napari_fovea.widgets.large import is_large

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from napari_fovea.models.zoo import Entry
    from napari_fovea.widgets.layers import Region
    from napari_fovea.widgets.session import Session


class DiameterField(QWidget):
    """A diameter in pixels, and a button that lets the model estimate it.

    Parameters
    ----------
    session : Session
        Knows the model and the device.
    region : callable
        Tells the part of an image that is to be measured; None if there is none.
    """

    told = Signal(str)
    """What the user should know, in a sentence."""

    def __init__(self, session: Session, region: Callable[[], Region | None]) -> None:
        super().__init__()
        self.session = session
        self.job: Job | None = None
        self._region = region
        self.spin = QDoubleSpinBox()
        self.spin.setRange(0, 10_000)
        self.spin.setDecimals(1)
        self.spin.setSuffix(" px")
        self.button = QPushButton("Estimate")
        self.button.setToolTip("Let the model measure the objects of this image")
        self.button.clicked.connect(self.estimate)
        self.spin.valueChanged.connect(self.drop)
        row = QHBoxLayout(self)
        row.setContentsMargins(0, 0, 0, 0)
        row.addWidget(self.spin, stretch=1)
        row.addWidget(self.button)
        self.show_model(None)

    def value(self) -> float | None:
        """Diameter in pixels; None if it is left to the model."""
        return self.spin.value() or None

    def setValue(self, value: float) -> None:
        """Set the diameter in pixels; 0 leaves it to the model."""
        self.spin.setValue(value)

    def show_model(self, entry: Entry | None) -> None:
        """Say what a model does where no diameter is given."""
        auto = entry is not None and entry.header.scan.diameter == "auto"
        knows = entry is not None and entry.header.object_diameter is not None
        self.spin.setSpecialValueText("automatic" if auto else "as trained")
        otherwise = (
            "automatic: the model measures them first"
            if auto
            else "as trained: the image is not resized"
        )
        self.spin.setToolTip(
            "Typical diameter of the objects in pixels of the image, which is\n"
            f"resized to the model's object size.\n{otherwise}"
        )
        self.button.setEnabled(knows and self.job is None)

    def estimate(self) -> None:
        """Measure the objects, and put the diameter in."""
        entry = self.session.chosen
        try:
            region = self._region()
        except FoveaError as error:
            self.told.emit(f"⚠ {error}")
            return
        if self.job is not None or entry is None or region is None:
            return
        shared = self.session

        def make(cancelled: Any) -> Generator[Any, None, Any]:
            yield None
            return _estimated(region, shared, entry, cancelled)

        self.job = job = Job(make)
        job.returned.connect(partial(self._on_found, job))
        job.errored.connect(partial(self._on_error, job))
        self.button.setEnabled(False)
        self.told.emit("Measuring objects…")
        job.start()

    def _on_found(self, job: Job, diameter: float | None) -> None:
        if not self._ended(job):
            return
        if diameter is None:
            self.told.emit("⚠ The model finds no objects to measure: type a diameter.")
            return
        self.spin.setValue(diameter)
        self.told.emit(f"Objects are about {self.spin.value():.0f} px across")

    def _on_error(self, job: Job, error: Exception) -> None:
        if self._ended(job):
            known = isinstance(error, FoveaError)
            kind = "" if known else f"{type(error).__name__}: "
            self.told.emit(f"⚠ {kind}{error}")

    def _ended(self, job: Job) -> bool:
        """Be ready for the next; whether this one had not been let go."""
        if job is not self.job:
            return False
        self.job = None
        self.show_model(self.session.chosen)
        return True

    def drop(self) -> None:
        """Measure no longer: a diameter was typed, or another image was chosen."""
        if self.job is not None:
            self.quit()
            self.told.emit("Measured no further")
            self.show_model(self.session.chosen)

    def quit(self) -> None:
        """Let go of what is being measured; the window may be gone already."""
        if self.job is not None:
            self.job.quit()
            self.job = None


def _estimated(
    region: Region, shared: Session, entry: Entry, cancelled: Callable[[], bool]
) -> float | None:
    """Measure objects as a run would; called in a thread."""
    from napari_fovea.device import leaving_a_core
    from napari_fovea.images import guess_axes
    from napari_fovea.inference import estimate_diameter
    from napari_fovea.scale import diameter_of, open_source

    model, backend = shared.load(entry), shared.backend()
    with leaving_a_core():
        if is_large(region):
            axes = guess_axes(np.shape(region.array), rgb=region.rgb)
            with open_source(region.array, axes=axes) as source:
                return diameter_of(source, model, backend, cancelled=cancelled)
        return estimate_diameter(
            np.asarray(region.array),
            model,
            rgb=region.rgb,
            device=backend,
            cancelled=cancelled,
        )
