"""How long the window stands still while a model learns, and what memory it keeps.

Strokes are painted on a real viewer, one after the other, with live refits; then the
model learns thoroughly. A timer of 2 ms beats on the GUI thread: the longest gap
between two beats is the longest stall, and the same window at rest the comparison.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import napari
import numpy as np
import psutil
from qtpy.QtWidgets import QApplication

from machine import tell
from napari_fovea.sample_data import make_nuclei
from strokes import simulated
from window import Pulse


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--side", type=int, default=512)
    parser.add_argument("--seconds", type=int, default=15, help="of thorough")
    parser.add_argument("--runs", type=int, default=3, help="of thorough")
    options = parser.parse_args()
    viewer = napari.Viewer(show=True)
    viewer.window.resize(1400, 900)
    tile, truth = make_nuclei()
    times = -(-options.side // 256)
    image = np.tile(tile, (times, times))[: options.side, : options.side]
    objects = np.tile(truth, (times, times))[: options.side, : options.side]
    viewer.add_image(image, name="nuclei")
    _, dock = viewer.window.add_plugin_dock_widget("napari-fovea", "Fine-tune")
    settle(dock)
    rest = beat(seconds=2)
    dock.form.new_button.click()
    settle(dock)
    memory = [rss()]

    drawn = simulated(objects, seed=0, each=5)
    labels = viewer.layers["nuclei strokes"]
    dock.form.live.setChecked(True)
    gaps: list[float] = []
    refits = []
    for label in (1, 2):
        for piece in pieces(drawn == label):
            paint(labels, piece, label)
            begun = time.perf_counter()
            gaps += beat(dock=dock)
            refits.append(time.perf_counter() - begun)
    report("live", gaps, rest, refits=len(refits))
    memory.append(rss())

    dock.form.thorough.click()
    dock.form.seconds.setValue(options.seconds)
    for _ in range(options.runs):
        dock.form.train_button.click()
        gaps = beat(dock=dock)
        report("thorough", gaps, rest, status=dock.form.status.text())
        if dock.steps.candidate is not None:
            dock.form.anyway_button.click()
            settle(dock)
        memory.append(rss())
    tell(
        "painting",
        {
            "part": "memory",
            "mib_before": memory[0],
            "mib_after_live": memory[1],
            "mib_after_each_thorough": memory[2:],
            "over_before": round(memory[-1] / memory[0], 2),
        },
    )
    # The window is closed while something is being learned.
    dock.form.train_button.click()
    beat(seconds=3)
    begun = time.perf_counter()
    viewer.close()
    QApplication.processEvents()
    closed = round(time.perf_counter() - begun, 2)
    tell("painting", {"part": "closed in mid-training", "seconds": closed})


def beat(*, dock: Any = None, seconds: float = 0.3) -> list[float]:
    """Gaps in ms for a while, and until a dock rests."""
    begun = time.perf_counter()

    def done() -> bool:
        return time.perf_counter() - begun > seconds and (dock is None or idle(dock))

    return Pulse().during(done, lambda: "all")["all"]


def idle(dock: Any) -> bool:
    """Whether nothing is going on."""
    drawn = dock.plane.results is None or dock.plane.results.idle
    return dock.job is None and not dock._lift.isActive() and drawn


def settle(dock: Any) -> None:
    """Wait for models, and for what is going on."""
    begun = time.monotonic()
    while time.monotonic() - begun < 60:
        QApplication.processEvents()
        if dock.base is not None and idle(dock) and time.monotonic() - begun > 2:
            return


def pieces(mask: np.ndarray) -> list[tuple[np.ndarray, ...]]:
    """Places of each connected piece."""
    from skimage.measure import label

    numbers, count = label(mask, connectivity=2, return_num=True)
    return [np.nonzero(numbers == i + 1) for i in range(count)]


def paint(labels: Any, places: tuple[np.ndarray, ...], label: int) -> None:
    """Paint a stroke as the brush does, with the event that ends it."""
    with labels.block_history():
        labels.data_setitem(places, label)


def report(part: str, gaps: list[float], rest: list[float], **more: Any) -> None:
    """Print a line."""
    tell(
        "painting",
        {
            "part": part,
            "longest_stall_ms": round(max(gaps), 1),
            "stalls_over_50_ms": sum(g > 50 for g in gaps),
            "longest_at_rest_ms": round(max(rest), 1),
            "longest_over_at_rest": round(max(gaps) / max(rest), 2),
            **more,
        },
    )


def rss() -> int:
    """Resident memory in MiB, after what can be given back was given back."""
    import gc

    gc.collect()
    return int(psutil.Process().memory_info().rss) >> 20


if __name__ == "__main__":
    main()
