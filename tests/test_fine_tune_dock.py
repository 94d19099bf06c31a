"""The Fine-tune dock as a user works it: strokes, clicks, and what is shown."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from napari_fovea.widgets import layers
from napari_fovea.widgets.fine_tune import FineTuneDock
from painting import begin, finish, made, offered, paint, stroke, take, train

if TYPE_CHECKING:
    from pathlib import Path

    from napari_fovea.widgets.session import Session


@pytest.fixture
def shared(tmp_path: Path) -> Session:
    return offered(tmp_path)


@pytest.fixture
def viewer(make_napari_viewer_proxy: Any) -> Any:
    return make_napari_viewer_proxy(show=True)


@pytest.fixture
def dock(viewer: Any, shared: Session, qtbot: Any) -> FineTuneDock:
    widget = FineTuneDock(viewer, shared=shared)
    viewer.window.add_dock_widget(widget, name="Fine-tune")
    return widget


# -- strokes -------------------------------------------------------------------------


def test_new_strokes_lie_on_the_image_and_show_what_the_model_says(
    viewer: Any, dock: FineTuneDock, qtbot: Any, picture: np.ndarray
) -> None:
    assert not dock.form.train_button.isEnabled(), "there is nothing to learn from"
    assert not dock.form.new_button.isEnabled()
    source = viewer.add_image(
        picture, name="cells", scale=(0.5, 0.25), translate=(7, -3)
    )
    strokes = begin(dock, qtbot)
    assert strokes.name == "cells strokes"
    assert strokes.data.shape == picture.shape
    for corner in ((0, 0), (69, 89)):
        np.testing.assert_allclose(
            strokes.data_to_world(corner), source.data_to_world(corner)
        )
    assert strokes.mode == "paint"
    assert strokes.selected_label == 1
    assert viewer.layers.selection.active == strokes
    found = made(viewer, "cells")
    assert found["classes"].data.shape == picture.shape
    assert found["classes"].visible
    assert not found["uncertainty"].visible
    order = list(viewer.layers)
    assert order.index(found["classes"]) < order.index(strokes)
    assert "at least two strokes" in dock.form.status.text()


def briefly(dock: FineTuneDock) -> None:
    """Train for less than people may ask for, and long enough for two steps."""
    dock.form.seconds.setMinimum(2)
    dock.form.seconds.setValue(2)


def test_a_click_learns_and_leaves_the_users_layers_alone(
    viewer: Any, dock: FineTuneDock, qtbot: Any, picture: np.ndarray
) -> None:
    source = viewer.add_image(picture, name="cells")
    strokes = begin(dock, qtbot)
    dock.form.brush_buttons[1].click()
    paint(strokes)
    painted, image = strokes.data.copy(), picture.copy()
    before = made(viewer, "cells")["classes"].data.copy()
    take(dock, qtbot)
    np.testing.assert_array_equal(strokes.data, painted)
    np.testing.assert_array_equal(source.data, image)
    assert (source.name, strokes.name) == ("cells", "cells strokes")
    assert strokes.mode == "paint"
    assert strokes.selected_label == 2
    assert viewer.layers.selection.active == strokes
    assert set(viewer.layers.selection) == {strokes}
    assert "napari-fovea" not in source.metadata | strokes.metadata
    assert next(s.name for s in dock.steps.listed) == "unet"
    assert dock.form.history.count() == 2
    assert dock.form.history.item(1).text().startswith("▸ 1 · instant")
    assert dock.form.status.text().startswith("Learned in")
    shown = made(viewer, "cells")["classes"]
    assert (shown.data[painted == 2] == 1).mean() > 0.8
    assert not np.array_equal(shown.data, before)
    note = layers.own(shown)
    assert note is not None
    assert note["provenance"]["fine_tuned"]["strokes"]["nucleus"] == 3


def test_a_model_that_is_no_better_is_used_only_if_asked(
    viewer: Any, dock: FineTuneDock, qtbot: Any, picture: np.ndarray
) -> None:
    viewer.add_image(picture, name="cells")
    strokes = begin(dock, qtbot)
    stroke(strokes, 3, slice(30, 50), 1)
    stroke(strokes, 15, slice(16, 25), 2)
    before = made(viewer, "cells")["classes"].data.copy()
    train(dock, qtbot)
    assert dock.form.anyway_button.isVisible()
    assert "anyway" in dock.form.status.text()
    assert "No stroke could be held out" in dock.form.verdict.text()
    assert dock.steps.current == 0
    np.testing.assert_array_equal(made(viewer, "cells")["classes"].data, before)
    dock.form.anyway_button.click()
    finish(dock, qtbot)
    assert dock.steps.current == 1
    assert not dock.form.anyway_button.isVisible()
    assert dock.steps.model is not None


def test_each_lift_of_the_brush_refits_one_at_a_time(
    viewer: Any,
    dock: FineTuneDock,
    qtbot: Any,
    picture: np.ndarray,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    viewer.add_image(picture, name="cells")
    strokes = begin(dock, qtbot)
    paint(strokes)
    take(dock, qtbot)
    starts = []
    start = dock._start
    monkeypatch.setattr(
        dock, "_start", lambda *a: (starts.append(dock.job), start(*a))[1]
    )
    dock.form.live.setChecked(True)
    stroke(strokes, 50, slice(60, 80), 1)
    stroke(strokes, 53, slice(60, 80), 1)
    finish(dock, qtbot)
    assert starts == [None], "both are learned at once"
    dock.train()
    stroke(strokes, 57, slice(60, 80), 1)
    qtbot.waitUntil(lambda: len(starts) == 3, timeout=30_000)
    finish(dock, qtbot)
    assert starts == [None] * 3, "never two at a time"
    assert len(dock.steps.listed) <= 3, "live steps replace each other"
    assert strokes.mode == "paint"


def test_thorough_after_live_stays_in_the_history(
    viewer: Any, dock: FineTuneDock, qtbot: Any, picture: np.ndarray
) -> None:
    viewer.add_image(picture, name="cells")
    strokes = begin(dock, qtbot)
    paint(strokes)
    dock.form.live.setChecked(True)
    dock.form.thorough.setChecked(True)
    briefly(dock)
    take(dock, qtbot)
    dock.form.instant.setChecked(True)
    take(dock, qtbot)
    assert [s.tuned.mode for s in dock.steps.listed[1:]] == ["thorough", "instant"]


def test_thorough_learning_tells_how_it_goes(
    viewer: Any, dock: FineTuneDock, qtbot: Any, picture: np.ndarray
) -> None:
    viewer.add_image(picture, name="cells")
    strokes = begin(dock, qtbot)
    paint(strokes)
    dock.form.thorough.setChecked(True)
    dock.form.seconds.setValue(1)
    assert dock.form.seconds.value() == 5
    dock.form.train_button.click()
    assert not dock.form.train_button.isEnabled()
    assert dock.form.cancel_button.isEnabled()
    assert not dock.form.open_project_button.isEnabled()
    finish(dock, qtbot)
    assert len(dock.form.curve.loss) >= 2
    assert len(dock.form.curve.score) >= 2
    assert all(0 <= score <= 1 for _, score in dock.form.curve.score)
    assert dock.form.train_button.isEnabled()
    assert not dock.form.cancel_button.isEnabled()
    assert dock.form.progress.value() == 0
    assert "held-out strokes" in dock.form.verdict.text()
    assert viewer.layers.selection.active == strokes


def test_cancel_keeps_the_last_good_model(
    viewer: Any, dock: FineTuneDock, qtbot: Any, picture: np.ndarray
) -> None:
    viewer.add_image(picture, name="cells")
    paint(begin(dock, qtbot))
    take(dock, qtbot)
    good = dock.steps.model
    dock.form.thorough.setChecked(True)
    dock.form.seconds.setValue(600)
    dock.form.train_button.click()
    qtbot.waitUntil(lambda: len(dock.form.curve.loss) > 1, timeout=60_000)
    dock.form.cancel_button.click()
    finish(dock, qtbot)
    assert dock.form.train_button.isEnabled()
    assert dock.form.save_button.isEnabled()
    assert dock.steps.model is good or dock.steps.listed[-1].tuned.verdict.better


def test_a_refused_model_does_not_stay_on_show(
    viewer: Any,
    dock: FineTuneDock,
    qtbot: Any,
    picture: np.ndarray,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from napari_fovea.training.guard import Verdict
    from napari_fovea.widgets import learning

    monkeypatch.setattr(learning, "_SHOW", 0.0)
    monkeypatch.setattr(Verdict, "better", False)
    viewer.add_image(picture, name="cells")
    paint(begin(dock, qtbot))
    before = made(viewer, "cells")["uncertainty"].data.copy()
    dock.form.thorough.setChecked(True)
    briefly(dock)
    train(dock, qtbot)
    assert dock.steps.current == 0
    np.testing.assert_allclose(
        made(viewer, "cells")["uncertainty"].data, before, atol=1e-5
    )


def test_one_can_go_back(
    viewer: Any, dock: FineTuneDock, qtbot: Any, picture: np.ndarray
) -> None:
    viewer.add_image(picture, name="cells")
    strokes = begin(dock, qtbot)
    first = made(viewer, "cells")["uncertainty"].data.copy()
    paint(strokes)
    take(dock, qtbot)
    second = made(viewer, "cells")["uncertainty"].data.copy()
    for row, expected in ((0, first), (1, second)):
        dock.form.history.setCurrentRow(row)
        dock.form.back_button.click()
        finish(dock, qtbot)
        assert dock.steps.current == row
        assert (dock.steps.model is None) == (row == 0)
        assert dock.form.save_button.isEnabled() == (row == 1)
        shown = made(viewer, "cells")["uncertainty"].data
        np.testing.assert_allclose(shown, expected, atol=1e-5)
    dock.form.history.setCurrentRow(0)
    dock.form.back_button.click()
    finish(dock, qtbot)
    take(dock, qtbot)
    assert len(dock.steps.listed) == 2, "what came after is gone"


# -- what goes wrong -----------------------------------------------------------------


@pytest.mark.parametrize("gone", ["labels", "image", "both in the list", "shape"])
def test_what_is_taken_away_in_mid_training_ends_in_a_sentence(
    viewer: Any, dock: FineTuneDock, qtbot: Any, picture: np.ndarray, gone: str
) -> None:
    viewer.add_image(picture, name="cells")
    strokes = begin(dock, qtbot)
    paint(strokes)
    if gone == "both in the list":
        dock.form.add_button.click()
    dock.form.thorough.setChecked(True)
    briefly(dock)
    dock.form.train_button.click()
    qtbot.waitUntil(lambda: bool(dock.form.curve.loss), timeout=60_000)
    if gone in ("labels", "both in the list"):
        viewer.layers.remove("cells strokes")
    if gone in ("image", "both in the list"):
        viewer.layers.remove("cells")
    if gone == "both in the list":
        assert "was removed while it is learned from" in dock.form.status.text()
        assert dock.choice.listed == []
    if gone == "shape":
        strokes.data = np.zeros((20, 30), np.uint8)
    finish(dock, qtbot)
    assert dock.form.curve.loss
    assert dock.form.status.text()
    assert "Error" not in dock.form.status.text()
    if gone == "shape":
        train(dock, qtbot)
        assert "(20, 30)" in dock.form.status.text()
    else:
        assert not dock.form.train_button.isEnabled()


def test_labels_that_do_not_fit_are_named(
    viewer: Any, dock: FineTuneDock, qtbot: Any, picture: np.ndarray
) -> None:
    viewer.add_image(picture, name="cells")
    viewer.add_labels(np.zeros((30, 40), np.uint8), name="small")
    for act in (dock.train, dock.next_place.go):
        act()
        for fact in ("'small'", "(30, 40)", "'cells'", "(70, 90)"):
            assert fact in dock.form.status.text()
        assert dock.job is None
        dock.form.say("")
    viewer.add_labels(np.zeros((70, 90), np.uint8), name="off", translate=(5, 0))
    dock.train()
    assert "'off' lies elsewhere" in dock.form.status.text()
    assert dock.form.train_button.isEnabled()


@pytest.mark.parametrize(
    ("labels", "says"), [((), "Nothing is painted"), ((2,), "Only one class")]
)
def test_too_little_is_told(
    viewer: Any,
    dock: FineTuneDock,
    qtbot: Any,
    picture: np.ndarray,
    labels: tuple[int, ...],
    says: str,
) -> None:
    viewer.add_image(picture, name="cells")
    strokes = begin(dock, qtbot)
    for label in labels:
        stroke(strokes, 15, slice(16, 25), label)
    train(dock, qtbot)
    assert says in dock.form.status.text()
    assert dock.form.train_button.isEnabled()
    assert dock.steps.current == 0


@pytest.mark.parametrize("names", ["nucleus", "", "a, a"])
def test_too_few_names_are_told(
    viewer: Any, dock: FineTuneDock, qtbot: Any, picture: np.ndarray, names: str
) -> None:
    viewer.add_image(picture, name="cells")
    paint(begin(dock, qtbot))
    dock.form.classes.setText(names)
    dock.form.classes.editingFinished.emit()
    assert dock.form.brush_buttons == []
    for button in (dock.form.train_button, dock.form.new_button):
        dock.form.say("")
        button.click()
        assert "at least two different names" in dock.form.status.text()
    assert dock.job is None


def test_another_model_in_mid_training(
    viewer: Any, dock: FineTuneDock, shared: Session, qtbot: Any, picture: np.ndarray
) -> None:
    viewer.add_image(picture, name="cells")
    paint(begin(dock, qtbot))
    dock.form.thorough.setChecked(True)
    briefly(dock)
    dock.form.train_button.click()
    qtbot.waitUntil(lambda: bool(dock.form.curve.loss), timeout=60_000)
    shared.choose(shared.entries[1])
    assert "Another model was chosen" in dock.form.status.text()
    finish(dock, qtbot)
    assert [s.name for s in dock.steps.listed] == ["tiny"]
    dock.form.instant.setChecked(True)
    take(dock, qtbot)
    assert dock.steps.model is not None
    assert dock.steps.model.name == "tiny"


def test_another_device_goes_on_from_the_model_in_use(
    viewer: Any, dock: FineTuneDock, shared: Session, qtbot: Any, picture: np.ndarray
) -> None:
    viewer.add_image(picture, name="cells")
    paint(begin(dock, qtbot))
    take(dock, qtbot)
    shared.use_device("cpu")
    train(dock, qtbot)
    assert dock._tuner is not None
    assert dock._tuner[1] == "cpu"
    assert dock._tuner[2].current is dock.steps.listed[dock.steps.current].tuned


# -- images of every kind --------------------------------------------------------------


@pytest.mark.parametrize("kind", ["rgb", "anisotropic", "retina"])
def test_images_of_every_kind(
    viewer: Any,
    dock: FineTuneDock,
    shared: Session,
    qtbot: Any,
    picture: np.ndarray,
    kind: str,
) -> None:
    if kind == "retina":
        shared.choose(shared.entries[1])
    data = np.stack([picture] * 3, axis=-1) if kind == "rgb" else picture
    scale = (3, 0.5) if kind == "anisotropic" else (1, 1)
    source = viewer.add_image(data, name="cells", rgb=kind == "rgb", scale=scale)
    paint(begin(dock, qtbot))
    take(dock, qtbot)
    shown = made(viewer, "cells")["classes"]
    assert shown.data.shape == picture.shape
    np.testing.assert_array_equal(shown.scale, source.scale)


def test_the_plane_in_view_is_shown(
    viewer: Any, dock: FineTuneDock, qtbot: Any, picture: np.ndarray
) -> None:
    stack = np.stack([picture, picture.T[:70, :70].repeat(2, 1)[:, :90], picture])
    viewer.add_image(stack, name="stack", scale=(5, 1, 1))
    viewer.dims.set_point(0, 10)
    strokes = begin(dock, qtbot)
    assert strokes.data.shape == stack.shape
    paint(strokes, 2)
    take(dock, qtbot)
    shown = made(viewer, "stack")["classes"]
    assert shown.data.shape == (1, 70, 90)
    np.testing.assert_allclose(shown.data_to_world((0, 0, 0)), (10, 0, 0))
    viewer.dims.set_point(0, 5)
    take(dock, qtbot)
    np.testing.assert_allclose(shown.data_to_world((0, 0, 0)), (5, 0, 0))
    dock.next_place.go()
    finish(dock, qtbot)
    assert "Paint here" in dock.form.status.text()


def test_several_pairs_are_learned_together(
    viewer: Any, dock: FineTuneDock, qtbot: Any, picture: np.ndarray
) -> None:
    viewer.add_image(picture, name="one")
    first = begin(dock, qtbot)
    dock.form.add_button.click()
    dock.form.add_button.click()
    assert [str(p) for p in dock.choice.listed] == ["one ← one strokes"]
    viewer.add_image(picture[::-1].copy(), name="two")
    second = begin(dock, qtbot)
    assert len(dock.choice.listed) == 2
    stroke(first, 3, slice(30, 50), 1)
    stroke(first, 65, slice(40, 60), 1)
    stroke(second, 14, slice(21, 30), 2)
    stroke(second, 29, slice(56, 65), 2)
    take(dock, qtbot)
    made_by = dock.steps.model.provenance["fine_tuned"]
    assert made_by["strokes"] == {"background": 2, "nucleus": 2}
    dock.form.pair_list.setCurrentRow(0)
    dock.form.remove_button.click()
    assert [str(p) for p in dock.choice.listed] == ["two ← two strokes"]
    viewer.layers.remove("two")
    assert dock.choice.listed == []


# -- brushes and places ----------------------------------------------------------------


def test_brushes_select_label_and_layer(
    viewer: Any, dock: FineTuneDock, qtbot: Any, picture: np.ndarray
) -> None:
    source = viewer.add_image(picture, name="cells")
    strokes = begin(dock, qtbot)
    assert [b.text() for b in dock.form.brush_buttons] == ["1 background", "2 nucleus"]
    strokes.mode = "pan_zoom"
    viewer.layers.selection.active = source
    dock.form.brush_buttons[1].click()
    assert viewer.layers.selection.active == strokes
    assert (strokes.selected_label, strokes.mode) == (2, "paint")
    dock.form.zero.setCurrentIndex(1)
    assert [b.text() for b in dock.form.brush_buttons] == ["0 background", "1 nucleus"]


def test_the_next_place_is_new_and_away_from_strokes(
    viewer: Any, dock: FineTuneDock, qtbot: Any, picture: np.ndarray
) -> None:
    viewer.add_image(picture, name="cells", scale=(2, 2), translate=(10, 20))
    strokes = begin(dock, qtbot)
    stroke(strokes, 3, slice(30, 50), 1)
    stroke(strokes, 15, slice(16, 25), 2)
    keys = {str(key): act for key, act in viewer.keymap.items()}
    places = []
    for go in (dock.form.next_button.click, lambda: keys["N"](viewer)):
        go()
        finish(dock, qtbot)
        places.append(np.subtract(viewer.scene.camera.center[-2:], (10, 20)) / 2)
    rows, columns = np.nonzero(strokes.data)
    for place in places:
        assert np.hypot(rows - place[0], columns - place[1]).min() > 24
    assert np.hypot(*(places[0] - places[1])) > 24
    assert viewer.layers.selection.active == strokes


def test_the_next_place_does_not_mind_results_of_another_dock(
    viewer: Any, dock: FineTuneDock, shared: Session, qtbot: Any, picture: np.ndarray
) -> None:
    from napari_fovea.widgets.segment import SegmentDock

    viewer.add_image(np.stack([picture] * 3), name="stack")
    begin(dock, qtbot)
    other = SegmentDock(viewer, shared=shared)
    viewer.window.add_dock_widget(other, name="Segment")
    other.run_button.click()
    qtbot.waitUntil(lambda: other.job is None and other.results.idle, timeout=60_000)
    dock.form.next_button.click()
    finish(dock, qtbot)
    assert "Paint here" in dock.form.status.text()
