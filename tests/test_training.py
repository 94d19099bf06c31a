"""Training: it learns, repeats itself, goes on after a break, and says no clearly."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import imageio.v3 as imageio
import numpy as np
import pytest
import torch

from conftest import tiny_model
from napari_fovea.errors import TrainingError
from napari_fovea.retina import IGNORE
from napari_fovea.sample_data import make_nuclei
from napari_fovea.training.augment import Augmentation, sample_view, vary_light
from napari_fovea.training.fit import fit
from napari_fovea.training.recipes import RECIPES, Recipe
from napari_fovea.training.retina import RetinaTask
from napari_fovea.training.run import train_retina
from napari_fovea.training.samples import (
    Sample,
    boundary_places,
    interior_and_border,
    make_sample,
    median_diameter,
    pair_files,
)

QUICK = Recipe(
    epochs=3,
    views=64,
    batch_size=16,
    learning_rate=3e-3,
    averaging=0.9,
    uncertain=0.4,
    boundary=0.3,
    rescan=1,
)


def samples(n: int = 2, outputs: int = 3) -> list[Sample]:
    pairs = (make_nuclei((96, 96), count=8, seed=i) for i in range(n))
    return [
        make_sample(i, t, name=f"{k}", channels=3, outputs=outputs)
        for k, (i, t) in enumerate(pairs)
    ]


def run(recipe: Recipe = QUICK, *, stop_after: int | None = None, **options):
    torch.manual_seed(0)
    model = tiny_model()
    task = RetinaTask(model, samples(), samples(1), recipe=recipe, seed=5)
    events = []
    training = fit(model, task, recipe, device="cpu", seed=5, **options)
    while True:
        try:
            events.append(next(training))
        except StopIteration as end:
            trained = end.value
            break
        if len(events) == stop_after:
            return events, None  # as if it were killed
    assert trained.score == events[-1].best
    return events, trained.model


def same(a, b) -> bool:
    first, second = a.network.state_dict(), b.network.state_dict()
    return all(torch.equal(first[k], second[k]) for k in first)


def test_training_learns_and_tells_of_it() -> None:
    recipe = replace(QUICK, epochs=12, views=128, augmentation=Augmentation())
    events, model = run(recipe)
    assert [e.epoch for e in events] == list(range(1, 13))
    assert events[-1].loss < 0.8 * events[0].loss
    assert all(0 <= e.score <= 1 for e in events)
    assert events[-1].best == max(e.score for e in events)
    assert not model.network.training


def test_few_views_still_make_a_step() -> None:
    events, model = run(replace(QUICK, views=3, epochs=1))
    assert events[0].loss > 0
    assert not same(model, tiny_model())


def test_the_same_seed_gives_the_same_weights() -> None:
    assert same(run()[1], run()[1])


def test_a_resumed_run_ends_with_the_same_weights(tmp_path: Path) -> None:
    _, whole = run()
    kept = tmp_path / "run.checkpoint"
    run(checkpoint=kept, stop_after=2)
    events, resumed = run(checkpoint=kept)
    assert [e.epoch for e in events] == [3]
    assert same(whole, resumed)


def test_the_model_that_was_passed_in_is_left_alone() -> None:
    model = tiny_model()
    before = {k: v.clone() for k, v in model.network.state_dict().items()}
    task = RetinaTask(model, samples(), [], recipe=QUICK, seed=0)
    for _ in fit(model, task, QUICK, device="cpu"):
        pass
    after = model.network.state_dict()
    assert all(torch.equal(before[k], after[k]) for k in before)


def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path) -> None:
    kept = tmp_path / "run.checkpoint"
    run(checkpoint=kept, stop_after=1)
    with pytest.raises(TrainingError, match="other settings"):
        run(replace(QUICK, learning_rate=1.0), checkpoint=kept)
    model = tiny_model()
    other = RetinaTask(model, samples(1), samples(1), recipe=QUICK, seed=5)
    with pytest.raises(TrainingError, match="other settings"):
        next(fit(model, other, QUICK, device="cpu", seed=5, checkpoint=kept))
    kept.write_bytes(b"nonsense")
    with pytest.raises(TrainingError, match="no training checkpoint"):
        run(checkpoint=kept)


def test_a_loss_that_is_not_finite_stops_the_training() -> None:
    with pytest.raises(TrainingError, match="lower learning rate"):
        run(replace(QUICK, learning_rate=float("inf")))


def test_views_are_centred_where_the_scan_was_uncertain() -> None:
    task = RetinaTask(tiny_model(), samples(), [], recipe=QUICK, seed=0)
    assert not task.uncertain
    task.rescan(task.model, epoch=0)
    ((index, places),) = task.uncertain.items()
    assert 0 < len(places) <= 400
    assert (places >= 0).all()
    assert (places < 96).all()
    again = RetinaTask(task.model, task.samples, [], recipe=QUICK, seed=0)
    again.restore(task.state())
    np.testing.assert_array_equal(again.uncertain[index], places)


# -- samples ---------------------------------------------------------------------------


def test_border_is_the_rim_of_every_object() -> None:
    objects = np.zeros((20, 30), int)
    objects[4:16, 4:14], objects[4:16, 14:30] = 1, 7
    classes = interior_and_border(objects, reach=2)
    expected = np.where(objects > 0, 2, 0)
    expected[6:14, 6:12] = 1
    expected[6:14, 16:30] = 1  # it goes on beyond the image
    np.testing.assert_array_equal(classes, expected)


def test_boundaries_are_where_classes_meet() -> None:
    (sample,) = samples(1)
    places = boundary_places(sample)
    classes = sample.classes.numpy()
    for y, x in places[::50]:
        around = classes[max(0, y - 1) : y + 2, max(0, x - 1) : x + 2]
        assert len(np.unique(around)) > 1


def test_the_median_diameter_is_that_of_a_disc() -> None:
    y, x = np.mgrid[:60, :60]
    disc = ((y - 30) ** 2 + (x - 30) ** 2 < 100).astype(int)
    image = np.random.default_rng(0).random((60, 60))
    sample = make_sample(image, disc, channels=1, outputs=2)
    assert median_diameter([sample]) == pytest.approx(20, abs=0.5)


@pytest.mark.parametrize(
    ("labels", "options", "says"),
    [
        (np.zeros((9, 8), int), {}, "shape"),
        (np.zeros((9, 9)), {}, "integers"),
        (np.full((9, 9), 5), {"from_instances": False}, "classes 0 to 2"),
        (np.full((9, 9), -1), {}, "labels hold -1"),
    ],
)
def test_labels_that_do_not_fit_are_refused(labels, options, says) -> None:
    image = np.random.default_rng(0).random((9, 9))
    with pytest.raises(TrainingError, match=says):
        make_sample(image, labels, channels=3, outputs=3, **options)


def test_ignored_labels_do_not_count() -> None:
    image = np.random.default_rng(0).random((32, 32))
    labels = np.full((32, 32), 9)
    labels[:, :16] = 1
    sample = make_sample(
        image, labels, channels=3, outputs=3, from_instances=False, ignore=9
    )
    task = RetinaTask(tiny_model(), [sample], [], recipe=QUICK, seed=0)
    logits = torch.randn(1, 28, 3)
    classes = sample.classes[None]
    assert set(classes.unique().tolist()) == {1, IGNORE % 256}
    seen = (task.grid.cells[:, 1] < 16).nonzero()[0]
    expected = -logits[0, seen].log_softmax(-1)[:, 1].mean()
    assert task.loss(logits, classes) == pytest.approx(expected.item())


def test_folders_pair_up_by_stem_or_say_what_is_missing(tmp_path: Path) -> None:
    images, labels = tmp_path / "i", tmp_path / "l"
    with pytest.raises(TrainingError, match="no folder"):
        pair_files(images, labels)
    images.mkdir()
    labels.mkdir()
    with pytest.raises(TrainingError, match="no images"):
        pair_files(images, labels)
    imageio.imwrite(images / "a.png", np.zeros((4, 4), np.uint8))
    with pytest.raises(TrainingError, match=r"a\.png has no labels"):
        pair_files(images, labels)
    imageio.imwrite(labels / "a.tif", np.zeros((4, 4), np.uint8))
    assert pair_files(images, labels) == [(images / "a.png", labels / "a.tif")]


# -- augmentation ----------------------------------------------------------------


def test_a_view_without_change_is_a_crop_up_to_turning() -> None:
    (sample,) = samples(1)
    still = Augmentation(scale=(1, 1), stretch=0)
    rng = np.random.default_rng(3)
    image, classes = sample_view(sample, (48, 48), 32, augmentation=still, rng=rng)
    assert image.shape == (3, 32, 32)
    assert classes.shape == (32, 32)
    assert abs(image.mean() - sample.image[:, 28:68, 28:68].mean()) < 0.15
    assert set(classes.unique().tolist()) <= {0, 1, 2}


def test_image_and_classes_move_together() -> None:
    y, x = np.mgrid[:96, :96]
    disc = ((y - 40) ** 2 + (x - 55) ** 2 < 150).astype(int)
    sample = make_sample(disc * 100.0, disc, channels=1, outputs=2)
    rng = np.random.default_rng(0)
    for _ in range(20):
        image, classes = sample_view(
            sample, (45, 50), 32, augmentation=Augmentation(), rng=rng
        )
        agree = ((image[0] > 0.5) == (classes > 0)).float().mean()
        assert agree > 0.95


def test_light_varies_within_bounds_and_by_seed() -> None:
    crops = torch.rand(16, 3, 24, 24)
    a, b, c = (
        vary_light(
            crops.clone(), augmentation=Augmentation(), rng=np.random.default_rng(s)
        )
        for s in (1, 1, 2)
    )
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
    assert a.min() >= -0.5
    assert a.max() <= 2
    gray = torch.rand(8, 1, 24, 24).expand(8, 3, 24, 24)
    varied = vary_light(
        gray.clone(), augmentation=Augmentation(), rng=np.random.default_rng(0)
    )
    torch.testing.assert_close(varied[:, 0], varied[:, 2]), "gray stays gray"


# -- from folders ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"recipe": "soup"}, "no recipe"),
        ({"config": "huge"}, "no configuration"),
        ({"precision": "int4"}, "no precision"),
        ({"classes": ("background", "a", "b")}, "make one class"),
        ({"val_images": Path("x")}, "give both"),
        ({"start": "retina-nuclei", "channels": 1}, "expected 1 channels"),
    ],
)
def test_senseless_requests_are_refused(tmp_path: Path, options, says) -> None:
    with pytest.raises(TrainingError, match=says):
        next(train_retina(tmp_path, tmp_path, **options))


def test_the_papers_recipe_is_the_papers() -> None:
    recipe = RECIPES["retina-paper"]
    assert (recipe.epochs, recipe.batch_size) == (20, 16)
    assert recipe.learning_rate == 1e-4
    assert recipe.constant_rate
    assert recipe.weight_decay == 0
