"""How smoothly a focus path is replayed: frames, start, scrubbing, memory.

Run it on a display, such as Xvfb. Prints one line of JSON. The frame rate stands
beside that of the bare window, whose camera alone moves, and of the simplest player,
which sets all shapes anew in every frame.
"""

from __future__ import annotations

import argparse
import os
import time
from typing import TYPE_CHECKING, Any

import napari
import numpy as np
from qtpy.QtWidgets import QApplication
from skimage import data

from machine import tell
from napari_fovea.retina import FUSIONS, FocusPath, RetinaGrid
from napari_fovea.widgets import layers

if TYPE_CHECKING:
    from collections.abc import Callable

    from napari_fovea.widgets.focus_path import FocusPathDock


def made_up(n: int, side: int) -> FocusPath:
    """Walk to and fro over an image, as a scan does, with pmfs by chance."""
    rng = np.random.default_rng(0)
    grid = RetinaGrid(64, 4)
    walk = np.cumsum(rng.normal(0, 6, (n, 2)), axis=0)
    reach = side - grid.d // 2
    folded = np.abs((walk + side / 2) % (2 * reach) - reach)
    foreground = rng.beta(0.4, 0.8, (n, grid.n_cells))
    return FocusPath(
        corners=(folded - grid.d / 4).astype(np.int64),
        entropies=rng.random(n).astype(np.float32),
        steps=np.full(n, 12),
        grid=grid,
        pmfs=np.stack([1 - foreground, foreground], axis=-1).astype(np.float16),
        shape=(side, side),
        fusion=FUSIONS["precision"],
        classes=("background", "nucleus"),
    )


def resident() -> float:
    """Resident memory of this process in MiB."""
    with open("/proc/self/statm") as file:
        pages = int(file.read().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def pump(seconds: float, done: Callable[[], bool] = lambda: False) -> None:
    """Let the window live."""
    end = time.perf_counter() + seconds
    while time.perf_counter() < end and not done():
        QApplication.processEvents()


def frames(act: Callable[[int], None], count: int = 90) -> float:
    """Frames per second of something that is done before each repaint."""
    for i in range(10):
        act(i)
        QApplication.processEvents()
    begun = time.perf_counter()
    for i in range(count):
        act(i)
        QApplication.processEvents()
    return count / (time.perf_counter() - begun)


def played(dock: FocusPathDock, speed: float, seconds: float) -> tuple[float, float]:
    """Frames per second of a replay, and the longest time between two."""
    shown: list[float] = []
    dock.player.stepped.connect(lambda _: shown.append(time.perf_counter()))
    dock.form.steps_per_second = speed
    dock.player.go(0)
    dock.player.play()
    pump(1.0)
    shown.clear()
    pump(seconds)
    dock.player.pause()
    pump(0.3)
    gaps = np.diff(shown[:-1])
    return 1 / float(gaps.mean()), float(gaps.max())


def scrubbed(dock: FocusPathDock, count: int = 40) -> dict[str, float]:
    """Milliseconds from a move of the slider to the map of that step on show."""
    rng = np.random.default_rng(1)
    spent = []
    for step in rng.integers(0, dock.form.slider.maximum(), count).tolist():
        pump(0.25)  # a user's hand is no faster, and the pacing of maps is past
        begun = time.perf_counter()
        dock.form.slider.setValue(step)
        pump(5, lambda step=step: dock.maps.step == step and dock.maps.idle)
        spent.append(1000 * (time.perf_counter() - begun))
    return {"median": round(float(np.median(spent)), 1), "max": round(max(spent), 1)}


def naive(viewer: Any, path: FocusPath) -> float:
    """Frames per second of setting the grid and the way anew each time."""
    cells = viewer.add_shapes(
        layers.rectangles(path.cells(0)), edge_width=0.5, face_color="transparent"
    )
    way = viewer.add_shapes(
        [path.centres[:2]], shape_type="path", edge_width=1, edge_color="white"
    )

    def act(i: int) -> None:
        step = 5000 + 3 * i
        cells.data = layers.rectangles(path.cells(step))
        way.data = [path.centres[: step + 1]]

    rate = frames(act, 30)
    cells.visible = way.visible = False
    return rate


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fixations", type=int, default=10_000)
    parser.add_argument("--side", type=int, default=512)
    parser.add_argument("--speed", type=float, default=300.0, help="steps per second")
    parser.add_argument("--seconds", type=float, default=8.0)
    given = parser.parse_args()
    path = made_up(given.fixations, given.side)
    image = data.immunohistochemistry()
    if given.side != 512:
        image = np.tile(image, (-(-given.side // 512),) * 2 + (1,))
        image = image[: given.side, : given.side]
    viewer = napari.Viewer(show=True)
    viewer.window.resize(1200, 800)
    source = viewer.add_image(image, rgb=True, name="image")
    _, dock = viewer.window.add_plugin_dock_widget("napari-fovea", "Focus path")
    pump(1.0)
    camera = viewer.scene.camera
    middle = tuple(camera.center)
    bare = frames(lambda i: setattr(camera, "center", (*middle[:-1], i % 5 + 250.0)))
    camera.center = middle
    holder = viewer.add_shapes(ndim=2, name="result", visible=False)
    before = resident()
    begun = time.perf_counter()
    holder.metadata = {
        layers.KEY: {"source": source.name, "path": path, "region_offset": [0.0, 0.0]}
    }
    pump(10, lambda: dock.maps.step == len(path) - 1 and dock.maps.idle)
    started = time.perf_counter() - begun
    rate, longest = played(dock, given.speed, given.seconds)
    scrubs = scrubbed(dock)
    after = resident()
    played(dock, given.speed, given.seconds)
    scrubbed(dock)
    again = resident()
    dock.unload()
    simple = naive(viewer, path)
    tell(
        "player",
        {
            "fixations": given.fixations,
            "side": given.side,
            "fps": round(rate, 1),
            "fps_bare_window": round(bare, 1),
            "fps_naive": round(simple, 1),
            "of_bare_window": round(rate / bare, 3),
            "over_naive": round(rate / simple, 2),
            "longest_frame_ms": round(1000 * longest, 1),
            "start_s": round(started, 3),
            "scrub_ms": scrubs,
            "memory_mib": round(after - before, 1),
            "memory_again_mib": round(again - before, 1),
        },
    )
    viewer.close()


if __name__ == "__main__":
    main()
