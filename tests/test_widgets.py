"""The docks, as a user works them: a real viewer, real clicks, real layers."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from napari.layers import Image, Labels, Shapes
from qtpy.compat import isalive

from conftest import tiny_model
from napari_fovea.models import DEFAULT, Entry
from napari_fovea.models.checkpoint import read_header
from napari_fovea.widgets import layers
from napari_fovea.widgets.job import Job, call
from napari_fovea.widgets.model import ModelDock
from napari_fovea.widgets.segment import SegmentDock
from napari_fovea.widgets.session import Session

if TYPE_CHECKING:
    from pathlib import Path

RESULTS = ("classes", "instances", "uncertainty", "overlap", "focus path")


@pytest.fixture
def shared(tmp_path: Path) -> Session:
    path = tmp_path / "tiny.safetensors"
    tiny_model().save(path)
    session = Session()
    session.devices = ("cpu",)
    session.offer((Entry(path, read_header(path)),))
    return session


@pytest.fixture
def viewer(make_napari_viewer_proxy: Any) -> Any:
    return make_napari_viewer_proxy(show=True)


@pytest.fixture
def dock(viewer: Any, shared: Session, qtbot: Any) -> SegmentDock:
    widget = SegmentDock(viewer, shared=shared)
    viewer.window.add_dock_widget(widget, name="Segment")
    return widget


def run(dock: SegmentDock, qtbot: Any) -> None:
    dock.run_button.click()
    finish(dock, qtbot)


def finish(dock: SegmentDock, qtbot: Any) -> None:
    qtbot.waitUntil(
        lambda: dock.job is None and (dock.results is None or dock.results.idle),
        timeout=60_000,
    )


def made(viewer: Any, source: str) -> dict[str, Any]:
    found = {}
    for layer in viewer.layers:
        note = layers.own(layer)
        if note and note["source"] == source:
            found[layer.name.removeprefix(f"{source} ")] = layer
    return found


def test_a_click_segments_the_active_layer(
    viewer: Any, dock: SegmentDock, qtbot: Any, picture: np.ndarray
) -> None:
    assert not dock.run_button.isEnabled(), "there is no image yet"
    viewer.add_image(picture[:40, :40], name="other")
    source = viewer.add_image(
        picture, name="cells", scale=(0.5, 0.25), translate=(7, -3), rotate=30
    )
    assert dock.images.currentText() == "cells", "it follows the active layer"
    run(dock, qtbot)
    found = made(viewer, "cells")
    assert sorted(found) == sorted(RESULTS)
    assert dock.status.text().startswith("Done")
    assert isinstance(found["classes"], Labels)
    assert isinstance(found["instances"], Labels)
    assert isinstance(found["uncertainty"], Image)
    assert isinstance(found["focus path"], Shapes)
    for name in ("classes", "instances", "uncertainty"):
        assert found[name].data.shape == picture.shape
    for name, layer in found.items():
        # Every corner of the source lies where it lies in the result.
        np.testing.assert_allclose(
            layer.data_to_world((0, 0)), source.data_to_world((0, 0)), err_msg=name
        )
        np.testing.assert_allclose(
            layer.data_to_world((69, 89)), source.data_to_world((69, 89)), err_msg=name
        )
    note = layers.own(found["instances"])
    assert note is not None
    assert note["provenance"]["model"] == "tiny"
    assert note["provenance"]["settings"]["policy"] == "seek"
    path = layers.own(found["focus path"])["path"]
    vertices = np.concatenate(found["focus path"].data)
    assert len(path) == note["provenance"]["fixations"]
    assert {tuple(v) for v in path.centres} == {tuple(v) for v in vertices}


def test_what_made_a_result_can_be_run_again(
    viewer: Any, dock: SegmentDock, qtbot: Any, picture: np.ndarray
) -> None:
    viewer.add_image(picture, name="cells")
    dock.diameter.setValue(18)
    dock.budget.setValue(70)
    run(dock, qtbot)
    layer = made(viewer, "cells")["classes"]
    scope: dict[str, Any] = {"image": picture}
    exec(layers.own(layer)["python"], scope)
    np.testing.assert_array_equal(scope["result"].labels, layer.data)


def test_running_again_updates_the_same_layers(
    viewer: Any, dock: SegmentDock, qtbot: Any, picture: np.ndarray
) -> None:
    viewer.add_image(picture, name="cells")
    run(dock, qtbot)
    first = made(viewer, "cells")
    count = len(viewer.layers)
    first["instances"].opacity = 0.9
    viewer.layers["cells"].scale = (2, 2)
    dock.policy.setCurrentIndex(dock.policy.findData("raster"))
    run(dock, qtbot)
    again = made(viewer, "cells")
    assert len(viewer.layers) == count
    assert all(again[n] is first[n] for n in RESULTS)
    assert again["instances"].opacity == 0.9, "how a layer looks is the user's"
    np.testing.assert_array_equal(again["classes"].scale, (2, 2))
    note = layers.own(again["focus path"])
    assert note["provenance"]["settings"]["policy"] == "raster"
    vertices = np.concatenate(again["focus path"].data)
    assert {tuple(v) for v in note["path"].centres} == {tuple(v) for v in vertices}


def test_the_users_layers_stay_as_they_were(
    viewer: Any, dock: SegmentDock, qtbot: Any, picture: np.ndarray
) -> None:
    before = picture.copy()
    source = viewer.add_image(picture, name="cells")
    mine = viewer.add_labels((picture > 100).astype(int), name="cells instances")
    kept = mine.data.copy()
    viewer.layers.selection.active = source
    run(dock, qtbot)
    np.testing.assert_array_equal(source.data, before)
    np.testing.assert_array_equal(mine.data, kept)
    assert mine in viewer.layers
    assert "napari-fovea" not in source.metadata


@pytest.mark.parametrize(
    ("image", "rgb", "says"),
    [
        (np.zeros((30, 30)), False, "constant"),
        (np.full((30, 30), np.nan), False, "NaN"),
        (np.random.default_rng(0).random((2, 2, 2, 9, 9)), False, "shape"),
    ],
)
def test_a_bad_image_gets_a_sentence_and_no_layers(
    viewer: Any, dock: SegmentDock, qtbot: Any, image: np.ndarray, rgb: bool, says: str
) -> None:
    viewer.add_image(image, name="bad", contrast_limits=(0, 1), rgb=rgb)
    run(dock, qtbot)
    assert says in dock.status.text()
    assert [layer.name for layer in viewer.layers] == ["bad"]
    assert dock.run_button.isEnabled(), "buttons come back"


def test_cancel_keeps_what_there_is(viewer: Any, dock: SegmentDock, qtbot: Any) -> None:
    image = np.random.default_rng(0).random((700, 700))
    viewer.add_image(image, name="big")
    dock.run_button.click()
    assert dock.cancel_button.isEnabled()
    assert not dock.run_button.isEnabled()
    qtbot.waitUntil(lambda: dock._fraction > 0, timeout=30_000)
    dock.cancel_button.click()
    finish(dock, qtbot)
    assert dock.status.text().startswith("Stopped")
    note = layers.own(made(viewer, "big")["instances"])
    assert note["provenance"]["cancelled"]
    assert dock.run_button.isEnabled()


def test_the_map_and_the_path_grow_while_it_runs(
    viewer: Any, dock: SegmentDock, qtbot: Any
) -> None:
    viewer.add_image(np.random.default_rng(0).random((1000, 1000)), name="big")
    dock.run_button.click()
    lengths, sums = set(), set()

    def watch() -> bool:
        found = made(viewer, "big")
        if dock.job is not None and "focus path" in found:
            lengths.add(sum(map(len, found["focus path"].data)))
        if dock.job is not None and "classes" in found:
            sums.add(int(found["classes"].data.sum()))
        return dock.job is None

    qtbot.waitUntil(watch, timeout=60_000)
    finish(dock, qtbot)
    assert len(lengths) > 2, "the path grew"
    assert len(sums) >= 2, "the map sharpened before the end"


def test_what_is_in_view_lands_where_it_is(
    viewer: Any, dock: SegmentDock, qtbot: Any
) -> None:
    image = np.random.default_rng(0).random((400, 400))
    source = viewer.add_image(image, name="wide", scale=(2, 2), translate=(10, 0))
    viewer.scene.camera.center = (210, 200)
    viewer.scene.camera.zoom *= 4
    qtbot.wait(100)
    dock.region.setCurrentText(layers.VIEW)
    run(dock, qtbot)
    layer = made(viewer, "wide")["classes"]
    height, width = layer.data.shape
    assert 2 <= height < 400
    assert 2 <= width < 400
    start = source.world_to_data(layer.data_to_world((0, 0)))
    np.testing.assert_allclose(start, np.round(start), atol=1e-6)
    np.testing.assert_allclose(
        np.add(start, (height / 2, width / 2)), (100, 100), atol=3
    )


def test_a_stack_is_segmented_plane_by_plane(
    viewer: Any, dock: SegmentDock, qtbot: Any
) -> None:
    stack = np.random.default_rng(0).random((3, 60, 70))
    source = viewer.add_image(stack, name="stack", scale=(5, 1, 1))
    run(dock, qtbot)
    found = made(viewer, "stack")
    assert found["instances"].data.shape == stack.shape
    planes = {round(v[0]) for shape in found["focus path"].data for v in shape}
    assert planes == {0, 1, 2}
    viewer.dims.set_point(0, 10)
    viewer.layers.selection.active = source
    dock.region.setCurrentText(layers.PLANE)
    run(dock, qtbot)
    plane = made(viewer, "stack")["classes"]
    assert plane.data.shape == (1, 60, 70)
    np.testing.assert_allclose(plane.data_to_world((0, 0, 0)), (10, 0, 0))


def test_colour_images_work(
    viewer: Any, dock: SegmentDock, qtbot: Any, picture: np.ndarray
) -> None:
    viewer.add_image(np.stack([picture] * 3, axis=-1), name="colour", rgb=True)
    run(dock, qtbot)
    assert made(viewer, "colour")["classes"].data.shape == picture.shape


def test_a_source_that_is_removed_while_it_runs(
    viewer: Any, dock: SegmentDock, qtbot: Any
) -> None:
    viewer.add_image(np.random.default_rng(0).random((500, 500)), name="gone")
    dock.run_button.click()
    qtbot.waitUntil(lambda: dock._fraction > 0, timeout=30_000)
    del viewer.layers["gone"]
    finish(dock, qtbot)
    assert dock.job is None
    assert dock.images.count() == 0


def test_copies_of_results_are_the_users(
    viewer: Any, dock: SegmentDock, qtbot: Any, picture: np.ndarray
) -> None:
    viewer.add_image(picture, name="cells")
    run(dock, qtbot)
    found = made(viewer, "cells")["classes"]
    data, settings, kind = found.as_layer_data_tuple()
    copy = viewer.add_labels(data.copy(), **{**settings, "name": "my copy"})
    assert kind == "labels"
    copy.data = np.full_like(copy.data, 1)
    viewer.layers.remove("cells classes")
    run(dock, qtbot)
    assert (copy.data == 1).all()
    assert made(viewer, "cells")["classes"].name == "cells classes"


def test_a_source_that_becomes_a_stack_gets_layers_of_its_own_once(
    viewer: Any, dock: SegmentDock, qtbot: Any, picture: np.ndarray
) -> None:
    viewer.add_image(picture, name="cells")
    run(dock, qtbot)
    viewer.layers.remove("cells")
    viewer.add_image(np.stack([picture, picture]), name="cells")
    for _ in range(2):
        run(dock, qtbot)
        assert sum(layers.own(x) is not None for x in viewer.layers) == 10
    assert dock.results.layer("classes").ndim == 3


def test_a_renamed_image_stays_chosen(
    viewer: Any, dock: SegmentDock, picture: np.ndarray
) -> None:
    viewer.add_image(picture, name="a")
    layer = viewer.add_image(picture, name="b")
    layer.name = "bb"
    assert dock.images.currentText() == "bb"
    viewer.layers.selection.active = viewer.layers["a"]
    assert dock.images.currentText() == "a"


def test_closing_the_dock_stops_the_job(
    viewer: Any, dock: SegmentDock, qtbot: Any
) -> None:
    viewer.add_image(np.random.default_rng(0).random((900, 900)), name="big")
    dock.run_button.click()
    job = dock.job
    qtbot.waitUntil(lambda: dock._fraction > 0, timeout=30_000)
    viewer.window.remove_dock_widget(dock)
    qtbot.waitUntil(lambda: not job.is_running, timeout=10_000)
    assert job.cancelled


def test_a_raster_path_is_drawn_row_by_row(
    viewer: Any, dock: SegmentDock, qtbot: Any, picture: np.ndarray
) -> None:
    viewer.add_image(picture, name="cells")
    dock.policy.setCurrentIndex(dock.policy.findData("raster"))
    run(dock, qtbot)
    layer = made(viewer, "cells")["focus path"]
    rows = np.concatenate(layer.data)[:, 0]
    assert (np.diff(rows) >= 0).all()


def test_units_and_pixel_size_of_the_source_count(
    viewer: Any, dock: SegmentDock, qtbot: Any, picture: np.ndarray
) -> None:
    source = viewer.add_image(
        picture, name="cells", scale=(0.25, 0.25), units=("um", "um")
    )
    assert layers.pixel_size(source) == pytest.approx(0.25)
    run(dock, qtbot)
    for layer in made(viewer, "cells").values():
        assert layer.units == source.units
    note = layers.own(dock.results.layer("classes"))
    assert note["provenance"]["settings"]["pixel_size"] == pytest.approx(0.25)
    plain = viewer.add_image(picture, name="plain")
    assert layers.pixel_size(plain) is None


def test_a_second_run_shows_the_map_sharpen_and_then_what_was_chosen(
    viewer: Any, dock: SegmentDock, qtbot: Any
) -> None:
    viewer.add_image(np.random.default_rng(0).random((700, 700)), name="big")
    dock.budget.setValue(300)
    run(dock, qtbot)
    found = made(viewer, "big")
    assert found["instances"].visible
    assert not found["classes"].visible
    dock.budget.setValue(0)
    dock.run_button.click()
    qtbot.waitUntil(lambda: found["classes"].visible, timeout=20_000)
    assert not found["instances"].visible
    dock.cancel_button.click()
    finish(dock, qtbot)
    assert found["instances"].visible
    assert not found["classes"].visible


def test_results_are_not_offered_as_images(
    viewer: Any, dock: SegmentDock, qtbot: Any, picture: np.ndarray
) -> None:
    viewer.add_image(picture, name="cells")
    run(dock, qtbot)
    assert [dock.images.itemText(i) for i in range(dock.images.count())] == ["cells"]


# -- the model dock ----------------------------------------------------------------


def test_models_are_listed_and_described(
    viewer: Any, shared: Session, qtbot: Any
) -> None:
    dock = ModelDock(viewer, shared=shared)
    qtbot.addWidget(dock)
    assert dock.models.currentText() == "tiny · S0"
    for fact in ("background, nucleus", "12 px", "d = 32", "nothing"):
        assert fact in dock.facts.text()
    assert dock.devices.itemText(0) == "auto (cpu)"


def test_a_model_loaded_from_a_file_is_used_by_all_docks(
    viewer: Any, dock: SegmentDock, shared: Session, qtbot: Any, tmp_path: Path
) -> None:
    from dataclasses import replace

    chooser = ModelDock(viewer, shared=shared)
    qtbot.addWidget(chooser)
    mine = tmp_path / "mine.safetensors"
    replace(tiny_model(), name="mine").save(mine)
    chooser.load_file(mine)
    qtbot.waitUntil(lambda: shared.chosen.name == "mine", timeout=10_000)
    assert chooser.models.currentText() == "mine · S0"
    assert dock.picker.currentText() == "mine · S0"
    dock.picker.setCurrentIndex(0)
    assert chooser.models.currentText() == "tiny · S0"


def test_a_bad_model_file_says_so_and_changes_nothing(
    viewer: Any, shared: Session, qtbot: Any, tmp_path: Path
) -> None:
    dock = ModelDock(viewer, shared=shared)
    qtbot.addWidget(dock)
    bad = tmp_path / "bad.safetensors"
    bad.write_bytes(b"not a model")
    dock.load_file(bad)
    qtbot.waitUntil(lambda: "truncated" in dock.message.text(), timeout=10_000)
    assert shared.chosen.name == "tiny"
    assert dock.models.count() == 1


def test_a_model_whose_file_is_gone_is_still_described(
    viewer: Any, shared: Session, qtbot: Any
) -> None:
    shared.chosen.path.unlink()
    dock = ModelDock(viewer, shared=shared)
    qtbot.addWidget(dock)
    assert "no longer there" in dock.facts.text()


def test_the_device_can_be_chosen(viewer: Any, shared: Session, qtbot: Any) -> None:
    dock = ModelDock(viewer, shared=shared)
    qtbot.addWidget(dock)
    dock.devices.setCurrentIndex(dock.devices.findData("cpu"))
    assert shared.device == "cpu"


def test_the_dock_tells_how_it_computes_and_what_was_skipped(
    viewer: Any, shared: Session, qtbot: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from napari_fovea import device as devices
    from napari_fovea.device import Backend, choosing, trial

    monkeypatch.setattr(choosing, "available", lambda: ("cuda:0", "cpu"))
    monkeypatch.setattr(trial, "_faults", {"cuda:0": "computes wrong numbers"})
    shared.devices = ("cuda:0", "cpu")
    dock = ModelDock(viewer, shared=shared)
    qtbot.addWidget(dock)
    told = devices.describe(torch.device("cpu"))
    qtbot.waitUntil(lambda: told in dock.computing.text(), timeout=20_000)
    # What is chosen is a retina, which is exact unless it is told otherwise.
    assert "float32" in dock.computing.text()
    assert "cuda:0 is skipped: it computes wrong numbers" in dock.computing.text()
    dock.precision.setCurrentText("bfloat16")
    dock.memory.setValue(1.5)
    dock.compiled.setChecked(True)
    assert shared.backend() == Backend("auto", "bfloat16", 3 << 29, compiled=True)
    qtbot.waitUntil(lambda: "up to 1.5 GiB" in dock.computing.text(), timeout=20_000)
    assert "bfloat16" in dock.computing.text()
    dock.devices.setCurrentIndex(dock.devices.findData("cuda:0"))
    qtbot.waitUntil(lambda: "choose another" in dock.computing.text(), timeout=20_000)


def test_docks_begin_as_the_preferences_say_and_follow_them(
    make_napari_viewer_proxy: Any, qtbot: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from napari.settings import get_plugin_settings

    import napari_fovea.widgets.session as rooms

    monkeypatch.setattr(rooms, "_session", None)
    viewer = make_napari_viewer_proxy()
    told = get_plugin_settings("napari-fovea").computing
    told.precision, told.memory = "float32", 2.0
    told.device = "cuda:7"
    _, dock = viewer.window.add_plugin_dock_widget("napari-fovea", "Model")
    shared = dock.session
    assert (shared.device, shared.precision, shared.memory) == ("cuda:7", "float32", 2)
    assert (dock.precision.currentText(), dock.memory.value()) == ("float32", 2)
    qtbot.waitUntil(
        lambda: "no device 'cuda:7'" in dock.computing.text(), timeout=20_000
    )
    assert dock.devices.currentText() == "cuda:7 (not here)"
    told.device = "cpu"
    qtbot.waitUntil(
        lambda: "float32 · up to 2.0" in dock.computing.text(), timeout=20_000
    )
    assert dock.devices.currentData() == "cpu"
    with pytest.raises(ValueError, match="float8"):
        told.precision = "float8"
    dock.precision.setCurrentText("auto")
    assert told.precision == "float32", "what is chosen in the dock is for now"
    told.memory = 0.256
    assert shared.memory == 0.256, "the dock shows it rounded, and leaves it"
    assert dock.memory.text() == "0.26 GiB"
    assert shared.precision == "auto", "other preferences do not touch it"


def test_docks_of_a_window_that_was_closed_are_left_in_peace(
    make_napari_viewer_proxy: Any, shared: Session, qtbot: Any
) -> None:
    viewer = make_napari_viewer_proxy()
    dock = SegmentDock(viewer, shared=shared)
    dock.deleteLater()
    qtbot.waitUntil(lambda: not isalive(dock))
    shared.use(memory=2.0)
    shared.choose(None)


def test_docks_open_from_the_menu_with_the_models_that_ship(
    make_napari_viewer_proxy: Any, qtbot: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import napari_fovea.widgets.session as rooms

    monkeypatch.setattr(rooms, "_session", None)
    viewer = make_napari_viewer_proxy(show=True)
    _, model = viewer.window.add_plugin_dock_widget("napari-fovea", "Model")
    _, segment = viewer.window.add_plugin_dock_widget("napari-fovea", "Segment")
    qtbot.waitUntil(lambda: model.session.chosen is not None, timeout=20_000)
    assert model.models.currentText().startswith(DEFAULT)
    assert segment.session is model.session
    viewer.open_sample("napari-fovea", "cell")
    viewer.open_sample("napari-fovea", "synthetic")
    viewer.layers.selection.active = viewer.layers["nuclei"]
    assert segment.images.currentText() == "nuclei"
    run(segment, qtbot)
    assert segment.images.currentText() == "nuclei", "it stays what it was"
    truth = viewer.layers["nuclei truth"].data > 0
    mask = made(viewer, "nuclei")["classes"].data > 0
    assert 2 * (mask & truth).sum() / (mask.sum() + truth.sum()) > 0.85


# -- jobs ------------------------------------------------------------------------------


def test_a_job_reports_runtime_errors(qtbot: Any) -> None:
    def out_of_memory() -> None:
        raise RuntimeError("out of memory")

    job = Job(call(out_of_memory))
    with (
        qtbot.waitSignal(job.signals.finished, timeout=5000),
        qtbot.waitSignal(job.signals.errored) as caught,
    ):
        job.start()
    assert "out of memory" in str(caught.args[0])


def test_a_cancelled_job_returns_and_closes_its_generator(qtbot: Any) -> None:
    closed = []

    def make(cancelled: Any) -> Any:
        try:
            while not cancelled():
                time.sleep(0.002)
                yield "event"
            return "partial"
        finally:
            closed.append(True)

    job = Job(make)
    with qtbot.waitSignal(job.signals.yielded, timeout=5000):
        job.start()
    with qtbot.waitSignal(job.signals.returned, timeout=5000) as result:
        job.cancel()
    assert result.args == ["partial"]
    assert closed == [True]


# -- jobs ----------------------------------------------------------------------------


def test_a_job_outlives_the_window_in_peace() -> None:
    sip = pytest.importorskip("PyQt6.sip")
    steps = []

    def make(cancelled: Any) -> Any:
        sip.delete(job.signals)  # as when napari is closed
        for i in range(3):
            steps.append(i)
            yield i

    job = Job(make)
    job.run()
    assert steps == [0]


def test_errors_of_a_job_are_told() -> None:
    told: list[Exception] = []

    def make(cancelled: Any) -> Any:
        yield 1
        raise RuntimeError("no luck")

    job = Job(make)
    job.errored.connect(told.append)
    job.run()
    assert [str(error) for error in told] == ["no luck"]
