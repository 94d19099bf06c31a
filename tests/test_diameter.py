"""How large objects are: measured in labels, and estimated by models."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from skimage.transform import resize

from conftest import tiny_model
from following import followed
from napari_fovea import Model, complete, segment
from napari_fovea.errors import FoveaError
from napari_fovea.inference import Measured, Started, estimate_diameter
from napari_fovea.inference import diameter as diameter_module
from napari_fovea.inference.choosing import reader_for
from napari_fovea.inference.sizes import enlarge, typical_diameter
from napari_fovea.models import DEFAULT
from napari_fovea.networks import Adapted, AdaptedRetina
from napari_fovea.sample_data import make_nuclei
from napari_fovea.scale import segment_large
from napari_fovea.training.adapting import adapted
from napari_fovea.training.samples import DEPTHS, VOID, depth_classes, make_sample
from napari_fovea.training.sizing import odds_of, to_diameter


def scaled(factor: float, seed: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Synthetic nuclei at another size, and their numbers."""
    image, truth = make_nuclei((256, 256), seed=seed)
    side = round(256 * factor)
    shown = resize(image.astype(float), (side, side), anti_aliasing=True)
    return shown, enlarge(truth, (side, side))


@pytest.fixture(scope="module")
def auto() -> Model:
    """A model that measures objects first."""
    model = Model.load("focusnet-nuclei")
    return replace(model, scan={**model.scan, "diameter": "auto"})


# -- in labels -------------------------------------------------------------------------


def test_half_of_the_area_lies_in_objects_up_to_the_typical_one() -> None:
    labels = np.zeros((40, 60), int)
    labels[:20, :20], labels[20:30, :10], labels[30:40, 20:30] = 1, 2, 3
    labels[0, 30:60:2] = np.arange(4, 19)  # specks
    assert typical_diameter(labels) == pytest.approx(2 * np.sqrt(400 / np.pi))
    assert typical_diameter(np.zeros((4, 4), int)) is None


@given(st.lists(st.integers(1, 60), min_size=1, max_size=30))
def test_typical_is_one_of_the_sizes_whatever_the_numbers(areas: list[int]) -> None:
    labels = np.repeat(np.arange(1, len(areas) + 1) * 7, areas)[None]
    found = typical_diameter(labels)
    assert found is not None
    area = round(np.pi * (found / 2) ** 2)
    assert area in areas
    smaller = sum(a for a in areas if a < area)
    up_to = sum(a for a in areas if a <= area)
    assert smaller < sum(areas) / 2 + 1e-9 <= up_to + 1e-6


# -- by a model ------------------------------------------------------------------------


@pytest.mark.parametrize("factor", [0.5, 1.0, 2.0, 3.0])
@pytest.mark.parametrize("name", ["focusnet-nuclei", "mask-rcnn-nuclei"])
def test_a_model_measures_nuclei_of_any_size(name: str, factor: float) -> None:
    image, truth = scaled(factor)
    found = estimate_diameter(image, name, device="cpu")
    assert found == pytest.approx(typical_diameter(truth), rel=0.25)


def test_of_a_stack_the_plane_with_something_on_it_is_measured(auto: Model) -> None:
    image, truth = scaled(1.0)
    stack = np.stack([np.full_like(image, image.min()), image])
    assert estimate_diameter(stack, auto, device="cpu") == pytest.approx(
        typical_diameter(truth), rel=0.25
    )


def test_a_part_of_a_large_image_is_enough(auto: Model) -> None:
    image, truth = scaled(1.0)
    large = np.full((2000, 2300), float(image.min()))
    large[1500:1756, 1700:1956] = image
    limits = (float(np.percentile(image, 1)), float(np.percentile(image, 99.8)))
    found = estimate_diameter(large, auto, limits=limits, device="cpu")
    assert found == pytest.approx(typical_diameter(truth), rel=0.25)


def test_where_nothing_is_nothing_is_measured(auto: Model) -> None:
    flat = np.random.default_rng(0).normal(100, 1e-3, (80, 80))
    limits = (0.0, 1e6)
    assert estimate_diameter(flat, auto, limits=limits, device="cpu") is None
    found = complete(segment(flat, auto, limits=limits, device="cpu"))
    assert found.provenance["resized_by"] == 1
    assert not found.instances.any()


def test_specks_that_show_only_when_enlarged_are_measured_and_noise_is_not() -> None:
    rng = np.random.default_rng(0)
    noise = rng.normal(100, 3, (128, 128))
    assert estimate_diameter(noise, DEFAULT, device="cpu") is None
    specks = noise.copy()
    y, x = np.mgrid[8:120:9, 8:120:9]
    for dy in (-1, 0, 1):
        for dx in (-1, 0, 1):
            specks[y + dy, x + dx] += 60
    found = estimate_diameter(specks, DEFAULT, device="cpu")
    assert found == pytest.approx(2 * np.sqrt(9 / np.pi), rel=0.35)


def test_segmenting_measures_first_where_a_model_wants_it(auto: Model) -> None:
    image, truth = scaled(2.0)
    events, found = followed(segment(image, auto, device="cpu"))
    assert isinstance(events[0], Started)
    assert isinstance(events[1], Measured)
    diameter = events[1].diameter
    assert diameter == pytest.approx(typical_diameter(truth), rel=0.25)
    told = found.provenance
    assert told["diameter_estimated"]
    assert told["settings"]["diameter"] == diameter
    assert told["resized_by"] == pytest.approx(auto.object_diameter / diameter)
    again = complete(segment(image, auto, diameter=diameter, device="cpu"))
    np.testing.assert_array_equal(again.instances, found.instances)
    assert not again.provenance["diameter_estimated"]


@pytest.mark.parametrize("classes", [("a", "b"), ("a", "b", "c")])
@pytest.mark.parametrize("name", ["focusnet-nuclei", "retina-shared-nuclei"])
def test_what_strokes_taught_does_not_change_how_objects_are_measured(
    name: str, classes: tuple[str, ...]
) -> None:
    image, truth = scaled(1.5)
    model = Model.load(name)
    learned = adapted(model, classes)
    network = learned.network
    assert isinstance(network, Adapted | AdaptedRetina)
    weights = network.weights.clone()
    weights[-1, -1] = 50.0  # all of the image is of the last class
    network.weights = weights
    found = complete(segment(image, learned, diameter=40, device="cpu")).labels
    assert (found == len(classes) - 1).all()
    assert estimate_diameter(image, learned, device="cpu") == pytest.approx(
        typical_diameter(truth), rel=0.25
    )


def test_any_model_that_knows_its_size_may_be_asked_to_measure() -> None:
    image, _ = scaled(2.0)
    model = Model.load("focusnet-nuclei")
    plain = replace(model, scan={})
    kept = complete(segment(image, plain, device="cpu")).provenance
    assert kept["resized_by"] == 1
    assert not kept["diameter_estimated"]
    asked = complete(segment(image, plain, diameter="auto", device="cpu")).provenance
    assert asked["resized_by"] < 0.8
    known = replace(plain, pixel_size=0.5, scan={"diameter": "auto"})
    sized = complete(segment(image, known, pixel_size=0.5, device="cpu")).provenance
    assert not sized["diameter_estimated"], "sizes of pixels tell as well"


def test_a_retina_whose_looks_share_nothing_measures_on_less(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    image, _ = scaled(2.0)
    largest = {}
    for name in ("retina-nuclei", "retina-shared-nuclei"):
        shapes: list[tuple[int, int]] = []

        def reader_of(model, device, shape, *, kept=shapes):
            kept.append(shape)
            return reader_for(model, device, shape, budget=40)

        monkeypatch.setattr(diameter_module, "reader_for", reader_of)
        estimate_diameter(image, name, device="cpu")
        largest[name] = max(max(shape) for shape in shapes)
    assert largest["retina-nuclei"] <= 256 < largest["retina-shared-nuclei"] <= 512


def test_a_model_that_knows_no_size_measures_nothing() -> None:
    model = replace(tiny_model(), object_diameter=None)
    image = np.random.default_rng(0).random((40, 40))
    for run in (
        lambda: estimate_diameter(image, model, device="cpu"),
        lambda: complete(segment(image, model, diameter="auto", device="cpu")),
    ):
        with pytest.raises(FoveaError, match="does not know the size"):
            run()


def test_blocks_of_a_large_image_share_one_measure(auto: Model, tmp_path) -> None:
    image, _ = scaled(2.0)
    run = segment_large(image, auto, tmp_path / "a.zarr", chunk=256, device="cpu")
    told = complete(run).provenance
    assert told["diameter_estimated"]
    assert told["resized_by"] < 0.8
    whole = complete(segment(image, auto, device="cpu")).provenance
    assert told["resized_by"] == pytest.approx(whole["resized_by"], rel=0.1)


# -- for training ----------------------------------------------------------------------


@pytest.mark.parametrize("factor", [0.5, 2.0])
def test_samples_are_brought_to_one_size(factor: float) -> None:
    image, truth = scaled(factor)
    sample = make_sample(
        image, truth, channels=3, outputs=5, depths=DEPTHS, ignore=int(truth.max())
    )
    (resized,) = to_diameter([sample], 20.0, depths=DEPTHS)
    assert resized.instances is not None
    assert resized.image.shape[1:] == resized.classes.shape == resized.instances.shape
    assert typical_diameter(resized.instances) == pytest.approx(20, rel=0.05)
    void = resized.classes.numpy() == VOID
    again = depth_classes(resized.instances, void=_unknown(sample, resized))
    np.testing.assert_array_equal(resized.classes.numpy(), again)
    assert void.any()
    # Image and labels still lie upon each other.
    inside = resized.instances > 0
    values = resized.image[0].numpy()
    assert values[inside].mean() > 2 * values[~inside].mean()


def _unknown(sample, resized) -> np.ndarray:
    return enlarge(sample.classes.numpy() == VOID, tuple(resized.classes.shape))


def test_samples_without_objects_keep_their_size() -> None:
    image = np.random.default_rng(0).random((30, 40))
    blank = make_sample(image, np.zeros((30, 40), int), channels=1, outputs=2)
    classes = make_sample(
        image, image > 0.5, channels=1, outputs=2, from_instances=False
    )
    assert to_diameter([blank, classes], 20.0, depths=None) == [blank, classes]


def test_rare_looks_are_shown_more_often() -> None:
    rng = np.random.default_rng(0)
    truth = np.zeros((40, 40), int)
    truth[10:30, 10:30] = 1
    bright = truth * 100 + rng.random((40, 40))
    pink = np.dstack([bright, 60 + 0 * bright, 90 - bright / 2])
    images = [bright, bright + 1, bright + 2, 200 - bright, pink]
    samples = [make_sample(i, truth, channels=3, outputs=2) for i in images]
    np.testing.assert_allclose(odds_of(samples, 0.0), 0.2)
    np.testing.assert_allclose(odds_of(samples, 1.0), [1 / 9] * 3 + [1 / 3] * 2)
    half = odds_of(samples, 0.5)
    assert half[3] / half[0] == pytest.approx(np.sqrt(3))
    assert isinstance(samples[0].image, torch.Tensor)
