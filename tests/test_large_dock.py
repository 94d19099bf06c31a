"""Images larger than memory in a real viewer: results fill while blocks finish."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

import dask.array
import numpy as np
import pytest
import zarr

from conftest import tiny_model
from napari_fovea import complete, segment
from napari_fovea.models import Entry
from napari_fovea.models.checkpoint import read_header
from napari_fovea.widgets import large, layers
from napari_fovea.widgets import segment as segmenting
from napari_fovea.widgets.segment import SegmentDock
from napari_fovea.widgets.session import Session

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Small images count as large, and are cut into small blocks."""
    monkeypatch.setattr(large, "MOST", 20_000)
    monkeypatch.setattr(segmenting, "MOST", 20_000)
    monkeypatch.setattr("napari_fovea.scale.plan.CHUNK", 64)
    monkeypatch.setattr("napari_fovea.scale.plan._SMALLEST", 16)
    monkeypatch.setattr("napari_fovea.scale.plan._GLANCE", 64)
    monkeypatch.setenv("NAPARI_FOVEA_HOME", str(tmp_path / "home"))


@pytest.fixture
def viewer(make_napari_viewer_proxy: Any) -> Any:
    return make_napari_viewer_proxy(show=True)


@pytest.fixture
def dock(viewer: Any, tmp_path: Path, qtbot: Any) -> SegmentDock:
    path = tmp_path / "tiny.safetensors"
    tiny_model().save(path)
    session = Session()
    session.devices = ("cpu",)
    session.offer((Entry(path, read_header(path)),))
    session.use_device("cpu")
    widget = SegmentDock(viewer, shared=session)
    viewer.window.add_dock_widget(widget, name="Segment")
    return widget


@pytest.fixture
def slide(tmp_path: Path) -> Any:
    array = zarr.create_array(
        tmp_path / "slide.zarr", shape=(200, 250), chunks=(90, 70), dtype="u1"
    )
    array[:] = np.random.default_rng(0).integers(0, 255, (200, 250), dtype=np.uint8)
    return array


def run(dock: SegmentDock, qtbot: Any) -> None:
    dock.run_button.click()
    qtbot.waitUntil(lambda: dock.job is None, timeout=60_000)


def made(viewer: Any) -> dict[str, Any]:
    notes = {layer.name: layers.own(layer) for layer in viewer.layers}
    return {n.split()[-1]: viewer.layers[n] for n, note in notes.items() if note}


def test_a_lazy_slide_is_segmented_into_a_file(
    viewer: Any, dock: SegmentDock, qtbot: Any, slide: Any, tmp_path: Path
) -> None:
    viewer.add_image(np.zeros((9, 9)), name="small")
    assert not dock.place.isVisible()
    source = viewer.add_image(slide, name="slide", scale=(0.5, 0.5), translate=(3, 4))
    assert dock.place.isVisible()
    assert dock.place.edit.placeholderText() == "slide tiny.zarr"
    run(dock, qtbot)
    path = tmp_path / "home" / "segmentations" / "slide tiny.zarr"
    assert dock.status.text().startswith("Done: ")
    assert str(path) in dock.status.text()
    found = made(viewer)
    assert sorted(found) == ["classes", "instances", "uncertainty"]
    assert found["instances"].visible
    assert not found["classes"].visible
    group = zarr.open_group(path, mode="r")
    objects = np.asarray(found["instances"].data[0])
    np.testing.assert_array_equal(objects, group["labels/instances/0"][:])
    assert objects.max() > 0
    for layer in found.values():
        for corner in ((0, 0), (199, 249)):
            np.testing.assert_allclose(
                layer.data_to_world(corner), source.data_to_world(corner)
            )
    note = layers.own(found["instances"])
    assert note["provenance"]["model"] == "tiny"
    assert note["file"] == str(path)


def test_it_goes_on_where_it_was_stopped_and_other_runs_go_beside(
    viewer: Any, dock: SegmentDock, qtbot: Any, slide: Any, tmp_path: Path
) -> None:
    viewer.add_image(slide, name="slide")
    dock.run_button.click()
    qtbot.waitUntil(lambda: "classes" in made(viewer), timeout=60_000)
    dock.cancel_button.click()
    qtbot.waitUntil(lambda: dock.job is None, timeout=60_000)
    folder = tmp_path / "home" / "segmentations"
    first = folder / "slide tiny.zarr"
    done = len(list((first / ".work").rglob("*.npz")))
    run(dock, qtbot)
    assert dock.status.text().startswith("Done: ")
    assert [p.name for p in folder.iterdir()] == ["slide tiny.zarr"]
    count = len(viewer.layers)
    dock.diameter.setValue(30)
    run(dock, qtbot)
    assert sorted(p.name for p in folder.iterdir()) == [
        "slide tiny 2.zarr",
        "slide tiny.zarr",
    ]
    assert len(viewer.layers) == count, "the same layers show the newer run"
    assert done >= 0
    dock.diameter.setValue(31)
    dock.place.edit.setText(str(first))
    run(dock, qtbot)
    assert "choose another name" in dock.status.text()


def test_what_is_in_view_comes_first(
    viewer: Any, dock: SegmentDock, qtbot: Any, slide: Any
) -> None:
    viewer.add_image(slide, name="slide", scale=(2, 2))
    viewer.scene.camera.center = (0, 2 * 180, 2 * 220)
    viewer.scene.camera.zoom = 4
    order = []
    dock.run_button.click()
    dock.job.yielded.connect(
        lambda e: order.append(e.block) if type(e).__name__ == "Finished" else None
    )
    qtbot.waitUntil(lambda: dock.job is None, timeout=60_000)
    assert dock.large is not None
    assert dock.large.near() == pytest.approx((180, 220), abs=3)
    assert len(order) == 16


@pytest.mark.parametrize("lazy", [False, True])
def test_a_plane_of_a_stack_is_laid_upon_it(
    viewer: Any, dock: SegmentDock, qtbot: Any, lazy: bool
) -> None:
    rng = np.random.default_rng(1)
    stack = rng.integers(0, 255, (3, 150, 160), dtype=np.uint8)
    data = dask.array.from_array(stack, chunks=(1, 64, 64)) if lazy else stack
    source = viewer.add_image(data, name="stack")
    viewer.dims.set_point(0, 2)
    dock.region.setCurrentText(layers.PLANE)
    run(dock, qtbot)
    assert dock.status.text().startswith("Done: "), dock.status.text()
    classes = made(viewer)["classes"]
    assert classes.data[0].shape == (1, 150, 160)
    np.testing.assert_allclose(
        classes.data_to_world((0, 0, 0)), source.data_to_world((2, 0, 0))
    )


def test_a_pyramid_is_segmented_at_the_level_that_fits(
    viewer: Any, dock: SegmentDock, qtbot: Any
) -> None:
    rng = np.random.default_rng(2)
    fine = rng.integers(0, 255, (256, 256), dtype=np.uint8)
    source = viewer.add_image([fine, fine[::2, ::2], fine[::4, ::4]], name="pyramid")
    dock.diameter.setValue(2 * tiny_model().object_diameter)
    run(dock, qtbot)
    assert dock.status.text().startswith("Done: "), dock.status.text()
    classes = made(viewer)["classes"]
    assert classes.data[0].shape == (128, 128)
    # Two pixels of the source lie along one of the result.
    np.testing.assert_allclose(classes.data_to_world((0, 0)), (0.5, 0.5))
    assert layers.own(classes)["provenance"]["source"]["level"] == 1
    assert source.multiscale


def test_a_small_part_of_a_large_image_is_segmented_in_memory(
    viewer: Any, dock: SegmentDock, qtbot: Any, slide: Any
) -> None:
    viewer.add_image(slide, name="slide")
    viewer.scene.camera.center = (0, 100, 100)
    viewer.scene.camera.zoom = 30
    qtbot.wait(100)
    dock.region.setCurrentText(layers.VIEW)
    run(dock, qtbot)
    qtbot.waitUntil(lambda: dock.results is None or dock.results.idle)
    note = layers.own(made(viewer)["classes"])
    assert dock.large is None
    (top, left), (high, wide) = note["region_offset"], note["region_shape"]
    part = np.asarray(slide)[round(top) :, round(left) :][:high, :wide]
    again = complete(segment(part, dock.session.load(dock.session.chosen)))
    np.testing.assert_array_equal(made(viewer)["classes"].data, again.labels)


def test_an_array_that_fills_is_read_like_any_other(slide: Any) -> None:
    whole = slide[:]
    flat, deep = large.Filling(slide, 0), large.Filling(slide, 1)
    assert (flat.shape, deep.shape) == ((200, 250), (1, 200, 250))
    np.testing.assert_array_equal(np.asarray(deep), whole[None])
    np.testing.assert_array_equal(deep[0], whole)
    np.testing.assert_array_equal(deep[0, 3:9, 5], whole[3:9, 5])
    np.testing.assert_array_equal(deep[:, 3:9], whole[None, 3:9])
    np.testing.assert_array_equal(flat[..., 4], whole[:, 4])
    np.testing.assert_array_equal(deep[..., 4], whole[None, :, 4])


def test_it_computes_as_the_model_dock_says(
    viewer: Any, dock: SegmentDock, qtbot: Any, slide: Any
) -> None:
    viewer.add_image(slide, name="slide")
    dock.session.use(device="cuda:7")
    run(dock, qtbot)
    assert "There is no device 'cuda:7'" in dock.status.text()
    dock.session.use(device="cpu", precision="bfloat16")
    run(dock, qtbot)
    note = layers.own(made(viewer)["classes"])
    assert note["provenance"]["precision"] == "bfloat16"


def test_a_name_is_put_beside_the_usual_one(
    viewer: Any, dock: SegmentDock, qtbot: Any, slide: Any, tmp_path: Path
) -> None:
    viewer.add_image(slide, name="slide")
    usual = tmp_path / "home" / "segmentations"
    place = dock.place
    assert place.path == usual / "slide tiny.zarr"
    place.edit.setText("  mine.zarr ")
    assert place.path == usual / "mine.zarr"
    place.edit.setText(f" {tmp_path / 'there.zarr'}  ")
    assert place.path == tmp_path / "there.zarr"
    place.edit.setText("~/there.zarr")
    assert place.path == type(tmp_path).home() / "there.zarr"
    place.edit.setText("~nobody-of-that-name/there.zarr")
    run(dock, qtbot)
    assert "user that is not known" in dock.status.text()
    assert not made(viewer)


def test_blocks_that_fail_are_told_in_a_sentence(
    viewer: Any, dock: SegmentDock, qtbot: Any
) -> None:
    data = np.random.default_rng(3).random((200, 250), dtype=np.float32)
    data[0, 0] = np.nan
    source = viewer.add_image(data, name="holes", contrast_limits=(0, 1))
    run(dock, qtbot)
    assert "; 1 block failed rows 0 to 63, columns 0 to 63: " in dock.status.text()
    assert "median. Kept in" in dock.status.text()
    data = data.copy()
    data[0, 0] = 0
    source.data = data
    run(dock, qtbot)
    assert "failed" not in dock.status.text()


def test_a_source_that_gets_other_axes_meanwhile_is_left_alone(
    viewer: Any, dock: SegmentDock, qtbot: Any, slide: Any
) -> None:
    source = viewer.add_image(slide, name="slide")
    dock.run_button.click()
    qtbot.waitUntil(lambda: "classes" in made(viewer), timeout=60_000)
    source.data = np.zeros((2, 30, 40), np.uint8)
    qtbot.waitUntil(lambda: dock.job is None, timeout=60_000)
    assert "slide has other axes now" in dock.status.text()
    assert "instances" not in made(viewer)


def test_objects_of_a_store_that_is_gone_are_not_shown_for_new_ones(
    viewer: Any, dock: SegmentDock, qtbot: Any, slide: Any, tmp_path: Path
) -> None:
    viewer.add_image(slide, name="slide")
    run(dock, qtbot)
    assert np.asarray(made(viewer)["instances"].data[0]).any()
    shutil.rmtree(tmp_path / "home" / "segmentations")
    dock.diameter.setValue(40)
    dock.run_button.click()
    dock.job.yielded.connect(lambda _: dock.cancel())
    qtbot.waitUntil(lambda: dock.job is None, timeout=60_000)
    found = made(viewer)["instances"]
    assert not np.asarray(found.data[0]).any()
    assert not found.visible
    assert "provenance" not in layers.own(found)


def test_the_time_that_is_left_counts_from_where_it_went_on(
    viewer: Any, dock: SegmentDock, qtbot: Any, slide: Any
) -> None:
    viewer.add_image(slide, name="slide")
    dock.run_button.click()
    dock.job.yielded.connect(
        lambda event: dock.cancel() if getattr(event, "done", 0) >= 4 else None
    )
    qtbot.waitUntil(lambda: dock.job is None, timeout=60_000)
    dock.run_button.click()
    seen = []
    dock.job.yielded.connect(lambda _: seen.append((dock._left, dock.large.blocks)))
    qtbot.waitUntil(lambda: dock.job is None, timeout=60_000)
    left, blocks = seen[0]
    assert left >= 0.9 * 4 / 16
    assert int(blocks.split()[0]) >= 4


def test_a_closed_dock_stops_and_says_so_when_it_is_opened_again(
    viewer: Any, dock: SegmentDock, qtbot: Any, slide: Any
) -> None:
    viewer.add_image(slide, name="slide")
    dock.run_button.click()
    qtbot.waitUntil(lambda: "classes" in made(viewer), timeout=60_000)
    viewer.window.remove_dock_widget(dock)
    qtbot.waitUntil(lambda: dock.job is None, timeout=60_000)
    assert dock.status.text() == "Stopped when the dock was closed"
    viewer.window.add_dock_widget(dock, name="Segment")
    run(dock, qtbot)
    assert dock.status.text().startswith("Done: ")


def test_a_level_of_fewer_planes_lies_along_the_whole_stack(
    viewer: Any, dock: SegmentDock, qtbot: Any
) -> None:
    deep = np.random.default_rng(4).integers(0, 255, (4, 160, 160), dtype=np.uint8)
    source = viewer.add_image([deep, deep[::2, ::2, ::2]], name="deep", scale=(3, 1, 1))
    viewer.dims.set_point(0, 3 * 3)
    dock.diameter.setValue(2 * tiny_model().object_diameter)
    run(dock, qtbot)
    classes = made(viewer)["classes"]
    assert classes.data[0].shape == (2, 80, 80)
    for layer in made(viewer).values():
        for corner in ((0, 0, 0), (4, 160, 160)):
            np.testing.assert_allclose(
                layer.data_to_world(np.divide(corner, 2) - 0.5),
                source.data_to_world(np.subtract(corner, 0.5)),
            )
    assert dock.large is not None
    assert dock.large.near()[0] == 1


def test_long_names_do_not_widen_the_dock(
    viewer: Any, dock: SegmentDock, qtbot: Any
) -> None:
    width = dock.minimumSizeHint().width()
    viewer.add_image(np.ones((200, 200)), name="a_long_name" * 12)
    run(dock, qtbot)
    assert "a_long_name" * 12 in dock.status.text()
    assert dock.minimumSizeHint().width() <= max(width, 300)


def test_a_thin_result_cannot_be_painted_on(
    viewer: Any, dock: SegmentDock, qtbot: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("napari_fovea.scale.plan._SMALLEST", 64)
    viewer.add_image(np.eye(30, 700), name="thin")
    run(dock, qtbot)
    for name in ("classes", "instances"):
        layer = made(viewer)[name]
        assert not layer.multiscale
        assert not layer.editable
