"""The loss of strokes, and images that are shown again."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from skimage.measure import label

from learning import (
    made,
    thorough,
)
from napari_fovea.errors import TrainingError
from napari_fovea.training.painted import Annotation, read_painted
from napari_fovea.training.recipes import STROKES
from napari_fovea.training.samples import VOID, Sample, make_sample
from napari_fovea.training.strokes import (
    Lesson,
    class_logs,
    sample_of,
    stroke_loss,
    stroke_task,
)

if TYPE_CHECKING:
    from napari_fovea.models import Model

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
        depths=(0.0, 0.25, 0.75),
        from_instances=objects,
    )


def task_of(model: Model, one: Annotation, *replay: Sample) -> Any:
    from napari_fovea.training.adapting import replayed

    painted = read_painted([one], model)
    samples = [
        sample_of(p, set(), depths=model.depths, teacher=None, classes=2)
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
