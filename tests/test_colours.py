"""Colours of classes and of doubt."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from napari_fovea.views.colours import (
    DOUBT,
    cell_colours,
    class_colours,
    doubt,
    map_colours,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

seeds = st.integers(0, 2**32 - 1)


def random_pmfs(seed: int, *shape: int, classes: int) -> NDArray[Any]:
    """Sure ones and open ones."""
    rng = np.random.default_rng(seed)
    sharpness = rng.choice([0.05, 0.5, 5.0], (*shape, 1))
    parts = rng.gamma(sharpness, size=(*shape, classes)) + 1e-12
    return parts / parts.sum(-1, keepdims=True)


def literal_doubt(pmf: NDArray[Any]) -> float:
    return -sum(p * np.log(p) for p in pmf.tolist() if p > 0) / np.log(len(pmf))


# -- classes and doubt -------------------------------------------------------------


@pytest.mark.parametrize("classes", [2, 3, 9, 40])
def test_every_class_has_a_colour(classes: int) -> None:
    colours = class_colours(classes)
    assert colours.shape == (classes, 3)
    assert ((colours >= 0) & (colours <= 1)).all()
    first = {tuple(c) for c in colours[:9]} | {DOUBT}
    assert len(first) == min(classes, 9) + 1, "the first nine differ, and from doubt"
    np.testing.assert_array_equal(colours[:2], class_colours(2), "however many follow")


@given(seed=seeds, classes=st.integers(2, 6))
def test_doubt_is_the_share_of_the_most_entropy(seed: int, classes: int) -> None:
    pmfs = random_pmfs(seed, 2, 3, classes=classes)
    found = doubt(pmfs)
    assert found.shape == (2, 3)
    expected = [literal_doubt(p) for p in pmfs.reshape(-1, classes)]
    np.testing.assert_allclose(found.ravel(), expected, atol=1e-9)
    assert doubt(np.eye(classes)).tolist() == [0] * classes
    assert doubt(np.full(classes, 1 / classes)) == pytest.approx(1)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_doubt_stays_within_its_range_however_numbers_are_rounded(dtype: type) -> None:
    for classes in range(2, 20):
        pmfs = np.full((1, classes), 1 / classes, dtype) * dtype(1.001)
        assert 0.99 < doubt(pmfs)[0] <= 1
        assert (doubt(np.eye(classes, dtype=dtype)) == 0).all()


# -- cells -------------------------------------------------------------------------


@settings(deadline=None)
@given(seed=seeds, classes=st.integers(2, 5))
def test_a_surer_cell_is_filled_more_and_outlined_less(seed: int, classes: int) -> None:
    pmfs = random_pmfs(seed, 40, classes=classes)
    faces, edges = cell_colours(pmfs)
    assert faces.shape == edges.shape == (40, 4)
    for colours in (faces, edges):
        assert ((colours >= 0) & (colours <= 1)).all()
    entropies = np.array([literal_doubt(p) for p in pmfs])
    best = pmfs.argmax(-1)
    order = np.argsort(entropies)
    apart = np.diff(entropies[order]) > 1e-9
    assert (np.diff(edges[order, 3])[apart] > 0).all()
    for c in range(classes):
        own = order[best[order] == c]
        apart = np.diff(entropies[own]) > 1e-9
        assert (np.diff(faces[own, 3])[apart] < 0).all()
        np.testing.assert_array_equal(
            faces[own, :3], np.tile(class_colours(classes)[c], (len(own), 1))
        )


def test_cells_of_no_and_of_all_doubt() -> None:
    pmfs = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [1 / 3] * 3])
    faces, edges = cell_colours(pmfs)
    assert 0 < faces[0, 3] < faces[1, 3] == faces[2, 3], "background is a mere tint"
    assert faces[3, 3] == pytest.approx(0)
    assert len({tuple(e) for e in edges[:3]}) == 1, "sure cells have one outline"
    assert np.abs(edges[0, :3] - edges[3, :3]).max() > 0.3, "and it is not doubt's"
    assert edges[0, 3] > 0, "every cell can be seen"
    np.testing.assert_allclose(edges[3], [*DOUBT, 1])


def test_half_precision_pmfs_have_colours() -> None:
    pmfs = random_pmfs(0, 28, classes=3)
    for exact, found in zip(
        cell_colours(pmfs), cell_colours(pmfs.astype(np.float16)), strict=True
    ):
        np.testing.assert_allclose(found, exact, atol=5e-3)


# -- maps --------------------------------------------------------------------------


def literal_colour(pmf: NDArray[Any]) -> tuple[NDArray[Any], float]:
    """Colour and opacity in [0, 1] by which a pixel is painted."""
    unsure, best = literal_doubt(pmf), int(pmf.argmax())
    sure = 0.5 * (1 - unsure) if best else 0.0
    veil = 0.35 * unsure
    colour = sure * class_colours(len(pmf))[best] + veil * np.array(DOUBT)
    return colour / max(sure + veil, 1e-9), sure + veil


@settings(max_examples=40, deadline=None)
@given(seed=seeds, classes=st.integers(2, 5), single=st.booleans())
def test_a_map_is_painted_by_the_formula(seed: int, classes: int, single: bool) -> None:
    pmfs = random_pmfs(seed, 5, 7, classes=classes)
    if single:
        pmfs = pmfs.astype(np.float32)
    painted = map_colours(np.moveaxis(pmfs, -1, 0))
    assert painted.shape == (5, 7, 4)
    assert painted.dtype == np.uint8
    # Of two classes there is a table of 256 levels: half a level off, where doubt
    # rises most steeply, is two levels of opacity.
    near = 2.0 if classes == 2 else 0.51
    for pmf, pixel in zip(
        pmfs.reshape(-1, classes).astype(float),
        painted.reshape(-1, 4).astype(float),
        strict=True,
    ):
        if np.sort(pmf)[-1] - np.sort(pmf)[-2] < 0.01:
            continue  # either class may be the most probable
        colour, opacity = literal_colour(pmf)
        assert abs(pixel[3] - opacity * 255) <= near
        # A colour counts as much as it is opaque.
        shown, expected = pixel[:3] * pixel[3] / 255, colour * opacity * 255
        assert np.abs(shown - expected).max() <= near + 0.51


@pytest.mark.parametrize("classes", [2, 3, 5])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_sure_map_shows_its_classes_and_no_background(
    classes: int, dtype: type
) -> None:
    painted = map_colours(np.eye(classes, dtype=dtype)[:, :, None])
    assert painted.shape == (classes, 1, 4)
    assert painted[0, 0, 3] == 0
    for c in range(1, classes):
        expected = class_colours(classes)[c] * 255
        np.testing.assert_allclose(painted[c, 0, :3], expected, atol=0.51)
    assert (painted[1:, 0, 3] == 128).all(), "the image is seen through it"


@pytest.mark.parametrize("classes", [2, 3, 5])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_an_open_map_is_veiled_in_doubt(classes: int, dtype: type) -> None:
    painted = map_colours(np.full((classes, 2, 3), 1 / classes, dtype))
    assert painted.shape == (2, 3, 4)
    expected = [*np.array(DOUBT) * 255, 0.35 * 255]
    np.testing.assert_allclose(
        painted, np.broadcast_to(expected, painted.shape), atol=1
    )


def test_a_table_of_two_classes_takes_every_probability() -> None:
    p = np.linspace(0, 1, 2001, dtype=np.float32)
    painted = map_colours(np.stack([1 - p, p])[:, None])[0].astype(int)
    expected = np.array([literal_colour(np.array([1 - v, v]))[1] for v in p.tolist()])
    assert np.abs(painted[:, 3] - 255 * expected).max() <= 2
    assert (np.diff(painted[:1001, 3]) >= 0).all(), "doubt rises up to the middle"
    assert painted[0, 3] == 0
    assert painted[-1, 3] == 128


def test_the_probabilities_are_left_as_they_are() -> None:
    for classes in (2, 3):
        pmfs = np.moveaxis(random_pmfs(0, 4, 4, classes=classes), -1, 0)
        before = pmfs.copy()
        map_colours(pmfs)
        np.testing.assert_array_equal(pmfs, before)
