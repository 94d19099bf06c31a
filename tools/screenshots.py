"""Make the pictures of the docks that the docs show.

Works the docks as a user does, on sample images that come with the package, and
writes into ``docs/images``. Needs a display, such as Xvfb: ``make screenshots``.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import imageio.v3 as imageio
import napari
import numpy as np
from PIL import Image
from qtpy.QtWidgets import QApplication
from scipy.ndimage import binary_dilation
from skimage.draw import line

from napari_fovea.models import DEFAULT

if TYPE_CHECKING:
    from collections.abc import Callable

IMAGES = Path(__file__).parents[1] / "docs" / "images"
SIZE = (1400, 900)
STROKES: dict[int, list[tuple[tuple[int, int], ...]]] = {
    1: [
        ((195, 345), (215, 355)),
        ((70, 258), (125, 272)),
        ((100, 330), (150, 355)),
        ((285, 185), (300, 205)),
        ((310, 60), (330, 80)),
    ],
    2: [
        ((170, 306), (186, 310)),
        ((243, 368), (268, 370)),
        ((80, 346), (90, 334)),
        ((115, 420), (108, 435)),
        ((160, 91), (178, 92)),
        ((456, 354), (471, 358)),
        ((421, 122), (430, 140)),
    ],
}
"""On the stained tissue: background and nuclei, corner by corner."""
GIF = {"seconds": "9", "fps": "15", "side": "420"}


def wait(seconds: float, done: Callable[[], bool] = lambda: False) -> None:
    """Let the window live until something is done."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and not done():
        QApplication.processEvents()
        time.sleep(0.005)


def opened(viewer: napari.Viewer, name: str) -> Any:
    """Open a dock of the plugin from the menu's list."""
    return viewer.window.add_plugin_dock_widget("napari-fovea", name)[1]


def choose(dock: Any, model: str) -> None:
    """Choose a model by name."""
    wait(60, lambda: bool(dock.session.entries))
    dock.session.choose(next(e for e in dock.session.entries if e.name == model))


def shoot(viewer: napari.Viewer, file: Path) -> None:
    """Write the whole window."""
    wait(0.7)
    shot = viewer.screenshot(canvas_only=False, flash=False)
    Image.fromarray(shot[..., :3]).save(file, optimize=True)
    sys.stdout.write(f"wrote {file}\n")


def segmenting(
    viewer: napari.Viewer, image: str, model: str, file: Path, *, live: bool = False
) -> None:
    """Show the Model and Segment docks after a run, or in the midst of it."""
    beside = opened(viewer, "Model")
    dock = running(viewer, image, model)
    if live:
        wait(300, lambda: dock.progress.value() > 400)
        shoot(viewer, file)
        dock.cancel_button.click()
    wait(300, lambda: dock.job is None and dock.results.idle)
    if not live:
        shoot(viewer, file)
    for each in (dock, beside):
        viewer.window.remove_dock_widget(each)


def running(viewer: napari.Viewer, image: str, model: str) -> Any:
    """Open the Segment dock and start a run."""
    dock = opened(viewer, "Segment")
    choose(dock, model)
    dock.images.setCurrentText(image)
    wait(60, dock.run_button.isEnabled)
    dock.run_button.click()
    return dock


def showing(sample: str, image: str, *, theme: str = "dark") -> napari.Viewer:
    """Open a viewer with a sample image."""
    viewer = napari.Viewer(show=True)
    viewer.window.resize(*SIZE)
    viewer.theme = theme
    viewer.open_sample("napari-fovea", sample)
    viewer.layers.selection.active = viewer.layers[image]
    return viewer


def learning(viewer: napari.Viewer, image: str, file: Path) -> None:
    """Show the Fine-tune dock after strokes were painted and learned from."""
    show_only(viewer, image)
    dock = opened(viewer, "Fine-tune")
    choose(dock, DEFAULT)
    dock.form.images.setCurrentText(image)
    wait(60, dock.form.new_button.isEnabled)
    dock.form.new_button.click()
    wait(5, lambda: dock.job is not None)
    wait(120, lambda: dock.job is None and dock.plane.results is not None)
    labels = viewer.layers[f"{image} strokes"]
    for number, strokes in STROKES.items():
        for stroke in strokes:
            paint(labels, stroke, number)
    dock.form.train_button.click()
    wait(300, lambda: dock.job is None and dock.plane.results.idle)
    shoot(viewer, file)


def paint(labels: Any, places: tuple[tuple[int, int], ...], number: int) -> None:
    """Paint a stroke of straight lines between places."""
    stroke = np.zeros(labels.data.shape, bool)
    for begin, end in pairwise(places):
        stroke[line(*begin, *end)] = True
    stroke = binary_dilation(stroke, iterations=2)
    with labels.block_history():
        labels.data_setitem(np.nonzero(stroke), number)


def segmented(viewer: napari.Viewer, image: str) -> None:
    """Segment an image with the retina, and close the dock again."""
    dock = running(viewer, image, "retina-nuclei")
    wait(300, lambda: dock.job is None and dock.results.idle)
    viewer.window.remove_dock_widget(dock)


def show_only(viewer: napari.Viewer, *names: str) -> None:
    """Hide all layers but some."""
    for layer in viewer.layers:
        layer.visible = layer.name in names


def player(viewer: napari.Viewer, image: str, file: Path, *, share: float) -> None:
    """Show a replay some way through."""
    segmented(viewer, image)
    show_only(viewer, image)
    dock = opened(viewer, "Focus path")
    wait(60, lambda: dock.path is not None)
    dock.player.go(round(share * len(dock.path)))
    wait(60, lambda: dock.maps.idle)
    shoot(viewer, file)
    viewer.window.remove_dock_widget(dock)


def attention(
    viewer: napari.Viewer,
    image: str,
    file: Path,
    *,
    model: str,
    ticks: tuple[str, ...],
    ask: tuple[float, float] | None = None,
    beside: bool = False,
) -> None:
    """Show maps of a model, side by side or with what decided a place."""
    from napari_fovea.widgets.attention_form import BESIDE

    show_only(viewer, image)
    dock = opened(viewer, "Attention")
    dock.form.images.setCurrentText(image)
    choose(dock, model)
    wait(60, lambda: dock.offers(dock.session.chosen))
    for name in ticks:
        dock.form.tree.tick(name, True)
    wait(10, lambda: dock.job is not None)
    wait(300, lambda: dock.job is None and all(n in dock.maps for n in ticks))
    if beside:
        dock.form.compare.setCurrentText(BESIDE)
    if ask is not None:
        dock.form.ask.setChecked(True)
        dock.asking.ask(ask)
        wait(300, lambda: dock.asking.job is None)
        for name in ticks:
            dock.form.tree.tick(name, False)
    shoot(viewer, file)
    viewer.window.remove_dock_widget(dock)


def seek(file: Path) -> None:
    """Write the animation of the README, through the command line."""
    from skimage import data

    source = file.with_name("ihc-source.png")
    imageio.imwrite(source, data.immunohistochemistry())
    options = [x for k, v in GIF.items() for x in (f"--{k}", v)]
    command = [sys.executable, "-m", "napari_fovea.cli", "focus", str(source)]
    command += ["--model", "retina-nuclei", "--output", str(file), *options]
    try:
        subprocess.run(command, check=True)
    finally:
        source.unlink()


def main() -> None:
    """Make all pictures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=IMAGES)
    folder = parser.parse_args().output
    folder.mkdir(parents=True, exist_ok=True)
    home = TemporaryDirectory()  # no strokes that somebody left unsaved
    os.environ["NAPARI_FOVEA_HOME"] = home.name
    seek(folder / "seek.gif")
    stain = "ihc haematoxylin"
    # A viewer for each: one whose focus path was removed may crash as it draws.
    viewer = showing("ihc", stain)
    segmenting(viewer, stain, "retina-nuclei", folder / "ihc-live.png", live=True)
    viewer.close()
    viewer = showing("ihc", stain)
    segmenting(viewer, stain, DEFAULT, folder / "ihc.png")
    viewer.close()
    viewer = showing("ihc", "ihc")
    learning(viewer, "ihc", folder / "fine-tune.png")
    viewer.close()
    viewer = showing("ihc", "ihc")
    player(viewer, "ihc", folder / "focus-path-ihc.png", share=0.28)
    attention(
        viewer,
        "ihc",
        folder / "attention-ihc.png",
        model="r2-attention-unet-nuclei",
        ticks=("skip 1/2", "skip 1/4"),
        beside=True,
    )
    viewer.close()
    viewer = showing("synthetic", "nuclei", theme="light")
    segmenting(viewer, "nuclei", "retina-nuclei", folder / "synthetic.png")
    player(viewer, "nuclei", folder / "focus-path-nuclei.png", share=0.6)
    attention(
        viewer,
        "nuclei",
        folder / "attention-nuclei.png",
        model="retina-nuclei",
        ticks=("overlap", "entropy"),
        beside=True,
    )
    objects = np.asarray(viewer.layers["nuclei instances"].data)
    largest = int(np.bincount(objects[objects > 0]).argmax())
    rows, columns = np.nonzero(objects == largest)
    viewer.scene.camera.center = (rows.mean(), columns.mean())
    viewer.scene.camera.zoom *= 4
    attention(
        viewer,
        "nuclei",
        folder / "ask-nuclei.png",
        model="retina-nuclei",
        ticks=("overlap",),
        ask=(float(rows.mean()), float(columns.mean())),
    )
    viewer.close()


if __name__ == "__main__":
    main()
