"""The Attention dock in a real viewer: ticks, layers, comparisons, questions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from conftest import tiny_model
from napari_fovea import complete, segment
from napari_fovea.inference import attends, deciding, explain, means_of_instances
from napari_fovea.models import Entry, Model
from napari_fovea.models.checkpoint import read_header
from napari_fovea.widgets import layers
from napari_fovea.widgets.attention import AttentionDock
from napari_fovea.widgets.attention_form import BESIDE, BLINK, OFF
from napari_fovea.widgets.focus_path import FocusPathDock
from napari_fovea.widgets.segment import SegmentDock
from napari_fovea.widgets.session import Session
from small_networks import tiny
from test_focus_path_dock import click

if TYPE_CHECKING:
    from pathlib import Path

NETWORKS = ("focusnet", "r2-attention-unet", "focusnet-plus", "mask-rcnn", "unet")


@pytest.fixture
def models() -> dict[str, Model]:
    made = {}
    for name in NETWORKS:
        torch.manual_seed(0)
        network = tiny(name, classes=2).eval().requires_grad_(False)
        made[name] = Model(name, network, ("background", "nucleus"), (0, 1))
    return made | {"retina": tiny_model()}


@pytest.fixture
def shared(models: dict[str, Model], tmp_path: Path) -> Session:
    session = Session()
    session.devices = ("cpu",)
    entries = []
    for name, model in models.items():
        path = tmp_path / f"{name}.safetensors"
        model.save(path)
        entries.append(Entry(path, read_header(path)))
    session.offer(tuple(entries))
    return session


@pytest.fixture
def viewer(make_napari_viewer_proxy: Any) -> Any:
    return make_napari_viewer_proxy(show=True)


@pytest.fixture
def dock(viewer: Any, shared: Session, qtbot: Any) -> AttentionDock:
    widget = AttentionDock(viewer, shared=shared)
    viewer.window.add_dock_widget(widget, name="Attention")
    return widget


def choose(dock: AttentionDock, qtbot: Any, name: str) -> None:
    stem = f"{name}.safetensors"
    entry = next(e for e in dock.session.entries if e.path.name == stem)
    dock.session.choose(entry)
    qtbot.waitUntil(lambda: dock.offers(entry), timeout=20_000)


def tick(dock: AttentionDock, qtbot: Any, *names: str) -> None:
    for name in names:
        dock.form.tree.tick(name, True)
    qtbot.waitUntil(
        lambda: dock.job is None and all(n in dock.maps for n in names),
        timeout=60_000,
    )


def names_of(model: Model) -> list[str]:
    return [a.name for a in attends(model)]


def truth(image: np.ndarray, model: Model, *names: str) -> dict[str, Any]:
    run = segment(image, model, device="cpu", attention=names)
    return {a.name: a for a in complete(run).attention}


@pytest.mark.parametrize(
    "name", ["focusnet", "r2-attention-unet", "focusnet-plus", "mask-rcnn", "retina"]
)
def test_a_tick_shows_what_the_network_computed(
    viewer: Any,
    dock: AttentionDock,
    qtbot: Any,
    models: dict[str, Model],
    picture: np.ndarray,
    name: str,
) -> None:
    source = viewer.add_image(
        picture, name="cells", scale=(0.5, 0.25), translate=(7, -3), rotate=30
    )
    choose(dock, qtbot, name)
    first, last = names_of(models[name])[0], names_of(models[name])[-1]
    assert set(dock.form.tree.names) == set(names_of(models[name]))
    tick(dock, qtbot, first, last)
    expected = truth(picture, models[name], first, last)
    for key in (first, last):
        shown = viewer.layers[f"cells {key}"]
        one = expected[key]
        np.testing.assert_allclose(shown.data, one.array, atol=1e-4)
        for corner in ((0, 0), (3, 2)):
            place = np.array(one.offset) + np.array(corner) * one.scale
            np.testing.assert_allclose(
                shown.data_to_world(corner), source.data_to_world(place), atol=1e-6
            )
        assert shown.visible
    # napari tells the values of what is selected under the cursor.
    selected = {x.name for x in viewer.layers.selection}
    assert selected == {f"cells {first}", f"cells {last}"}
    dock.form.tree.tick(first, False)
    assert not viewer.layers[f"cells {first}"].visible
    assert viewer.layers[f"cells {last}"].visible


def test_a_known_map_is_not_computed_again(
    viewer: Any, dock: AttentionDock, qtbot: Any, picture: np.ndarray
) -> None:
    viewer.add_image(picture, name="cells")
    choose(dock, qtbot, "focusnet")
    name = dock.form.tree.names[0]
    tick(dock, qtbot, name)
    kept = dock.maps[name]
    layer = viewer.layers[f"cells {name}"]
    dock.form.tree.tick(name, False)
    dock.form.tree.tick(name, True)
    qtbot.wait(600)  # longer than a tick waits before it starts a run
    assert dock.job is None
    assert dock.maps[name] is kept
    assert layer.visible
    dock.form.look_button.click()
    qtbot.waitUntil(lambda: dock.job is None and name in dock.maps, timeout=60_000)
    assert dock.maps[name] is not kept, "Look runs the model anew"
    assert [x.name for x in viewer.layers].count(f"cells {name}") == 1


def test_single_channels_can_be_opened(
    viewer: Any,
    dock: AttentionDock,
    qtbot: Any,
    models: dict[str, Model],
    picture: np.ndarray,
) -> None:
    viewer.add_image(picture, name="cells")
    choose(dock, qtbot, "focusnet")
    one = f"{dock.form.tree.names[0]} [1]"
    assert one not in dock.form.tree.names
    tick(dock, qtbot, one)
    assert one in dock.form.tree.names
    expected = truth(picture, models["focusnet"], one)[one]
    np.testing.assert_allclose(
        viewer.layers[f"cells {one}"].data, expected.array, atol=1e-5
    )


def test_a_model_without_attention_says_what_it_has(
    viewer: Any, dock: AttentionDock, qtbot: Any, picture: np.ndarray
) -> None:
    viewer.add_image(picture, name="cells")
    choose(dock, qtbot, "unet")
    assert dock.form.tree.names == ()
    assert "no attention" in dock.form.status.text()
    assert "uncertainty" in dock.form.status.text()
    assert not dock.form.look_button.isEnabled()
    choose(dock, qtbot, "focusnet")
    assert dock.form.tree.names


def test_opacity_holds_for_all_maps(
    viewer: Any, dock: AttentionDock, qtbot: Any, picture: np.ndarray
) -> None:
    viewer.add_image(picture, name="cells")
    choose(dock, qtbot, "r2-attention-unet")
    names = dock.form.tree.names[:2]
    tick(dock, qtbot, *names)
    dock.form.opacity.setValue(25)
    assert {viewer.layers[f"cells {n}"].opacity for n in names} == {0.25}


def test_two_maps_can_be_compared(
    viewer: Any, dock: AttentionDock, qtbot: Any, picture: np.ndarray
) -> None:
    source = viewer.add_image(picture, name="cells", scale=(2, 3))
    choose(dock, qtbot, "retina")
    one, two = dock.form.tree.names[:2]
    tick(dock, qtbot, one, two)
    first, second = (viewer.layers[f"cells {n}"] for n in (one, two))
    home = tuple(viewer.scene.camera.center)
    dock.form.compare.setCurrentText(BESIDE)
    copy = viewer.layers["cells again"]
    # The second lies on a copy of the image, right of the first, pixel on pixel.
    np.testing.assert_allclose(
        first.data_to_world((5, 6)), source.data_to_world((5, 6))
    )
    np.testing.assert_allclose(second.data_to_world((5, 6)), copy.data_to_world((5, 6)))
    away = np.subtract(copy.data_to_world((0, 0)), source.data_to_world((0, 0)))
    assert away[0] == pytest.approx(0)
    assert away[1] > 3 * picture.shape[1]
    assert viewer.layers.index(copy) < viewer.layers.index(second)
    dock.form.compare.setCurrentText(BLINK)
    assert not copy.visible
    np.testing.assert_allclose(
        second.data_to_world((5, 6)), source.data_to_world((5, 6))
    )
    assert first.visible != second.visible
    before = first.visible
    qtbot.waitUntil(lambda: first.visible != before, timeout=5_000)
    assert first.visible != second.visible
    dock.form.compare.setCurrentText(OFF)
    assert first.visible
    assert second.visible
    assert tuple(viewer.scene.camera.center) == home


def segmented(viewer: Any, shared: Session, qtbot: Any) -> Any:
    segmenting = SegmentDock(viewer, shared=shared)
    viewer.window.add_dock_widget(segmenting, name="Segment")
    segmenting.run_button.click()
    qtbot.waitUntil(
        lambda: segmenting.job is None and segmenting.results.idle, timeout=60_000
    )
    return segmenting.results.layer("instances")


def test_objects_are_measured_into_their_features(
    viewer: Any, dock: AttentionDock, shared: Session, qtbot: Any, picture: np.ndarray
) -> None:
    viewer.add_image(picture, name="cells")
    choose(dock, qtbot, "retina")
    tick(dock, qtbot, "overlap")
    dock.form.measure_button.click()
    assert "segment the image first" in dock.form.status.text()
    instances = segmented(viewer, shared, qtbot)
    dock.form.measure_button.click()
    table = instances.features
    means = means_of_instances(dock.maps["overlap"], instances.data)
    assert table["index"].tolist() == list(range(len(means)))
    np.testing.assert_allclose(table["attention overlap"][1:], means[1:])
    # A second map is a second column, and the first stays.
    dock.form.tree.tick("overlap", False)
    tick(dock, qtbot, "entropy")
    dock.form.measure_button.click()
    assert {"attention overlap", "attention entropy"} <= set(instances.features)
    np.testing.assert_allclose(instances.features["attention overlap"][1:], means[1:])


def test_a_retina_says_which_looks_decided(
    viewer: Any, dock: AttentionDock, shared: Session, qtbot: Any, picture: np.ndarray
) -> None:
    source = viewer.add_image(picture, name="cells", scale=(2, 3))
    choose(dock, qtbot, "retina")
    tick(dock, qtbot, "overlap")
    dock.form.ask.setChecked(True)
    click(viewer, source.data_to_world((15, 20)))
    qtbot.waitUntil(lambda: dock.asking.job is None, timeout=60_000)
    answer = deciding(dock.path, (15, 20), most=60)
    assert answer.name in dock.form.status.text()
    best = int(np.argsort(-answer.shares, kind="stable")[0])
    top = dock.form.answers.topLevelItem(0)
    assert top.text(0) == f"fixation {best + 1}"
    assert top.text(1) == f"{answer.shares[best]:.1%}"
    shown = viewer.layers["cells cells that decided"]
    assert len(shown.data) == len(answer.looks)
    for corners, box in zip(shown.data, answer.looks["box"], strict=True):
        np.testing.assert_allclose(corners[0], box[:2])
        np.testing.assert_allclose(corners[2], box[2:])
        np.testing.assert_allclose(
            shown.data_to_world(corners[0]), source.data_to_world(box[:2]), atol=1e-6
        )
    # A player of the same path goes to the fixation of a row.
    player = FocusPathDock(viewer, shared=shared)
    viewer.window.add_dock_widget(player, name="Focus path")
    holder = viewer.add_shapes(ndim=2, name="result")
    holder.metadata = {layers.KEY: {"source": "cells", "path": dock.path}}
    assert player.path is not None
    dock.form.answers.itemClicked.emit(top, 0)
    assert player.player.step == best
    dock.form.ask.setChecked(False)
    assert not shown.visible
    assert not dock.form.answers.isVisibleTo(dock)
    qtbot.waitUntil(lambda: player.maps.idle, timeout=20_000)


def test_a_dense_network_says_what_speaks_for_an_object(
    viewer: Any,
    dock: AttentionDock,
    qtbot: Any,
    models: dict[str, Model],
    picture: np.ndarray,
) -> None:
    source = viewer.add_image(picture, name="cells", scale=(2, 3))
    choose(dock, qtbot, "r2-attention-unet")
    dock.form.ask.setChecked(True)
    click(viewer, source.data_to_world((40, 60)))
    qtbot.waitUntil(lambda: dock.asking.job is None, timeout=60_000)
    expected = explain(picture, models["r2-attention-unet"], region=(40, 60))
    shown = viewer.layers["cells what decided"]
    np.testing.assert_allclose(
        shown.data, expected.saliency.array, rtol=1e-2, atol=1e-2
    )
    np.testing.assert_allclose(
        shown.data_to_world((0, 0)),
        source.data_to_world(expected.saliency.offset),
        atol=1e-6,
    )
    rows = [dock.form.answers.topLevelItem(i) for i in range(len(expected.influence))]
    assert [r.text(0) for r in rows] == [one.name for one in expected.influence]
    assert [r.text(1) for r in rows] == [f"{o.share:.0%}" for o in expected.influence]
    assert expected.target.name in dock.form.status.text()
    click(viewer, source.data_to_world((400, 60)))
    assert "outside" in dock.form.status.text()


def test_it_follows_the_plane_in_view(
    viewer: Any,
    dock: AttentionDock,
    qtbot: Any,
    models: dict[str, Model],
    picture: np.ndarray,
) -> None:
    stack = np.stack([picture, picture[::-1], picture[:, ::-1]])
    viewer.add_image(stack, name="cells", scale=(5, 2, 1))
    viewer.dims.set_current_step(0, 0)
    choose(dock, qtbot, "r2-attention-unet")
    name = dock.form.tree.names[0]
    for plane in (0, 2):
        viewer.dims.set_current_step(0, plane)
        tick(dock, qtbot, name)
        expected = truth(stack[plane], models["r2-attention-unet"], name)[name]
        shown = viewer.layers[f"cells {name}"]
        assert shown.ndim == 2
        np.testing.assert_allclose(shown.data, expected.array, atol=1e-4)


def test_colour_images_and_parts_in_view(
    viewer: Any,
    dock: AttentionDock,
    qtbot: Any,
    models: dict[str, Model],
    picture: np.ndarray,
) -> None:
    colours = np.stack([picture, picture // 2, 255 - picture], axis=-1)
    viewer.add_image(colours, name="cells", rgb=True)
    choose(dock, qtbot, "focusnet")
    name = dock.form.tree.names[0]
    tick(dock, qtbot, name)
    expected = truth(colours, models["focusnet"], name)[name]
    shown = viewer.layers[f"cells {name}"]
    np.testing.assert_allclose(shown.data, expected.array, atol=1e-4)
    assert shown.blending == "translucent"
    viewer.scene.camera.zoom *= 4
    qtbot.wait(100)
    dock.form.region.setCurrentText(layers.VIEW)
    qtbot.waitUntil(lambda: dock.job is None and name in dock.maps, timeout=60_000)
    assert shown.data.shape < picture.shape
    assert (shown.translate > 0).all()


def test_an_image_that_is_removed_is_let_go(
    viewer: Any, dock: AttentionDock, qtbot: Any, picture: np.ndarray
) -> None:
    viewer.add_image(picture, name="cells")
    choose(dock, qtbot, "focusnet")
    tick(dock, qtbot, dock.form.tree.names[0])
    viewer.layers.remove("cells")
    assert "'cells' was removed" in dock.form.status.text()
    assert dock.maps == {}
    assert not dock.form.look_button.isEnabled()


def test_a_run_can_be_cancelled(
    viewer: Any, dock: AttentionDock, qtbot: Any, picture: np.ndarray
) -> None:
    viewer.add_image(np.tile(picture, (8, 8)), name="cells")
    choose(dock, qtbot, "retina")
    dock.form.tree.tick("overlap", True)
    qtbot.waitUntil(lambda: dock.job is not None, timeout=20_000)
    dock.form.cancel_button.click()
    qtbot.waitUntil(lambda: dock.job is None, timeout=60_000)
    assert "Stopped" in dock.form.status.text()
    assert dock.maps == {}
    assert dock.form.tree.shown == ()


def test_what_goes_wrong_is_said(viewer: Any, dock: AttentionDock, qtbot: Any) -> None:
    viewer.add_image(np.full((40, 40), np.nan), name="cells")
    choose(dock, qtbot, "focusnet")
    dock.form.tree.tick(dock.form.tree.names[0], True)
    qtbot.waitUntil(lambda: dock.form.status.text().startswith("⚠"), timeout=20_000)
    qtbot.waitUntil(lambda: dock.job is None, timeout=20_000)
    assert [x.name for x in viewer.layers] == ["cells"]


def test_closing_the_dock_gives_everything_back(
    viewer: Any, dock: AttentionDock, shared: Session, qtbot: Any, picture: np.ndarray
) -> None:
    viewer.add_image(picture, name="cells")
    before = len(viewer.mouse_drag_callbacks)
    viewer.window.remove_dock_widget(dock)
    assert len(viewer.mouse_drag_callbacks) == before - 1
    shared.choose(shared.entries[1])
    viewer.layers.clear()


def test_the_dock_is_low_enough_for_a_laptop(dock: AttentionDock) -> None:
    dock.form.answer(["a"], [])
    assert dock.sizeHint().height() < 900
    assert dock.minimumSizeHint().height() < 900
