"""The demonstration: the main job, in a real viewer, on a real image."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING

import napari
import numpy as np
import tifffile
from qtpy.QtWidgets import QApplication

from napari_fovea.errors import FoveaError
from napari_fovea.files import replacing
from napari_fovea.widgets import layers

if TYPE_CHECKING:
    from pathlib import Path

    from napari_fovea.widgets.segment import SegmentDock

_PATIENCE = 150  # seconds


def run_demo(output: Path | None) -> list[Path]:
    """Segment the stained tissue sample through the docks.

    Parameters
    ----------
    output : Path or None
        Folder for a screenshot, the labels and the provenance; None leaves
        napari open for the user instead.

    Returns
    -------
    list of Path
        Files written.

    Raises
    ------
    FoveaError
        If the segmentation failed.
    """
    viewer = napari.Viewer(title="napari-fovea", show=True)
    viewer.window.resize(1500, 940)
    _, segment = open_docks(viewer)
    viewer.open_sample("napari-fovea", "ihc")
    start(segment)
    if output is None:
        napari.run()
        return []
    try:
        wait(segment)
        return _write(viewer, segment, output)
    finally:
        viewer.close()


def open_docks(viewer: napari.Viewer) -> tuple[object, SegmentDock]:
    """Open the Model and the Segment dock as a user does from the menu."""
    _, model = viewer.window.add_plugin_dock_widget("napari-fovea", "Model")
    _, segment = viewer.window.add_plugin_dock_widget("napari-fovea", "Segment")
    return model, segment


def start(segment: SegmentDock) -> None:
    """Press Run as soon as the models are listed."""
    _until(lambda: segment.run_button.isEnabled(), "models to be listed", segment)
    segment.run_button.click()


def wait(segment: SegmentDock) -> None:
    """Let the window live until the run is over and on show."""
    results = segment.results
    _until(
        lambda: segment.job is None and results is not None and results.idle,
        "the segmentation",
        segment,
    )
    if segment.status.text().startswith("⚠"):
        raise FoveaError(f"The demonstration failed: {segment.status.text()[2:]}")


def _until(done: object, what: str, segment: SegmentDock) -> None:
    assert callable(done)
    begun = time.monotonic()
    while not done():
        if time.monotonic() - begun > _PATIENCE:
            raise FoveaError(
                f"The demonstration waited {_PATIENCE} s for {what}; the dock says: "
                f"{segment.status.text()!r}."
            )
        QApplication.processEvents()
        time.sleep(0.005)


def _write(viewer: napari.Viewer, segment: SegmentDock, folder: Path) -> list[Path]:
    assert segment.results is not None
    instances = segment.results.layer("instances")
    if instances is None:
        raise FoveaError("The demonstration made no instances layer.")
    note = layers.own(instances) or {}
    folder.mkdir(parents=True, exist_ok=True)
    shot, labels, made = (
        folder / n for n in ("screenshot.png", "labels.tif", "provenance.json")
    )
    QApplication.processEvents()
    viewer.screenshot(str(shot), canvas_only=False, flash=False)
    with replacing(labels) as temporary:
        tifffile.imwrite(temporary, np.asarray(instances.data), compression="zlib")
    with replacing(made) as temporary:
        text = json.dumps(note["provenance"], indent=2) + "\n"
        temporary.write_text(text, encoding="utf-8")
    return [shot, labels, made]
