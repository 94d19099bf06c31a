"""Models that learn from strokes, and are taken only if they are better."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from skimage.measure import label

from conftest import tiny_model
from following import followed
from napari_fovea import complete, segment
from napari_fovea.errors import TrainingError
from napari_fovea.models import Model
from napari_fovea.networks import Adapted, AdaptedRetina
from napari_fovea.training import seeing
from napari_fovea.training.adapting import adapted, student
from napari_fovea.training.finetune import fine_tune
from napari_fovea.training.fit import fit
from napari_fovea.training.guard import balanced, strokes_of
from napari_fovea.training.learned import Tuned
from napari_fovea.training.painted import Annotation, Painted, read_painted
from napari_fovea.training.recipes import STROKES
from napari_fovea.training.samples import VOID, Sample, make_sample
from napari_fovea.training.strokes import (
    Lesson,
    class_logs,
    held_scores,
    sample_of,
    stroke_loss,
    stroke_task,
)
from napari_fovea.training.tuner import Tuner
from small_networks import DENSE, tiny

NUCLEI = ("background", "nucleus")
DISCS = ((15, 20), (40, 60), (55, 25))


def made(name: str = "unet", *, outputs: int = 2, **changes: Any) -> Model:
    torch.manual_seed(0)
    network = tiny(name, classes=outputs, **changes)
    belongs = (0, 1, 1) if outputs == 3 else tuple(range(outputs))
    return Model(name, network, NUCLEI, belongs, border=2 if outputs == 3 else None)


@pytest.fixture
def strokes(picture: np.ndarray) -> np.ndarray:
    labels = np.zeros(picture.shape, np.uint8)
    for y, x in DISCS:
        labels[y, x - 4 : x + 5] = 2
        labels[y + 3, x - 3 : x + 4] = 2
    for y in (3, 28, 66):
        labels[y, 32:50], labels[y, 75:88] = 1, 1
    return labels


@pytest.fixture
def one(picture: np.ndarray, strokes: np.ndarray) -> Annotation:
    return Annotation(picture, strokes)


def swapped(strokes: np.ndarray) -> np.ndarray:
    """Half of the strokes of each class painted with the other, without a pattern."""
    wrong, rng = strokes.copy(), np.random.default_rng(0)
    for c in (1, 2):
        pieces = label(strokes == c, connectivity=2)
        chosen = rng.permutation(np.arange(1, pieces.max() + 1))[::2]
        wrong[(pieces > 0) & np.isin(pieces, chosen)] = 3 - c
    return wrong


def short(monkeypatch: pytest.MonkeyPatch, **changes: Any) -> None:
    """Few, small steps, however fast the machine is."""
    small = {"side": 48, "views": 4, "batch_size": 2, "epochs": 3} | changes
    for name, recipe in STROKES.items():
        own = {k: v for k, v in small.items() if k != "side" or recipe.side}
        monkeypatch.setitem(STROKES, name, replace(recipe, **own))


def weights(model: Model) -> dict[str, torch.Tensor]:
    return network_weights(model.network)


def network_weights(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {k: v.clone() for k, v in network.state_dict().items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def instant(model: Model, *annotations: Annotation, **options: Any) -> Tuned:
    return followed(fine_tune(annotations, model, device="cpu", **options))[1]


def thorough(model: Model, *annotations: Annotation, **options: Any) -> Any:
    run = fine_tune(
        annotations, model, mode="thorough", device="cpu", **({"seconds": 60} | options)
    )
    return followed(run)


def right(model: Model, picture: np.ndarray) -> float:
    labels = complete(segment(picture, model, device="cpu")).labels
    return float(((labels > 0) == (picture > 120)).mean())


# -- instant -------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*DENSE, "ensemble", "retina-vgg"])
def test_a_wrong_model_is_better_in_an_instant(
    name: str, one: Annotation, picture: np.ndarray
) -> None:
    model = tiny_model() if name == "retina-vgg" else made(name)
    before = weights(model)
    events, tuned = followed(fine_tune([one], model, device="cpu", name="mine"))
    assert tuned.verdict.better, str(tuned.verdict)
    assert tuned.verdict.strokes == len(strokes_of(tuned.planes))
    assert tuned.model.name == "mine"
    assert (tuned.model.classes, tuned.model.outputs) == (model.classes, model.outputs)
    assert isinstance(tuned.model.network, Adapted | AdaptedRetina)
    assert tuned.model.system == model.system
    assert same(weights(model), before), "what it started from is left alone"
    # One shape of disc, seen by cells or by pixels.
    assert right(tuned.model, picture) > (0.9 if name == "retina-vgg" else 0.98)
    assert {e.phase for e in events} == {"looking", "fitting"}
    fractions = [e.fraction for e in events]
    assert fractions == sorted(fractions)
    assert 0 < fractions[0] <= fractions[-1] <= 1


@pytest.mark.parametrize("name", ["unet", "focusnet", "retina-vgg"])
def test_contradicting_strokes_are_refused(
    name: str, picture: np.ndarray, strokes: np.ndarray
) -> None:
    model = tiny_model() if name == "retina-vgg" else made(name)
    tuned = instant(model, Annotation(picture, swapped(strokes)))
    assert not tuned.verdict.better, str(tuned.verdict)


def test_the_same_strokes_give_the_same_model(one: Annotation) -> None:
    a, b = (instant(made(outputs=3), one) for _ in range(2))
    assert same(weights(a.model), weights(b.model))
    assert a.verdict == b.verdict


@pytest.mark.parametrize("name", ["unet", "retina-vgg"])
def test_other_classes_are_learned_from_nothing(
    name: str, picture: np.ndarray, strokes: np.ndarray
) -> None:
    model = tiny_model() if name == "retina-vgg" else made(name, outputs=3)
    more = strokes.copy()
    more[15:30, 16:18], more[55:70, 60:62] = 4, 5
    more[0, :9], more[69, :9] = 7, 7
    tuned = instant(model, Annotation(picture, more))
    assert tuned.model.classes == ("background", *(f"class {i}" for i in (2, 4, 5, 7)))
    assert tuned.model.outputs == (0, 1, 2, 3, 4)
    assert tuned.verdict.before == pytest.approx(0.2, abs=1e-6)
    assert tuned.verdict.strokes >= 8, "single strokes are not held out"
    found = complete(segment(picture, tuned.model, device="cpu"))
    assert found.probabilities.shape == (5, 70, 90)


def test_what_was_saved_goes_on(one: Annotation, tmp_path: Path) -> None:
    first = instant(made(outputs=3), one)
    first.model.save(tmp_path / "a.safetensors")
    loaded = Model.load(tmp_path / "a.safetensors")
    assert same(weights(loaded), weights(first.model))
    again = instant(loaded, one)
    assert type(again.model.network) is Adapted
    assert not isinstance(again.model.network.base, Adapted)
    assert again.verdict.before > 0.9
    assert again.model.provenance["started_from"]["fine_tuned"]["base"] == "unet"


def test_no_stroke_to_hold_out_is_no_reason_to_take_over(
    picture: np.ndarray,
) -> None:
    labels = np.zeros(picture.shape, np.uint8)
    labels[3, 3:9], labels[15, 18:23] = 1, 2
    for model in (made(), tiny_model()):
        tuned = instant(model, Annotation(picture, labels))
        assert tuned.verdict.strokes == 0
        assert not tuned.verdict.better
        assert "two strokes" in str(tuned.verdict)


@pytest.mark.parametrize(
    ("shape", "channels"), [((1, 2), 3), ((3, 3), 1), ((9, 40), 4), ((33, 17), 2)]
)
def test_strokes_of_single_pixels_in_small_planes(
    shape: tuple[int, int], channels: int
) -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 255, (*shape, channels)).astype(np.uint8)
    labels = np.zeros(shape, np.uint8)
    labels[0, 0], labels[-1, -1], labels[0, -1] = 1, 1, 2
    if shape[0] > 1:
        labels[-1, 0] = 2
    for model in (
        made(channels=channels),
        tiny_model(channels=channels),
        made("focusnet", channels=channels, outputs=3),
    ):
        tuned = instant(model, Annotation(image, labels, rgb=True))
        assert all(v.isfinite().all() for v in weights(tuned.model).values())
        found = complete(segment(image, tuned.model, rgb=True, device="cpu"))
        assert found.labels.shape == shape


def test_empty_planes_of_a_stack_are_learned_from(
    picture: np.ndarray, strokes: np.ndarray
) -> None:
    stack = np.stack([picture, np.zeros_like(picture)])
    labels = np.stack([strokes, np.zeros_like(strokes)])
    labels[1, 5:9, 5:50] = labels[1, 40, 5:50] = 1
    for model in (made(), tiny_model()):
        tuned = instant(model, Annotation(stack, labels))
        assert tuned.verdict.better, str(tuned.verdict)
        assert all(v.isfinite().all() for v in weights(tuned.model).values())


def test_complete_labels_are_learned_in_an_instant(picture: np.ndarray) -> None:
    whole = (picture > 120).astype(np.uint8)
    for labels, objects in ((whole, False), (label(whole), True)):
        tuned = instant(
            made(outputs=3),
            Annotation(picture, labels, unpainted=False, objects=objects),
        )
        assert tuned.verdict.better, str(tuned.verdict)
        assert tuned.model.provenance["fine_tuned"]["complete"] is True


def test_detectors_and_patches_cannot_learn_in_an_instant(one: Annotation) -> None:
    for name in ("mask-rcnn", "patch-center"):
        with pytest.raises(TrainingError, match=r"cannot be refitted|class of patches"):
            instant(made(name), one)


def test_there_are_two_modes(one: Annotation) -> None:
    with pytest.raises(TrainingError):
        followed(
            fine_tune([one], made(), mode="quick", device="cpu", cancelled=lambda: True)  # type: ignore[arg-type]
        )


def test_provenance_tells_what_was_learned_from(
    one: Annotation, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    short(monkeypatch, epochs=1)
    model = replace(made(outputs=3), provenance={"data": "first"})
    sample = make_sample(one.image, np.asarray(one.labels) > 1, channels=3, outputs=3)
    for tuned in (
        instant(model, one),
        thorough(model, one)[1],
        thorough(model, one, replay=[sample])[1],
    ):
        told = tuned.model.provenance
        assert json.loads(json.dumps(told)) is not None
        own = told["fine_tuned"]
        assert own["strokes"] == {"background": 6, "nucleus": 6}
        painted = np.asarray(one.labels)
        assert own["pixels"] == {
            "background": int((painted == 1).sum()),
            "nucleus": int((painted == 2).sum()),
        }
        assert (own["planes"], own["complete"]) == (1, False)
        assert own["settings"]["mode"] == tuned.mode
        assert own["held_out_strokes"] == tuned.verdict.strokes
        assert told["started_from"] == {"data": "first"}
        tuned.model.save(tmp_path / "m.safetensors")
        again = Model.load(tmp_path / "m.safetensors").provenance
        assert again == json.loads(json.dumps(told))


def test_what_a_user_has_is_never_changed(
    one: Annotation, monkeypatch: pytest.MonkeyPatch
) -> None:
    short(monkeypatch, epochs=1)
    image, labels = np.array(one.image), np.array(one.labels)
    image.flags.writeable = labels.flags.writeable = False
    frozen = Annotation(image, labels)
    for model in (made(), tiny_model()):
        instant(model, frozen)
        thorough(model, frozen)
    assert (image == one.image).all()
    assert (labels == one.labels).all()


# -- again and again -----------------------------------------------------------------


def follow(tuner: Tuner, annotation: Annotation) -> Tuned:
    painted = read_painted([annotation], tuner.trunk)
    return followed(tuner.instant(painted))[1]


@pytest.mark.parametrize("name", ["unet", "retina-vgg"])
def test_bad_strokes_after_good_ones_are_refused(
    name: str, picture: np.ndarray, strokes: np.ndarray
) -> None:
    model = tiny_model() if name == "retina-vgg" else made()
    tuner = Tuner(model, device="cpu")
    assert tuner.model is tuner.trunk is model
    good = follow(tuner, Annotation(picture, strokes))
    assert good.verdict.better
    tuner.accept(good)
    assert tuner.model is good.model
    assert tuner.trunk is model
    bad = strokes.copy()
    for y, x in DISCS:
        bad[y - 4, x - 3 : x + 4] = 1
        bad[y - 6 : y - 3, x + 20 : x + 24] = 2
    assert not follow(tuner, Annotation(picture, bad)).verdict.better
    assert tuner.model is good.model


def test_the_same_strokes_again_are_no_better(one: Annotation) -> None:
    tuner = Tuner(made(), device="cpu")
    first = follow(tuner, one)
    tuner.accept(first)
    again = follow(tuner, one)
    assert again.verdict.before == pytest.approx(first.verdict.after, abs=1e-5)
    assert again.verdict.after == pytest.approx(first.verdict.after, abs=1e-5)
    assert not again.verdict.better
    assert same(weights(again.model), weights(first.model)), "all is fitted anew"


def test_a_class_may_be_added_after_a_refit(
    picture: np.ndarray, strokes: np.ndarray
) -> None:
    tuner = Tuner(made(), device="cpu")
    tuner.accept(follow(tuner, Annotation(picture, strokes)))
    more = strokes.copy()
    more[10:12, 60:80], more[60:62, 60:80] = 3, 3
    tuned = follow(tuner, Annotation(picture, more))
    assert len(tuned.model.classes) == 3


def test_a_class_may_be_left_out_again(
    picture: np.ndarray, strokes: np.ndarray
) -> None:
    tuner = Tuner(made(), device="cpu")
    more = strokes.copy()
    more[10:12, 60:80], more[60:62, 60:80] = 3, 3
    first = follow(tuner, Annotation(picture, more))
    assert len(first.model.classes) == 3
    again = follow(tuner, Annotation(picture, strokes))
    alone = instant(made(), Annotation(picture, strokes))
    assert same(weights(again.model), weights(alone.model))


def test_what_was_seen_is_seen_anew_when_the_image_changes(
    picture: np.ndarray, strokes: np.ndarray
) -> None:
    tuner = Tuner(made(), device="cpu")
    follow(tuner, Annotation(picture, strokes))
    other = picture[::-1].copy()
    again = follow(tuner, Annotation(other, strokes))
    alone = instant(made(), Annotation(other, strokes))
    assert same(weights(again.model), weights(alone.model))


def test_any_channel_that_changes_is_seen_anew(
    picture: np.ndarray, strokes: np.ndarray
) -> None:
    colour = np.stack([picture, picture // 2, picture[::-1]], axis=-1)
    other = colour[..., [0, 2, 1]]  # what is darkest and brightest stays the same
    tuner = Tuner(made(), device="cpu")
    follow(tuner, Annotation(colour, strokes))
    again = follow(tuner, Annotation(other, strokes))
    alone = instant(made(), Annotation(other, strokes))
    assert same(weights(again.model), weights(alone.model))


def test_refits_hold_no_more_than_a_share_of_memory(
    picture: np.ndarray, strokes: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(seeing, "KEPT", 4_000_000)
    tuner = Tuner(made(), device="cpu")
    stack = np.stack([picture] * 9)
    stack[:, 0, 0] = np.arange(9)
    for i in range(9):
        labels = np.zeros(stack.shape, np.uint8)
        labels[max(0, i - 1) : i + 1] = strokes
        follow(tuner, Annotation(stack, labels))
        held = [x.bytes for _, x in tuner._looks.values()]
        assert len(held) == 1 or sum(held) <= 4_000_000
    assert 0 < len(tuner._looks) < 9
    tuner.forget()
    assert not tuner._looks
    assert not tuner._rows


def test_nothing_is_kept_of_planes_that_are_no_longer_painted(
    picture: np.ndarray, strokes: np.ndarray
) -> None:
    tuner = Tuner(made(), device="cpu")
    stack = np.stack([picture] * 5)
    for i in range(5):
        labels = np.zeros(stack.shape, np.uint8)
        labels[i] = strokes
        follow(tuner, Annotation(stack, labels))
    assert len(tuner._rows) == 1


def test_a_plane_that_was_seen_is_segmented_without_looking_again(
    picture: np.ndarray, strokes: np.ndarray
) -> None:
    tuner = Tuner(made(outputs=3), device="cpu")
    tuned = follow(tuner, Annotation(picture, strokes))
    options = {"name": "image", "rgb": None}
    for model in (tuned.model, tuner.trunk):
        found = tuner.segment(picture, 0, model=model, **options)
        expected = complete(segment(picture, model, device="cpu"))
        np.testing.assert_allclose(
            found.probabilities, expected.probabilities, atol=1e-3
        )
        assert found.labels.shape == picture.shape


def test_a_trunk_that_reads_evidence_is_segmented_as_it_is(
    picture: np.ndarray, strokes: np.ndarray
) -> None:
    trunk = instant(made(), Annotation(picture, strokes)).model
    tuner = Tuner(trunk, device="cpu")
    found = tuner.segment(picture, 0, model=trunk, name="image", rgb=None)
    expected = complete(segment(picture, trunk, device="cpu"))
    np.testing.assert_allclose(found.probabilities, expected.probabilities, atol=1e-3)


# -- thorough ------------------------------------------------------------------------


def stroke_loss_of(model: Model, painted: Painted) -> float:
    total = 0.0
    for plane in painted.planes:
        logs = class_logs(model.network(plane.image[None]), model.outputs)
        classes = torch.from_numpy(plane.classes).long()[None]
        total += float(stroke_loss(logs, classes, torch.zeros_like(logs)))
    return total


@pytest.mark.parametrize(("outputs", "freeze"), [(2, False), (3, True)])
@pytest.mark.parametrize("name", DENSE)
def test_all_weights_learn_from_strokes(
    name: str,
    outputs: int,
    freeze: bool,
    one: Annotation,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    short(monkeypatch, epochs=4, side=32, learning_rate=1e-3)
    model = made(name, outputs=outputs)
    before = weights(model)
    tuner = Tuner(model, device="cpu")
    painted = read_painted([one], model)
    events, tuned = followed(tuner.thorough(painted, freeze=freeze))
    if freeze:  # else the statistics of random weights are still on their way
        assert stroke_loss_of(tuned.model, painted) < stroke_loss_of(model, painted)
    # It goes on from where the instant learner stands.
    assert isinstance(tuned.model.network, Adapted)
    assert bool(tuned.model.network.weights.any())
    after = network_weights(tuned.model.network.base)
    assert after.keys() == before.keys()
    moved = {k for k in after if not torch.equal(after[k], before[k])}
    statistics = {k for k in after if "running" in k}
    assert bool(moved & statistics) == (not freeze and bool(statistics))
    assert {k for k in after if after[k].ndim == 4} <= moved
    assert tuned.mode == "thorough"
    assert tuned.verdict.strokes == 4
    assert set(tuned.scores) == set(strokes_of(painted.planes)) - tuned.learned
    assert [e.step for e in events if e.phase == "training"] == list(range(1, 5))
    assert same(weights(model), before)
    assert not any(p.requires_grad for p in tuned.model.network.parameters())


@pytest.mark.parametrize("outputs", [2, 3])
def test_a_retina_learns_from_strokes(
    outputs: int, one: Annotation, monkeypatch: pytest.MonkeyPatch
) -> None:
    short(monkeypatch, epochs=8, views=16, batch_size=8, learning_rate=3e-3)
    model = replace(tiny_model(outputs=outputs), classes=NUCLEI)
    events, tuned = thorough(model, one)
    assert len([e for e in events if e.phase == "training"]) == 8
    assert tuned.verdict.strokes == 4
    assert tuned.verdict.after != tuned.verdict.before
    known = [
        balanced(held_scores(m, tuned.planes, tuned.learned))
        for m in (model, tuned.model)
    ]
    assert known[1] > known[0] + 0.1


def test_a_detector_learns_from_complete_objects(
    picture: np.ndarray, strokes: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    short(monkeypatch, epochs=6, side=64, learning_rate=3e-3)
    model = made("mask-rcnn")
    objects = label(picture > 120)
    whole = Annotation(picture, objects, unpainted=False, objects=True)
    events, tuned = thorough(model, whole)
    losses = [e.loss for e in events if e.phase == "training"]
    assert losses[-1] < losses[0]
    assert tuned.verdict.strokes > 0
    for bad in (
        Annotation(picture, strokes),
        Annotation(picture, (objects > 0).astype(np.uint8), unpainted=False),
    ):
        with pytest.raises(TrainingError, match="cannot learn from strokes"):
            thorough(model, bad)
    with pytest.raises(TrainingError, match="whole folders"):
        thorough(made("patch-center"), whole)


@pytest.mark.parametrize("objects", [False, True])
def test_complete_labels_teach_borders_where_they_tell_objects(
    objects: bool, picture: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    short(monkeypatch, epochs=2)
    labels = label(picture > 120)
    labels = labels if objects else np.minimum(labels, 1)
    seen = []
    made_task = stroke_task

    def spied(*arguments: Any, **options: Any) -> Any:
        seen.append(made_task(*arguments, **options))
        return seen[-1]

    monkeypatch.setattr("napari_fovea.training.tuner.stroke_task", spied)
    for model in (made(outputs=3), tiny_model(outputs=3)):
        seen.clear()
        _, tuned = thorough(
            model, Annotation(picture, labels, unpainted=False, objects=objects)
        )
        assert seen[0]._by_output == objects
        classes = set(seen[0].samples[0].classes.unique().tolist()) - {VOID}
        assert (2 in classes) == objects
        assert tuned.verdict.strokes > 0


def test_other_classes_begin_with_a_new_last_layer(
    picture: np.ndarray, strokes: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    short(monkeypatch, epochs=1)
    more = strokes.copy()
    more[10:12, 60:80], more[60:62, 60:80] = 3, 3
    for model in (
        made(),
        tiny_model(outputs=2),
        instant(made(), Annotation(picture, strokes)).model,
    ):
        _, tuned = thorough(model, Annotation(picture, more))
        assert tuned.model.classes == ("background", "class 2", "class 3")
        assert tuned.model.outputs == (0, 1, 2)
        assert tuned.model.config.classes == 3
        assert tuned.verdict.before == pytest.approx(1 / 3)
        found = complete(segment(picture, tuned.model, device="cpu"))
        assert found.probabilities.shape == (3, 70, 90)


def test_borders_do_not_become_a_class(
    picture: np.ndarray, strokes: np.ndarray
) -> None:
    more = strokes.copy()
    more[10:12, 60:80] = 3
    model = made(outputs=3)
    found = student(model, read_painted([Annotation(picture, more)], model))
    assert found.outputs == (0, 1, 2)
    assert not torch.equal(found.network.out.weight, model.network.out.weight)


def test_a_model_that_reads_evidence_learns_with_all_its_weights(
    one: Annotation, monkeypatch: pytest.MonkeyPatch
) -> None:
    short(monkeypatch, epochs=2)
    for trunk in (made(outputs=3), tiny_model()):
        first = instant(trunk, one).model
        before = weights(first)
        _, tuned = thorough(first, one)
        assert type(tuned.model.network) is type(first.network)
        after = weights(tuned.model)
        moved = {k for k in after if not torch.equal(after[k], before[k])}
        assert any(k.startswith("reads.") for k in moved)
        assert any(k.startswith("base.") for k in moved)


def test_an_adapted_retina_learns_by_the_retinas_recipe(
    one: Annotation, monkeypatch: pytest.MonkeyPatch
) -> None:
    short(monkeypatch, epochs=1)
    seen = []
    made_task = stroke_task

    def spied(*arguments: Any, **options: Any) -> Any:
        seen.append(options["recipe"].network)
        return made_task(*arguments, **options)

    monkeypatch.setattr("napari_fovea.training.tuner.stroke_task", spied)
    model = tiny_model()
    thorough(adapted(model, model.classes), one)
    assert seen == ["retina-vgg"]


@pytest.mark.parametrize("name", ["unet", "retina-vgg"])
def test_nothing_is_learned_of_strokes_that_are_held_out(
    name: str,
    picture: np.ndarray,
    strokes: np.ndarray,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    short(monkeypatch, epochs=2)
    model = tiny_model() if name == "retina-vgg" else made(outputs=3)
    first = thorough(model, Annotation(picture, strokes))[1]
    held = {s: n for s, n in first.scores.items() if s.label == 0}
    other = next(iter(held))
    (plane,) = first.planes
    wrong = np.asarray(strokes).copy()
    # Another class of no consequence for how strokes are numbered or dealt out:
    # the same place, held out as well.
    classes = plane.classes.copy()
    classes[plane.strokes == other.number] = 1
    changed = replace(plane, classes=classes)
    painted = read_painted([Annotation(picture, wrong)], model)
    parts = {s: 0 if s in first.scores else 1 for s in strokes_of([plane])}

    def dealt(some: Any, **_: Any) -> dict[Any, int]:
        return {s: parts.get(s, parts.get(s._replace(label=0), 0)) for s in some}

    monkeypatch.setattr("napari_fovea.training.tuner.fold_strokes", dealt)
    # In the end all strokes are read; what is judged is the model before that.
    monkeypatch.setattr("napari_fovea.training.tuner.read_all", lambda *_, **__: None)
    results = []
    for one_plane in (plane, changed):
        tuner = Tuner(model, device="cpu")
        run = tuner.thorough(replace(painted, planes=(one_plane,)), seconds=60)
        results.append(followed(run)[1])
    assert same(weights(results[0].model), weights(results[1].model))
    assert not same(weights(results[0].model), weights(model))
    assert results[0].verdict != results[1].verdict


def test_a_held_out_stroke_is_hidden_from_samples(one: Annotation) -> None:
    model = made()
    (plane,) = read_painted([one], model).planes
    some = set(strokes_of([plane])[::3])
    sample = sample_of(plane, some, border=False, teacher=None, classes=2)
    hidden = np.isin(plane.strokes, [s.number for s in some])
    classes = sample.classes.numpy()
    assert (classes[hidden] == VOID).all()
    assert (classes[~hidden] == plane.classes[~hidden]).all()
    assert sample.image.shape == (3 + 2, 70, 90)
    assert not sample.image[3:].any()


def test_all_strokes_of_a_plane_may_be_held_out(
    picture: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    short(monkeypatch, epochs=4)
    labels = np.zeros(picture.shape, np.uint8)
    labels[3, 32:50], labels[15, 16:25] = 1, 2
    pair = [
        Annotation(picture, labels, "a"),
        Annotation(picture[::-1].copy(), labels[::-1].copy(), "b"),
    ]
    _, tuned = thorough(made(), *pair)
    assert tuned.verdict.strokes == 2


# -- the loss ------------------------------------------------------------------------


def test_what_is_not_painted_counts_for_nothing_without_a_teacher() -> None:
    logits = torch.randn(2, 3, 5, 7, requires_grad=True)
    classes = torch.full((2, 5, 7), VOID)
    classes[0, 1, :4], classes[1, 2, 2], classes[1, 4, 4:] = 0, 1, 0
    logs = class_logs(logits, (0, 1, 1))
    loss = stroke_loss(logs, classes, torch.zeros_like(logs))
    loss.backward()
    reached = logits.grad.abs().sum(1) > 0
    assert torch.equal(reached, classes != VOID)


@pytest.mark.parametrize("belongs", [(0, 1), (0, 1, 1), (0, 1, 2), (1, 0, 1, 2)])
def test_the_stroke_loss_is_its_equation(belongs: tuple[int, ...]) -> None:
    k = max(belongs) + 1
    logits = torch.randn(2, 1 if len(belongs) == 2 else len(belongs), 4, 5)
    classes = torch.randint(0, k, (2, 4, 5))
    classes[torch.rand(2, 4, 5) < 0.4] = VOID
    classes[classes == k - 1] = VOID  # the last is not painted
    teacher = torch.rand(2, k, 4, 5).softmax(1)
    teacher[0] = 0
    logs = class_logs(logits, belongs)
    torch.testing.assert_close(logs.exp().sum(1), torch.ones(2, 4, 5))
    p = logits.sigmoid() if logits.shape[1] == 1 else logits.softmax(1)
    if logits.shape[1] == 1:
        p = torch.cat([1 - p, p], 1)
    expected, present = 0.0, sorted(set(classes.unique().tolist()) - {VOID})
    for c in present:
        own = sum(p[:, i] for i, b in enumerate(belongs) if b == c)
        own = own[classes == c]
        expected -= float(own.log().mean()) / len(present)
    for c in range(k):
        own = sum(p[:, i] for i, b in enumerate(belongs) if b == c)
        expected -= float((teacher[:, c] * own.log()).sum()) / (2 * 4 * 5)
    assert float(stroke_loss(logs, classes, teacher)) == pytest.approx(
        expected, rel=1e-4
    )


def test_nothing_painted_is_no_loss() -> None:
    logs = torch.randn(1, 2, 4, 4, requires_grad=True).log_softmax(1)
    void = torch.full((1, 4, 4), VOID)
    assert float(stroke_loss(logs, void, torch.zeros_like(logs)).detach()) == 0


# -- replay --------------------------------------------------------------------------


def remembered(picture: np.ndarray, *, objects: bool = True) -> Sample:
    return make_sample(
        picture[::-1],
        label(picture[::-1] > 120) if objects else (picture[::-1] > 120).astype(int),
        name="remembered",
        channels=3,
        outputs=3,
        from_instances=objects,
    )


def task_of(model: Model, one: Annotation, *replay: Sample) -> Any:
    from napari_fovea.training.adapting import replayed

    painted = read_painted([one], model)
    samples = [
        sample_of(p, set(), border=model.border is not None, teacher=None, classes=2)
        for p in painted.planes
    ]
    objects = any(p.instances is not None for p in painted.planes)
    samples += [replayed(s, model, objects=objects) for s in replay]
    recipe = STROKES[""]
    return stroke_task(
        model,
        samples,
        recipe=replace(recipe, side=32),
        seed=0,
        lesson=Lesson(painted.planes, frozenset()),
        replay=len(replay),
    )


def test_what_was_learned_before_is_shown_again(
    one: Annotation, picture: np.ndarray
) -> None:
    model = made(outputs=3)
    samples = [remembered(picture, objects=False)] * 3
    task = task_of(model, one, *samples)
    np.testing.assert_allclose(task.odds, [0.75, *[0.25 / 3] * 3])
    rng = np.random.default_rng(0)
    complete_ones = sum(
        bool((task.views.draw(rng).classes != VOID).all()) for _ in range(200)
    )
    assert 25 <= complete_ones <= 75
    assert task_of(model, one).odds == pytest.approx([1.0])


def test_what_is_replayed_does_not_change_what_strokes_mean(
    one: Annotation, picture: np.ndarray
) -> None:
    model = made(outputs=3)
    assert not task_of(model, one)._by_output
    assert not task_of(model, one, remembered(picture))._by_output


def test_replayed_borders_are_nuclei(one: Annotation, picture: np.ndarray) -> None:
    sample = remembered(picture)
    assert set(sample.classes.unique().tolist()) == {0, 1, 2}
    task = task_of(made(outputs=3), one, sample)
    classes = task.samples[-1].classes
    assert torch.equal(classes, (sample.classes > 0).to(torch.uint8))
    assert task.samples[-1].image.shape == (5, 70, 90)
    assert set(sample.classes.unique().tolist()) == {0, 1, 2}, "left alone"


def test_replay_needs_the_classes_of_before(
    picture: np.ndarray, strokes: np.ndarray
) -> None:
    strokes[10:12, 60:80], strokes[60:62, 60:80] = 3, 3
    sample = remembered(picture)
    with pytest.raises(TrainingError, match=r"3 classes.*the 2 of.*leave the replay"):
        thorough(made(outputs=3), Annotation(picture, strokes), replay=[sample])


# -- time ----------------------------------------------------------------------------


def test_cancelled_at_once_nothing_is_learned(one: Annotation) -> None:
    for model in (made(), tiny_model()):
        before = weights(model)
        _, tuned = thorough(model, one, cancelled=lambda: True)
        assert same(weights(tuned.model), before)
        assert not tuned.verdict.better
        _, tuned = followed(
            fine_tune([one], model, device="cpu", cancelled=lambda: True)
        )
        assert isinstance(tuned, Tuned)


def test_cancelled_later_the_last_good_model_is_returned(
    one: Annotation, monkeypatch: pytest.MonkeyPatch
) -> None:
    short(monkeypatch, epochs=50)
    asked = [0]

    def cancelled() -> bool:
        asked[0] += 1
        return asked[0] > 6

    model = made()
    events, tuned = thorough(model, one, cancelled=cancelled)
    epochs = [e for e in events if e.phase == "training"]
    assert 1 <= len(epochs) < 50
    assert not same(weights(tuned.model), weights(model))


@pytest.mark.parametrize("seconds", [0, -1, float("nan")])
def test_learning_takes_time(seconds: float, one: Annotation) -> None:
    with pytest.raises(TrainingError, match="more than 0"):
        thorough(made(), one, seconds=seconds)


class Ticks:
    """A clock on which each look takes a hundredth of a second."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        self.now += 0.01
        return self.now


def test_learning_ends_in_time_and_its_rate_falls(
    one: Annotation, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Ticks()
    monkeypatch.setattr("napari_fovea.training.fit.time", clock)
    model = made()
    painted = read_painted([one], model)
    samples = [
        sample_of(p, set(), border=False, teacher=None, classes=2)
        for p in painted.planes
    ]
    recipe = replace(STROKES[""], side=32, views=4)
    lesson = Lesson(painted.planes, frozenset())
    task = stroke_task(model, samples, recipe=recipe, seed=0, lesson=lesson)
    run = fit(model, task, recipe, device="cpu", seconds=1.5)
    events, _ = followed(run)
    assert 1.5 <= clock.now < 1.7
    rates = [e.learning_rate for e in events]
    assert len(rates) > 5
    assert max(rates) <= recipe.learning_rate
    assert max(rates) > 0.5 * recipe.learning_rate
    assert rates[-1] < 0.05 * recipe.learning_rate
    assert events[-1].seconds_left == 0
    assert all(0 <= e.seconds_left <= 1.5 for e in events)


def test_the_first_step_is_a_small_one() -> None:
    from napari_fovea.training.fit import _Clock, _rate

    clock = _Clock(60.0)
    time.sleep(0.01)
    rate = _rate(STROKES[""], *clock.place(0, 400_000))
    assert rate < 0.5 * STROKES[""].learning_rate


def test_the_model_of_an_event_stays_as_it_was(
    one: Annotation, monkeypatch: pytest.MonkeyPatch
) -> None:
    short(monkeypatch, epochs=4)
    run = fine_tune([one], made(), mode="thorough", device="cpu", seconds=60)
    models = (e.model for e in run if e.model is not None)
    first = next(models)
    before = weights(first)
    next(models)
    assert same(weights(first), before)
    run.close()


# -- real images ---------------------------------------------------------------------


@pytest.mark.slow
def test_a_model_that_ships_gets_no_worse(nuclei: Path) -> None:
    sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
    try:
        from strokes import simulated
    finally:
        sys.path.pop(0)
    from napari_fovea.files import read_image, read_labels
    from napari_fovea.metrics import dice
    from napari_fovea.training.samples import pair_files

    model = Model.load("focusnet-nuclei")
    pairs = pair_files(nuclei / "val" / "images", nuclei / "val" / "labels")
    before, in_use = [], []
    for i, (image_file, labels_file) in enumerate(pairs[:4]):
        image, truth = read_image(image_file), read_labels(labels_file)
        painted = simulated(truth, seed=i)
        tuned = instant(model, Annotation(image, painted))
        scores = [
            dice(complete(segment(image, m, device="cpu")).labels > 0, truth > 0)
            for m in (model, tuned.model)
        ]
        before.append(scores[0])
        in_use.append(scores[tuned.verdict.better])
        assert in_use[-1] > before[-1] - 0.03, image_file.name
        wrong = instant(model, Annotation(image, swapped(painted)))
        assert not wrong.verdict.better, str(wrong.verdict)
    assert np.mean(in_use) > np.mean(before) - 0.02
