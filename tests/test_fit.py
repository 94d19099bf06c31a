"""The training loop: it learns, repeats itself, goes on after a break, and chooses."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from conftest import tiny_model
from following import followed
from napari_fovea import complete
from napari_fovea.errors import TrainingError
from napari_fovea.models import Model
from napari_fovea.networks import Ensemble, build
from napari_fovea.sample_data import make_nuclei
from napari_fovea.training.augment import Augmentation
from napari_fovea.training.fit import LossNotFinite, fit
from napari_fovea.training.recipe import Recipe
from napari_fovea.training.retina import RetinaTask
from napari_fovea.training.samples import Sample, make_sample
from napari_fovea.training.task import Task

if TYPE_CHECKING:
    from pathlib import Path

_settings = {"epochs": 3, "views": 64, "batch_size": 16, "learning_rate": 3e-3}
_places = {"uncertain": 0.4, "boundary": 0.3, "rescan": 1}
QUICK = Recipe("retina-vgg", "small", averaging=0.9, **_settings, **_places)
_settings = {"epochs": 4, "views": 2, "batch_size": 2, "learning_rate": 0.1}
PLAIN = Recipe("unet", "small", optimiser="sgd", schedule="constant", **_settings)


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
    training = fit(model, task, recipe, device="cpu", seed=5, **options)
    if stop_after is not None:
        events = [next(training) for _ in range(stop_after)]
        training.close()  # as if it were killed
        return events, None
    events, trained = followed(training)
    assert trained.score == events[-1].best
    return events, trained.model


def same(a: Model, b: Model) -> bool:
    first, second = a.network.state_dict(), b.network.state_dict()
    return all(torch.equal(first[k], second[k]) for k in first)


class Scripted(Task[torch.Tensor]):
    """Learns to answer 0, and is scored as the script says."""

    def __init__(self, model: Model, recipe: Recipe, scores: list[float]) -> None:
        super().__init__(model, [], samples(1) if scores else [], recipe=recipe, seed=0)
        self.script = scores
        self.seen: list[dict[str, torch.Tensor]] = []  # weights as they were scored

    def batch(self, rng: np.random.Generator, size: int) -> torch.Tensor:
        return torch.from_numpy(rng.standard_normal((size, 3, 4, 4), dtype=np.float32))

    def loss(self, network, batch, device) -> torch.Tensor:
        return network(batch).square().mean()

    def score(self, model: Model) -> float | None:
        weights = model.network.state_dict()
        self.seen.append({k: v.clone() for k, v in weights.items()})
        return self.script[len(self.seen) - 1] if self.script else None


def small(**settings: Any) -> Model:
    torch.manual_seed(1)
    plain = {"width": 1, "depth": 2, "norm": False}
    network = build("unet", plain | settings)
    return Model("small", network.eval(), ("background", "a"), (0, 1))


def scripted(
    scores: list[float], recipe: Recipe = PLAIN, **options: Any
) -> tuple[list[Any], Any, Scripted]:
    model = small()
    task = Scripted(model, recipe, scores)
    recipe = replace(recipe, epochs=len(scores) or recipe.epochs)
    events, trained = followed(fit(model, task, recipe, device="cpu", **options))
    return events, trained, task


def matches(network: torch.nn.Module, weights: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(v, weights[k]) for k, v in network.state_dict().items())


# -- learning and repeating ------------------------------------------------------------


def test_training_learns_and_tells_of_it() -> None:
    recipe = replace(QUICK, epochs=12, views=128, augmentation=Augmentation())
    events, model = run(recipe)
    assert [e.epoch for e in events] == list(range(1, 13))
    assert events[-1].loss < 0.8 * events[0].loss
    assert all(0 <= e.score <= 1 for e in events)
    assert events[-1].best == max(e.score for e in events)
    assert events[0].seconds_left > 0
    assert events[-1].seconds_left == 0
    assert not model.network.training


def test_few_views_still_make_a_step() -> None:
    events, model = run(replace(QUICK, views=3, epochs=1))
    assert events[0].loss > 0
    assert not same(model, tiny_model())


def test_the_same_seed_gives_the_same_weights() -> None:
    assert same(run()[1], run()[1])


def test_the_model_that_was_passed_in_is_left_alone() -> None:
    model = tiny_model()
    before = {k: v.clone() for k, v in model.network.state_dict().items()}
    task = RetinaTask(model, samples(), [], recipe=QUICK, seed=0)
    complete(fit(model, task, QUICK, device="cpu"))
    assert matches(model.network, before)


def test_a_run_that_is_left_early_leaves_torch_as_it_was() -> None:
    before = torch.are_deterministic_algorithms_enabled()
    model = small()
    training = fit(model, Scripted(model, PLAIN, []), PLAIN, device="cpu")
    next(training)
    assert torch.are_deterministic_algorithms_enabled() == before
    training.close()
    assert torch.are_deterministic_algorithms_enabled() == before


# -- going on after a break ------------------------------------------------------------


def test_a_resumed_run_ends_with_the_same_weights(tmp_path: Path) -> None:
    _, whole = run()
    kept = tmp_path / "run.checkpoint"
    run(checkpoint=kept, stop_after=2)
    events, resumed = run(checkpoint=kept)
    assert [e.epoch for e in events] == [3]
    assert same(whole, resumed)


def test_a_run_resumed_in_its_last_epochs_ends_with_the_same_weights(
    tmp_path: Path,
) -> None:
    calm = Augmentation(scale=(1.0, 1.0), gamma=(1.0, 1.0), noise=0.0, blur=0.0)
    recipe = replace(QUICK, last=0.7, last_augmentation=calm)
    _, whole = run(recipe)
    kept = tmp_path / "run.checkpoint"
    run(recipe, checkpoint=kept, stop_after=1)
    _, resumed = run(recipe, checkpoint=kept)
    assert same(whole, resumed)
    assert not same(whole, run()[1])


@pytest.mark.parametrize("optimiser", ["adam", "adamw", "nadam", "sgd"])
def test_a_resumed_run_remembers_optimiser_rate_and_choice(
    tmp_path: Path, optimiser: str
) -> None:
    scores = [0.5, 0.4, 0.3, 0.2, 0.6, 0.1]
    recipe = replace(
        PLAIN, optimiser=optimiser, schedule="plateau", patience=2, averaging=0.9
    )
    recipe = replace(recipe, choice="ensemble", epochs=len(scores), views=6)
    events, whole, _ = scripted(scores, recipe)
    kept = tmp_path / "run.checkpoint"
    model = small()
    task = Scripted(model, recipe, scores)
    first = fit(model, task, recipe, device="cpu", checkpoint=kept)
    rates = [next(first).learning_rate for _ in range(3)]
    again = Scripted(model, recipe, scores)
    again.seen = task.seen  # the script goes on too
    late, resumed = followed(fit(model, again, recipe, device="cpu", checkpoint=kept))
    assert rates + [e.learning_rate for e in late] == [e.learning_rate for e in events]
    assert len(set(rates + [e.learning_rate for e in late])) > 1
    assert [e.loss for e in late] == [e.loss for e in events[3:]]
    assert same(resumed.model, whole.model)
    assert resumed.score == whole.score == 0.6


def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path) -> None:
    kept = tmp_path / "run.checkpoint"
    run(checkpoint=kept, stop_after=1)
    with pytest.raises(TrainingError, match="other settings"):
        run(replace(QUICK, learning_rate=1.0), checkpoint=kept)

    def other(images: list[Sample]) -> Any:
        torch.manual_seed(0)
        model = tiny_model()
        task = RetinaTask(model, images, samples(1), recipe=QUICK, seed=5)
        return next(fit(model, task, QUICK, device="cpu", seed=5, checkpoint=kept))

    assert other(samples()).epoch == 2
    first, second = samples()
    for images in (
        [first],
        [second, first],
        [first, replace(second, image=second.image * 0.9)],
        [first, replace(second, instances=second.instances[::-1].copy())],
    ):
        with pytest.raises(TrainingError, match="other settings"):
            other(images)
    kept.write_bytes(b"nonsense")
    with pytest.raises(TrainingError, match="no training checkpoint"):
        run(checkpoint=kept)


# -- what goes wrong on the way --------------------------------------------------------


class Diverging(Scripted):
    """Its loss becomes infinite in the third epoch, in the way it is told."""

    def __init__(self, *arguments: Any, how: str) -> None:
        super().__init__(*arguments)
        self.how = how

    def loss(self, network, batch, device) -> torch.Tensor:
        loss = super().loss(network, batch, device)
        if len(self.seen) < 2:
            return loss
        if self.how == "loss":
            return loss * float("nan")
        # The value is fine, its slope is not.
        return loss + (next(network.parameters()).sum() * 0).sqrt()


@pytest.mark.parametrize("how", ["loss", "slope"])
def test_a_loss_that_is_not_finite_ends_with_the_last_good_model(
    tmp_path: Path, how: str
) -> None:
    recipe = replace(PLAIN, choice="last")
    kept = tmp_path / "run.checkpoint"
    model = small()
    task = Diverging(model, recipe, [0.1, 0.2, 0.3, 0.4], how=how)
    training = fit(model, task, recipe, device="cpu", checkpoint=kept)
    next(training)
    next(training)
    assert kept.exists()
    with pytest.raises(LossNotFinite, match=r"epoch 3; .* lower learning rate") as said:
        next(training)
    trained = said.value.trained
    assert matches(trained.model.network, task.seen[1])
    assert trained.score == 0.2
    # From it the loss would become infinite again: nothing is in the way of a new run.
    assert not kept.exists()


def test_a_loss_that_is_infinite_at_once_gives_the_first_model_back() -> None:
    with pytest.raises(LossNotFinite) as said:
        run(replace(QUICK, learning_rate=float("inf")))
    torch.manual_seed(0)
    assert same(said.value.trained.model, tiny_model())
    assert said.value.trained.score is None


def test_cancelling_ends_with_the_best_model_so_far() -> None:
    model = small()
    recipe = replace(PLAIN, views=6, epochs=3)
    task = Scripted(model, recipe, [0.5, 0.2, 0.9])
    steps = itertools.count(1)
    training = fit(
        model, task, recipe, device="cpu", cancelled=lambda: next(steps) == 7
    )
    events, trained = followed(training)
    assert len(events) == 2
    assert next(steps) == 8
    assert matches(trained.model.network, task.seen[0])
    assert trained.score == 0.5


# -- rates and choices -----------------------------------------------------------------


def test_the_rate_falls_after_patience_epochs_without_improvement() -> None:
    scores = [0.5, 0.5005, 0.5005, 0.6, 0.6, 0.59, 0.6005, 0.6]
    recipe = replace(PLAIN, schedule="plateau", patience=3, plateau_factor=0.1)
    events, _, _ = scripted(scores, recipe)
    rates = [e.learning_rate for e in events]
    assert rates == pytest.approx([0.1] * 7 + [0.01])
    recipe = replace(recipe, patience=2)
    events, _, _ = scripted(scores, recipe)
    rates = [e.learning_rate for e in events]
    assert rates == pytest.approx([0.1] * 3 + [0.01] * 3 + [0.001] * 2)


@pytest.mark.parametrize(
    ("losses", "rates"),
    [([3, 3, 3, 3], [0.1, 0.1, 0.05, 0.025]), ([4, 3, 2, 1], [0.1] * 4)],
)
def test_without_validation_the_plateau_is_that_of_the_loss(
    losses: list[float], rates: list[float]
) -> None:
    class Told(Scripted):
        def loss(self, network, batch, device) -> torch.Tensor:
            return network(batch).sum() * 0 + told.pop(0)

    told = list(losses)
    recipe = replace(PLAIN, schedule="plateau", patience=1, plateau_factor=0.5)
    model = small()
    events, trained = followed(
        fit(model, Told(model, recipe, []), recipe, device="cpu")
    )
    assert [e.loss for e in events] == losses
    assert [e.learning_rate for e in events] == pytest.approx(rates)
    assert trained.score is None


def test_constant_stays_and_cosine_rises_and_falls() -> None:
    events, _, _ = scripted([], replace(PLAIN, epochs=5))
    assert {e.learning_rate for e in events} == {0.1}
    recipe = replace(PLAIN, schedule="cosine", epochs=50, views=2)
    rates = [e.learning_rate for e in scripted([], recipe)[0]]
    assert rates[0] == max(rates) == pytest.approx(0.1)
    assert rates == sorted(rates, reverse=True)
    assert rates[25] == pytest.approx(0.05, rel=0.05)
    assert rates[-1] < 0.001
    warm = [e.learning_rate for e in scripted([], replace(recipe, epochs=100))[0]]
    assert warm[:3] == pytest.approx([0.1 / 3, 0.2 / 3, 0.1])


SCORES = [0.3, 0.8, 0.1, 0.9, 0.7, 0.2]


def test_best_keeps_the_best_and_of_equals_the_later_epoch() -> None:
    _, trained, task = scripted(SCORES, replace(PLAIN, choice="best"))
    assert matches(trained.model.network, task.seen[3])
    assert trained.score == 0.9
    _, trained, task = scripted([0.5, 0.5, 0.4])
    assert matches(trained.model.network, task.seen[1])


def test_last_keeps_the_last_and_tells_its_score() -> None:
    events, trained, task = scripted(SCORES, replace(PLAIN, choice="last"))
    assert matches(trained.model.network, task.seen[5])
    assert trained.score == 0.2
    assert events[-1].best == 0.9


def test_an_ensemble_is_made_of_the_best_three() -> None:
    _, trained, task = scripted(SCORES, replace(PLAIN, choice="ensemble"))
    ensemble = trained.model.network
    assert isinstance(ensemble, Ensemble)
    assert len(ensemble.members) == 3
    for member, epoch in zip(ensemble.members, (3, 1, 4), strict=True):
        assert matches(member, task.seen[epoch])
    assert trained.score == 0.9
    image = torch.rand(1, 3, 8, 8)
    each = torch.stack([m(image).sigmoid() for m in ensemble.members])
    torch.testing.assert_close(ensemble(image).sigmoid(), each.mean(0))


def test_what_was_never_scored_is_no_member_of_an_ensemble() -> None:
    recipe = replace(PLAIN, choice="ensemble", validate_every=2, epochs=4)
    model = small()
    task = Scripted(model, recipe, [0.7, 0.5])
    _, trained = followed(fit(model, task, recipe, device="cpu"))
    assert len(trained.model.network.members) == 2


def test_an_ensemble_without_validation_is_the_last_model() -> None:
    recipe = replace(PLAIN, choice="ensemble")
    _, trained, task = scripted([], recipe)
    assert type(trained.model.network) is type(small().network)
    assert matches(trained.model.network, task.seen[-1])


def test_of_networks_that_cannot_be_averaged_the_best_is_kept() -> None:
    _, best = run(replace(QUICK, choice="best"))
    _, first = run(replace(QUICK, choice="ensemble"))
    assert same(best, first)


def test_the_average_lies_between_the_weights_it_follows() -> None:
    _, last, _ = scripted([], replace(PLAIN, choice="last"))
    _, mean, task = scripted([], replace(PLAIN, choice="last", averaging=0.5))
    assert matches(mean.model.network, task.seen[-1])
    begin = small().network.state_dict()
    for name, value in mean.model.network.state_dict().items():
        end = last.model.network.state_dict()[name]
        assert (value - begin[name]).norm() <= (end - begin[name]).norm() * 1.01
    assert not same(mean.model, last.model)
