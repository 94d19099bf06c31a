"""Recipes, what they show a network, and that each kind of network learns from it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from conftest import tiny_model
from following import followed
from napari_fovea import complete
from napari_fovea.losses import LOSSES
from napari_fovea.models import Model
from napari_fovea.networks import build, name_of, named_configs, validate
from napari_fovea.sample_data import make_nuclei
from napari_fovea.training.augment import (
    Augmentation,
    Geometry,
    sample_view,
    vary_light,
)
from napari_fovea.training.fit import fit
from napari_fovea.training.recipe import Recipe
from napari_fovea.training.recipes import RECIPES
from napari_fovea.training.retina import RetinaTask
from napari_fovea.training.run import fresh_model, task_for
from napari_fovea.training.samples import VOID, Sample, make_sample
from napari_fovea.training.task import Parts

if TYPE_CHECKING:
    from pathlib import Path

STILL = Geometry(turn=False, flip=False, rotate=0.0, zoom=(1.0, 1.0), shear=0.0)


def samples(n: int = 2, outputs: int = 2) -> list[Sample]:
    pairs = (make_nuclei((96, 96), count=8, seed=i) for i in range(n))
    return [
        make_sample(
            i,
            t,
            name=f"{k}",
            channels=3,
            outputs=outputs,
            depths=(0.0, 0.25, 0.75) if outputs == 3 else None,
        )
        for k, (i, t) in enumerate(pairs)
    ]


def disc_sample(shape: tuple[int, int] = (96, 96)) -> Sample:
    """An image that is bright where its labels are, of two objects."""
    y, x = np.mgrid[: shape[0], : shape[1]]
    disc = ((y - 40) ** 2 + (x - 55) ** 2 < 150).astype(int)
    disc += 8 * ((y - 60) ** 2 + (x - 25) ** 2 < 150)
    return make_sample((disc > 0) * 100.0, disc, channels=1, outputs=2)


# -- recipes ---------------------------------------------------------------------------

ADAM = {"exp_avg", "exp_avg_sq", "step"}

NADAM = {*ADAM, "mu_product"}
SGD = {"momentum_buffer"}

# Epochs, batch, side, loss, choice, schedule; then what the optimiser of a run must
# hold: rate, weight decay, momentum, and its memories.
PAPERS: dict[str, tuple[Any, ...]] = {}
_once = ("best", "constant", 1e-4, 0, None, ADAM)
PAPERS["retina-paper"] = (20, 16, None, "bce", *_once)
PAPERS["patch-center-paper"] = (20, 16, None, "bce", *_once)
PAPERS["unet-patch-paper"] = (15, 16, 192, "bce", *_once)
PAPERS["unet-image-paper"] = (200, 16, None, "bce", *_once)
_falling = ("best", "plateau", 1e-3, 0, None, ADAM)
PAPERS["focusnet-paper"] = (80, 8, 256, "dice", *_falling)
PAPERS["focusnet-plus-paper"] = (50, 8, 256, "log-hybrid", *_falling)
_ensemble = ("ensemble", "plateau", 1e-4 * (1 - 1e-5), 0, None, NADAM)
PAPERS["r2-attention-unet-paper"] = (20, 4, 256, "focal-tversky", *_ensemble)
_momentum = ("best", "plateau", 5e-3, 1e-4, 0.9, SGD)
PAPERS["mask-rcnn-paper"] = (50, 2, 512, "bce", *_momentum)


def optimiser_of(recipe: Recipe, folder: Path) -> dict[str, Any]:
    """What a run of this recipe, on another network, keeps of its optimiser."""
    plan = replace(recipe, epochs=1, views=2, batch_size=2, side=32, loss="bce")
    network = build("unet", {"width": 1, "depth": 2, "norm": False})
    model = Model("small", network.eval(), ("background", "a"), (0, 1))
    task = task_for(model, samples(1), [], recipe=plan, seed=0)
    kept = folder / "run.checkpoint"
    complete(fit(model, task, plan, device="cpu", checkpoint=kept))
    state: dict[str, Any] = torch.load(kept, weights_only=True)["optimiser"]
    return state


@pytest.mark.parametrize("name", PAPERS)
def test_the_papers_recipes_are_the_papers(name: str, tmp_path: Path) -> None:
    recipe = RECIPES[name]
    epochs, batch, side, loss, choice, schedule, *optimiser = PAPERS[name]
    assert recipe.config == "paper"
    assert (recipe.epochs, recipe.batch_size, recipe.side) == (epochs, batch, side)
    assert (recipe.loss, recipe.choice, recipe.schedule) == (loss, choice, schedule)
    assert recipe.averaging == 0
    assert recipe.validate_every == 1
    if schedule == "plateau":
        assert (recipe.patience, recipe.plateau_factor) == (5, 0.5)
    if choice == "ensemble":
        assert recipe.members == 3
    state = optimiser_of(recipe, tmp_path)
    rate, decay, momentum, memories = optimiser
    (group,) = state["param_groups"]
    assert group["lr"] == pytest.approx(rate, rel=1e-9)
    assert recipe.clip is None
    assert not recipe.depth
    assert group["weight_decay"] == decay
    assert group.get("momentum") == momentum
    assert not group.get("nesterov")
    assert set(state["state"][0]) == memories


def test_the_papers_augmentations_are_the_papers() -> None:
    still = Augmentation(scale=(1, 1), stretch=0, gamma=(1, 1), gain=(1, 1), offset=0)
    still = replace(still, colour=0, invert=0, gray=0, noise=0, blur=0)
    for name in PAPERS:
        assert RECIPES[name].augmentation == still
    crops = torch.rand(8, 3, 24, 24)
    varied = vary_light(crops.clone(), augmentation=still, rng=np.random.default_rng(0))
    torch.testing.assert_close(varied, crops)
    assert RECIPES["focusnet-plus-paper"].geometry == STILL
    zooms = RECIPES["focusnet-paper"].geometry
    assert (zooms.flip, zooms.turn, zooms.rotate, zooms.shear) == (True, False, 0, 0)
    assert zooms.zoom[0] < 1 < zooms.zoom[1]
    every = RECIPES["r2-attention-unet-paper"].geometry
    assert every.flip
    assert min(every.rotate, every.shear, every.elastic) > 0
    turns = RECIPES["mask-rcnn-paper"].geometry
    assert turns.flip
    assert (turns.rotate > 0, turns.zoom, turns.elastic) == (True, (1.0, 1.0), 0)


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_builds_its_network(name: str) -> None:
    recipe = RECIPES[name]
    with torch.device("meta"):  # no memory is taken for weights
        model = fresh_model(recipe, name=name, channels=1)
    assert name_of(model.network) == recipe.network
    settings = named_configs(recipe.network)[recipe.config]
    expected = settings | {"channels": 1, "classes": len(model.outputs)}
    assert model.config == validate(recipe.network, expected)
    assert model.scan.get("tile") == (recipe.side if recipe.tiles else None)
    if recipe.network in ("retina-vgg", "retina-shared"):
        paper = recipe.config == "paper"
        assert model.scan["policy"] == ("raster" if paper else "seek")
    assert model.scan.get("diameter") == ("auto" if recipe.diameter else None)
    assert (model.depths is not None) == recipe.depth
    assert recipe.loss in LOSSES
    assert model.classes == ("background", "object")


# -- each kind of network learns -------------------------------------------------------

TINY: dict[str, dict[str, Any]] = {
    "unet-small": {"width": 4, "depth": 3},
    "focusnet-small": {"width": 4},
    "focusnet-plus-small": {"widths": (4, 8, 8), "units": (1, 1, 1), "side": 4},
    "r2-attention-unet-small": {"width": 4, "depth": 3},
    "patch-center-paper": {"d": 24, "width": 4, "units": 16, "norm": True},
    "mask-rcnn-small": {"width": 8, "pyramid": 16, "head_width": 32}
    | {"mask_width": 16, "rois_per_image": 32},
    "retina-small": {"d": 32, "r": 2, "width": 4, "units": 16},
    "retina-shared-small": {"d": 32, "r": 2, "width": 8, "units": 32, "pyramid": 8},
}


def tiny(name: str, **changes: Any) -> tuple[Model, Recipe]:
    recipe = replace(
        RECIPES[name],
        **{"epochs": 6, "views": 16, "batch_size": 4, "side": 64, "averaging": 0.0}
        | {"learning_rate": 3e-3, "geometry": Geometry(rotate=0, zoom=(1, 1), shear=0)}
        | {"schedule": "constant", "rescan": 0, "uncertain": 0.0}
        | changes,
    )
    named = dict(named_configs(recipe.network)["small" if "small" in name else "paper"])
    settings = named | {"channels": 3, "classes": 2} | TINY[name]
    torch.manual_seed(0)
    network = build(recipe.network, settings)
    return Model(name, network, ("background", "nucleus"), (0, 1)), recipe


def learn(name: str, *, seed: int = 0, validation: int = 0, **changes: Any):
    model, recipe = tiny(name, **changes)
    task = task_for(model, samples(), samples(validation), recipe=recipe, seed=seed)
    training = fit(model, task, recipe, device="cpu", seed=seed)
    events, trained = followed(training)
    weights = trained.model.network.state_dict()
    return [e.loss for e in events], [e.score for e in events], weights


@pytest.mark.parametrize(
    "name",
    ["unet-small", "patch-center-paper", "mask-rcnn-small", "retina-shared-small"],
)
def test_each_task_learns_without_validation(name: str) -> None:
    losses, scores, _ = learn(name)
    assert min(losses[-2:]) < 0.9 * losses[0]
    assert set(scores) == {None}


@pytest.mark.parametrize("name", [n for n in TINY if n != "focusnet-plus-small"])
def test_light_varies_less_in_the_last_epochs(name: str) -> None:
    calm = Augmentation(
        scale=(1.0, 1.0),
        stretch=0.0,
        gamma=(1.0, 1.0),
        gain=(0.5, 0.5),
        offset=0.0,
        colour=0.0,
        invert=0.0,
        gray=0.0,
        noise=0.0,
        blur=0.0,
    )
    model, recipe = tiny(name, epochs=10, last=0.3, last_augmentation=calm)
    bright = replace(calm, gain=(1.0, 1.0))
    recipe = replace(recipe, augmentation=bright)
    shown = [replace(s, image=torch.ones_like(s.image)) for s in samples()]
    task = task_for(model, shown, [], recipe=recipe, seed=0)
    brightest = []
    for epoch in (0, 6, 7, 9):
        drawn = next(iter(task.batches(epoch, Parts())))[0]
        images = getattr(drawn, "images", None)
        if images is None:
            images = drawn[0] if isinstance(drawn, tuple) else drawn.image
        brightest.append(float(images.max()))
    assert brightest == pytest.approx([1.0, 1.0, 0.5, 0.5], abs=0.01)


@pytest.mark.parametrize(
    "name",
    ["unet-small", "patch-center-paper", "mask-rcnn-small", "retina-shared-small"],
)
def test_the_same_seed_gives_the_same_weights_and_score(name: str) -> None:
    changes = {"epochs": 1, "views": 8, "geometry": RECIPES["unet-small"].geometry}
    first, again, other = (
        learn(name, seed=s, validation=1, **changes) for s in (3, 3, 4)
    )
    assert first[:2] == again[:2]
    assert 0 <= first[1][0] <= 1
    assert all(torch.equal(first[2][k], again[2][k]) for k in first[2])
    assert first[0] != other[0]


@pytest.mark.parametrize("name", TINY)
def test_every_weight_gets_a_gradient(name: str) -> None:
    # Or several processes would wait for each other for ever.
    model, recipe = tiny(name)
    task = task_for(model, samples(1), [], recipe=recipe, seed=0)
    batch = task.batch(np.random.default_rng(0), 2)
    network = model.network.train().requires_grad_(True)
    task.loss(network, batch, torch.device("cpu")).backward()
    assert not [n for n, p in network.named_parameters() if p.grad is None]


def test_a_detector_learns_from_empty_images_too() -> None:
    model, recipe = tiny("mask-rcnn-small")
    image = np.random.default_rng(0).random((64, 64))
    empty = make_sample(image, np.zeros((64, 64), int), channels=3, outputs=2)
    task = task_for(model, [empty], [empty], recipe=recipe, seed=0)
    batch = task.batch(np.random.default_rng(0), 2)
    network = model.network.train().requires_grad_(True)
    loss = task.loss(network, batch, torch.device("cpu"))
    loss.backward()
    assert loss.isfinite()
    assert not [n for n, p in network.named_parameters() if p.grad is None]


def test_what_is_mirrored_is_an_object_of_its_own() -> None:
    model, recipe = tiny("mask-rcnn-small", side=128, geometry=STILL)
    labels = np.zeros((64, 64), int)
    labels[24:36, 24:36] = 5
    image = np.random.default_rng(0).random((64, 64))
    sample = make_sample(image, labels, channels=3, outputs=2)
    task = task_for(model, [sample], [], recipe=recipe, seed=0)
    (target,) = task.batch(np.random.default_rng(0), 1).targets
    assert len(target.boxes) == 4
    assert (target.boxes[:, 2:] - target.boxes[:, :2] == 12).all()


def test_ignored_labels_do_not_count() -> None:
    image = np.random.default_rng(0).random((32, 32))
    labels = np.full((32, 32), 9)
    labels[:, :16] = 1
    sample = make_sample(
        image, labels, channels=3, outputs=3, from_instances=False, ignore=9
    )
    assert set(sample.classes.unique().tolist()) == {1, VOID}
    recipe = Recipe("retina-vgg", "small", epochs=1, batch_size=1, learning_rate=1)
    task = RetinaTask(tiny_model(), [sample], [], recipe=recipe, seed=0)
    logits = torch.randn(1, 28, 3)
    loss = task.loss(
        lambda crops: logits,
        (sample.image[None], sample.classes[None]),
        torch.device("cpu"),
    )
    seen = (task.grid.cells[:, 1] < 16).nonzero()[0]
    expected = -logits[0, seen].log_softmax(-1)[:, 1].mean()
    assert loss == pytest.approx(expected.item())


def test_views_are_centred_where_the_scan_was_uncertain() -> None:
    recipe = replace(tiny("retina-small")[1], uncertain=0.4, rescan=1)
    task = RetinaTask(tiny_model(), samples(outputs=3), [], recipe=recipe, seed=0)
    assert not task.uncertain
    task.prepare(task.model, epoch=0)
    ((index, places),) = task.uncertain.items()
    assert 0 < len(places) <= 400
    assert (places >= 0).all()
    assert (places < 96).all()
    again = RetinaTask(task.model, task.samples, [], recipe=recipe, seed=0)
    again.restore(task.state())
    np.testing.assert_array_equal(again.uncertain[index], places)


# -- the retina's own views ------------------------------------------------------------


def test_a_view_without_change_is_a_crop_up_to_turning() -> None:
    (sample,) = samples(1, outputs=3)
    still = Augmentation(scale=(1, 1), stretch=0)
    rng = np.random.default_rng(3)
    image, classes = sample_view(sample, (48, 48), 32, augmentation=still, rng=rng)
    assert image.shape == (3, 32, 32)
    assert classes.shape == (32, 32)
    assert abs(image.mean() - sample.image[:, 28:68, 28:68].mean()) < 0.15
    assert set(classes.unique().tolist()) <= {0, 1, 2}


def test_image_and_classes_move_together() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        image, classes = sample_view(
            disc_sample(), (45, 50), 32, augmentation=Augmentation(), rng=rng
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
    torch.testing.assert_close(varied[:, 0], varied[:, 2])  # gray stays gray
