"""How long the window stands still while an image is segmented with live view.

A timer of 2 ms beats on the GUI thread of a real viewer; the longest gap between
two beats is the longest stall. Layers are made before the scan starts, and are
timed apart from it; the same window at rest is the comparison.
"""

from __future__ import annotations

import argparse
import time
from typing import TYPE_CHECKING

import napari
import numpy as np
from qtpy.QtCore import QEventLoop, QTimer
from qtpy.QtWidgets import QApplication

from machine import tell
from napari_fovea.sample_data import make_nuclei
from napari_fovea.widgets.demo import open_docks, start

if TYPE_CHECKING:
    from collections.abc import Callable


class Pulse:
    """Gaps between beats of the GUI thread's event loop, in milliseconds."""

    def __init__(self) -> None:
        self._timer = QTimer()
        self._timer.timeout.connect(self._beat)

    def _beat(self) -> None:
        now = time.perf_counter()
        self._gaps.setdefault(self._phase(), []).append(1000 * (now - self._last))
        self._last = now
        if self._done():
            self._loop.quit()

    def during(
        self, done: Callable[[], bool], phase: Callable[[], str]
    ) -> dict[str, list[float]]:
        """Beat until ``done()``; gaps by the phase that they ended in."""
        self._done, self._phase = done, phase
        self._gaps: dict[str, list[float]] = {}
        self._loop, self._last = QEventLoop(), time.perf_counter()
        self._timer.start(2)
        self._loop.exec()
        self._timer.stop()
        return self._gaps


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
    begun = time.perf_counter()
    rest = pulse.during(lambda: time.perf_counter() - begun > 2, lambda: "rest")["rest"]
    for run in ("first", "second"):
        start(segment)
        results = segment.results
        assert results is not None
        gaps = pulse.during(
            lambda: segment.job is None and results.idle,  # noqa: B023
            lambda: "scan" if segment.progress.value() > 0 else "layers",
        )
        scan = gaps["scan"]
        tell(
            "window",
            {
                "run": run,
                "side": side,
                "longest_stall_ms": round(max(scan), 1),
                "stalls_over_50_ms": sum(g > 50 for g in scan),
                "longest_over_at_rest": round(max(scan) / max(rest), 2),
                "longest_at_rest_ms": round(max(rest), 1),
                "longest_while_napari_makes_layers_ms": round(max(gaps["layers"]), 1),
                "status": segment.status.text(),
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
