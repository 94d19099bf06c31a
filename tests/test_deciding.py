"""Which looks decided a place: against loops over all of them, and the map."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from napari_fovea.errors import AttentionError
from napari_fovea.inference import complete, deciding, segment
from napari_fovea.inference.region import locate
from napari_fovea.retina import FocusPath, Fusion, Replay, RetinaGrid

if TYPE_CHECKING:
    from collections.abc import Callable

    from napari_fovea.models import Model

# -- regions -----------------------------------------------------------------------


def covering(mask: np.ndarray, resized: tuple[int, int]) -> np.ndarray:
    """How much of each pixel of a resized image a mask covers, on a fine lattice."""
    fine = [np.lcm(n, m) for n, m in zip(mask.shape, resized, strict=True)]
    for axis, n in enumerate(fine):
        mask = mask.repeat(n // mask.shape[axis], axis)
    blocks = mask.reshape(
        resized[0], fine[0] // resized[0], resized[1], fine[1] // resized[1]
    )
    share: np.ndarray = blocks.mean((1, 3))
    return share


@pytest.mark.parametrize("resized", [(12, 18), (24, 36), (6, 9), (5, 7), (17, 20)])
def test_regions_are_found_in_resized_images(resized: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    for chance in (0.02, 0.1, 0.5, 1.0):
        mask = rng.random((12, 18)) < chance
        mask[7, 3] = True
        found = locate(mask, shape=(12, 18), resized=resized)
        share = covering(mask, resized)
        sure = np.abs(share - share.max() / 2) > 1e-6  # rounding may tip the others
        whole = np.zeros(resized, bool)
        whole[found.pixels] = True
        np.testing.assert_array_equal(whole[sure], (share >= share.max() / 2)[sure])
        top, left, bottom, right = found.box
        assert whole[top:bottom, left:right].sum() == whole.sum() == found.mask.sum()


def test_a_point_is_the_pixel_it_lies_in() -> None:
    for point in ((3.49, 7.51), (2.5, 8.4)):
        found = locate(point, shape=(10, 12), resized=(20, 24))
        assert found.box == (6, 16, 8, 18)
        small = locate(point, shape=(10, 12), resized=(5, 6))
        assert small.box == (1, 4, 2, 5)


# -- the retina --------------------------------------------------------------------


def scanned(
    *, count: int = 60, classes: int = 3, fusion: Fusion | None = None, seed: int = 0
) -> FocusPath:
    """Random fixations of a stack of two, some reaching over the border."""
    rng = np.random.default_rng(seed)
    grid = RetinaGrid(16, 2)
    pmfs = rng.dirichlet(np.ones(classes) / 2, (count, grid.n_cells))
    return FocusPath(
        corners=rng.integers(-8, (32, 42), (count, 2)),
        entropies=np.zeros(count, np.float32),
        steps=np.ones(count, np.int64),
        grid=grid,
        scale=(1.5, 1.5),
        planes=np.arange(count) % 3 // 2,
        pmfs=pmfs.astype(np.float16),
        shape=(40, 50),
        lead=(2,),
        fusion=fusion or Fusion(),
        classes=("background", "one", "two")[:classes],
    )


def literal(path: FocusPath, pixels: list[tuple[int, int]], plane: int) -> Any:
    """Shares (n, N) by loops, and the pixels that were seen."""
    cell_weights = path.fusion.weights(path.grid).tolist()
    shares = np.zeros((len(path), path.grid.n_cells))
    seen = 0
    for y, x in pixels:
        votes = []
        for step, (top, left) in enumerate(path.corners):
            if path.planes[step] != plane:
                continue
            for cell, (y0, x0, y1, x1) in enumerate(path.grid.cells):
                if y0 <= y - top < y1 and x0 <= x - left < x1:
                    votes.append((step, cell))
        total = sum(cell_weights[cell] for _, cell in votes)
        seen += bool(votes)
        for step, cell in votes:
            shares[step, cell] += cell_weights[cell] / total
    return shares / max(1, seen), seen


@pytest.mark.parametrize("fusion", [Fusion(), Fusion(1.0, True), Fusion(0.3)])
@pytest.mark.parametrize("plane", [0, 1])
def test_looks_have_the_shares_that_loops_find(fusion: Fusion, plane: int) -> None:
    path = scanned(fusion=fusion)
    mask = np.zeros((60, 75), bool)
    mask[30:45, 30:36] = True
    mask[0:3, 60:75] = True
    found = deciding(path, mask, plane=plane, most=10**6)
    rows, columns = locate(mask, shape=(60, 75), resized=(40, 50)).pixels
    shares, seen = literal(path, list(zip(rows, columns, strict=True)), plane)

    np.testing.assert_allclose(found.shares, shares.sum(1), atol=1e-12)
    assert found.shares.sum() == pytest.approx(1, abs=1e-9)
    assert found.seen == seen / len(rows)
    looks = found.looks
    assert len(looks) == (shares > 0).sum()
    np.testing.assert_allclose(
        looks["share"], shares[looks["fixation"], looks["cell"]], atol=1e-12
    )
    assert (np.diff(looks["share"]) <= 1e-9).all()
    for look in looks[:20]:
        boxes = path.cells(look["fixation"])
        np.testing.assert_array_equal(look["box"], boxes[look["cell"]])
        np.testing.assert_allclose(look["box"][2] - look["box"][0], look["side"] * 1.5)
        own = path.pmfs[look["fixation"], look["cell"]].astype(float)
        np.testing.assert_allclose(look["pmf"], own / own.sum())

    mean = (looks["share"][:, None] * looks["pmf"]).sum(0)
    assert found.label == mean.argmax()
    assert found.name == path.classes[found.label]
    assert found.probability == pytest.approx(mean.max())
    pulls = looks["share"] * (looks["pmf"][:, found.label] - 1 / 3)
    np.testing.assert_allclose(looks["pull"], pulls, atol=1e-12)
    assert found.pulls.sum() == pytest.approx(found.probability - 1 / 3)
    assert deciding(path, mask, plane=plane, most=5).looks.tobytes() == (
        looks[:5].tobytes()
    )


def test_the_probability_is_that_of_the_map() -> None:
    path = replace(scanned(count=200), scale=(1.0, 1.0))
    replay = Replay(path, plane=1)
    moment = replay.at(len(replay) - 1)
    for y, x in ((0, 0), (20, 31), (38, 46), (22, 5)):
        found = deciding(path, (y + 0.4, x - 0.5), plane=1)
        assert found.probability == pytest.approx(
            moment.probabilities[:, y, x].max(), abs=2e-3
        )
        assert found.label == moment.probabilities[:, y, x].argmax()
        assert np.count_nonzero(found.shares) == moment.overlap[y, x]
        # Under this fusion all that saw a pixel count alike, and are told in order.
        assert (np.diff(found.looks["fixation"]) > 0).all()


def test_a_scan_is_taken_apart(tiny: Model, picture: np.ndarray) -> None:
    run = segment(picture, tiny, budget=80, diameter=8.0, device="cpu")
    result = complete(run)
    assert result.path is not None
    found = deciding(result.path, result.labels == result.labels[15, 20])
    assert found.name == tiny.classes[result.labels[15, 20]]
    assert found.seen == 1
    assert found.probability > 0.5
    unnamed = replace(result.path, classes=())
    assert deciding(unnamed, (15, 20)).name in ("0", "1")


@pytest.mark.parametrize(
    ("change", "region", "says"),
    [
        (lambda p: replace(p, pmfs=None), (3, 3), "not what it saw"),
        (lambda p: replace(p, shape=None), (3, 3), "not what it saw"),
        (lambda p: p, (60, 3), "outside the image of 60×75 pixels"),
        (lambda p: p, np.ones((40, 50), bool), "shape"),
        (lambda p: p, np.zeros((60, 75), bool), "empty"),
        (lambda p: p.of_plane(5), (30, 30), "never looked at this place"),
        (lambda p: replace(p, corners=p.corners * 0 + 24), (3, 3), "never looked"),
    ],
)
def test_a_path_that_cannot_be_asked_says_so(
    change: Callable[[FocusPath], FocusPath], region: Any, says: str
) -> None:
    with pytest.raises(AttentionError, match=says) as caught:
        deciding(change(scanned()), region)
    assert str(caught.value).endswith(".")
    assert "\n" not in str(caught.value)
    with pytest.raises(AttentionError, match="number of looks"):
        deciding(scanned(), (30, 30), most=0)
