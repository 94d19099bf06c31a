"""The retina grid and its pmfs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from napari_fovea.errors import FoveaError
from napari_fovea.retina import IGNORE, RetinaGrid, cell_pmfs, uncertainty

grids = st.builds(
    lambda r, k: RetinaGrid(d=k * 2 ** (r + 1), r=r),
    r=st.integers(1, 5),
    k=st.integers(1, 3),
)


@given(grids)
def test_cells_tile_the_subarea_without_overlap(grid: RetinaGrid) -> None:
    cover = np.zeros((grid.d, grid.d), dtype=int)
    for i, (top, left, bottom, right) in enumerate(grid.cells):
        cover[top:bottom, left:right] += 1
        assert (grid.cell_index[top:bottom, left:right] == i).all()
    assert (cover == 1).all()


@given(grids)
def test_cells_follow_the_paper(grid: RetinaGrid) -> None:
    assert len(grid.cells) == grid.n_cells == 16 + 12 * (grid.r - 1)
    sides = grid.cells[:, 2] - grid.cells[:, 0]
    assert (sides == grid.cells[:, 3] - grid.cells[:, 1]).all()
    assert sides.min() == grid.finest == grid.d / 2 ** (grid.r + 1)
    assert sides.max() == grid.d // 4
    assert (np.diff(sides) <= 0).all(), "cells shrink towards the centre"
    middle = grid.d / 2
    finest = grid.cells[sides == grid.finest]
    if grid.r > 1:  # 4×4 finest cells around the centre
        assert len(finest) == 16
        assert finest.min() == middle - 2 * grid.finest
        assert finest.max() == middle + 2 * grid.finest


@pytest.mark.parametrize(("d", "r", "advice"), [(100, 4, "96 or 128"), (10, 4, "32")])
def test_an_indivisible_side_is_refused_with_advice(
    d: int, r: int, advice: str
) -> None:
    with pytest.raises(FoveaError, match=advice):
        RetinaGrid(d, r)


def test_a_resolution_level_below_one_is_refused() -> None:
    with pytest.raises(FoveaError, match="1 or more"):
        RetinaGrid(32, 0)


@given(grids, st.integers(2, 5), st.integers(0, 2**32 - 1))
def test_pmfs_equal_counting_pixel_by_pixel(
    grid: RetinaGrid, classes: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    labels = rng.integers(-1, classes, (2, grid.d, grid.d))
    if seed % 3 == 0:
        labels[:, : grid.d // 2] = IGNORE
    pmfs, seen = cell_pmfs(torch.from_numpy(labels), grid, classes=classes)
    for b in range(2):
        for i, (top, left, bottom, right) in enumerate(grid.cells):
            pixels = labels[b, top:bottom, left:right].ravel()
            pixels = pixels[pixels != IGNORE]
            assert bool(seen[b, i]) == bool(len(pixels))
            expected = np.zeros(classes)
            if len(pixels):
                expected = np.bincount(pixels, minlength=classes) / len(pixels)
            np.testing.assert_allclose(pmfs[b, i], expected, atol=1e-6)


def test_labels_out_of_range_are_refused() -> None:
    labels = torch.full((1, 8, 8), 3)
    with pytest.raises(FoveaError, match="0 to 1"):
        cell_pmfs(labels, RetinaGrid(8, 1), classes=2)
    with pytest.raises(FoveaError, match="match the grid"):
        cell_pmfs(labels[:, :4], RetinaGrid(8, 1), classes=4)


def test_another_ignore_value_can_be_chosen() -> None:
    labels = torch.zeros(1, 8, 8, dtype=torch.int64)
    labels[:, :4] = 255
    _, seen = cell_pmfs(labels, RetinaGrid(8, 1), classes=2, ignore=255)
    assert seen[0].tolist() == [False] * 8 + [True] * 8


def test_uncertainty_runs_from_zero_to_log_k() -> None:
    certain = torch.eye(3)[[0, 1]][None]
    assert uncertainty(certain).item() == 0
    even = torch.full((1, 16, 3), 1 / 3)
    assert uncertainty(even).item() == pytest.approx(np.log(3), rel=1e-6)
