"""How long the window stands still while an image is segmented with live view.

A timer of 1 ms beats on the GUI thread of a real viewer; the longest gap between
two beats is the longest stall. The same viewer is measured at rest and while it
repaints on its own, for comparison.
"""

from __future__ import annotations

import argparse
import time

import napari
import numpy as np
from qtpy.QtCore import QTimer
from qtpy.QtWidgets import QApplication

from machine import tell
from napari_fovea.sample_data import make_nuclei
from napari_fovea.widgets.demo import open_docks, start


class Pulse:
    """Gaps between beats of the GUI thread's event loop."""

    def __init__(self) -> None:
        self.gaps: list[float] = []
        self._last = time.perf_counter()
        self._timer = QTimer()
        self._timer.timeout.connect(self._beat)

    def _beat(self) -> None:
        now = time.perf_counter()
        self.gaps.append(now - self._last)
        self._last = now

    def during(self, done: object) -> list[float]:
        """Beat until ``done()``; milliseconds."""
        assert callable(done)
        self.gaps, self._last = [], time.perf_counter()
        self._timer.start(1)
        while not done():
            QApplication.processEvents()
        self._timer.stop()
        return [1000 * g for g in self.gaps]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--side", type=int, default=512)
    side = parser.parse_args().side
    viewer = napari.Viewer(show=True)
    viewer.window.resize(1400, 900)
    _, segment = open_docks(viewer)
    tile, _ = make_nuclei()
    times = -(-side // 256)
    viewer.add_image(np.tile(tile, (times, times))[:side, :side], name="nuclei")
    start_when_ready(segment)
    pulse = Pulse()
    beaten = time.perf_counter()
    at_rest = pulse.during(lambda: time.perf_counter() - beaten > 2)
    for run in ("first", "second"):
        start(segment)
        results = segment.results
        assert results is not None
        gaps = pulse.during(lambda: segment.job is None and results.idle)  # noqa: B023
        note = segment.status.text()
        tell(
            "window",
            {
                "run": run,
                "side": side,
                "longest_stall_ms": round(max(gaps), 1),
                "stalls_over_50_ms": sum(g > 50 for g in gaps),
                "longest_over_at_rest": round(max(gaps) / max(at_rest), 2),
                "longest_at_rest_ms": round(max(at_rest), 1),
                "status": note,
            },
        )
    viewer.close()


def start_when_ready(segment: object) -> None:
    """Wait for the models to be listed, and for the window to settle."""
    begun = time.monotonic()
    while time.monotonic() - begun < 60:
        QApplication.processEvents()
        if segment.run_button.isEnabled() and time.monotonic() - begun > 3:  # type: ignore[attr-defined]
            return


if __name__ == "__main__":
    main()
