"""What tests of the Fine-tune dock share: models in files, strokes, and waiting."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from conftest import tiny_model
from napari_fovea.models import Entry, Model
from napari_fovea.models.checkpoint import read_header
from napari_fovea.widgets import layers
from napari_fovea.widgets.session import Session
from small_networks import tiny

if TYPE_CHECKING:
    from pathlib import Path

    from napari_fovea.widgets.fine_tune import FineTuneDock

GROUND = ((3, slice(30, 50)), (65, slice(40, 60)), (28, slice(75, 88)))
DISCS = ((15, slice(16, 25)), (40, slice(56, 65)), (55, slice(21, 30)))


def offered(folder: Path) -> Session:
    """A session with a dense model and a retina."""
    session = Session()
    session.devices = ("cpu",)
    models = (
        Model("unet", tiny("unet"), ("background", "nucleus"), (0, 1)),
        tiny_model(),
    )
    folder.mkdir(exist_ok=True)
    entries = []
    for model in models:
        path = folder / f"{model.name}.safetensors"
        model.save(path)
        entries.append(Entry(path, read_header(path)))
    session.offer(tuple(entries))
    return session


def stroke(layer: Any, row: int, columns: slice, label: int, *lead: int) -> None:
    """A stroke as the brush makes one: it ends with an event."""
    places = np.arange(columns.start, columns.stop)
    rows = np.full(len(places), row)
    where = tuple(np.full(len(places), i) for i in lead)
    with layer.block_history():
        layer.data_setitem((*where, rows, places), label)


def paint(layer: Any, *lead: int) -> None:
    """Three strokes of each class."""
    for label, strokes in ((1, GROUND), (2, DISCS)):
        for row, columns in strokes:
            stroke(layer, row, columns, label, *lead)


def finish(dock: FineTuneDock, qtbot: Any) -> None:
    qtbot.waitUntil(
        lambda: (
            dock.job is None
            and not dock._jobs
            and not dock._lift.isActive()
            and (dock.plane.results is None or dock.plane.results.idle)
        ),
        timeout=60_000,
    )


def begin(dock: FineTuneDock, qtbot: Any) -> Any:
    """Click for new strokes, and wait until the image was looked at."""
    dock.form.new_button.click()
    finish(dock, qtbot)
    return dock.choice.pairs[-1].labels


def train(dock: FineTuneDock, qtbot: Any) -> None:
    dock.form.train_button.click()
    finish(dock, qtbot)


def take(dock: FineTuneDock, qtbot: Any) -> None:
    """Train in an instant, and use what comes of it."""
    train(dock, qtbot)
    if dock.steps.candidate is not None:
        dock.form.anyway_button.click()
        finish(dock, qtbot)
    assert dock.steps.current > 0, dock.form.status.text()


def made(viewer: Any, source: str) -> dict[str, Any]:
    found = {}
    for layer in viewer.layers:
        note = layers.own(layer)
        if note and note["source"] == source:
            found[layer.name.removeprefix(f"{source} ")] = layer
    return found
