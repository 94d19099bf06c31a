"""The scan: policies, fusion, and the engine against a literal reference."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import tiny_model
from following import followed
from napari_fovea.errors import FoveaError
from napari_fovea.inference import scanning as engine
from napari_fovea.inference.scanning import gathered, inference_network
from napari_fovea.retina import (
    FUSIONS,
    CropLook,
    Frame,
    Fusion,
    RetinaGrid,
    Seek,
    VoteMap,
    cell_pmfs,
    probabilities,
    scan,
    step_size,
)
from napari_fovea.retina.policy import Raster, _separate_maxima, _tour


def scanning(model: Any, image: torch.Tensor, **options: Any) -> Any:
    network = inference_network(model, image.device)
    return engine.scanning(network, image, config=model.config, **options)


def oracle(truth: np.ndarray, grid: RetinaGrid, margin: int) -> Any:
    """Looks with perfect pmfs."""
    classes = torch.from_numpy(truth.astype(np.int64))[None]
    look = CropLook(lambda x: x, classes, grid=grid, margin=margin)
    return lambda corners: cell_pmfs(look.crops(corners)[:, 0], grid, classes=2)[0]


def blobs(shape: tuple[int, int], seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: shape[0], : shape[1]]
    truth = np.zeros(shape, bool)
    for _ in range(max(1, shape[0] * shape[1] // 1500)):
        cy, cx = rng.uniform(0, shape)
        truth |= (y - cy) ** 2 + (x - cx) ** 2 < rng.uniform(3, 9) ** 2
    return truth


# -- painting --------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(
    r=st.integers(1, 4),
    power=st.sampled_from([0.0, 1.0, 2.0]),
    seed=st.integers(0, 2**32 - 1),
)
def test_painting_equals_painting_cell_by_cell(r: int, power: float, seed: int) -> None:
    grid, rng = RetinaGrid(2 ** (r + 1), r), np.random.default_rng(seed)
    shape = tuple(int(n) for n in grid.d + rng.integers(0, 20, 2))
    corners = np.stack([rng.integers(0, n - grid.d + 1, 6) for n in shape], axis=1)
    pmfs = rng.dirichlet(np.ones(3), (6, grid.n_cells)).astype(np.float32)
    canvas = VoteMap(
        shape,  # type: ignore[arg-type]
        grid=grid,
        classes=3,
        fusion=Fusion(power),
        device=torch.device("cpu"),
    )
    canvas.paint(torch.from_numpy(corners), torch.from_numpy(pmfs))
    votes, overlap, acuity = np.zeros((3, *shape)), np.zeros(shape), np.zeros(shape)
    for (y, x), cells in zip(corners, pmfs, strict=True):
        overlap[y : y + grid.d, x : x + grid.d] += 1
        for (top, left, bottom, right), pmf in zip(grid.cells, cells, strict=True):
            where = slice(y + top, y + bottom), slice(x + left, x + right)
            share = grid.finest**2 / ((bottom - top) * (right - left))
            votes[:, *where] += share**power * pmf[:, None, None]
            acuity[where] += share**2
    np.testing.assert_allclose(canvas.votes, votes, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(canvas.overlap, overlap)
    np.testing.assert_allclose(canvas.acuity, acuity, rtol=1e-5)


def test_pixels_never_seen_have_uniform_probabilities() -> None:
    votes = torch.zeros(4, 2, 2)
    votes[1, 0, 0] = 3
    found = probabilities(votes)
    assert found[:, 0, 0].tolist() == [0, 1, 0, 0]
    assert found[:, 1, 1].tolist() == [0.25] * 4


def test_linear_read_out_equals_drawing_lines() -> None:
    grid = RetinaGrid(16, 1)  # cells of 4 pixels
    steps = torch.tensor([0.0, 8.0, 0.0]).repeat_interleave(4)
    votes = torch.stack([8 - steps, steps])[:, None].expand(2, 5, 12)
    found = Fusion(linear=True).read_out(votes, grid)[1, 2]
    tent = np.array([1, 2, 3, 4, 3, 2, 1]) / 16
    padded = np.pad(steps.numpy() / 8, 3, mode="edge")
    np.testing.assert_allclose(found, np.convolve(padded, tent, "valid"), atol=1e-6)
    assert (found.diff()[:5] >= 0).all()
    blocks = Fusion().read_out(votes, grid)[1, 2]
    np.testing.assert_allclose(blocks, steps / 8)


# -- the paper's raster ------------------------------------------------------------


@pytest.mark.parametrize(("entropy", "step"), [(0.0, 64), (0.4, 39), (5.0, 1)])
def test_steps_follow_equation_3(entropy: float, step: int) -> None:
    expected = max(1, round(64 * math.exp(-(entropy**2) / (2 * 0.4**2))))
    assert step_size(torch.tensor([entropy]), 64).item() == step == expected


def literal_raster(
    network: Any, image: torch.Tensor, grid: RetinaGrid, power: float
) -> tuple[np.ndarray, list[tuple[int, int]]]:
    """The paper's loop, one crop and one cell at a time."""
    _, height, width = image.shape
    d, y = grid.d, 0
    votes, path = np.zeros(0), []
    while True:
        x = 0
        while True:
            path.append((y, x))
            with torch.inference_mode():
                logits = network(image[None, :, y : y + d, x : x + d])
            pmfs = logits[0].softmax(-1).numpy()
            if not votes.size:
                votes = np.zeros((pmfs.shape[-1], height, width))
            entropies = [-sum(p * math.log(p) for p in pmf if p > 0) for pmf in pmfs]
            for (top, left, bottom, right), pmf in zip(grid.cells, pmfs, strict=True):
                share = (grid.finest**2 / ((bottom - top) * (right - left))) ** power
                votes[:, y + top : y + bottom, x + left : x + right] += (
                    share * pmf[:, None, None]
                )
            if x == width - d:
                break
            h = sum(entropies) / len(entropies)
            f = d * math.exp(-(h**2) / (2 * 0.4**2))
            x = min(x + max(1, round(f)), width - d)
        if y == height - d:
            return votes / votes.sum(0), path
        y = min(y + 10, height - d)


@pytest.mark.parametrize("power", [0.0, 2.0])
def test_raster_equals_the_literal_loop(power: float) -> None:
    model = tiny_model()
    image = torch.rand(3, 75, 101)
    look = inference_network(model, image.device)
    expected, path = literal_raster(look, image, model.network.grid, power)
    run = scanning(model, image, policy=Raster(), fusion=Fusion(power), batch_size=7)
    _, found = followed(run)
    assert [tuple(c) for c in found.path.corners] == path
    assert len(path) > 30, "the entropies should make it walk"
    np.testing.assert_allclose(found.probabilities, expected, atol=1e-5)


def test_raster_equals_the_literal_loop_on_a_real_image(nuclei: Any) -> None:
    from napari_fovea import Model
    from napari_fovea.files import read_image
    from napari_fovea.images import read_planes, to_tensor

    model = Model.load("retina-nuclei")
    path = next((nuclei / "val" / "images").glob("*.png"))
    planes = read_planes(read_image(path)[:120, :140])
    limits = model.normalisation.limits(planes)
    image = to_tensor(planes.data[0], limits=limits, channels=3)
    expected, walked = literal_raster(
        inference_network(model, image.device), image, model.network.grid, 0.0
    )
    _, found = followed(scanning(model, image, policy=Raster(), fusion=FUSIONS["mean"]))
    assert [tuple(c) for c in found.path.corners] == walked
    np.testing.assert_allclose(found.probabilities, expected, atol=1e-5)


# -- seeking -------------------------------------------------------------------------


@given(seed=st.integers(0, 2**32 - 1), flat=st.booleans())
@settings(max_examples=40, deadline=None)
def test_picks_are_apart_and_worth_it(seed: int, flat: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    score = torch.rand(23, 31, generator=generator)
    if flat:
        score = (score * 3).round() / 3  # plateaus
    picks = _separate_maxima(score, apart=4, threshold=0.1)
    assert len(picks)
    gaps = (picks[:, None] - picks[None]).abs().amax(-1)
    gaps.fill_diagonal_(99)
    assert gaps.min() >= 4, "foveas overlap"
    assert (score[picks[:, 0], picks[:, 1]] > 0.1).all()


def test_a_plateau_is_tiled_without_gaps() -> None:
    picks = _separate_maxima(torch.ones(29, 33), apart=4, threshold=0.5)
    assert len(picks) == 8 * 9


def test_nothing_worth_a_look_gives_no_picks() -> None:
    assert len(_separate_maxima(torch.zeros(9, 9), apart=4, threshold=0.1)) == 0


def test_a_tour_visits_every_place_once_and_steps_short() -> None:
    places = torch.cartesian_prod(torch.arange(16), torch.arange(16))
    order = _tour(places)
    assert sorted(order.tolist()) == list(range(256))
    walked = places[order]
    assert ((walked[1:] - walked[:-1]).abs().sum(1) == 1).all()


@pytest.mark.parametrize(("d", "r", "least"), [(64, 4, 0.92), (32, 3, 0.92)])
def test_seeking_with_perfect_pmfs_finds_the_objects(
    d: int, r: int, least: float
) -> None:
    truth = blobs((160, 200))
    grid = RetinaGrid(d, r)
    run = scan(
        oracle(truth, grid, Seek().margin(grid)),
        truth.shape,  # type: ignore[arg-type]
        grid=grid,
        classes=2,
        policy=Seek(),
        fusion=FUSIONS["precision"],
    )
    _, found = followed(run)
    mask = found.probabilities[1].numpy() > 0.5
    assert 2 * (mask & truth).sum() / (mask.sum() + truth.sum()) > least
    centres = found.path.centres.round().astype(int)
    inside = (centres >= 0).all(1) & (centres < truth.shape).all(1)
    assert inside[-20:].all(), "late fixations are centred on the image"


def test_the_map_gets_sharper_with_the_budget() -> None:
    truth = blobs((128, 128))
    grid = RetinaGrid(64, 4)
    errors = []
    for budget in (4, 20, 60, 400):
        run = scan(
            oracle(truth, grid, Seek().margin(grid)),
            (128, 128),
            grid=grid,
            classes=2,
            policy=Seek(),
            fusion=FUSIONS["precision"],
            budget=budget,
        )
        _, found = followed(run)
        assert len(found.path) <= budget
        mask = found.probabilities[1].numpy() > 0.5
        errors.append((mask != truth).mean())
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < errors[0] / 3


# -- the engine ------------------------------------------------------------------------


@pytest.mark.parametrize("policy", [Raster(), Seek()])
@pytest.mark.parametrize(
    "shape", [(1, 1), (1, 90), (77, 1), (5, 9), (31, 33), (32, 32), (40, 200)]
)
def test_any_size_is_covered(policy: Any, shape: tuple[int, int]) -> None:
    model = tiny_model()
    events, found = followed(
        scanning(model, torch.rand(3, *shape), policy=policy, budget=400)
    )
    assert found.probabilities.shape == (3, *shape)
    assert found.overlap.shape == shape
    assert (found.overlap >= 1).all()
    assert found.probabilities.isfinite().all()
    assert sum(len(e.corners) for e in events) == len(found.path)
    assert len(found.path.entropies) == len(found.path.steps) == len(found.path)


def test_a_cancelled_scan_still_has_a_map() -> None:
    model = tiny_model()
    asked = 0

    def cancelled() -> bool:
        nonlocal asked
        asked += 1
        return asked == 3

    run = scanning(
        model, torch.rand(3, 90, 90), policy=Seek(), batch_size=4, cancelled=cancelled
    )
    events, found = followed(run)
    assert len(events) == 3
    assert len(found.path) == 4 + 4 + 1, "nine tiles, in batches of four"
    assert torch.allclose(found.probabilities.sum(0), torch.ones(90, 90))


def test_batches_do_not_change_the_map() -> None:
    model = tiny_model()
    image = torch.rand(3, 80, 64)
    maps = [
        followed(scanning(model, image, policy=Raster(), batch_size=n))[1].probabilities
        for n in (1, 5, 64)
    ]
    assert torch.allclose(maps[0], maps[1], atol=1e-4)
    assert torch.allclose(maps[0], maps[2], atol=1e-4)


def test_progress_is_told() -> None:
    model = tiny_model()
    for policy in (Raster(), Seek()):
        run = scanning(model, torch.rand(3, 90, 90), policy=policy, budget=100)
        events, found = followed(run)
        assert all(
            0 < e.done <= e.expected <= 100 or policy == Raster() for e in events
        )
        assert events[-1].done == len(found.path)
        assert [e.done for e in events] == sorted(e.done for e in events)


@pytest.mark.parametrize(
    ("settings_", "what"),
    [({"budget": 0}, "budget"), ({"batch_size": 0}, "batch size")],
)
def test_senseless_settings_are_refused(settings_: dict[str, int], what: str) -> None:
    with pytest.raises(FoveaError, match=what):
        next(scanning(tiny_model(), torch.rand(3, 9, 9), policy=Seek(), **settings_))


def test_an_empty_image_is_refused() -> None:
    grid = RetinaGrid(8, 1)
    with pytest.raises(FoveaError, match="empty"):
        next(
            scan(
                lambda c: c,
                (0, 5),
                grid=grid,
                classes=2,
                policy=Raster(),
                fusion=FUSIONS["mean"],
            )
        )


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 50))
@settings(max_examples=50, deadline=None)
def test_reflection_equals_numpy(height: int, width: int, margin: int) -> None:
    grid = RetinaGrid(16, 1)
    image = torch.rand(2, height, width)
    frame = Frame.around((height, width), grid=grid, margin=margin)
    after = [f - margin - n for f, n in zip(frame.shape, (height, width), strict=True)]
    expected = np.pad(
        image.numpy(),
        [(0, 0), (margin, after[0]), (margin, after[1])],
        mode="reflect",
    )
    np.testing.assert_array_equal(frame.lay(image), expected)


@pytest.mark.parametrize("seconds", [0, 1e9])
def test_batches_are_told_together_within_a_time(seconds: float) -> None:
    model = tiny_model()
    image = torch.rand(3, 90, 90)
    batches, expected = followed(
        scanning(model, image, policy=Seek(), budget=20, batch_size=4)
    )
    run = scanning(model, image, policy=Seek(), budget=20, batch_size=4)
    stretches, found = followed(gathered(run, seconds=seconds))
    lengths = [len(s) for s in stretches]
    assert lengths == ([len(batches)] if seconds else [1] * len(batches))
    corners = torch.cat([x.corners for s in stretches for x in s])
    assert torch.equal(corners, torch.cat([x.corners for x in batches]))
    assert torch.equal(found.probabilities, expected.probabilities)


@pytest.mark.gpu
def test_the_accelerator_gives_the_same_map() -> None:
    from napari_fovea.device import pick

    device = pick("auto")
    if device.type == "cpu":
        pytest.skip("no accelerator on this machine")
    model, image = tiny_model(), torch.rand(3, 90, 120)
    _, here = followed(scanning(model, image, policy=Seek(), budget=60))
    _, there = followed(scanning(model, image.to(device), policy=Seek(), budget=60))
    assert torch.allclose(here.probabilities, there.probabilities.cpu(), atol=1e-3)
