"""Models of different systems that answer together."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
import zarr

from large import EXACT, segment_large
from learning import made
from napari_fovea import complete, segment
from napari_fovea.errors import (
    AttentionError,
    CheckpointError,
    ModelError,
    TrainingError,
)
from napari_fovea.inference import Preview, attends, explain
from napari_fovea.inference.instances import depth_inside, separate
from napari_fovea.inference.joint import _Votes
from napari_fovea.inference.reading import Seen
from napari_fovea.models import Model, shipped
from napari_fovea.models.checkpoint import save
from napari_fovea.training.finetune import fine_tune
from napari_fovea.training.painted import Annotation

if TYPE_CHECKING:
    from pathlib import Path

NAMES = ("unet", "focusnet", "retina-vgg", "retina-shared", "mask-rcnn")


def of_size(name: str, diameter: float | None = 12.0) -> Model:
    model = made(name, outputs=2 if name == "mask-rcnn" else 3)
    if name == "mask-rcnn":
        # Unsure of everything: without this, nothing would be found.
        for parameter in model.network.parameters():
            parameter.data.mul_(1.5)
    return replace(model, object_diameter=diameter)


def entropy(p: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):
        return -np.where(p > 0, p * np.log(p), 0).sum(0)


@pytest.fixture
def members() -> list[Model]:
    return [of_size(name) for name in NAMES]


def test_the_map_is_the_mean_and_the_uncertainty_what_they_disagree_about(
    members: list[Model], picture: np.ndarray
) -> None:
    alone = [complete(segment(picture, m, device=EXACT)) for m in members]
    together = complete(segment(picture, Model.ensemble(members), device=EXACT))
    each = np.stack([a.probabilities for a in alone])
    mean = each.mean(0)
    np.testing.assert_allclose(together.probabilities, mean, atol=1e-5)
    apart = entropy(mean) - np.mean([entropy(p) for p in each], 0)
    np.testing.assert_allclose(together.uncertainty, apart, atol=1e-5)
    assert apart.max() > 0.01
    assert (together.labels == (mean[1] > mean[0])).mean() > 0.999
    assert ((together.instances > 0) <= (together.labels > 0)).all()
    assert together.path is None
    assert together.provenance["system"] == "ensemble"
    told = together.provenance["settings"]["members"]
    assert [m["model"] for m in told] == list(NAMES)


def test_what_members_were_trained_on_is_told_if_it_is_the_same() -> None:
    one, two, three = (
        replace(of_size("unet"), name=data, provenance={"data": data} if data else {})
        for data in ("nuclei", "nuclei", "")
    )
    two, three = (replace(m, network=copy.deepcopy(m.network)) for m in (two, three))
    four = replace(three, network=copy.deepcopy(one.network))
    alike = Model.ensemble([one, two]).provenance
    assert alike == {"members": ["nuclei", "nuclei"], "data": "nuclei"}
    assert "data" not in Model.ensemble([one, three]).provenance
    assert "data" not in Model.ensemble([three, four]).provenance


def test_those_who_agree_are_not_uncertain(picture: np.ndarray) -> None:
    one = of_size("unet")
    alone = complete(segment(picture, one, device=EXACT))
    twin = replace(one, name="the same", network=copy.deepcopy(one.network))
    pair = Model.ensemble([one, twin])
    both = complete(segment(picture, pair, device=EXACT))
    assert alone.uncertainty.max() > 0.1 > 1e-4 > both.uncertainty.max()
    np.testing.assert_allclose(both.probabilities, alone.probabilities, atol=1e-5)
    np.testing.assert_array_equal(both.instances, alone.instances)


def test_each_sees_the_image_at_its_own_scale(picture: np.ndarray) -> None:
    small, large = of_size("unet", 6.0), of_size("focusnet", 24.0)
    pair = Model.ensemble([small, large])
    assert pair.object_diameter == 24
    found = complete(segment(picture, pair, diameter=12, device=EXACT))
    alone = [
        complete(segment(picture, m, diameter=12, device=EXACT)) for m in (small, large)
    ]
    mean = np.mean([a.probabilities for a in alone], 0)
    # The small one sees what has been resized twice: nearly the same.
    assert np.abs(found.probabilities - mean).mean() < 0.02


def seen_of(depth: np.ndarray, **parts: Any) -> Seen:
    """What a member tells who is sure of one depth everywhere in the foreground."""
    core = torch.from_numpy(depth).float()
    there = (core > 0).float()
    outputs = torch.stack([1 - there, there - core, core])
    return Seen(outputs, torch.ones(depth.shape), **parts)


def test_depths_are_the_mean_of_all_who_tell_them() -> None:
    one, other = of_size("unet", 10.0), of_size("retina-vgg", 20.0)
    one, other = (replace(m, depths=(0.0, 0.0, 1.0)) for m in (one, other))
    ensemble = Model.ensemble([one, other])
    assert ensemble.outputs == (0, 1, 1)
    y, x = np.mgrid[:40, :60]
    near = np.minimum(np.hypot(y - 20, x - 18), np.hypot(y - 20, x - 40))
    hills = np.where(near < 11.5, 1 - near / 12, 0)  # two discs that touch
    flat = np.where(hills > 0, 0.4, 0.0)
    votes = _Votes(ensemble, (40, 60))
    votes.add(one, seen_of(flat[::2, ::2]))  # sees it half as large
    votes.add(other, seen_of(hills))
    seen = votes.seen()
    depth = ensemble.depth(seen.outputs).numpy()
    inside = near < 9  # where resizing mixes nothing in
    np.testing.assert_allclose(depth[inside], (hills + flat)[inside] / 2, atol=0.03)
    objects = separate((hills > 0).astype(int), depth=depth, diameter=22)
    assert objects.max() == 2
    assert objects[20, 18] != objects[20, 40]
    # What was seen half as large lies where it lay: sides agree to half a pixel.
    foreground = ensemble.class_probabilities(seen.outputs)[1].numpy()
    columns = np.flatnonzero(foreground[20] > 0.5)
    true = np.flatnonzero(hills[20] > 0)
    assert abs(columns.min() - true.min()) <= 1
    assert abs(columns.max() - true.max()) <= 1


def test_a_detector_tells_depths_by_the_shapes_of_its_objects() -> None:
    objects = np.zeros((20, 20), np.int32)
    objects[2:9, 2:9], objects[9:18, 2:9] = 1, 5
    depth = depth_inside(objects)
    assert depth[5, 5] == depth[13, 5] == 1
    assert depth[8, 5] < 0.2
    assert not depth[objects == 0].any()
    assert depth_inside(np.ones((4, 4), int)).all()
    detector = of_size("mask-rcnn")
    ensemble = Model.ensemble([detector, of_size("unet")])
    votes = _Votes(ensemble, (20, 20))
    inside = torch.from_numpy(objects > 0).float() * 0.8
    outputs = torch.stack([1 - inside, inside])
    labels = (objects > 0).astype(np.uint8)
    votes.add(
        detector, Seen(outputs, torch.ones(20, 20), labels=labels, instances=objects)
    )
    told = ensemble.depth(votes.seen().outputs).numpy()
    np.testing.assert_allclose(told, 0.8 * depth, atol=1e-5)


def test_those_who_did_not_look_have_no_say() -> None:
    one, other = of_size("unet"), of_size("retina-vgg")
    votes = _Votes(Model.ensemble([one, other]), (8, 8))
    looked = torch.zeros(8, 8)
    looked[:, :4] = 1
    foreground = torch.tensor([0.1, 0.5, 0.4])[:, None, None].expand(3, 8, 8)
    background = torch.tensor([0.9, 0.1, 0.0])[:, None, None].expand(3, 8, 8)
    votes.add(one, Seen(foreground, looked))
    votes.add(other, Seen(background, torch.ones(8, 8)))
    seen = votes.seen()
    assert torch.allclose(seen.outputs[0, :, :4], torch.tensor(0.5))
    assert torch.allclose(seen.outputs[0, :, 4:], torch.tensor(0.9))
    assert (seen.uncertainty[:, :4] > 0.3).all()
    assert (seen.uncertainty[:, 4:] < 1e-6).all()
    nobody = _Votes(Model.ensemble([one, other]), (8, 8)).seen()
    assert not nobody.weights.any()
    assert not nobody.uncertainty.any()


def test_members_that_tell_no_depths_make_an_ensemble_that_tells_none(
    picture: np.ndarray,
) -> None:
    pair = [replace(made(name), object_diameter=14.0) for name in ("unet", "focusnet")]
    ensemble = Model.ensemble(pair)
    assert ensemble.depths is None
    assert ensemble.outputs == (0, 1)
    found = complete(segment(picture, ensemble, device=EXACT))
    assert found.probabilities.shape == (2, *picture.shape)


def test_an_ensemble_of_more_classes(picture: np.ndarray) -> None:
    def three(name: str) -> Model:
        return replace(
            made(name, outputs=3),
            classes=("a", "b", "c"),
            outputs=(0, 1, 2),
            depths=None,
        )

    each = [three("unet"), three("retina-vgg")]
    found = complete(segment(picture, Model.ensemble(each), device=EXACT))
    alone = [complete(segment(picture, m, device=EXACT)).probabilities for m in each]
    np.testing.assert_allclose(found.probabilities, np.mean(alone, 0), atol=1e-5)


def test_it_is_saved_whole(
    members: list[Model], picture: np.ndarray, tmp_path: Path
) -> None:
    path = tmp_path / "all.safetensors"
    ensemble = Model.ensemble(members, name="all of them")
    ensemble.save(path)
    again = Model.load(path)
    assert (again.name, again.system) == ("all of them", "ensemble")
    assert [m.name for m in again.members] == list(NAMES)
    a, b = (
        complete(segment(picture, m, device=EXACT)).probabilities
        for m in (ensemble, again)
    )
    np.testing.assert_array_equal(a, b)


def test_a_file_may_take_weights_from_those_beside_it(
    picture: np.ndarray, tmp_path: Path
) -> None:
    pair = [of_size("unet"), of_size("retina-vgg")]
    parts = [f"{m.name}.safetensors" for m in pair]
    for member, part in zip(pair, parts, strict=True):
        member.save(tmp_path / part)
    path = tmp_path / "both.safetensors"
    ensemble = Model.ensemble(pair)
    save(ensemble, path, parts=parts)
    assert path.stat().st_size < 10_000
    a, b = (
        complete(segment(picture, m, device=EXACT)).probabilities
        for m in (ensemble, Model.load(path))
    )
    np.testing.assert_array_equal(a, b)
    (tmp_path / parts[0]).unlink()
    with pytest.raises(CheckpointError, match=r"unet\.safetensors is no file"):
        Model.load(path)


@pytest.mark.parametrize(
    "part", ["../unet.safetensors", "/etc/passwd", "unet.pt", "a/b.safetensors"]
)
def test_parts_lie_beside_the_file(part: str, tmp_path: Path) -> None:
    pair = [of_size("unet"), of_size("retina-vgg")]
    path = tmp_path / "both.safetensors"
    save(Model.ensemble(pair), path, parts=(part, "x.safetensors"))
    with pytest.raises(CheckpointError, match="files beside it"):
        Model.load(path)


def test_a_header_whose_members_do_not_fit_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "both.safetensors"
    Model.ensemble([of_size("unet"), of_size("retina-vgg")]).save(path)
    size = int.from_bytes(path.read_bytes()[:8], "little")
    head = json.loads(path.read_bytes()[8 : 8 + size])

    def written(**changes: object) -> Path:
        told = json.loads(head["__metadata__"]["napari_fovea"])
        told["config"]["members"][0] |= changes
        meta = head | {"__metadata__": {"napari_fovea": json.dumps(told)}}
        text = json.dumps(meta).encode()
        hostile = tmp_path / "hostile.safetensors"
        hostile.write_bytes(
            len(text).to_bytes(8, "little") + text + path.read_bytes()[8 + size :]
        )
        return hostile

    for changes in (
        {"network": "mixed-ensemble"},
        {"network": "none such"},
        {"network": "adapted", "settings": {"base": "mixed-ensemble", "settings": {}}},
        {"network": "ensemble", "settings": {"member": "mixed-ensemble"}},
        {"settings": {"channels": 1, "classes": 3}},
        {"outputs": [0, 1]},
        {"outputs": [0, 0, 0]},
        {"depths": [0.0, 2.0, 3.0]},
        {"object_diameter": -1.0},
        {"tile": 7},
    ):
        with pytest.raises(CheckpointError):
            Model.load(written(**changes))


def test_models_that_do_not_fit_together_are_refused() -> None:
    one = of_size("unet")
    other = made("focusnet", outputs=3, channels=1)
    renamed = replace(of_size("focusnet"), classes=("background", "cell"))
    for models, reason in (
        ([one], "expected 2 to 16"),
        ([one] * 17, "expected 2 to 16"),
        ([one, replace(one, name="again")], "the same network"),
        ([one, replace(of_size("focusnet"), pixel_size=0.5)], "pixel_size"),
        ([one, other], "channels"),
        ([one, renamed], "classes"),
        ([one, of_size("focusnet", None)], "size of its objects"),
        ([one, Model.ensemble([one, of_size("focusnet")])], "ensemble itself"),
    ):
        with pytest.raises(ModelError, match=reason):
            Model.ensemble(models)


def test_what_an_ensemble_cannot_do_is_told(
    picture: np.ndarray, strokes: np.ndarray
) -> None:
    pair = Model.ensemble([of_size("focusnet"), of_size("retina-vgg")])
    assert attends(pair) == ()
    with pytest.raises(ModelError, match="ensemble that moves no focus of its own"):
        complete(segment(picture, pair, budget=10))
    with pytest.raises(AttentionError, match="no attention to show"):
        complete(segment(picture, pair, attention="gate 1/1"))
    with pytest.raises(AttentionError, match="choose focusnet or retina-vgg"):
        explain(picture, pair, region=(15, 20))
    with pytest.raises(TrainingError, match="choose focusnet or retina-vgg"):
        complete(fine_tune([Annotation(picture, strokes)], pair))


def test_a_cancelled_ensemble_keeps_what_was_seen(
    members: list[Model], picture: np.ndarray
) -> None:
    looks = iter([False] * 1)
    found = complete(
        segment(
            picture,
            Model.ensemble(members),
            device=EXACT,
            cancelled=lambda: next(looks, True),
        )
    )
    assert found.provenance["cancelled"]
    first = complete(segment(picture, members[0], device=EXACT))
    seen = np.abs(found.probabilities - first.probabilities).max(0) < 1e-5
    assert seen.mean() > 0.5


def test_previews_are_means_too(members: list[Model], picture: np.ndarray) -> None:
    run = segment(
        picture, Model.ensemble(members[:3]), device=EXACT, preview_every=1e-9
    )
    fractions, previews = [], 0
    try:
        while True:
            event = next(run)
            if isinstance(event, Preview):
                previews += 1
            else:
                fractions.append(event.fraction)
    except StopIteration:
        pass
    assert previews >= 2
    assert fractions == sorted(fractions)


def test_a_large_image_is_segmented_as_a_small_one(tmp_path: Path) -> None:
    y, x = np.mgrid[:300, :330]
    image = (120 + 100 * np.sin(y / 9) * np.sin(x / 9)).astype(np.uint8)
    pair = Model.ensemble([of_size("unet", 12.0), of_size("r2-attention-unet", 18.0)])
    result = complete(
        segment_large(image, pair, output=tmp_path / "a.zarr", chunk=256, axes="YX")
    )
    labels = zarr.open(result.path)["labels/classes/0"][:]
    whole = complete(segment(image, pair, device=EXACT)).labels
    assert (labels == whole).mean() > 0.98


def test_the_one_that_ships_takes_its_weights_from_the_others() -> None:
    entry = next((e for e in shipped() if e.system == "ensemble"), None)
    if entry is None:
        pytest.skip("none ships")
    assert entry.path.stat().st_size < 50_000
    model = Model.load(entry.name)
    for member in model.members:
        alone = Model.load(member.name)
        own = alone.network.state_dict()
        for what in ("outputs", "depths", "object_diameter", "normalisation"):
            assert getattr(member, what) == getattr(alone, what)
        for key, value in member.network.state_dict().items():
            assert torch.equal(value, own[key])
