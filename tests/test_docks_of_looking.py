"""The Focus path and Attention docks beside other work: painting, runs, 3D, files."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from napari_fovea.inference import deciding, explain
from napari_fovea.retina import FocusPath, Recorded, save_path
from napari_fovea.widgets import layers
from napari_fovea.widgets.attention_form import BESIDE
from napari_fovea.widgets.focus_path import FocusPathDock
from napari_fovea.widgets.segment import SegmentDock

# The fixtures of both docks.
from test_attention_dock import choose, click, dock, models, shared, tick, viewer
from test_focus_path_dock import file, opened, scanned, settled

if TYPE_CHECKING:
    from pathlib import Path

    from napari_fovea.models import Model
    from napari_fovea.widgets.attention import AttentionDock
    from napari_fovea.widgets.session import Session

__all__ = ["dock", "file", "models", "scanned", "shared", "viewer"]


@pytest.fixture
def player(viewer: Any, shared: Session, qtbot: Any) -> FocusPathDock:
    widget = FocusPathDock(viewer, shared=shared)
    viewer.window.add_dock_widget(widget, name="Focus path")
    return widget


@pytest.fixture
def segmenting(viewer: Any, shared: Session, qtbot: Any) -> SegmentDock:
    widget = SegmentDock(viewer, shared=shared)
    viewer.window.add_dock_widget(widget, name="Segment")
    return widget


def choose_retina(shared: Session) -> None:
    name = "retina.safetensors"
    shared.choose(next(e for e in shared.entries if e.path.name == name))


def run(segmenting: SegmentDock, qtbot: Any, name: str = "cells") -> Any:
    segmenting.images.setCurrentIndex(segmenting.images.findText(name))
    segmenting.run_button.click()
    qtbot.waitUntil(
        lambda: segmenting.job is None and segmenting.results.idle, timeout=60_000
    )
    return segmenting.results


def noted(viewer: Any, name: str, path: FocusPath, source: str = "cells") -> Any:
    holder = viewer.add_shapes(ndim=2, name=name)
    holder.metadata = {layers.KEY: {"source": source, "path": path}}
    return holder


# -- the player ---------------------------------------------------------------------


def test_the_open_button_opens(
    viewer: Any,
    player: FocusPathDock,
    qtbot: Any,
    scanned: Any,
    file: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    viewer.add_image(scanned[0], name="cells")

    def chosen(parent: Any, *_: Any) -> tuple[str, str]:
        assert parent is player
        return str(file), ""

    where = "napari_fovea.widgets.path_shelf.QFileDialog.getOpenFileName"
    monkeypatch.setattr(where, chosen)
    player.form.open_button.click()
    qtbot.waitUntil(lambda: player.path is not None, timeout=20_000)
    settled(player, qtbot)


def test_a_path_without_class_names_is_replayed(
    viewer: Any, player: FocusPathDock, qtbot: Any, scanned: Any
) -> None:
    viewer.add_image(scanned[0], name="cells")
    noted(viewer, "bare", replace(scanned[1], classes=()))
    assert player.path is not None
    player.player.go(3)
    assert "Fixation 4" in player.form.told.text()
    settled(player, qtbot)


def test_a_new_run_takes_the_place_of_the_path_on_show(
    viewer: Any,
    player: FocusPathDock,
    segmenting: SegmentDock,
    shared: Session,
    qtbot: Any,
    picture: np.ndarray,
) -> None:
    choose_retina(shared)
    segmenting.budget.setValue(40)
    for name in ("cells", "others"):
        viewer.add_image(picture, name=name)
        run(segmenting, qtbot, name)
    player.form.paths.setCurrentText("cells focus path")
    before = player.path
    run(segmenting, qtbot, "cells")
    assert player.form.paths.currentText() == "cells focus path"
    assert player.path is not None
    assert player.path is not before
    settled(player, qtbot)


def test_who_paints_keeps_the_brush(
    viewer: Any,
    player: FocusPathDock,
    segmenting: SegmentDock,
    shared: Session,
    qtbot: Any,
    picture: np.ndarray,
) -> None:
    choose_retina(shared)
    segmenting.budget.setValue(40)
    viewer.add_image(picture, name="cells")
    mine = viewer.add_labels(np.zeros(picture.shape, int), name="mine")
    run(segmenting, qtbot)
    viewer.layers.selection.active = mine
    mine.mode = "paint"
    for role in ("retina", "last steps", "way so far", "map so far"):
        viewer.layers.remove(f"cells {role}")  # they will be made anew
    run(segmenting, qtbot)
    assert player.path is not None
    assert viewer.layers.selection.active.name == "mine"
    settled(player, qtbot)


def test_what_the_user_hid_stays_hidden_on_other_planes(
    viewer: Any,
    player: FocusPathDock,
    segmenting: SegmentDock,
    shared: Session,
    qtbot: Any,
    picture: np.ndarray,
) -> None:
    choose_retina(shared)
    segmenting.budget.setValue(30)
    viewer.add_image(np.stack([picture, picture[::-1]]), name="cells")
    viewer.dims.set_current_step(0, 0)
    run(segmenting, qtbot)
    viewer.layers["cells way so far"].visible = False
    viewer.layers.selection.active = viewer.layers["cells"]
    viewer.dims.set_current_step(0, 1)
    qtbot.waitUntil(lambda: player.plane == 1, timeout=5_000)
    assert not viewer.layers["cells way so far"].visible
    assert viewer.layers["cells retina"].visible
    assert viewer.layers.selection.active.name == "cells"
    settled(player, qtbot)


def test_in_3d_the_replay_waits(
    viewer: Any, player: FocusPathDock, qtbot: Any, scanned: Any
) -> None:
    viewer.add_image(np.stack([scanned[0]] * 2), name="cells")
    viewer.dims.ndisplay = 3
    noted(viewer, "result", scanned[1])
    assert player.path is None
    assert "2D" in player.form.status.text()
    viewer.dims.ndisplay = 2
    assert player.path is not None
    player.form.play_button.click()
    viewer.dims.ndisplay = 3
    assert not player.player.playing
    viewer.dims.ndisplay = 2
    assert player.path is not None
    settled(player, qtbot)


def test_closed_docks_leave_the_keys_to_napari(
    viewer: Any, player: FocusPathDock, qtbot: Any, scanned: Any
) -> None:
    viewer.add_image(scanned[0], name="cells")
    noted(viewer, "result", scanned[1])
    settled(player, qtbot)
    retina = viewer.layers["cells retina"]
    assert retina.keymap
    viewer.window.remove_dock_widget(player)
    assert not retina.keymap
    assert not retina.visible
    viewer.window.add_dock_widget(player, name="Focus path")
    assert player.path is not None
    assert retina.visible
    settled(player, qtbot)


def test_a_view_that_cannot_be_saved_is_told(
    viewer: Any, player: FocusPathDock, qtbot: Any, scanned: Any, tmp_path: Path
) -> None:
    viewer.add_image(scanned[0], name="cells")
    noted(viewer, "result", scanned[1])
    player.saving.save("view", tmp_path / "missing" / "a.png")
    assert "cannot be written" in player.form.status.text()
    settled(player, qtbot)


def test_hostile_facts_about_an_image_are_refused(
    viewer: Any, player: FocusPathDock, qtbot: Any, scanned: Any, tmp_path: Path
) -> None:
    viewer.add_image(scanned[0], name="cells")
    bad = tmp_path / "bad.focus"
    save_path(Recorded(scanned[1], {"offset": [0.0, 0.0]}), bad)
    raw = bad.read_bytes()
    assert raw.count(b"[0.0,0.0]") == 1
    bad.write_bytes(raw.replace(b"[0.0,0.0]", b"[[0],[0]]"))
    opened(player, qtbot, bad)
    assert "damaged header" in player.form.status.text()
    assert player.path is None


def test_files_of_one_name_can_both_be_chosen(
    viewer: Any, player: FocusPathDock, qtbot: Any, scanned: Any, tmp_path: Path
) -> None:
    image, path = scanned
    viewer.add_image(image, name="cells")
    short = replace(
        path,
        corners=path.corners[:9],
        entropies=path.entropies[:9],
        steps=path.steps[:9],
        planes=path.planes[:9],
        pmfs=path.pmfs[:9],
    )
    for folder, one in (("a", path), ("b", short)):
        save_path(Recorded(one), tmp_path / folder / "cells.focus")
        opened(player, qtbot, tmp_path / folder / "cells.focus")
        assert len(player.path) == len(one)


def test_keys_are_napari_s_while_nothing_is_loaded(
    viewer: Any, player: FocusPathDock, qtbot: Any, scanned: Any
) -> None:
    assert not {"Left", "Right", "Space"} & {str(k) for k in viewer.keymap}
    viewer.add_image(scanned[0], name="cells")
    holder = noted(viewer, "result", scanned[1])
    settled(player, qtbot)
    assert {"Left", "Right", "Space"} <= {str(k) for k in viewer.keymap}
    viewer.layers.remove(holder)
    assert player.path is None
    assert not {"Left", "Right", "Space"} & {str(k) for k in viewer.keymap}


@pytest.mark.filterwarnings("ignore:Non-orthogonal slicing")
def test_a_stack_with_a_replay_can_be_cleared(
    viewer: Any, player: FocusPathDock, qtbot: Any, scanned: Any
) -> None:
    stack = np.stack([scanned[0]] * 3)
    viewer.add_image(stack, name="cells", scale=(4, 1, 1), rotate=(10, 20, 30))
    viewer.dims.set_current_step(0, 1)
    noted(viewer, "result", scanned[1])
    settled(player, qtbot)
    viewer.layers.clear()
    qtbot.wait(50)
    assert len(viewer.layers) == 0
    assert player.path is None


# -- attention ----------------------------------------------------------------------


def test_a_renamed_image_keeps_its_layers(
    viewer: Any,
    dock: AttentionDock,
    player: FocusPathDock,
    segmenting: SegmentDock,
    qtbot: Any,
    picture: np.ndarray,
) -> None:
    source = viewer.add_image(picture, name="cells")
    choose(dock, qtbot, "retina")
    segmenting.budget.setValue(30)
    run(segmenting, qtbot)
    tick(dock, qtbot, "entropy")
    settled(player, qtbot)
    before = {x.name for x in viewer.layers}
    source.name = "renamed"
    dock.form.measure_button.click()
    assert "Measured" in dock.form.status.text()
    run(segmenting, qtbot, "renamed")
    settled(player, qtbot)
    assert {x.name for x in viewer.layers} == (before - {"cells"}) | {"renamed"}
    # Another image has its old name now, and nothing else of it.
    viewer.add_image(picture[::-1], name="cells")
    assert dock.form.images.currentText() == "cells"
    tick(dock, qtbot, "entropy")
    dock.form.measure_button.click()
    assert "no objects" in dock.form.status.text()


def test_a_model_that_cannot_be_read_is_told_once(
    viewer: Any, dock: AttentionDock, shared: Session, qtbot: Any, picture: np.ndarray
) -> None:
    viewer.add_image(picture, name="cells")
    choose(dock, qtbot, "focusnet")
    broken = next(e for e in shared.entries if e.path.name == "unet.safetensors")
    broken.path.write_bytes(broken.path.read_bytes()[:500])
    shared.choose(broken)
    qtbot.waitUntil(lambda: dock.offers(broken), timeout=20_000)
    assert dock.form.status.text().startswith("⚠")
    assert dock.form.tree.names == ()


@pytest.mark.parametrize("what", ["look", "ask"])
def test_a_window_may_be_closed_in_the_middle(
    make_napari_viewer_proxy: Any, shared: Session, qtbot: Any, what: str
) -> None:
    from napari_fovea.widgets.attention import AttentionDock

    rng = np.random.default_rng(0)
    viewer = make_napari_viewer_proxy(show=True)
    dock = AttentionDock(viewer, shared=shared)
    viewer.window.add_dock_widget(dock, name="Attention")
    image = rng.integers(0, 255, (400, 400), dtype=np.uint8)
    viewer.add_image(image, name="cells")
    choose(dock, qtbot, "retina")
    if what == "look":
        dock.form.tree.tick("overlap", True)
        qtbot.waitUntil(lambda: dock.job is not None, timeout=20_000)
        job = dock.job
    else:
        dock.form.ask.setChecked(True)
        dock.asking.ask((40, 60))
        job = dock.asking.job
    viewer.close()
    qtbot.waitUntil(lambda: not job.is_running, timeout=60_000)
    qtbot.wait(100)
    shared.choose(shared.entries[0])  # the session outlives the window


def test_maps_and_answers_are_of_the_run_on_show(
    viewer: Any,
    dock: AttentionDock,
    segmenting: SegmentDock,
    qtbot: Any,
    models: dict[str, Model],
    picture: np.ndarray,
) -> None:
    source = viewer.add_image(picture, name="cells")
    choose(dock, qtbot, "retina")
    segmenting.budget.setValue(33)
    segmenting.diameter.setValue(18)
    results = run(segmenting, qtbot)
    path = layers.own(results.layer("path"))["path"]
    dock.form.ask.setChecked(True)
    click(viewer, source.data_to_world((40, 60)))
    qtbot.waitUntil(lambda: dock.asking.job is None, timeout=60_000)
    assert dock.path is path, "it is not scanned again"
    number = int(results.layer("instances").data[40, 60])
    region = results.layer("instances").data == number if number else (40, 60)
    best = int(np.argmax(deciding(path, region).shares))
    assert dock.form.answers.topLevelItem(0).text(0) == f"fixation {best + 1}"
    tick(dock, qtbot, "overlap")
    np.testing.assert_array_equal(dock.path.corners, path.corners)


def test_saliency_is_asked_at_the_scale_of_the_run(
    viewer: Any,
    dock: AttentionDock,
    segmenting: SegmentDock,
    qtbot: Any,
    models: dict[str, Model],
    picture: np.ndarray,
) -> None:
    source = viewer.add_image(picture, name="cells")
    choose(dock, qtbot, "r2-attention-unet")
    run(segmenting, qtbot)
    note = layers.own(segmenting.results.layer("instances"))
    note["provenance"]["settings"]["diameter"] = None
    segmenting.results.layer("instances").data = np.zeros(picture.shape, int)
    dock.form.ask.setChecked(True)
    click(viewer, source.data_to_world((40, 60)))
    qtbot.waitUntil(lambda: dock.asking.job is None, timeout=60_000)
    expected = explain(picture, models["r2-attention-unet"], region=(40, 60))
    shown = viewer.layers["cells what decided"]
    assert shown.data.shape == expected.saliency.array.shape
    dock.form.opacity.setValue(20)
    assert shown.opacity == pytest.approx(0.2)


def test_a_question_can_be_cancelled(
    viewer: Any, dock: AttentionDock, qtbot: Any, picture: np.ndarray
) -> None:
    source = viewer.add_image(np.tile(picture, (8, 8)), name="cells")
    choose(dock, qtbot, "retina")
    dock.form.ask.setChecked(True)
    click(viewer, source.data_to_world((40, 60)))
    assert dock.asking.job is not None
    dock.form.cancel_button.click()
    qtbot.waitUntil(lambda: dock.asking.job is None, timeout=60_000)
    assert "cells cells that decided" not in viewer.layers
    assert "not answered" in dock.form.status.text()


def test_what_the_user_set_stays(
    viewer: Any, dock: AttentionDock, qtbot: Any, picture: np.ndarray
) -> None:
    viewer.add_image(picture, name="cells")
    choose(dock, qtbot, "retina")
    tick(dock, qtbot, "overlap")
    layer = viewer.layers["cells overlap"]
    layer.contrast_limits = (1, 2)
    dock.form.tree.tick("overlap", False)
    dock.form.tree.tick("overlap", True)
    assert tuple(layer.contrast_limits) == (1, 2)


def test_of_three_maps_two_are_compared(
    viewer: Any, dock: AttentionDock, qtbot: Any, picture: np.ndarray
) -> None:
    viewer.add_image(picture, name="cells")
    choose(dock, qtbot, "retina")
    first, second, third = dock.form.tree.names[:3]
    for name in (first, second, third):
        tick(dock, qtbot, name)
    dock.form.compare.setCurrentText(BESIDE)
    shown = [n for n in (first, second, third) if viewer.layers[f"cells {n}"].visible]
    assert shown == [second, third]


def test_a_failed_measure_does_not_stop_the_dock(
    viewer: Any, dock: AttentionDock, qtbot: Any, picture: np.ndarray
) -> None:
    viewer.add_image(np.stack([picture, picture[::-1]]), name="cells")
    viewer.dims.set_current_step(0, 0)
    choose(dock, qtbot, "focusnet")
    name = dock.form.tree.names[0]
    tick(dock, qtbot, name)
    dock.form.measure_button.click()
    assert dock.form.status.text().startswith("⚠")
    first = dock.maps[name]
    viewer.dims.set_current_step(0, 1)
    qtbot.waitUntil(
        lambda: dock.job is None and dock.maps.get(name, first) is not first,
        timeout=60_000,
    )


def test_features_that_were_there_stay(
    viewer: Any,
    dock: AttentionDock,
    segmenting: SegmentDock,
    qtbot: Any,
    picture: np.ndarray,
) -> None:
    viewer.add_image(picture, name="cells")
    choose(dock, qtbot, "retina")
    instances = run(segmenting, qtbot).layer("instances")
    count = int(instances.data.max()) + 1
    instances.features = {"mine": np.arange(count) * 10}
    tick(dock, qtbot, "entropy")
    dock.form.measure_button.click()
    assert instances.features["mine"].tolist() == [10 * i for i in range(count)]
    assert "attention entropy" in instances.features
