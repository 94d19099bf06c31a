"""The docks with models of every system: what they show, and what they leave out."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from conftest import tiny_model
from napari_fovea.models import Entry, Model
from napari_fovea.models.checkpoint import read_header
from napari_fovea.networks import build
from napari_fovea.widgets import layers
from napari_fovea.widgets.model import ModelDock
from napari_fovea.widgets.segment import SegmentDock
from napari_fovea.widgets.session import Session

if TYPE_CHECKING:
    from pathlib import Path

SMALL: dict[str, dict[str, Any]] = {
    "focusnet": {"width": 4},
    "r2-attention-unet": {"width": 4, "depth": 3},
    "focusnet-plus": {
        "stem": 4,
        "widths": (4, 8, 12),
        "units": (1, 1, 1),
        "side": 4,
        "last": (),
    },
    "mask-rcnn": {
        "backbone": "resnet18",
        "width": 8,
        "norm": "group",
        "pyramid": 8,
        "head_width": 8,
        "mask_width": 8,
        "mask_layers": 1,
    },
}


def model_of(network: str) -> Model:
    torch.manual_seed(0)
    outputs = (0, 1) if network == "mask-rcnn" else (0, 1, 1)
    built = build(network, {**SMALL[network], "classes": len(outputs)})
    return Model(
        name=f"tiny-{network}",
        network=built.eval().requires_grad_(False),
        classes=("background", "nucleus"),
        outputs=outputs,
        depths=(0.0, 0.25, 0.75) if len(outputs) == 3 else None,
        object_diameter=12.0,
    )


@pytest.fixture
def shared(tmp_path: Path) -> Session:
    session = Session()
    session.devices = ("cpu",)
    found = []
    for model in (tiny_model(), *map(model_of, SMALL)):
        path = tmp_path / f"{model.name}.safetensors"
        model.save(path)
        found.append(Entry(path, read_header(path)))
    session.offer(tuple(found))
    return session


@pytest.fixture
def viewer(make_napari_viewer_proxy: Any) -> Any:
    return make_napari_viewer_proxy(show=True)


@pytest.fixture
def dock(viewer: Any, shared: Session) -> SegmentDock:
    widget = SegmentDock(viewer, shared=shared)
    viewer.window.add_dock_widget(widget, name="Segment")
    return widget


def choose(shared: Session, network: str) -> None:
    shared.choose(next(e for e in shared.entries if e.header.network == network))


def run(dock: SegmentDock, qtbot: Any) -> None:
    dock.run_button.click()
    qtbot.waitUntil(
        lambda: dock.job is None and (dock.results is None or dock.results.idle),
        timeout=60_000,
    )


def roles(viewer: Any) -> dict[str, Any]:
    notes = ((layer, layers.own(layer)) for layer in viewer.layers)
    return {note["role"]: layer for layer, note in notes if note}


@pytest.mark.parametrize("network", list(SMALL))
def test_every_system_segments_at_a_click(
    network: str,
    dock: SegmentDock,
    viewer: Any,
    shared: Session,
    qtbot: Any,
    picture: np.ndarray,
) -> None:
    choose(shared, network)
    viewer.add_image(picture, name="cells", scale=(2, 3))
    run(dock, qtbot)
    assert dock.status.text().startswith("Done"), dock.status.text()
    assert "fixations" not in dock.status.text()
    made = roles(viewer)
    assert set(made) == {"classes", "instances", "uncertainty"}
    for layer in made.values():
        assert layer.data.shape == picture.shape
        np.testing.assert_array_equal(layer.scale, (2, 3))
    note = layers.own(made["instances"])
    assert note is not None
    assert note["provenance"]["system"] == next(
        e.system for e in shared.entries if e.header.network == network
    )
    assert "policy" not in note["python"]


def test_the_focus_is_offered_only_where_there_is_one(
    dock: SegmentDock, shared: Session
) -> None:
    choose(shared, "retina-vgg")
    assert dock.policy.isVisibleTo(dock)
    assert dock.budget.isVisibleTo(dock)
    choose(shared, "focusnet")
    assert not dock.policy.isVisibleTo(dock)
    assert not dock.budget.isVisibleTo(dock)
    assert dock.diameter.isVisibleTo(dock)
    choose(shared, "retina-vgg")
    assert dock.policy.isVisibleTo(dock)


def test_a_retina_looks_as_it_was_trained_to_unless_asked_otherwise(
    dock: SegmentDock, shared: Session
) -> None:
    choose(shared, "retina-vgg")
    assert dock.policy.currentData() == "seek"
    entry = shared.chosen
    assert entry is not None
    scan = entry.header.scan.model_copy(update={"policy": "raster"})
    header = entry.header.model_copy(update={"scan": scan, "name": "row by row"})
    shared.offer((*shared.entries, replace(entry, header=header)))
    shared.choose(shared.entries[-1])
    assert dock.settings()["policy"] == "raster"
    dock.policy.setCurrentIndex(dock.policy.findData("seek"))
    shared.changed.emit()
    assert dock.settings()["policy"] == "seek", "what was chosen stays"


def test_a_run_without_a_focus_empties_what_another_left(
    dock: SegmentDock, viewer: Any, shared: Session, qtbot: Any, picture: np.ndarray
) -> None:
    viewer.add_image(picture, name="cells")
    choose(shared, "retina-vgg")
    run(dock, qtbot)
    made = roles(viewer)
    assert made["overlap"].data.max() > 0
    assert made["path"].nshapes
    choose(shared, "r2-attention-unet")
    run(dock, qtbot)
    again = roles(viewer)
    assert set(again) == set(made)
    assert again["overlap"].data.max() == 0
    assert not again["path"].nshapes
    assert "provenance" not in (layers.own(again["overlap"]) or {})
    choose(shared, "retina-vgg")
    run(dock, qtbot)
    assert roles(viewer)["path"].nshapes


def test_the_model_dock_tells_of_every_system(
    viewer: Any, shared: Session, qtbot: Any
) -> None:
    dock = ModelDock(viewer, shared=shared)
    viewer.window.add_dock_widget(dock, name="Model")
    names = {"S1": "FocusNet", "S2": "U-Net", "S3": "FocusNet++", "S4": "Mask R-CNN"}
    for entry in shared.entries:
        shared.choose(entry)
        text = dock.facts.text()
        assert names.get(entry.system, "retina") in text
        assert "Attention" in text
