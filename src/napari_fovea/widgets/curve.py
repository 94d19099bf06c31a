"""A live curve of how learning goes."""

from __future__ import annotations

from typing import Any

from qtpy.QtCore import QTimer
from qtpy.QtGui import QPalette
from qtpy.QtWidgets import QVBoxLayout, QWidget

_HEIGHT = 120
_EVERY = 150  # ms between drawings
_LOSS, _SCORE = "#e8a33d", "#4aa8e0"  # told apart on dark and on light ground


class Curve(QWidget):
    """Loss and held-out score, step by step; seen once there is something to see."""

    def __init__(self) -> None:
        super().__init__()
        self.loss: list[tuple[int, float]] = []
        self.score: list[tuple[int, float]] = []
        self._plot: Any = None
        # Events come in bursts; drawing takes longer than any of them.
        self._later = QTimer(self)
        self._later.setSingleShot(True)
        self._later.setInterval(_EVERY)
        self._later.timeout.connect(self._draw)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        self.hide()
        self.setToolTip(
            "Loss on what is learned from (left), and probability given to held-out\n"
            "strokes (right, from 0 to 1)"
        )

    def clear(self) -> None:
        """Begin anew."""
        self.loss, self.score = [], []
        self._later.start()

    def add(self, step: int, loss: float | None, score: float | None) -> None:
        """Add what is known of a step."""
        if loss is not None:
            self.loss.append((step, loss))
        if score is not None:
            self.score.append((step, score))
        if not self._later.isActive():
            self._later.start()

    def match(self) -> None:
        """Take the colours of the theme."""
        if self._plot is None:
            return
        palette = self.palette()
        ground = palette.color(QPalette.ColorRole.Window)
        ink = palette.color(QPalette.ColorRole.WindowText)
        self._plot.setBackground(ground)
        for side in ("left", "right", "bottom"):
            axis = self._plot.getPlotItem().getAxis(side)
            axis.setPen(ink)
            axis.setTextPen(ink)

    def _build(self) -> None:
        import pyqtgraph  # takes longer than all else that a dock needs to open

        self._plot = pyqtgraph.PlotWidget()
        self._plot.setFixedHeight(_HEIGHT)
        self._plot.setMouseEnabled(x=False, y=False)
        self._plot.setMenuEnabled(False)
        self._plot.hideButtons()
        item = self._plot.getPlotItem()
        for side in ("left", "right"):
            item.getAxis(side).enableAutoSIPrefix(False)
        item.showAxis("right")
        item.setLabel("left", "loss", color=_LOSS)
        item.setLabel("right", "score", color=_SCORE)
        # The score has its own scale, from 0 to 1.
        self._other = pyqtgraph.ViewBox(enableMenu=False)
        item.scene().addItem(self._other)
        item.getAxis("right").linkToView(self._other)
        self._other.setXLink(item)
        self._other.setYRange(0, 1.05, padding=0)
        item.vb.sigResized.connect(self._fit)
        self._loss_line = self._plot.plot(pen=pyqtgraph.mkPen(_LOSS, width=2))
        self._score_line = pyqtgraph.PlotDataItem(
            pen=pyqtgraph.mkPen(_SCORE, width=2),
            symbol="o",
            symbolSize=5,
            symbolBrush=_SCORE,
            symbolPen=None,
        )
        self._other.addItem(self._score_line)
        self.layout().addWidget(self._plot)
        self.match()
        self.show()

    def _fit(self) -> None:
        box = self._plot.getPlotItem().vb
        self._other.setGeometry(box.sceneBoundingRect())

    def _draw(self) -> None:
        if self._plot is None:
            if not self.loss and not self.score:
                return
            self._build()
        for line, points in (
            (self._loss_line, self.loss),
            (self._score_line, self.score),
        ):
            line.setData([x for x, _ in points], [y for _, y in points])
