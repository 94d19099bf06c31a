"""The Fine-tune dock keeps what was painted and learned, whatever happens."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from napari_fovea.models import Model
from napari_fovea.project import unfinished
from napari_fovea.widgets.fine_tune import FineTuneDock
from painting import begin, finish, made, offered, paint, stroke, take

if TYPE_CHECKING:
    from collections.abc import Callable

    from napari_fovea.widgets.session import Session


@pytest.fixture
def shared(tmp_path: Path) -> Session:
    return offered(tmp_path)


@pytest.fixture
def viewer(make_napari_viewer_proxy: Any) -> Any:
    return make_napari_viewer_proxy(show=True)


@pytest.fixture
def opened(shared: Session, qtbot: Any) -> Callable[[Any], FineTuneDock]:
    def make(viewer: Any) -> FineTuneDock:
        dock = FineTuneDock(viewer, shared=shared)
        viewer.window.add_dock_widget(dock, name=f"Fine-tune {id(dock)}")
        finish(dock, qtbot)
        return dock

    return make


@pytest.fixture
def dock(viewer: Any, opened: Any) -> FineTuneDock:
    return opened(viewer)


def kept(dock: FineTuneDock, qtbot: Any) -> None:
    """Wait until the journal holds all."""
    keeper = dock.projects.keeper
    qtbot.waitUntil(lambda: keeper.kept and keeper.journal.flush(), timeout=10_000)


def closed(viewer: Any, dock: FineTuneDock, qtbot: Any) -> None:
    kept(dock, qtbot)
    viewer.window.remove_dock_widget(dock)


# -- models --------------------------------------------------------------------------


def test_a_saved_model_is_offered_everywhere(
    viewer: Any,
    dock: FineTuneDock,
    shared: Session,
    qtbot: Any,
    picture: np.ndarray,
    tmp_path: Path,
) -> None:
    viewer.add_image(picture, name="cells")
    paint(begin(dock, qtbot))
    take(dock, qtbot)
    chosen = shared.chosen
    (tmp_path / "mine.safetensors").write_text("another file")
    dock.steps.save(tmp_path / "mine.v2")
    finish(dock, qtbot)
    assert "mine.v2" in dock.form.status.text()
    assert (tmp_path / "mine.safetensors").read_text() == "another file"
    assert Model.load(tmp_path / "mine.v2.safetensors").name == "mine.v2"
    assert shared.chosen is chosen
    assert shared.entries[-1].name == "mine.v2"
    folder = Path(os.environ["NAPARI_FOVEA_HOME"]) / "models"
    assert shared.entries[-1].path.parent == folder
    loaded = Model.load("mine.v2")
    assert loaded.provenance["fine_tuned"]["strokes"]["nucleus"] == 3


def test_a_model_that_cannot_be_written_says_so(
    viewer: Any, dock: FineTuneDock, qtbot: Any, picture: np.ndarray, tmp_path: Path
) -> None:
    viewer.add_image(picture, name="cells")
    paint(begin(dock, qtbot))
    take(dock, qtbot)
    (tmp_path / "file").touch()
    dock.steps.save(tmp_path / "file" / "mine.safetensors")
    finish(dock, qtbot)
    assert dock.form.status.text().startswith("✖")
    assert dock.steps.model is not None


# -- projects ------------------------------------------------------------------------


def test_a_project_comes_back_on_the_right_image(
    viewer: Any,
    dock: FineTuneDock,
    opened: Any,
    make_napari_viewer_proxy: Any,
    qtbot: Any,
    picture: np.ndarray,
    tmp_path: Path,
) -> None:
    other = picture[::-1].copy()
    viewer.add_image(picture, name="cells")
    strokes = begin(dock, qtbot)
    paint(strokes)
    dock.form.classes.setText("ground, cell")
    dock.form.seconds.setValue(33)
    take(dock, qtbot)
    learned = made(viewer, "cells")["uncertainty"].data.copy()
    dock.projects.save(tmp_path / "project")
    finish(dock, qtbot)
    assert "Saved the project" in dock.form.status.text()

    second = make_napari_viewer_proxy(show=True)
    second.add_image(other, name="cells")
    target = second.add_image(picture, name="renamed", scale=(2, 2))
    again = opened(second)
    again.projects.open(tmp_path / "project")
    # The order of layers may change while the project is read.
    second.layers.move(1, 0)
    finish(again, qtbot)
    finish(again, qtbot)
    assert len(again.choice.listed) == 1
    pair = again.choice.listed[0]
    assert pair.image == target
    np.testing.assert_array_equal(pair.labels.data, strokes.data)
    np.testing.assert_array_equal(pair.labels.scale, (2, 2))
    assert again.form.classes.text() == "ground, cell"
    assert again.form.seconds.value() == 33
    assert [s.name for s in again.steps.listed] == [s.name for s in dock.steps.listed]
    assert again.steps.current == dock.steps.current
    shown = made(second, "renamed")["uncertainty"].data
    np.testing.assert_allclose(shown, learned, atol=1e-2)
    take(again, qtbot)
    assert again.steps.current == dock.steps.current + 1


def test_strokes_do_not_come_back_on_another_image(
    viewer: Any,
    dock: FineTuneDock,
    opened: Any,
    make_napari_viewer_proxy: Any,
    qtbot: Any,
    picture: np.ndarray,
    tmp_path: Path,
) -> None:
    viewer.add_image(picture, name="cells")
    paint(begin(dock, qtbot))
    dock.projects.save(tmp_path / "project")
    finish(dock, qtbot)
    second = make_napari_viewer_proxy(show=True)
    second.add_image(picture[::-1].copy(), name="cells")
    again = opened(second)
    again.projects.open(tmp_path / "project")
    finish(again, qtbot)
    assert again.choice.listed == []
    assert len(second.layers) == 1
    assert "cells is not open" in again.form.status.text()


def test_a_folder_that_is_no_project_says_so(
    viewer: Any, dock: FineTuneDock, qtbot: Any, tmp_path: Path
) -> None:
    dock.projects.open(tmp_path)
    finish(dock, qtbot)
    assert dock.form.status.text().startswith("✖")
    assert str(tmp_path) in dock.form.status.text()


# -- the journal ---------------------------------------------------------------------


def test_what_is_painted_is_kept_soon_and_brought_back(
    viewer: Any,
    dock: FineTuneDock,
    opened: Any,
    make_napari_viewer_proxy: Any,
    qtbot: Any,
    picture: np.ndarray,
) -> None:
    viewer.add_image(picture, name="cells")
    strokes = begin(dock, qtbot)
    paint(strokes)
    journal = dock.projects.keeper.journal
    qtbot.waitUntil(lambda: journal.folder is not None, timeout=2000)
    take(dock, qtbot)
    take(dock, qtbot)
    dock.form.history.setCurrentRow(1)
    dock.form.back_button.click()
    finish(dock, qtbot)
    kept(dock, qtbot)
    assert unfinished() == (), "somebody holds it"
    dock.projects.keeper.close()
    assert len(unfinished()) == 1

    second = make_napari_viewer_proxy(show=True)
    again = opened(second)
    assert "The image is not open yet" in again.form.work.text()
    second.add_image(picture[::-1].copy(), name="another")
    second.add_image(picture, name="cells")
    finish(again, qtbot)
    assert again.form.notice.isVisible()
    assert "unsaved strokes on cells" in again.form.work.text()
    assert "not open" not in again.form.work.text()
    second.layers.remove("another")
    finish(again, qtbot)
    again.form.restore_button.click()
    finish(again, qtbot)
    finish(again, qtbot)
    assert not again.form.notice.isVisible()
    assert [p.image.name for p in again.choice.listed] == ["cells"]
    np.testing.assert_array_equal(again.choice.listed[0].labels.data, strokes.data)
    assert len(again.steps.listed) == 3
    assert again.steps.current == 1, "the model that was in use"
    qtbot.waitUntil(lambda: not unfinished(), timeout=20_000)
    kept(again, qtbot)
    again.projects.keeper.close()
    (work,) = unfinished()
    assert work.folder != journal.folder
    assert len(work.project.steps) == 3
    assert work.project.current == 1
    np.testing.assert_array_equal(work.project.strokes[0].labels, strokes.data)


def test_an_image_that_is_opened_again_is_not_offered_twice(
    viewer: Any,
    dock: FineTuneDock,
    opened: Any,
    make_napari_viewer_proxy: Any,
    qtbot: Any,
    picture: np.ndarray,
    tmp_path: Path,
) -> None:
    import tifffile

    tifffile.imwrite(tmp_path / "cells.tif", picture)
    viewer.open(tmp_path / "cells.tif", plugin="napari")
    strokes = begin(dock, qtbot)
    paint(strokes)
    closed(viewer, dock, qtbot)
    second = make_napari_viewer_proxy(show=True)
    again = opened(second)
    again.form.restore_button.click()
    finish(again, qtbot)
    finish(again, qtbot)
    assert [p.image.name for p in again.choice.listed] == ["cells"]
    assert not again.form.notice.isVisible()
    np.testing.assert_array_equal(again.choice.listed[0].labels.data, strokes.data)


def test_what_is_thrown_away_is_gone(
    viewer: Any, dock: FineTuneDock, opened: Any, qtbot: Any, picture: np.ndarray
) -> None:
    viewer.add_image(picture, name="cells")
    paint(begin(dock, qtbot))
    closed(viewer, dock, qtbot)
    assert len(unfinished()) == 1
    again = opened(viewer)
    assert again.form.notice.isVisible()
    again.form.forget_button.click()
    finish(again, qtbot)
    assert not again.form.notice.isVisible()
    assert unfinished() == ()


def test_strokes_on_one_image_are_kept_apart_and_follow_its_name(
    viewer: Any, dock: FineTuneDock, qtbot: Any, picture: np.ndarray
) -> None:
    image = viewer.add_image(picture, name="cells")
    first = begin(dock, qtbot)
    dock.form.add_button.click()
    second = begin(dock, qtbot)
    stroke(first, 3, slice(30, 50), 1)
    stroke(second, 15, slice(16, 25), 2)
    kept(dock, qtbot)
    image.name = "renamed"
    stroke(second, 40, slice(56, 65), 2)
    closed(viewer, dock, qtbot)
    (work,) = unfinished()
    assert len(work.project.strokes) == 2
    painted = [s.labels for s in work.project.strokes]
    for expected in (first.data, second.data):
        assert any(np.array_equal(expected, x) for x in painted)


def test_the_last_stroke_before_the_dock_closes_is_kept(
    viewer: Any, dock: FineTuneDock, qtbot: Any, picture: np.ndarray
) -> None:
    viewer.add_image(picture, name="cells")
    strokes = begin(dock, qtbot)
    stroke(strokes, 15, slice(16, 25), 2)
    viewer.window.remove_dock_widget(dock)
    (work,) = unfinished()
    np.testing.assert_array_equal(work.project.strokes[0].labels, strokes.data)


def test_a_full_disk_is_told(
    viewer: Any,
    dock: FineTuneDock,
    qtbot: Any,
    picture: np.ndarray,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from napari_fovea.project import writer

    def full(*arguments: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(writer, "write_painted", full)
    viewer.add_image(picture, name="cells")
    strokes = begin(dock, qtbot)
    paint(strokes)
    qtbot.waitUntil(lambda: "No space left" in dock.form.status.text(), timeout=5000)
    take(dock, qtbot)


# -- closing ---------------------------------------------------------------------------


def test_a_closed_dock_leaves_the_viewer_alone(
    viewer: Any, dock: FineTuneDock, qtbot: Any, picture: np.ndarray
) -> None:
    image = viewer.add_image(picture, name="cells")
    strokes = begin(dock, qtbot)
    paint(strokes)
    dock.form.live.setChecked(True)
    assert "N" in {str(key) for key in viewer.keymap}
    closed(viewer, dock, qtbot)
    assert "N" not in {str(key) for key in viewer.keymap}
    image.name = "renamed"
    viewer.layers.selection.active = image
    viewer.add_labels(np.zeros((70, 90), np.uint8))
    stroke(strokes, 50, slice(60, 80), 1)
    qtbot.wait(600)
    assert dock.job is None
    assert dock.steps.current == 0
    assert dock.projects.keeper._journal is None
    viewer.window.add_dock_widget(dock, name="again")
    stroke(strokes, 53, slice(60, 80), 1)
    finish(dock, qtbot)
    assert dock.steps.current == 1 or dock.steps.candidate is not None


@pytest.mark.parametrize("how", ["dock", "viewer"])
def test_closing_in_mid_training_is_clean(
    viewer: Any, dock: FineTuneDock, qtbot: Any, picture: np.ndarray, how: str
) -> None:
    viewer.add_image(picture, name="cells")
    paint(begin(dock, qtbot))
    kept(dock, qtbot)
    dock.form.thorough.setChecked(True)
    dock.form.seconds.setValue(600)
    dock.form.train_button.click()
    job = dock.job
    qtbot.waitUntil(lambda: bool(dock.form.curve.loss), timeout=60_000)
    if how == "dock":
        viewer.window.remove_dock_widget(dock)
    else:
        viewer.close()
    qtbot.waitUntil(lambda: not job.is_running, timeout=10_000)
    assert job.cancelled
    assert len(unfinished()) == 1
