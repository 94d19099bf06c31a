"""The diameter in the docks: typed, estimated by a click, or left to the model."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from napari_fovea.inference.sizes import typical_diameter
from napari_fovea.models import shipped
from napari_fovea.sample_data import make_nuclei
from napari_fovea.widgets import diameter as field
from napari_fovea.widgets.fine_tune import FineTuneDock
from napari_fovea.widgets.segment import SegmentDock
from napari_fovea.widgets.session import Session
from painting import begin, finish, made, offered, paint, train

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def viewer(make_napari_viewer_proxy: Any) -> Any:
    return make_napari_viewer_proxy(show=True)


def test_a_click_measures_objects(viewer: Any, qtbot: Any) -> None:
    session = Session()
    session.devices = ("cpu",)
    session.offer(tuple(e for e in shipped() if e.name == "focusnet-nuclei"))
    image, truth = make_nuclei((256, 256), seed=3)
    viewer.add_image(image, name="nuclei")
    dock = SegmentDock(viewer, shared=session)
    viewer.window.add_dock_widget(dock, name="Segment")
    areas = np.bincount(truth.ravel())[1:]
    true = 2 * np.sqrt(np.median(areas) / np.pi)
    assert dock.diameter.value() is None
    dock.diameter.button.click()
    assert not dock.diameter.button.isEnabled(), "one measure at a time"
    qtbot.waitUntil(lambda: dock.diameter.job is None, timeout=60_000)
    assert dock.diameter.button.isEnabled()
    assert dock.diameter.value() == pytest.approx(true, rel=0.25)
    assert f"about {dock.diameter.value():.0f} px across" in dock.status.text()


def test_where_nothing_is_found_the_diameter_stays(
    viewer: Any, qtbot: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "napari_fovea.inference.estimate_diameter", lambda *_, **__: None
    )
    shared = offered(tmp_path)
    shared.choose(shared.entries[1])  # the other does not know the size of its own
    viewer.add_image(make_nuclei((64, 64), count=3)[0], name="nuclei")
    dock = SegmentDock(viewer, shared=shared)
    viewer.window.add_dock_widget(dock, name="Segment")
    dock.diameter.setValue(17)
    dock.diameter.button.click()
    qtbot.waitUntil(lambda: dock.diameter.job is None, timeout=60_000)
    assert dock.diameter.value() == 17
    assert "finds no objects" in dock.status.text()
    shared.choose(shared.entries[0])
    assert not dock.diameter.button.isEnabled()
    assert dock.diameter.spin.specialValueText() == "as trained"


def test_a_large_image_is_measured_where_something_is(
    viewer: Any, qtbot: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(field, "is_large", lambda _: True)
    session = Session()
    session.devices = ("cpu",)
    session.offer(tuple(e for e in shipped() if e.name == "focusnet-nuclei"))
    image, truth = make_nuclei((256, 256), seed=3)
    large = np.full((3, 2200, 2200), image.min(), image.dtype)
    large[0, :256, :256] = image
    viewer.add_image(large, name="nuclei")
    dock = SegmentDock(viewer, shared=session)
    viewer.window.add_dock_widget(dock, name="Segment")
    dock.diameter.button.click()
    qtbot.waitUntil(lambda: dock.diameter.job is None, timeout=60_000)
    assert dock.diameter.value() == pytest.approx(typical_diameter(truth), rel=0.25)


def test_a_measure_does_not_land_where_it_was_not_asked_for(
    viewer: Any, qtbot: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hold = threading.Event()

    def estimated(*_: Any, **__: Any) -> float:
        assert hold.wait(60)
        return 33.0

    monkeypatch.setattr("napari_fovea.inference.estimate_diameter", estimated)
    shared = offered(tmp_path)
    shared.choose(shared.entries[1])
    for name in ("one", "other"):
        viewer.add_image(make_nuclei((64, 64), count=3)[0], name=name)
    dock = SegmentDock(viewer, shared=shared)
    viewer.window.add_dock_widget(dock, name="Segment")
    ended = []
    for change in (
        lambda: dock.diameter.spin.setValue(17),
        lambda: dock.images.setCurrentIndex(1 - dock.images.currentIndex()),
        lambda: viewer.layers.remove(dock.images.currentText()),
    ):
        hold.clear()
        dock.diameter.button.click()
        dock.diameter.job.finished.connect(lambda: ended.append(1))
        change()
        assert dock.diameter.button.isEnabled()
        count = len(ended)
        hold.set()
        qtbot.waitUntil(lambda n=count: len(ended) > n, timeout=60_000)
        assert dock.diameter.value() == 17
        assert "no further" in dock.status.text()
    dock.diameter.button.click()
    qtbot.waitUntil(lambda: dock.diameter.job is None, timeout=60_000)
    assert dock.diameter.value() == 33


def test_strokes_are_learned_from_at_the_size_that_was_given(
    viewer: Any, qtbot: Any, tmp_path: Path, picture: np.ndarray
) -> None:
    shared = offered(tmp_path)
    shared.choose(shared.entries[1])  # objects of 12 pixels
    viewer.add_image(picture, name="cells")
    dock = FineTuneDock(viewer, shared=shared)
    viewer.window.add_dock_widget(dock, name="Fine-tune")
    assert dock.form.diameter.value() is None
    dock.form.diameter.setValue(24)
    strokes = begin(dock, qtbot)
    seen = {}
    own = type(dock._tuner[2]).instant

    def instant(tuner: Any, painted: Any, **options: Any) -> Any:
        seen["shape"] = tuple(painted.planes[0].image.shape)
        return own(tuner, painted, **options)

    monkey = pytest.MonkeyPatch()
    with monkey.context() as patch:
        patch.setattr(type(dock._tuner[2]), "instant", instant)
        paint(strokes)
        train(dock, qtbot)
    assert seen["shape"] == (3, 35, 45)
    shown = made(viewer, "cells")["classes"]
    assert shown.data.shape == picture.shape
    state = dock.form.state()
    assert state["diameter"] == 24
    dock.form.diameter.setValue(0)
    dock.form.set_state(state, {})
    assert dock.form.diameter.value() == 24
    finish(dock, qtbot)
    shared.choose(shared.entries[0])
    assert dock.form.diameter.value() is None, "another model knows another size"
