"""The Focus path dock in a real viewer: clicks, keys, layers, files."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import imageio.v3 as imageio
import numpy as np
import pytest
from napari.layers import Image, Shapes
from qtpy.QtCore import Qt

from conftest import tiny_model
from napari_fovea import complete, segment
from napari_fovea.models import Entry
from napari_fovea.models.checkpoint import read_header
from napari_fovea.retina import FocusPath, Recorded, Replay, load_path, save_path
from napari_fovea.views.colours import cell_colours, map_colours
from napari_fovea.widgets import layers
from napari_fovea.widgets.focus_path import FocusPathDock
from napari_fovea.widgets.segment import SegmentDock
from napari_fovea.widgets.session import Session

if TYPE_CHECKING:
    from pathlib import Path

SHOWN = ("map so far", "way so far", "last steps", "retina")


@pytest.fixture
def viewer(make_napari_viewer_proxy: Any) -> Any:
    return make_napari_viewer_proxy(show=True)


@pytest.fixture
def dock(viewer: Any, qtbot: Any) -> FocusPathDock:
    widget = FocusPathDock(viewer, shared=Session())
    viewer.window.add_dock_widget(widget, name="Focus path")
    return widget


@pytest.fixture(scope="module")
def scanned() -> tuple[np.ndarray, FocusPath]:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 255, (70, 90), dtype=np.uint8)
    result = complete(segment(image, tiny_model(), device="cpu", budget=120))
    assert result.path is not None
    return image, result.path


@pytest.fixture
def file(scanned: tuple[np.ndarray, FocusPath], tmp_path: Path) -> Path:
    path = tmp_path / "cells.focus"
    save_path(Recorded(scanned[1], provenance={"model": "tiny"}), path)
    return path


@pytest.fixture
def loaded(
    viewer: Any,
    dock: FocusPathDock,
    qtbot: Any,
    scanned: tuple[np.ndarray, FocusPath],
    file: Path,
) -> FocusPathDock:
    viewer.add_image(scanned[0], name="cells", scale=(0.5, 0.25), translate=(7, -3))
    opened(dock, qtbot, file)
    return dock


def opened(dock: FocusPathDock, qtbot: Any, file: Path) -> None:
    before = dock.form.status.text()
    dock.shelf.open_file(file)
    qtbot.waitUntil(
        lambda: not dock.shelf.busy and dock.form.status.text() != before,
        timeout=20_000,
    )
    settled(dock, qtbot)


def settled(dock: FocusPathDock, qtbot: Any) -> None:
    qtbot.waitUntil(lambda: dock.maps.idle and not dock.shelf.busy, timeout=20_000)


def layer(viewer: Any, ending: str, source: str = "cells") -> Any:
    return viewer.layers[f"{source} {ending}"]


def test_a_run_can_be_replayed_at_once(
    viewer: Any, dock: FocusPathDock, qtbot: Any, picture: np.ndarray, tmp_path: Path
) -> None:
    assert not dock.form.play_button.isEnabled()
    assert "Segment an image" in dock.form.status.text()
    tiny_model().save(tmp_path / "tiny.safetensors")
    shared = Session()
    shared.devices = ("cpu",)
    path = tmp_path / "tiny.safetensors"
    shared.offer((Entry(path, read_header(path)),))
    segmenting = SegmentDock(viewer, shared=shared)
    viewer.window.add_dock_widget(segmenting, name="Segment")
    viewer.add_image(picture, name="cells")
    segmenting.run_button.click()
    qtbot.waitUntil(
        lambda: segmenting.job is None and segmenting.results.idle, timeout=60_000
    )
    settled(dock, qtbot)
    assert dock.form.paths.currentText() == "cells focus path"
    assert dock.form.images.currentText() == "cells"
    kept = layers.own(layer(viewer, "focus path"))["path"]
    assert dock.form.slider.maximum() == len(kept) - 1
    assert f"{len(kept)} fixations" in dock.form.status.text()
    assert not layer(viewer, "focus path").visible, "it would tell all at once"
    assert [x for x in SHOWN if layer(viewer, x).visible] == list(SHOWN)
    # The whole map, in the end, is that of the result.
    dock.form.slider.setValue(len(kept) - 1)
    settled(dock, qtbot)
    expected = map_colours(Replay(kept).at(len(kept) - 1).probabilities)
    np.testing.assert_array_equal(layer(viewer, "map so far").data, expected)


def test_the_retina_lies_where_it_looked(
    viewer: Any, loaded: FocusPathDock, qtbot: Any
) -> None:
    dock, source = loaded, viewer.layers["cells"]
    path = dock.path
    assert path is not None
    retina = layer(viewer, "retina")
    assert isinstance(retina, Shapes)
    for step in (0, len(path) // 2, len(path) - 1):
        dock.form.slider.setValue(step)
        for cell, corners in zip(path.cells(step), retina.data, strict=True):
            expected = source.data_to_world(cell[:2]), source.data_to_world(cell[2:])
            found = retina.data_to_world(corners[0]), retina.data_to_world(corners[2])
            np.testing.assert_allclose(found, expected, atol=1e-6)
        faces, edges = cell_colours(path.pmfs[step].astype(np.float32))
        np.testing.assert_allclose(retina.face_color, faces, atol=1e-6)
        np.testing.assert_allclose(retina.edge_color, edges, atol=1e-6)
        tail = layer(viewer, "last steps")
        end = tail.data_to_world(tail.data[0][-1])
        np.testing.assert_allclose(end, source.data_to_world(path.centres[step]))


@pytest.mark.parametrize("turn", [{}, {"rotate": 30}, {"affine": np.diag([2, 3, 1])}])
def test_the_map_lies_on_its_image(
    viewer: Any,
    dock: FocusPathDock,
    qtbot: Any,
    scanned: tuple[np.ndarray, FocusPath],
    file: Path,
    turn: dict[str, Any],
) -> None:
    source = viewer.add_image(scanned[0], name="cells", scale=(2, 3), **turn)
    opened(dock, qtbot, file)
    found = layer(viewer, "map so far")
    assert isinstance(found, Image)
    for corner in ((0, 0), (69, 0), (0, 89), (69, 89)):
        np.testing.assert_allclose(
            found.data_to_world(corner), source.data_to_world(corner), atol=1e-6
        )


def test_it_plays_pauses_loops_and_ends(
    viewer: Any, loaded: FocusPathDock, qtbot: Any
) -> None:
    dock = loaded
    form, last = dock.form, len(dock.path) - 1
    form.steps_per_second = 400
    form.play_button.click()
    assert form.play_button.text() == "Pause"
    qtbot.waitUntil(lambda: dock.player.step > last // 3, timeout=20_000)
    qtbot.waitUntil(lambda: not dock.player.playing, timeout=20_000)
    assert dock.player.step == last
    assert form.slider.value() == last
    assert form.play_button.text() == "Play"
    form.loop.setChecked(True)
    form.play_button.click()
    steps = [0]

    def fell() -> bool:
        # A slow window may not show the very last step.
        steps.append(dock.player.step)
        return steps[-1] < steps[-2]

    qtbot.waitUntil(fell, timeout=20_000)
    assert dock.player.playing, "it began again"
    form.play_button.click()
    assert not dock.player.playing
    standing = dock.player.step
    qtbot.wait(100)
    assert dock.player.step == standing
    assert form.slider.value() == standing


def test_keys_play_and_step(viewer: Any, loaded: FocusPathDock, qtbot: Any) -> None:
    dock = loaded
    dock.form.play_button.setFocus()
    qtbot.keyClick(dock.form, Qt.Key.Key_Right)
    qtbot.keyClick(dock.form, Qt.Key.Key_Right)
    qtbot.keyClick(dock.form, Qt.Key.Key_Left)
    dock.player.go(5)
    # On the canvas: the layer of the retina is active, and the viewer knows them too.
    for holder in (layer(viewer, "retina"), viewer):
        for key, by in (("Right", 1), ("Left", -1)):
            before = dock.player.step
            act = next(v for k, v in holder.keymap.items() if str(k) == key)
            act(holder)
            assert dock.player.step == before + by
        play = next(v for k, v in holder.keymap.items() if str(k) == "Space")
        play(holder)
        assert dock.player.playing
        play(holder)
        assert not dock.player.playing


def test_the_most_uncertain_fixations_come_in_order(
    viewer: Any, loaded: FocusPathDock, qtbot: Any
) -> None:
    dock, entropies = loaded, loaded.path.entropies
    order = []
    for _ in range(5):
        dock.form.doubt_button.click()
        order.append(dock.player.step)
    assert order == np.argsort(-entropies, kind="stable")[:5].tolist()


class Press:
    """What napari tells of a mouse, from pressing to letting go."""

    button, modifiers = 1, ()

    def __init__(self, position: Any) -> None:
        self.position = position
        self.type = "mouse_press"


def click(viewer: Any, position: Any, *, drag: bool = False) -> None:
    press = Press(position)
    for callback in list(viewer.mouse_drag_callbacks):
        run = callback(viewer, press)
        if run is None:
            continue
        press.type = "mouse_press"
        next(run, None)
        if drag:
            press.type = "mouse_move"
            next(run, None)
        press.type = "mouse_release"
        next(run, None)


def test_a_click_goes_to_the_best_look(
    viewer: Any, loaded: FocusPathDock, qtbot: Any
) -> None:
    dock, source = loaded, viewer.layers["cells"]
    dock.player.go(3)
    point = (41, 17)
    click(viewer, source.data_to_world(point), drag=True)
    assert dock.player.step == 3, "that was a drag"
    click(viewer, source.data_to_world(point))
    assert dock.player.step == dock.path.best_look(point)
    dock.player.go(3)
    dock.form.click.setChecked(False)
    click(viewer, source.data_to_world(point))
    assert dock.player.step == 3


def test_the_camera_follows(viewer: Any, loaded: FocusPathDock, qtbot: Any) -> None:
    dock, source = loaded, viewer.layers["cells"]
    dock.player.go(4)
    still = tuple(viewer.scene.camera.center)
    dock.player.go(40)
    assert tuple(viewer.scene.camera.center) == still
    dock.form.follow.setChecked(True)
    dock.player.go(41)
    np.testing.assert_allclose(
        viewer.scene.camera.center[-2:], source.data_to_world(dock.path.centres[41])
    )


def test_the_way_is_revealed_and_hidden_again(
    viewer: Any, dock: FocusPathDock, qtbot: Any, tmp_path: Path
) -> None:
    rng = np.random.default_rng(1)
    n = 1000
    base = complete(segment(np.eye(64), tiny_model(), device="cpu", budget=20)).path
    chosen = rng.integers(0, len(base), n)
    long = replace(
        base,
        corners=rng.integers(-16, 48, (n, 2)),
        entropies=base.entropies[chosen],
        steps=base.steps[chosen],
        planes=np.zeros(n, dtype=np.int64),
        pmfs=base.pmfs[chosen],
    )
    save_path(Recorded(long), tmp_path / "long.focus")
    viewer.add_image(np.eye(64), name="cells")
    opened(dock, qtbot, tmp_path / "long.focus")
    way, tail = layer(viewer, "way so far"), layer(viewer, "last steps")
    for step in (0, 199, 200, 999, 450, 0):
        dock.player.go(step)
        shown = np.asarray(way.edge_color)[:, 3] > 0
        pieces = [p for p, s in zip(way.data, shown, strict=True) if s]
        walked = np.concatenate([*(p[:-1] for p in pieces), tail.data[0]])
        # Every place up to the step, in order, and none after it.
        kept = walked[np.r_[True, np.any(np.diff(walked, axis=0), axis=1)]]
        wanted = long.centres[: step + 1]
        wanted = wanted[np.r_[True, np.any(np.diff(wanted, axis=0), axis=1)]]
        np.testing.assert_allclose(kept, wanted)


def test_a_stack_shows_the_path_of_the_plane_in_view(
    viewer: Any, dock: FocusPathDock, qtbot: Any, tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    stack = rng.integers(0, 255, (3, 40, 50), dtype=np.uint8)
    stack[1] = 7  # nothing to see: no fixation
    result = complete(segment(stack, tiny_model(), device="cpu", axes="ZYX", budget=30))
    save_path(Recorded(result.path), tmp_path / "stack.focus")
    viewer.add_image(stack, name="cells", scale=(4, 1, 1))
    viewer.dims.current_step = (0, 0, 0)
    opened(dock, qtbot, tmp_path / "stack.focus")
    for plane in (2, 0):
        viewer.dims.set_current_step(0, plane)
        qtbot.waitUntil(lambda plane=plane: dock.plane == plane, timeout=5_000)
        settled(dock, qtbot)
        mine = result.path.of_plane(plane)
        np.testing.assert_array_equal(dock.path.corners, mine.corners)
        assert layer(viewer, "retina").ndim == 2
        assert layer(viewer, "retina").visible
    viewer.dims.set_current_step(0, 1)
    qtbot.waitUntil(lambda: dock.path is None, timeout=5_000)
    assert "No fixation" in dock.form.status.text()
    assert not layer(viewer, "retina").visible
    viewer.dims.set_current_step(0, 2)
    qtbot.waitUntil(lambda: dock.path is not None, timeout=5_000)
    settled(dock, qtbot)


def test_everything_can_be_saved(
    viewer: Any, loaded: FocusPathDock, qtbot: Any, tmp_path: Path
) -> None:
    dock = loaded
    dock.form.steps_per_second = 100
    files = {
        "animation": tmp_path / "a.gif",
        "table": tmp_path / "a.csv",
        "path": tmp_path / "a.focus",
        "view": tmp_path / "a.png",
    }
    for what, file in files.items():
        dock.saving.save(what, file)
        qtbot.waitUntil(lambda: dock.saving.job is None, timeout=60_000)
        assert dock.form.status.text() == f"Saved {file}"
        assert dock.form.animation_button.isEnabled()
    assert len(imageio.imread(files["animation"], index=None)) > 5
    rows = files["table"].read_text().splitlines()
    assert len(rows) == 1 + len(dock.path)
    again = load_path(files["path"])
    np.testing.assert_array_equal(again.path.corners, dock.path.corners)
    assert imageio.imread(files["view"]).ndim == 3


def test_saving_can_be_cancelled(
    viewer: Any, loaded: FocusPathDock, qtbot: Any, tmp_path: Path
) -> None:
    loaded.form.steps_per_second = 2
    loaded.saving.save("animation", tmp_path / "a.gif")
    loaded.form.cancel_button.click()
    qtbot.waitUntil(lambda: loaded.saving.job is None, timeout=60_000)
    assert list(tmp_path.glob("*.gif")) == []
    assert "not saved" in loaded.form.status.text()


def test_a_path_of_a_result_is_saved_with_its_image(
    viewer: Any,
    dock: FocusPathDock,
    qtbot: Any,
    scanned: tuple[np.ndarray, FocusPath],
    tmp_path: Path,
) -> None:
    image, path = scanned
    viewer.add_image(image, name="cells")
    mine = viewer.add_shapes(ndim=2, name="result")
    mine.metadata = {
        layers.KEY: {"source": "cells", "path": path, "region_offset": [0.0, 0.0]}
    }
    settled(dock, qtbot)
    dock.saving.save("path", tmp_path / "a.focus")
    qtbot.waitUntil(lambda: dock.saving.job is None, timeout=20_000)
    about = load_path(tmp_path / "a.focus").image
    assert about["name"] == "cells"
    assert about["shape"] == [70, 90]
    # On the very image nothing is amiss; on another of the same size it is said.
    opened(dock, qtbot, tmp_path / "a.focus")
    assert not dock.form.status.text().startswith("⚠")
    viewer.add_image(image[::-1], name="upside down")
    dock.form.images.setCurrentIndex(dock.form.images.findText("upside down"))
    qtbot.waitUntil(lambda: dock.form.status.text().startswith("⚠"), timeout=20_000)
    assert "another image, 'cells'" in dock.form.status.text()
    assert dock.path is not None, "it is shown all the same"


def test_a_path_of_another_size_is_offered_to_be_scaled(
    viewer: Any, dock: FocusPathDock, qtbot: Any, file: Path
) -> None:
    small = viewer.add_image(np.zeros((35, 45)), name="small")
    opened(dock, qtbot, file)
    assert dock.path is None
    assert "70×90" in dock.form.status.text()
    assert "35×45" in dock.form.status.text()
    assert dock.form.fit_button.isVisibleTo(dock)
    dock.form.fit_button.click()
    settled(dock, qtbot)
    assert dock.path.scale == (0.5, 0.5)
    found = layer(viewer, "map so far", "small")
    edges = [found.data_to_world(c) for c in ((-0.5, -0.5), (69.5, 89.5))]
    wanted = [small.data_to_world(c) for c in ((-0.5, -0.5), (34.5, 44.5))]
    np.testing.assert_allclose(edges, wanted, atol=1e-6)
    assert not dock.form.fit_button.isVisibleTo(dock)


def test_bad_files_change_nothing(
    viewer: Any, loaded: FocusPathDock, qtbot: Any, file: Path, tmp_path: Path
) -> None:
    dock = loaded
    dock.player.go(7)
    whole = file.read_bytes()
    bad = {
        "cut.focus": whole[: len(whole) // 2],
        "empty.focus": b"",
        "foreign.focus": b"fixation,y,x\n1,2,3\n",
    }
    tiny_model().save(tmp_path / "model.safetensors")
    for name, content in bad.items():
        (tmp_path / name).write_bytes(content)
    for name in (*bad, "model.safetensors", "missing.focus"):
        dock.form.say("")
        opened(dock, qtbot, tmp_path / name)
        assert dock.form.status.text().startswith("⚠")
        assert name in dock.form.status.text()
        assert dock.player.step == 7
        assert dock.form.paths.currentText() == "cells.focus"


@pytest.mark.parametrize("gone", ["cells", "cells retina"])
def test_a_layer_removed_while_playing_stops_it(
    viewer: Any, loaded: FocusPathDock, qtbot: Any, gone: str
) -> None:
    dock = loaded
    dock.form.steps_per_second = 20
    dock.form.play_button.click()
    qtbot.waitUntil(lambda: dock.player.step > 1, timeout=20_000)
    viewer.layers.remove(gone)
    assert not dock.player.playing
    assert "stopped" in dock.form.status.text()
    assert ("'cells'" if gone == "cells" else "retina") in dock.form.status.text()
    qtbot.wait(100)
    assert dock.path is None


def test_a_path_without_pmfs_has_no_map(
    viewer: Any,
    dock: FocusPathDock,
    qtbot: Any,
    scanned: tuple[np.ndarray, FocusPath],
    tmp_path: Path,
) -> None:
    image, path = scanned
    save_path(Recorded(replace(path, pmfs=None)), tmp_path / "bare.focus")
    viewer.add_image(image, name="cells")
    opened(dock, qtbot, tmp_path / "bare.focus")
    assert "no map" in dock.form.status.text()
    assert not layer(viewer, "map so far").visible
    dock.player.go(9)
    assert dock.player.step == 9


def test_closing_the_dock_gives_everything_back(
    viewer: Any, loaded: FocusPathDock, qtbot: Any
) -> None:
    dock = loaded
    before = len(viewer.mouse_drag_callbacks)
    dock.form.play_button.click()
    viewer.window.remove_dock_widget(dock)
    assert not dock.player.playing
    assert len(viewer.mouse_drag_callbacks) == before - 1
    assert not [k for k in viewer.keymap if str(k) in ("Space", "Left", "Right")]
    viewer.add_image(np.zeros((5, 5)))


def test_the_dock_is_low_enough_for_a_laptop(dock: FocusPathDock) -> None:
    assert dock.sizeHint().height() < 900
    assert dock.minimumSizeHint().height() < 900
