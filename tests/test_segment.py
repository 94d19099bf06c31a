"""Segmenting images, from any array to a result at its own size."""

from __future__ import annotations

import json
from dataclasses import FrozenInstanceError, replace
from typing import TYPE_CHECKING
from unittest import mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import ndimage
from skimage.measure import label
from skimage.morphology import local_maxima, reconstruction

from conftest import tiny_model
from following import followed
from napari_fovea import complete, segment
from napari_fovea.errors import FoveaError, ImageError, ModelError
from napari_fovea.files import read_image
from napari_fovea.images import read_planes
from napari_fovea.inference import (
    AttentionMap,
    Fixated,
    Preview,
    Started,
    instances,
    separate,
)
from napari_fovea.metrics import average_precision, dice
from napari_fovea.sample_data import make_nuclei

if TYPE_CHECKING:
    from napari_fovea.models import Model


def chance(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).random(shape)


def check(result, shape: tuple[int, ...], classes: int = 2) -> None:
    assert result.labels.shape == shape
    assert result.labels.dtype == np.uint8
    assert result.probabilities.shape == (classes, *shape)
    np.testing.assert_allclose(result.probabilities.sum(0), 1, atol=1e-4)
    assert result.uncertainty.shape == shape
    assert result.uncertainty.min() >= 0
    assert result.uncertainty.max() <= np.log(classes) + 1e-5
    assert result.instances.shape == shape
    assert ((result.instances > 0) <= (result.labels > 0)).all()
    (overlap,) = result.attention
    assert overlap.name == "overlap"
    assert overlap.array.shape[:-2] == shape[:-2]
    json.dumps(result.provenance)


@pytest.mark.parametrize("policy", ["seek", "raster"])
@pytest.mark.parametrize(
    "shape",
    [(60, 80), (60, 80, 3), (60, 80, 4), (60, 80, 1), (2, 40, 50), (2, 2, 40, 50)],
)
def test_any_image_gives_a_result_of_its_size(
    tiny: Model, policy: str, shape: tuple[int, ...]
) -> None:
    image = np.random.default_rng(0).integers(0, 4000, shape).astype(np.uint16)
    before = image.copy()
    result = complete(segment(image, tiny, policy=policy, budget=40))
    colour = shape[-1] in (1, 3, 4)
    expected = shape[:-1] if colour else shape
    check(result, expected)
    np.testing.assert_array_equal(image, before)
    planes = int(np.prod(expected[:-2]))
    assert set(result.path.planes) == set(range(planes))
    assert result.provenance["fixations"] == len(result.path) <= 40 * planes


@pytest.mark.parametrize("dtype", ["bool", "u1", "i2", "u4", "i8", "f2", "f4", "f8"])
def test_the_type_of_the_numbers_does_not_matter(
    tiny: Model, picture: np.ndarray, dtype: str
) -> None:
    image = (picture // 2 if dtype != "bool" else picture > 100).astype(dtype)
    reference = image.astype("f8")
    a, b = (complete(segment(i, tiny, budget=30)) for i in (image, reference))
    np.testing.assert_allclose(a.probabilities, b.probabilities, atol=2e-3)


def test_instances_of_a_stack_are_numbered_through(tiny: Model) -> None:
    image = np.random.default_rng(1).random((3, 50, 60))
    result = complete(segment(image, tiny, budget=60))
    ids = [set(np.unique(p)) - {0} for p in result.instances]
    assert not ids[0] & ids[1]
    assert not ids[1] & ids[2]
    assert set().union(*ids) == set(range(1, result.instances.max() + 1))


def test_an_empty_plane_of_a_stack_is_background(tiny: Model) -> None:
    image = np.random.default_rng(1).random((2, 50, 60))
    image[0] = 0
    result = complete(segment(image, tiny, budget=30))
    assert not result.labels[0].any()
    assert set(result.path.planes) == {1}


@pytest.mark.parametrize(("diameter", "factor"), [(24, 0.5), (6, 2), (12, 1)])
def test_the_image_is_brought_to_the_models_object_size(
    tiny: Model, picture: np.ndarray, diameter: float, factor: float
) -> None:
    result = complete(segment(picture, tiny, diameter=diameter, budget=30))
    check(result, picture.shape)
    (overlap,) = result.attention
    h, w = overlap.array.shape
    assert (h, w) == (round(70 * factor), round(90 * factor))
    assert overlap.scale == (70 / h, 90 / w)
    assert result.provenance["resized_by"] == factor
    # Cells of the path lie on the user's image.
    assert result.path.scale == (70 / h, 90 / w)
    cells = result.path.cells(0)
    side = result.path.grid.d / factor
    assert np.ptp(cells[:, [0, 2]]) == pytest.approx(side, rel=0.05)


def test_a_map_lies_edge_to_edge_on_its_image() -> None:
    laid = AttentionMap.over("x", np.zeros((10, 20)), shape=(40, 40))
    first = np.array(laid.offset) - np.array(laid.scale) / 2
    last = np.array(laid.offset) + np.array(laid.scale) * ([9.5, 19.5])
    np.testing.assert_allclose(first, -0.5)
    np.testing.assert_allclose(last, 39.5)


def test_cancelling_keeps_what_there_is(tiny: Model, picture: np.ndarray) -> None:
    seen = []
    run = segment(
        picture, tiny, batch_size=4, cancelled=lambda: len(seen) >= 2, budget=100
    )
    try:
        while True:
            seen.append(next(run))
    except StopIteration as end:
        result = end.value
    check(result, picture.shape)
    assert result.provenance["cancelled"]
    assert 0 < len(result.path) <= 12
    (overlap,) = result.attention
    unseen = overlap.array == 0
    assert unseen.any()
    assert not result.labels[unseen].any(), "nothing is known there"
    np.testing.assert_allclose(result.probabilities[:, unseen], 0.5)


@pytest.mark.parametrize("shape", [(1, 300), (300, 1), (3, 500), (1, 2), (2, 5)])
def test_thin_images_are_seen_whole_and_more_than_once(
    tiny: Model, shape: tuple[int, int]
) -> None:
    image = np.arange(np.prod(shape)).reshape(shape) % 7
    result = complete(segment(image, tiny))
    (overlap,) = result.attention
    assert (overlap.array > 0).all()
    result = complete(segment(image, tiny, budget=200))
    assert len(result.path) > np.ceil(max(shape) / 32) + 1, "seek went on looking"


def test_alpha_is_no_light(tiny: Model, picture: np.ndarray) -> None:
    dim = np.stack([picture // 8] * 3, axis=-1)
    opaque = np.concatenate([dim, np.full_like(dim[..., :1], 255)], axis=-1)
    a, b = (complete(segment(i, tiny, budget=30)) for i in (dim, opaque))
    np.testing.assert_array_equal(a.probabilities, b.probabilities)
    opaque[..., :3] = 9
    with pytest.raises(ImageError, match="constant"):
        complete(segment(opaque, tiny))


def test_a_model_that_knows_its_pixel_size_uses_it(
    tiny: Model, picture: np.ndarray
) -> None:
    known = replace(tiny, pixel_size=0.5)
    result = complete(segment(picture, known, pixel_size=0.25, budget=20))
    assert result.provenance["resized_by"] == 0.5
    result = complete(segment(picture, tiny, pixel_size=0.25, budget=20))
    assert result.provenance["resized_by"] == 1
    with pytest.raises(ModelError, match="size of the objects"):
        complete(segment(picture, replace(tiny, object_diameter=None), diameter=9))


def test_intensities_can_be_told_rather_than_measured(
    tiny: Model, picture: np.ndarray
) -> None:
    default = complete(segment(picture, tiny, budget=40))
    own = tiny.normalisation.limits(read_planes(picture))
    told = complete(segment(picture, tiny, budget=40, limits=own))
    np.testing.assert_array_equal(told.probabilities, default.probabilities)
    assert told.provenance["settings"]["limits"] == list(own)
    assert default.provenance["settings"]["limits"] is None
    other = complete(segment(picture, tiny, budget=40, limits=(0.0, 255.0)))
    assert np.abs(other.probabilities - default.probabilities).max() > 1e-3


def test_events_tell_what_happens(tiny: Model, picture: np.ndarray) -> None:
    run = segment(picture, tiny, preview_every=0.0, budget=60, batch_size=8)
    events, result = followed(run)
    assert isinstance(events[0], Started)
    assert (events[0].shape, events[0].scanned) == (picture.shape, picture.shape)
    fixated = [e for e in events if isinstance(e, Fixated)]
    previews = [e for e in events if isinstance(e, Preview)]
    walked = np.concatenate([e.path.corners for e in fixated])
    np.testing.assert_array_equal(walked, result.path.corners)
    assert all(0 <= e.fraction <= 1 for e in fixated)
    assert previews[-1].labels.shape == picture.shape
    far, near = (
        np.mean(p.labels != result.labels) for p in (previews[0], previews[-1])
    )
    assert near < far, "the map sharpens"
    with pytest.raises(FrozenInstanceError):
        fixated[0].done = 3  # type: ignore[misc]


def test_the_same_settings_give_the_same_result(
    tiny: Model, picture: np.ndarray
) -> None:
    a, b = (complete(segment(picture, tiny, budget=50)) for _ in range(2))
    np.testing.assert_array_equal(a.probabilities, b.probabilities)
    np.testing.assert_array_equal(a.path.corners, b.path.corners)


@pytest.mark.parametrize("classes", [2, 4])
def test_semantic_models_have_a_class_per_output(
    picture: np.ndarray, classes: int
) -> None:
    model = tiny_model(outputs=classes)
    result = complete(segment(picture, model, budget=30))
    check(result, picture.shape, classes)
    np.testing.assert_array_equal(result.labels, result.probabilities.argmax(0))


@pytest.mark.parametrize(
    ("image", "options", "error", "says"),
    [
        (np.zeros((9, 9)), {}, ImageError, "constant"),
        (np.full((9, 9), np.nan), {}, ImageError, "NaN"),
        (np.zeros(9), {}, ImageError, "shape"),
        (np.array(3.0), {}, ImageError, "shape"),
        (chance(2, 2, 2, 9, 9), {}, ImageError, "shape"),
        (chance(9, 9, 2), {"rgb": True}, ImageError, "2 channels"),
        (chance(9, 9), {"diameter": -3}, ImageError, "diameter"),
        (chance(9, 9), {"diameter": 1e-6}, ImageError, "resized"),
        (chance(9, 9), {"policy": "wander"}, ModelError, "seek"),
        (chance(9, 9), {"fusion": "cold"}, ModelError, "precision"),
        (chance(9, 9), {"limits": (3.0, 3.0)}, ImageError, "two finite intensities"),
        (chance(9, 9), {"limits": (0.0, np.nan)}, ImageError, "two finite"),
        (chance(9, 9), {"budget": 0}, FoveaError, "budget"),
        (chance(9, 9), {"device": "abacus"}, FoveaError, "abacus"),
    ],
)
def test_bad_input_gets_one_sentence(tiny: Model, image, options, error, says) -> None:
    with pytest.raises(error, match=says) as caught:
        complete(segment(image, tiny, **options))
    assert "\n" not in str(caught.value)


# -- objects ---------------------------------------------------------------------


def test_touching_discs_are_told_apart() -> None:
    y, x = np.mgrid[:60, :80]
    left = (y - 30) ** 2 + (x - 28) ** 2 < 144
    right = (y - 30) ** 2 + (x - 50) ** 2 < 144
    truth = np.where(left, 1, np.where(right, 2, 0))
    assert average_precision(separate(truth > 0, diameter=24), truth) > 0.9
    assert separate(truth > 0).max() == 1, "without a size a region is one object"


def test_depths_separate_what_no_shape_tells_apart() -> None:
    labels = np.zeros((40, 60), np.uint8)
    labels[10:30, 10:50] = 1
    depth = np.where(labels, 0.9, 0.0)
    depth[10:30, 28:32] = 0.1
    objects = separate(labels, depth=depth, diameter=20)
    assert objects.max() == 2
    np.testing.assert_array_equal(objects > 0, labels > 0)
    assert objects[20, 15] != objects[20, 45]


def test_an_object_that_is_nowhere_deep_is_still_one() -> None:
    labels = np.zeros((20, 20), np.uint8)
    labels[3:9, 3:9], labels[12:18, 12:18] = 1, 1
    depth = np.zeros((20, 20))
    depth[5:7, 5:7] = 0.9
    assert separate(labels, depth=depth).max() == 2


@given(
    landscape=arrays(np.uint8, (12, 15), elements=st.integers(0, 9)),
    mask=arrays(bool, (12, 15)),
    least=st.integers(1, 5),
)
def test_as_many_objects_as_hills_of_that_prominence(
    landscape: np.ndarray, mask: np.ndarray, least: int
) -> None:
    mask[0] = False  # what is outside lies deeper than every saddle
    heights = np.where(mask, landscape.astype(int) + 10, 0)
    with mock.patch.object(instances, "_PROMINENCE", least / 1000):
        found = separate(mask.astype(np.uint8), depth=heights / 1000)
    cross = ndimage.generate_binary_structure(2, 1)
    # Cut by a little less than the least prominence, in halves of a step.
    cut = reconstruction(2 * heights - 2 * least + 1, 2 * heights, footprint=cross)
    peaks = local_maxima(cut, connectivity=1) & mask
    np.testing.assert_array_equal(found > 0, mask)
    for number in range(1, found.max() + 1):
        assert label(found == number, connectivity=1).max() == 1
    assert found.max() == label(peaks, connectivity=1).max()


def test_classes_never_share_an_object_and_specks_are_dropped() -> None:
    labels = np.zeros((40, 60), np.uint8)
    labels[10:30, 10:30], labels[10:30, 30:50] = 1, 2
    labels[2, 2] = 1
    objects = separate(labels, diameter=20)
    assert objects[2, 2] == 0
    assert objects.max() == 2
    assert objects[20, 20] != objects[20, 40]
    assert separate(np.zeros((4, 4), int)).max() == 0


# -- the model that ships -----------------------------------------------------------


def test_the_shipped_model_finds_synthetic_nuclei() -> None:
    image, truth = make_nuclei()
    result = complete(segment(image, "retina-nuclei"))
    assert dice(result.labels, truth) > 0.85
    assert average_precision(result.instances, truth, thresholds=(0.5,)) > 0.6


def test_the_shipped_model_finds_real_nuclei(nuclei) -> None:
    scores = []
    for path in sorted((nuclei / "val" / "images").glob("*.png"))[:60:6]:
        image = read_image(path)
        if image.shape[0] * image.shape[1] > 2**17:
            continue
        result = complete(segment(image, "retina-nuclei"))
        pixels = np.prod(result.path.shape)  # as the model saw them
        assert len(result.path) <= np.ceil(400 * pixels / 256**2)
        truth = read_image(nuclei / "val" / "labels" / path.name)
        scores.append(dice(result.labels, truth))
    assert len(scores) >= 5
    assert np.mean(scores) > 0.85
