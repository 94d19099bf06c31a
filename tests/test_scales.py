"""Models learn from strokes at the size at which they want to see objects."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from following import followed
from learning import instant, made
from napari_fovea.errors import TrainingError
from napari_fovea.inference.sizes import enlarge, typical_diameter
from napari_fovea.sample_data import make_nuclei
from napari_fovea.training import scales as scales_module
from napari_fovea.training.guard import carried, strokes_of
from napari_fovea.training.painted import Annotation, read_painted
from napari_fovea.training.samples import VOID, make_sample
from napari_fovea.training.scales import Scales, painted_at
from napari_fovea.training.tuner import Tuner

if TYPE_CHECKING:
    from napari_fovea.models import Model

SIDES = st.integers(1, 12)


@pytest.fixture
def sized() -> Model:
    """A model that wants to see objects 12 pixels across, and measures them first."""
    model = replace(made("unet"), object_diameter=12.0)
    return replace(model, scan={"diameter": "auto"})


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Count estimates, which all tell 24 pixels."""
    seen: list[Any] = []

    def estimated(plane: Any, model: Model, device: Any, **_: Any) -> float:
        seen.append((plane.shape, model.name))
        return 24.0

    monkeypatch.setattr(scales_module, "estimated", estimated)
    return seen


@given(
    arrays.arrays(
        np.uint8, st.tuples(SIDES, SIDES), elements=st.sampled_from([0, 1, 2, VOID])
    ),
    SIDES,
    SIDES,
)
def test_pixels_take_the_class_most_painted_on_them(
    classes: np.ndarray, height: int, width: int
) -> None:
    found = painted_at(classes, (height, width))
    assert found.shape == (height, width)
    if height >= classes.shape[0] and width >= classes.shape[1]:
        np.testing.assert_array_equal(found, enlarge(classes, (height, width)))
        return
    # Literally: which pixels of the old image fall into each of the new one.
    counts = np.zeros((3, height, width), int)
    for y, x in np.argwhere(classes != VOID):
        row = int((y + 0.5) * height / classes.shape[0])
        column = int((x + 0.5) * width / classes.shape[1])
        counts[classes[y, x], row, column] += 1
    expected = np.where(counts.any(0), counts.argmax(0), VOID)
    np.testing.assert_array_equal(found, expected)


def test_thin_strokes_are_not_lost() -> None:
    classes = np.full((80, 80), VOID, np.uint8)
    classes[41, 10:70] = 1
    small = painted_at(classes, (10, 10))
    assert (small == 1).sum() >= 7
    assert set(np.unique(small)) == {1, VOID}


def test_planes_are_shown_at_the_models_size(
    sized: Model, asked: list[Any], picture: np.ndarray, strokes: np.ndarray
) -> None:
    painted = read_painted([Annotation(picture, strokes)], sized)
    plane = painted.planes[0]
    assert plane.image.shape == (3, 35, 45)
    assert plane.classes.shape == plane.strokes.shape == (35, 45)
    assert len(asked) == 1
    given = read_painted([Annotation(picture, strokes, diameter=6.0)], sized)
    assert given.planes[0].image.shape == (3, 140, 180)
    assert len(asked) == 1, "what is given need not be measured"
    plain = replace(sized, scan={})
    native = read_painted([Annotation(picture, strokes)], plain)
    assert native.planes[0].image.shape == (3, *picture.shape)
    assert len(asked) == 1
    measured = read_painted([Annotation(picture, strokes, diameter="auto")], plain)
    assert measured.planes[0].image.shape == (3, 35, 45)


def test_numbered_objects_tell_their_size(sized: Model, asked: list[Any]) -> None:
    image, labels = make_nuclei((96, 96), count=9, seed=2)
    painted = read_painted(
        [Annotation(image, labels, unpainted=False, objects=True)], sized
    )
    assert not asked
    plane = painted.planes[0]
    assert typical_diameter(plane.instances) == pytest.approx(12, rel=0.08)
    np.testing.assert_array_equal(plane.classes > 0, plane.instances > 0)


def test_numbers_that_go_on_through_a_stack_are_measured_plane_by_plane(
    sized: Model, asked: list[Any]
) -> None:
    image, labels = make_nuclei((96, 96), count=9, seed=2)
    stack, numbers = np.stack([image] * 5), np.stack([labels] * 5)
    painted = read_painted(
        [Annotation(stack, numbers, unpainted=False, objects=True)], sized
    )
    assert len(painted.planes) == 5
    size = typical_diameter(painted.planes[3].instances)
    assert size == pytest.approx(12, rel=0.08)


def test_the_size_of_pixels_tells_it_to_models_that_know_their_own(
    sized: Model, asked: list[Any], picture: np.ndarray, strokes: np.ndarray
) -> None:
    knowing = replace(sized, pixel_size=1.0)
    painted = read_painted([Annotation(picture, strokes, pixel_size=0.5)], knowing)
    assert painted.planes[0].image.shape == (3, 35, 45)
    assert not asked


def test_measuring_can_be_broken_off(
    sized: Model, picture: np.ndarray, strokes: np.ndarray, asked: list[Any]
) -> None:
    scales = Scales(sized, device="cpu")
    annotation = [Annotation(picture, strokes)]
    with pytest.raises(TrainingError, match="stopped while the objects were measured"):
        read_painted(annotation, sized, scales=scales, cancelled=lambda: True)
    again = read_painted(annotation, sized, scales=scales)
    assert again.planes[0].image.shape == (3, 35, 45), "what was broken off is no size"


def test_scores_are_carried_to_another_size(
    sized: Model, picture: np.ndarray, strokes: np.ndarray
) -> None:
    at = {
        d: read_painted([Annotation(picture, strokes, diameter=d)], sized).planes[0]
        for d in (12.0, 24.0)
    }
    scores = {s: 0.25 * i for i, s in enumerate(strokes_of([at[12.0]]))}
    found = carried([at[12.0]], scores, at[24.0])
    assert set(found) == set(strokes_of([at[24.0]]))
    assert min(found.values()) == min(scores.values())
    assert max(found.values()) == max(scores.values())


def test_a_senseless_diameter_is_refused(
    sized: Model, picture: np.ndarray, strokes: np.ndarray
) -> None:
    unsized = replace(sized, object_diameter=None, scan={})
    for model, diameter, reason in (
        (sized, -3.0, "expected a positive number"),
        (sized, 0.01, "would be resized"),
        (unsized, 12.0, "does not know the size"),
    ):
        with pytest.raises(TrainingError, match=f"cells: .*{reason}"):
            read_painted(
                [Annotation(picture, strokes, name="cells", diameter=diameter)], model
            )


def test_what_is_learned_does_not_change_the_size(
    sized: Model, asked: list[Any], picture: np.ndarray, strokes: np.ndarray
) -> None:
    tuner = Tuner(sized, device="cpu")
    annotation = Annotation(picture, strokes)

    def learn() -> Any:
        painted = read_painted([annotation], tuner.trunk, scales=tuner.scales)
        return followed(tuner.instant(painted))[1]

    def show(model: Model) -> Any:
        return tuner.segment(picture, 0, name="image", rgb=False, model=model)

    shown = show(tuner.model)
    assert shown.labels.shape == picture.shape
    tuned = learn()
    after = show(tuned.model)
    tuner.accept(tuned)
    learn()
    assert len(asked) == 1, "an image is measured once"
    assert asked[0][1] == "unet"
    assert after.labels.shape == picture.shape
    # Learned and shown at one size: what was painted is told as it was painted.
    known = strokes > 0
    assert (after.labels[known] == strokes[known] - 1).mean() > 0.9


@pytest.mark.parametrize("name", ["unet", "retina-vgg", "retina-shared"])
def test_an_image_twice_as_large_is_learned_from_alike(
    name: str, picture: np.ndarray, strokes: np.ndarray
) -> None:
    model = replace(made(name), object_diameter=14.0)

    def twice(array: np.ndarray) -> np.ndarray:
        return array.repeat(2, 0).repeat(2, 1)

    small = Annotation(picture, strokes, diameter=14.0)
    large = Annotation(twice(picture), twice(strokes), diameter=28.0)
    one, other = (read_painted([a], model).planes[0] for a in (small, large))
    # Making it smaller again mixes a little of what lies beside each pixel.
    assert float((one.image - other.image).abs().mean()) < 0.02
    np.testing.assert_array_equal(one.classes, other.classes)
    a, b = instant(model, small), instant(model, large)
    assert a.verdict.after == pytest.approx(b.verdict.after, abs=0.05)


def test_what_is_replayed_is_brought_to_the_models_size(
    sized: Model,
    asked: list[Any],
    picture: np.ndarray,
    strokes: np.ndarray,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from napari_fovea.training import tuner as module

    shapes = []
    own = module.replayed

    def replayed(sample: Any, *arguments: Any, **options: Any) -> Any:
        shapes.append(typical_diameter(sample.instances))
        return own(sample, *arguments, **options)

    monkeypatch.setattr(module, "replayed", replayed)
    image, labels = make_nuclei((128, 128), count=6, seed=0)
    old = make_sample(image, labels, channels=3, outputs=2)
    tuner = Tuner(sized, device="cpu")
    painted = read_painted([Annotation(picture, strokes)], sized, scales=tuner.scales)
    followed(tuner.thorough(painted, seconds=2, replay=[old]))
    assert shapes == [pytest.approx(12, rel=0.08)]
