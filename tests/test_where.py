"""The place where a stroke would teach most."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from napari_fovea.training.where import REACH, most_uncertain


def literal(
    uncertainty: np.ndarray, painted: np.ndarray, visited: list, reach: float
) -> tuple[int, int] | None:
    """Pixel by pixel, as it is described."""
    smooth = ndimage.gaussian_filter(
        uncertainty.astype(np.float32), 3.0, mode="constant"
    )
    taken = [*zip(*np.nonzero(painted), strict=True), *visited]
    best, place = 0.0, None
    for row in range(smooth.shape[0]):
        for column in range(smooth.shape[1]):
            near = any(np.hypot(row - r, column - c) <= reach for r, c in taken)
            if not near and smooth[row, column] > best:
                best, place = smooth[row, column], (row, column)
    return place


@given(
    st.integers(0, 2**32 - 1),
    st.tuples(st.integers(1, 24), st.integers(1, 24)),
    st.integers(0, 3),
    st.integers(0, 3),
    st.sampled_from([1.0, 4.5, 9.0]),
)
@settings(max_examples=60, deadline=None)
def test_it_is_what_a_slow_search_finds(
    seed: int, shape: tuple[int, int], strokes: int, known: int, reach: float
) -> None:
    rng = np.random.default_rng(seed)
    uncertainty = rng.random(shape) * (rng.random() < 0.9)
    painted = np.zeros(shape, bool)
    for row, column in zip(*(rng.integers(0, n, strokes) for n in shape), strict=True):
        painted[row, column : column + 4] = True
    visited = [tuple(int(rng.integers(0, n)) for n in shape) for _ in range(known)]
    before = painted.copy()
    found = most_uncertain(uncertainty, painted, visited=visited, reach=reach)
    assert found == literal(uncertainty, painted, visited, reach)
    np.testing.assert_array_equal(painted, before)
    if found is not None:
        for r, c in [*zip(*np.nonzero(painted), strict=True), *visited]:
            assert np.hypot(found[0] - r, found[1] - c) > reach


def test_the_places_are_spread_until_there_is_none_left() -> None:
    uncertainty = np.random.default_rng(0).random((80, 100)).astype(np.float32)
    painted = np.zeros((80, 100), bool)
    painted[10, 10:60] = True
    visited: list[tuple[int, int]] = []
    while (place := most_uncertain(uncertainty, painted, visited=visited)) is not None:
        assert all(np.hypot(*np.subtract(place, v)) > REACH for v in visited)
        visited.append(place)
    assert 3 <= len(visited) <= 20


def test_nothing_is_uncertain() -> None:
    nothing = np.zeros((30, 40), np.float32)
    assert most_uncertain(nothing, np.zeros((30, 40), bool)) is None
    everywhere = np.ones((30, 40), bool)
    assert most_uncertain(nothing + 1, everywhere) is None


def test_a_broad_region_counts_more_than_a_hot_pixel() -> None:
    uncertainty = np.zeros((120, 120), np.float32)
    uncertainty[20, 20] = 0.69
    uncertainty[80:95, 80:95] = 0.3
    found = most_uncertain(uncertainty, np.zeros((120, 120), bool))
    assert found == (87, 87)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_types_do_not_matter_and_places_outside_neither(dtype: type) -> None:
    uncertainty = np.zeros((50, 60), dtype)
    uncertainty[40:, 50:] = 0.5
    free = np.zeros((50, 60), bool)
    found = most_uncertain(uncertainty, free, visited=[(-3, 5), (200, 1)])
    assert found is not None
    assert found[0] >= 40
    assert found[1] >= 50
    assert all(isinstance(i, int) for i in found)
