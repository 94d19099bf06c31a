"""Evidence found by convex descent, and what is seen of planes for it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy import optimize
from torch.nn import functional

from conftest import tiny_model
from following import followed
from napari_fovea.inference.dense import DenseReader
from napari_fovea.inference.reading import complete
from napari_fovea.models import Model
from napari_fovea.networks import probabilities
from napari_fovea.networks.adapted import opinion
from napari_fovea.retina import Frame
from napari_fovea.training import looks
from napari_fovea.training.adapting import adapted
from napari_fovea.training.evidence import (
    Gathered,
    choose_ridge,
    class_logits,
    fit_evidence,
    gather,
    held_out,
    row_scores,
)
from napari_fovea.training.guard import Stroke, fold_strokes, stroke_scores, strokes_of
from napari_fovea.training.looks import DenseLooks, RetinaLooks, looks_of
from napari_fovea.training.painted import Annotation, PaintedPlane, read_painted
from napari_fovea.training.tuner import Tuner
from small_networks import DENSE, tiny

CPU = torch.device("cpu")


def rows(
    *, classes: int, n: int = 120, features: int = 5, seed: int = 0, ridge: float = 0.1
) -> Gathered:
    """Random places, of which features tell something."""
    make = torch.Generator().manual_seed(seed)
    x = torch.randn(n, features, generator=make) * torch.linspace(0.3, 4, features) + 1
    w = torch.randn(features, classes, generator=make)
    noise = torch.randn(n, classes, generator=make)
    target = functional.one_hot((x @ w + 2 * noise).argmax(1), classes).float()
    return Gathered(
        x,
        0.3 * torch.randn(n, classes, generator=make),
        target,
        torch.ones(n),
        torch.full((n, classes), 1 / classes),
        tuple(Stroke(("a", 0), i + 1, 0) for i in range(6)),
        torch.arange(n) % 7 - 1,
        torch.linspace(2, 0.2, features),
        x.mean(0),
        ridge,
    )


def start_of(gathered: Gathered) -> torch.Tensor:
    k = gathered.prior.shape[1]
    features = gathered.features.shape[1]
    return torch.zeros(features + 1, 1 if k == 2 else k, dtype=torch.float64)


def literal(gathered: Gathered, start: torch.Tensor) -> np.ndarray:
    """Evidence by another program, in the network's own features."""
    x = gathered.features.double().numpy()
    x = (x - gathered.shift.numpy()) * gathered.scale.numpy()
    offset = class_logits(gathered, start).numpy()
    target = gathered.target.double().numpy() * gathered.weight.numpy()[:, None]
    mass = target.sum(0)
    share = target / np.sqrt(np.where(mass > 0, mass, 1))
    share /= share.sum()
    shape = tuple(start.shape)

    def loss(flat: np.ndarray) -> float:
        w = flat.reshape(shape)
        z = x @ w[:-1] + w[-1]
        z = np.concatenate([-z / 2, z / 2], axis=1) if shape[1] == 1 else z
        z = z + offset
        logs = z - np.logaddexp.reduce(z, axis=1, keepdims=True)
        size = (w[:-1] ** 2).sum() + 0.1 * (w[-1] ** 2).sum()
        return -(share * logs).sum() + gathered.ridge / 2 * size

    found = optimize.minimize(
        loss, np.zeros(start.numel()), method="BFGS", options={"gtol": 1e-7}
    )
    w = found.x.reshape(shape)
    w[:-1] *= gathered.scale.numpy()[:, None]
    w[-1] -= gathered.shift.numpy() @ w[:-1]
    return start.numpy() + w


@pytest.mark.filterwarnings("ignore:.*precision loss.*")
@pytest.mark.parametrize("classes", [2, 3, 5])
@pytest.mark.parametrize("ridge", [0.03, 1.0])
def test_evidence_is_the_minimum_of_the_objective(classes: int, ridge: float) -> None:
    gathered = rows(classes=classes, ridge=ridge)
    share = torch.rand(len(gathered.target), 1)
    gathered = replace(gathered, weight=share[:, 0])
    start = 0.2 * torch.randn_like(start_of(gathered))
    found = fit_evidence(gathered, start)
    np.testing.assert_allclose(found.numpy(), literal(gathered, start), atol=2e-3)


def test_two_classes_are_a_logistic_regression() -> None:
    from sklearn.linear_model import LogisticRegression

    gathered = rows(classes=2, n=200, ridge=0.1)
    gathered = replace(
        gathered,
        prior=torch.zeros(200, 2),
        scale=torch.ones(5),
        shift=torch.zeros(5),
    )
    # The bias is held back a tenth as much as the rest: a feature of √10.
    x = np.concatenate([gathered.features.numpy(), np.full((200, 1), 10**0.5)], 1)
    y = gathered.target.argmax(1).numpy()
    weight = np.bincount(y)[y] ** -0.5
    weight /= weight.sum()
    other = LogisticRegression(C=10, fit_intercept=False, tol=1e-10, max_iter=1000)
    other.fit(x, y, sample_weight=weight)
    expected = other.coef_[0] * np.array([1] * 5 + [10**0.5])
    found = fit_evidence(gathered, start_of(gathered))[:, 0]
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-3)


def test_the_loss_falls_and_is_told() -> None:
    told: list[tuple[int, float]] = []
    fit_evidence(
        rows(classes=3),
        start_of(rows(classes=3)),
        told=lambda step, loss: told.append((step, loss)),
    )
    assert [step for step, _ in told] == list(range(1, len(told) + 1))
    assert told[-1][1] < 0.8 * told[0][1]


@pytest.mark.parametrize("classes", [2, 4])
def test_the_ridge_pulls_to_what_was_read_before(classes: int) -> None:
    gathered = rows(classes=classes)
    start = torch.randn_like(start_of(gathered))
    distances = []
    for ridge in (0.01, 1, 100, 1e6):
        found = fit_evidence(replace(gathered, ridge=ridge), start)
        distances.append(float((found - start).abs().max()))
    assert distances == sorted(distances, reverse=True)
    assert distances[-1] < 1e-4
    assert distances[0] > 0.05


def test_rows_that_weigh_more_are_as_if_repeated() -> None:
    gathered = rows(classes=2, n=60)
    first = gathered.target[:, 0] > 0
    often = torch.cat([torch.arange(60)] + [first.nonzero()[:, 0]] * 9)
    more = replace(
        gathered,
        **{
            name: getattr(gathered, name)[often]
            for name in ("features", "prior", "target", "weight", "base", "index")
        },
    )
    heavy = replace(gathered, weight=torch.where(first, 10.0, 1.0))
    start = start_of(gathered)
    torch.testing.assert_close(
        fit_evidence(more, start), fit_evidence(heavy, start), atol=1e-3, rtol=1e-3
    )


def test_more_strokes_are_held_back_less() -> None:
    gathered = rows(classes=2)
    strokes = tuple(Stroke(("a", 0), i + 1, 0) for i in range(24))
    more = replace(
        gathered, strokes=strokes, index=torch.arange(120) % 24, ridge=4 * 0.1
    )
    start = start_of(gathered)
    torch.testing.assert_close(
        fit_evidence(more, start), fit_evidence(gathered, start), atol=1e-3, rtol=1e-3
    )


def test_only_the_rows_in_use_are_learned_from() -> None:
    gathered = rows(classes=3)
    use = torch.arange(120) % 3 > 0
    wrong = gathered.target.clone()
    wrong[~use] = wrong[~use].roll(1, 1)
    start = start_of(gathered)
    first = fit_evidence(gathered, start, use=use)
    second = fit_evidence(replace(gathered, target=wrong), start, use=use)
    assert torch.equal(first, second)
    assert not torch.allclose(first, fit_evidence(gathered, start), atol=1e-3)


def test_a_class_that_is_not_painted_does_no_harm() -> None:
    gathered = rows(classes=3)
    use = gathered.target[:, 2] == 0
    found = fit_evidence(gathered, start_of(gathered), use=use)
    assert found.isfinite().all()
    nothing = torch.zeros(120, dtype=torch.bool)
    found = fit_evidence(gathered, start_of(gathered), use=nothing)
    assert torch.equal(found, start_of(gathered))


def test_fitting_changes_nothing_it_was_given() -> None:
    gathered = rows(classes=2)
    start = start_of(gathered)
    kept = [getattr(gathered, n).clone() for n in ("features", "prior", "target")]
    fit_evidence(gathered, start)
    assert not start.any()
    for before, name in zip(kept, ("features", "prior", "target"), strict=True):
        assert torch.equal(before, getattr(gathered, name))


def test_scores_of_rows_are_means_of_strokes() -> None:
    gathered = replace(rows(classes=3), weight=torch.rand(120))
    p = torch.rand(120, 3).softmax(1)
    found = row_scores(gathered, p)
    assert set(found) == set(gathered.strokes)
    for i, stroke in enumerate(gathered.strokes):
        total = mass = 0.0
        for row in range(120):
            if gathered.index[row] == i:
                w = float(gathered.weight[row])
                total += w * float(p[row] @ gathered.target[row])
                mass += w
        assert found[stroke] == pytest.approx(total / mass, rel=1e-4)


# -- what is seen of a plane ---------------------------------------------------------


def made(
    name: str = "unet", *, outputs: int = 2, seed: int = 0, **changes: Any
) -> Model:
    torch.manual_seed(seed)
    classes = ("background", "nucleus")
    belongs = (0, 1) if outputs == 2 else (0, 1, 1)
    network = tiny(name, classes=outputs, **changes)
    return Model(
        name,
        network,
        classes,
        belongs,
        depths=(0.0, 0.25, 0.75) if outputs == 3 else None,
    )


def plane_of(
    model: Model, shape: tuple[int, int] = (45, 61), *, seed: int = 0, n: int = 40
) -> PaintedPlane:
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 255, (*shape, 3)).astype(np.uint8)
    labels = np.zeros(shape, np.uint8)
    for i in range(n):
        y, x = rng.integers(shape)
        labels[y, max(0, x - 1) : x + 2] = 1 + i % 2
    labels[0, 0], labels[-1, -1] = 1, 2
    return read_painted([Annotation(image, labels)], model).planes[0]


def whole_features(network: Any, image: torch.Tensor) -> torch.Tensor:
    """Features of every pixel by the plainest way there is."""
    height, width = image.shape[1:]
    m = network.multiple
    tall, wide = (max(2 * m, -(-n // m) * m) for n in (height, width))
    padded = functional.pad(
        image[None], (0, wide - width, 0, tall - height), mode="replicate"
    )
    looked = network.look(padded)
    maps = [
        functional.interpolate(x, (tall, wide), mode="bilinear", align_corners=False)
        for x in looked.maps
    ]
    return torch.cat(maps, 1)[0, :, :height, :width]


@pytest.mark.parametrize("name", DENSE)
@pytest.mark.parametrize("shape", [(45, 61), (3, 70), (1, 1)])
def test_rows_are_what_the_network_sees_at_painted_pixels(
    name: str, shape: tuple[int, int]
) -> None:
    model = made(name, outputs=3)
    network = adapted(model, model.classes).network
    plane = plane_of(model, (45, 61))
    if shape != (45, 61):
        cut = [x[: shape[0], : shape[1]] for x in (plane.classes, plane.strokes)]
        plane = replace(
            plane,
            image=plane.image[:, : shape[0], : shape[1]],
            classes=cut[0],
            strokes=cut[1],
        )
    looks_at = DenseLooks(network, plane.image, model=model)
    found = looks_at.rows(plane)
    places = np.argwhere(plane.strokes > 0)
    y, x = places.T
    every = whole_features(network, plane.image)
    torch.testing.assert_close(found.features, every[:, y, x].T, atol=2e-3, rtol=2e-3)
    outputs = probabilities(model.network(plane.image[None]))[0]
    torch.testing.assert_close(found.outputs, outputs[:, y, x].T, atol=2e-3, rtol=2e-3)
    said = opinion(outputs[None], model.outputs)[0]
    torch.testing.assert_close(found.prior, said[:, y, x].T, atol=5e-3, rtol=5e-3)
    assert (found.strokes.numpy() == plane.strokes[y, x]).all()
    assert (found.target.argmax(1).numpy() == plane.classes[y, x]).all()
    assert (found.weight == 1).all()
    assert found.spread.shape == found.features.shape[1:]


@pytest.mark.parametrize("name", DENSE)
@pytest.mark.parametrize("shape", [(45, 61), (1, 9), (64, 64)])
def test_reading_again_is_what_the_saved_model_says(
    name: str, shape: tuple[int, int]
) -> None:
    model = made(name, outputs=3)
    plane = plane_of(model, shape)
    network = adapted(model, model.classes)
    looks_at = looks_of(network.network, plane.image, model=model)
    found = looks_at.rows(plane)
    gathered = gather(network.network, [(plane.key, found)], strokes_of([plane]))
    start = network.network.weights
    network.network.weights = fit_evidence(gathered, start)
    assert network.network.weights.any()
    seen = looks_at.read(network.network)
    expected = complete(DenseReader(network, CPU).read(plane.image))
    assert seen.outputs.shape == (3, *shape)
    torch.testing.assert_close(seen.outputs, expected.outputs, atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(
        seen.outputs.sum(0), torch.ones(shape), atol=1e-4, rtol=0
    )


def test_the_fit_and_the_model_say_the_same_of_strokes() -> None:
    model = made(outputs=3)
    plane = plane_of(model)
    tuned = followed(
        Tuner(model, device="cpu").instant(
            read_painted([Annotation(_image(plane), _labels(plane))], model)
        )
    )[1]
    looks_at = DenseLooks(
        adapted(model, model.classes).network, plane.image, model=model
    )
    outputs = looks_at.read(tuned.model.network).outputs
    classes = tuned.model.class_probabilities(outputs).numpy()
    direct = stroke_scores(plane, classes)
    network = adapted(model, model.classes).network
    gathered = gather(network, [(plane.key, looks_at.rows(plane))], strokes_of([plane]))
    weights = tuned.model.network.weights
    scores = row_scores(gathered, class_logits(gathered, weights).softmax(1))
    for stroke, score in scores.items():
        assert direct[stroke] == pytest.approx(score, abs=2e-3)


def _image(plane: PaintedPlane) -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.integers(0, 255, (*plane.classes.shape, 3)).astype(np.uint8)


def _labels(plane: PaintedPlane) -> np.ndarray:
    return np.where(plane.strokes > 0, plane.classes + 1, 0).astype(np.uint8)


def test_large_planes_are_seen_tile_by_tile(monkeypatch: pytest.MonkeyPatch) -> None:
    model = replace(made(), scan={"tile": 64})
    plane = plane_of(model, (101, 150), n=60)
    network = adapted(model, model.classes)
    looks_at = DenseLooks(network.network, plane.image, model=model)
    assert looks_at._whole is None
    found = looks_at.rows(plane)
    y, x = np.argwhere(plane.strokes > 0).T
    assert (found.strokes.numpy() == plane.strokes[y, x]).all(), "in their order"
    assert (found.target.argmax(1).numpy() == plane.classes[y, x]).all()
    c = 3
    torch.testing.assert_close(found.features[:, :c], plane.image[:, y, x].T)
    gathered = gather(network.network, [(plane.key, found)], strokes_of([plane]))
    network.network.weights = fit_evidence(gathered, network.network.weights)
    seen = looks_at.read(network.network)
    expected = complete(DenseReader(network, CPU).read(plane.image))
    torch.testing.assert_close(seen.outputs, expected.outputs, atol=1e-4, rtol=1e-3)
    # With tiles that hold all of it nothing is different.
    monkeypatch.setattr(looks, "_KEPT", 0)
    plain = replace(model, scan={})
    one = DenseLooks(network.network, plane.image, model=plain)
    assert one._whole is None
    monkeypatch.undo()
    other = DenseLooks(network.network, plane.image, model=plain)
    assert other._whole is not None
    a, b = one.rows(plane), other.rows(plane)
    for name in ("features", "outputs", "prior", "spread"):
        torch.testing.assert_close(getattr(a, name), getattr(b, name))


def test_long_planes_are_read_as_they_are_segmented() -> None:
    model = made()
    plane = plane_of(model, (16, 1400))
    network = adapted(model, model.classes)
    network.network.weights = 0.1 * torch.randn_like(network.network.weights)
    seen = DenseLooks(network.network, plane.image, model=model).read(network.network)
    expected = complete(DenseReader(network, CPU).read(plane.image))
    torch.testing.assert_close(seen.outputs, expected.outputs, atol=1e-3, rtol=1e-2)


# -- the retina ----------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(45, 61), (32, 32), (7, 60), (1, 1)])
@pytest.mark.parametrize("policy", ["seek", "raster"])
def test_a_retina_paints_the_pmfs_of_the_fitted_network(
    policy: str, shape: tuple[int, int]
) -> None:
    model = replace(tiny_model(outputs=3), scan={"policy": policy})
    wrapped = adapted(model, model.classes)
    network = wrapped.network
    image = plane_of(model).image[:, : shape[0], : shape[1]]
    looks_at = RetinaLooks(network, image, model=wrapped)
    network.weights = 0.1 * torch.randn_like(network.weights)
    seen = looks_at.read(network)
    assert seen.outputs.shape == (3, *shape)
    grid, corners = network.grid, torch.tensor(seen.path.corners)
    margin = looks_at.reader.policy.margin(grid)
    frame = Frame.around(shape, grid=grid, margin=margin)
    # One subarea after the other, one pixel of cells at a time.
    votes = torch.zeros(3, *frame.shape, dtype=torch.float64)
    areas = torch.from_numpy(grid.areas).double()
    index = torch.from_numpy(grid.cell_index)
    for corner in corners:
        pmf = network(looks_at._crops.crops(corner[None])).softmax(-1)[0].double()
        y, x = (corner + torch.tensor(frame.origin)).tolist()
        window = np.s_[y : y + grid.d, x : x + grid.d]
        weight = 1 / areas[index] if policy == "seek" else torch.ones_like(areas[index])
        votes[:, *window] += weight * pmf[index].permute(2, 0, 1)
    votes = votes[:, *frame.inner].float()
    mean = looks_at.reader.fusion.read_out(votes, grid)
    torch.testing.assert_close(seen.outputs, mean, atol=1e-3, rtol=1e-2)


def test_without_evidence_a_retina_reads_what_it_scanned() -> None:
    model = tiny_model(outputs=3)
    wrapped = adapted(model, model.classes)
    image = plane_of(model).image
    looks_at = RetinaLooks(wrapped.network, image, model=wrapped)
    scanned = complete(looks_at.reader.read(image))
    again = looks_at.read(wrapped.network)
    torch.testing.assert_close(again.outputs, scanned.outputs, atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(again.weights, scanned.weights)
    assert np.array_equal(again.path.corners, scanned.path.corners)


def test_a_retinas_rows_are_cells_of_what_was_painted() -> None:
    model = tiny_model(outputs=3)
    wrapped = adapted(model, model.classes)
    plane = plane_of(model)
    found = RetinaLooks(wrapped.network, plane.image, model=wrapped).rows(plane)
    torch.testing.assert_close(found.target.sum(1), torch.ones(len(found.target)))
    assert found.weight.min() > 0
    assert found.weight.max() <= 1
    known = plane.stroke_classes()
    assert set(found.strokes.tolist()) - {0} <= set(known)
    for row, stroke in enumerate(found.strokes.tolist()):
        if stroke:
            assert found.target[row, known[stroke]] == 1, "one stroke, one class"
    mixed = (found.target.max(1).values < 1).nonzero()[:, 0]
    assert (found.strokes[mixed] == 0).all()
    assert {known[s] for s in found.strokes.tolist() if s} == {0, 1}


@pytest.mark.parametrize("shape", [(45, 61), (20, 9), (2, 1)])
def test_strokes_of_a_pixel_in_the_corners_are_seen(shape: tuple[int, int]) -> None:
    for model in (tiny_model(), made()):
        wrapped = adapted(model, model.classes)
        rng = np.random.default_rng(0)
        labels = np.zeros(shape, np.uint8)
        labels[0, 0], labels[-1, -1] = 1, 2
        image = rng.integers(0, 255, shape).astype(np.uint8)
        plane = read_painted([Annotation(image, labels)], model).planes[0]
        found = looks_of(wrapped.network, plane.image, model=wrapped).rows(plane)
        strokes = {s for s in found.strokes.tolist() if s}
        assert strokes == {1, 2}
        for name in ("features", "outputs", "prior", "target", "weight", "spread"):
            assert getattr(found, name).isfinite().all(), name


def test_what_many_rows_tell_is_thinned_out_by_class() -> None:
    model = made()
    image = np.random.default_rng(0).integers(0, 255, (120, 120)).astype(np.uint8)
    labels = np.ones((120, 120), np.uint8)
    labels[5, :50] = 2
    plane = read_painted([Annotation(image, labels)], model).planes[0]
    network = adapted(model, model.classes).network
    found = looks_of(network, plane.image, model=model).rows(plane)
    gathered = gather(network, [(plane.key, found)], strokes_of([plane]))
    counts = gathered.target.sum(0)
    assert counts[1] == 50
    assert counts[0] < 6000
    again = gather(network, [(plane.key, found)], strokes_of([plane]))
    assert torch.equal(again.features, gathered.features), "the same every time"


# -- how much is held back -----------------------------------------------------------


def told_by(features: torch.Tensor, prior: torch.Tensor) -> Gathered:
    """Strokes of two classes, twelve rows each; half of them of the second class."""
    n = len(features)
    base = (4 * prior).softmax(1)
    index = torch.arange(n) // 12
    label = index % 2
    return Gathered(
        features,
        prior,
        functional.one_hot(label, 2).float(),
        torch.ones(n),
        base,
        tuple(Stroke(("a", 0), i + 1, i % 2) for i in range(n // 12)),
        index,
        torch.ones(features.shape[1]),
        features.mean(0),
    )


def test_evidence_is_held_back_where_the_network_knows_its_way() -> None:
    make = torch.Generator().manual_seed(0)
    noise = torch.randn(96, 8, generator=make)
    label = torch.arange(96) // 12 % 2
    knows = functional.one_hot(label, 2).float() * 2 - 1
    telling = noise.clone()
    telling[:, 0] += 4 * label
    for features, prior, factor in ((noise, knows, 100), (telling, -knows, 1)):
        gathered = told_by(features, prior)
        parts = fold_strokes(gathered.strokes)
        start = torch.zeros(9, 1, dtype=torch.float64)
        *_, best = choose_ridge(gathered, start, parts)
        assert best.gathered.ridge == pytest.approx(factor * gathered.ridge)
        expected, _ = held_out(best.gathered, start, parts)
        assert best.scores == expected


def test_the_ridge_stays_where_a_class_cannot_be_held_out() -> None:
    label = torch.arange(36) // 12 % 2
    knows = functional.one_hot(label, 2).float()
    gathered = told_by(torch.randn(36, 3), knows)  # 2 strokes and 1
    start = torch.zeros(4, 1, dtype=torch.float64)
    tried = list(choose_ridge(gathered, start, fold_strokes(gathered.strokes)))
    assert [some.gathered.ridge for some in tried] == [gathered.ridge]
    alone = told_by(torch.randn(24, 3), torch.zeros(24, 2))
    (only,) = choose_ridge(alone, start, fold_strokes(alone.strokes))
    assert only.scores == {}
