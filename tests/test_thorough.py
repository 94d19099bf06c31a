"""All weights learn from strokes, in the time they are given."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from skimage.measure import label

from conftest import tiny_model
from following import followed
from learning import (
    NUCLEI,
    instant,
    made,
    network_weights,
    same,
    short,
    thorough,
    weights,
)
from napari_fovea import complete, segment
from napari_fovea.errors import TrainingError
from napari_fovea.networks import Adapted
from napari_fovea.training.adapting import adapted, student
from napari_fovea.training.finetune import fine_tune
from napari_fovea.training.fit import fit
from napari_fovea.training.guard import balanced, strokes_of
from napari_fovea.training.learned import Tuned
from napari_fovea.training.pace import Clock, rate_at
from napari_fovea.training.painted import Annotation, Painted, read_painted
from napari_fovea.training.recipes import STROKES
from napari_fovea.training.samples import VOID
from napari_fovea.training.strokes import (
    Lesson,
    class_logs,
    held_scores,
    sample_of,
    stroke_loss,
    stroke_task,
)
from napari_fovea.training.tuner import Tuner
from small_networks import DENSE

if TYPE_CHECKING:
    from napari_fovea.models import Model

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
def test_complete_labels_teach_depths_where_they_tell_objects(
    objects: bool, picture: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    short(monkeypatch, epochs=2)
    picture = np.tile(picture, (3, 3))  # not all is near what is held out
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


def test_depths_do_not_become_a_class(picture: np.ndarray, strokes: np.ndarray) -> None:
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
    sample = sample_of(plane, some, depths=None, teacher=None, classes=2)
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
    for room in ("fit", "pace"):
        monkeypatch.setattr(f"napari_fovea.training.{room}.time", clock)
    model = made()
    painted = read_painted([one], model)
    samples = [
        sample_of(p, set(), depths=None, teacher=None, classes=2)
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
    clock = Clock(60.0)
    time.sleep(0.01)
    rate = rate_at(STROKES[""], *clock.place(0, 400_000))
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
