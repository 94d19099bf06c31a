"""Refits that follow each other: what is kept, and what is taken."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest

from conftest import tiny_model
from following import followed
from learning import (
    DISCS,
    instant,
    made,
    same,
    weights,
)
from napari_fovea import complete, segment
from napari_fovea.sample_data import make_nuclei
from napari_fovea.training import seeing
from napari_fovea.training.painted import Annotation, read_painted
from napari_fovea.training.tuner import Tuner

if TYPE_CHECKING:
    from napari_fovea.training.learned import Tuned

# -- again and again -----------------------------------------------------------------


def follow(tuner: Tuner, annotation: Annotation) -> Tuned:
    painted = read_painted([annotation], tuner.trunk)
    return followed(tuner.instant(painted))[1]


@pytest.mark.parametrize("name", ["unet", "retina-vgg"])
def test_bad_strokes_after_good_ones_are_refused(
    name: str, picture: np.ndarray, strokes: np.ndarray
) -> None:
    model = tiny_model() if name == "retina-vgg" else made()
    tuner = Tuner(model, device="cpu")
    assert tuner.model is tuner.trunk is model
    good = follow(tuner, Annotation(picture, strokes))
    assert good.verdict.better
    tuner.accept(good)
    assert tuner.model is good.model
    assert tuner.trunk is model
    bad = strokes.copy()
    for y, x in DISCS:
        bad[y - 4, x - 3 : x + 4] = 1
        bad[y - 6 : y - 3, x + 20 : x + 24] = 2
    assert not follow(tuner, Annotation(picture, bad)).verdict.better
    assert tuner.model is good.model


def test_the_same_strokes_again_are_no_better(one: Annotation) -> None:
    tuner = Tuner(made(), device="cpu")
    first = follow(tuner, one)
    tuner.accept(first)
    again = follow(tuner, one)
    assert again.verdict.before == pytest.approx(first.verdict.after, abs=1e-5)
    assert again.verdict.after == pytest.approx(first.verdict.after, abs=1e-5)
    assert not again.verdict.better
    assert same(weights(again.model), weights(first.model)), "all is fitted anew"


def test_an_image_that_is_enlarged_is_looked_at_once() -> None:
    image, truth = make_nuclei((256, 256), seed=2)
    model = replace(made(channels=1), object_diameter=24.0)
    tuner = Tuner(model, device="cpu")
    looks: list[int] = []
    strokes = np.where(truth > 0, 2, 0).astype(np.uint8)
    strokes[:20], strokes[120:], strokes[:, 90:] = 0, 0, 0
    strokes[::40] = 1
    tuner.prepare(model.classes).base.register_forward_hook(lambda *_: looks.append(1))
    more = strokes.copy()
    more[200:204, :60] = 1
    for some in (strokes, more):
        painted = read_painted([Annotation(image, some, diameter=5.6)], model)
        assert painted.planes[0].image.shape == (1, 1097, 1097)
        tuned = followed(tuner.instant(painted))[1]
        tuner.segment(
            image, 0, name="image", rgb=False, model=tuned.model, diameter=5.6
        )
    assert len(looks) == 1


def test_a_class_may_be_added_after_a_refit(
    picture: np.ndarray, strokes: np.ndarray
) -> None:
    tuner = Tuner(made(), device="cpu")
    tuner.accept(follow(tuner, Annotation(picture, strokes)))
    more = strokes.copy()
    more[10:12, 60:80], more[60:62, 60:80] = 3, 3
    tuned = follow(tuner, Annotation(picture, more))
    assert len(tuned.model.classes) == 3


def test_what_was_there_before_a_class_was_added_can_still_be_shown(
    picture: np.ndarray, strokes: np.ndarray
) -> None:
    before = instant(made(), Annotation(picture, strokes)).model
    tuner = Tuner(before, device="cpu")
    alone = tuner.segment(picture, 0, name="image", rgb=False, model=before)
    more = strokes.copy()
    more[10:12, 60:80], more[60:62, 60:80] = 3, 3
    tuned = follow(tuner, Annotation(picture, more))
    assert len(tuned.model.classes) == 3
    again = tuner.segment(picture, 0, name="image", rgb=False, model=before)
    np.testing.assert_allclose(again.probabilities, alone.probabilities, atol=1e-5)


def test_a_class_may_be_left_out_again(
    picture: np.ndarray, strokes: np.ndarray
) -> None:
    tuner = Tuner(made(), device="cpu")
    more = strokes.copy()
    more[10:12, 60:80], more[60:62, 60:80] = 3, 3
    first = follow(tuner, Annotation(picture, more))
    assert len(first.model.classes) == 3
    again = follow(tuner, Annotation(picture, strokes))
    alone = instant(made(), Annotation(picture, strokes))
    assert same(weights(again.model), weights(alone.model))


def test_what_was_seen_is_seen_anew_when_the_image_changes(
    picture: np.ndarray, strokes: np.ndarray
) -> None:
    tuner = Tuner(made(), device="cpu")
    follow(tuner, Annotation(picture, strokes))
    other = picture[::-1].copy()
    again = follow(tuner, Annotation(other, strokes))
    alone = instant(made(), Annotation(other, strokes))
    assert same(weights(again.model), weights(alone.model))


def test_any_channel_that_changes_is_seen_anew(
    picture: np.ndarray, strokes: np.ndarray
) -> None:
    colour = np.stack([picture, picture // 2, picture[::-1]], axis=-1)
    other = colour[..., [0, 2, 1]]  # what is darkest and brightest stays the same
    tuner = Tuner(made(), device="cpu")
    follow(tuner, Annotation(colour, strokes))
    again = follow(tuner, Annotation(other, strokes))
    alone = instant(made(), Annotation(other, strokes))
    assert same(weights(again.model), weights(alone.model))


def test_refits_hold_no_more_than_a_share_of_memory(
    picture: np.ndarray, strokes: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(seeing, "KEPT", 4_000_000)
    tuner = Tuner(made(), device="cpu")
    stack = np.stack([picture] * 9)
    stack[:, 0, 0] = np.arange(9)
    for i in range(9):
        labels = np.zeros(stack.shape, np.uint8)
        labels[max(0, i - 1) : i + 1] = strokes
        follow(tuner, Annotation(stack, labels))
        held = [x.bytes for _, x in tuner._looks.values()]
        assert len(held) == 1 or sum(held) <= 4_000_000
    assert 0 < len(tuner._looks) < 9
    tuner.forget()
    assert not tuner._looks
    assert not tuner._rows


def test_nothing_is_kept_of_planes_that_are_no_longer_painted(
    picture: np.ndarray, strokes: np.ndarray
) -> None:
    tuner = Tuner(made(), device="cpu")
    stack = np.stack([picture] * 5)
    for i in range(5):
        labels = np.zeros(stack.shape, np.uint8)
        labels[i] = strokes
        follow(tuner, Annotation(stack, labels))
    assert len(tuner._rows) == 1


def test_a_plane_that_was_seen_is_segmented_without_looking_again(
    picture: np.ndarray, strokes: np.ndarray
) -> None:
    tuner = Tuner(made(outputs=3), device="cpu")
    tuned = follow(tuner, Annotation(picture, strokes))
    options = {"name": "image", "rgb": None}
    for model in (tuned.model, tuner.trunk):
        found = tuner.segment(picture, 0, model=model, **options)
        expected = complete(segment(picture, model, device="cpu"))
        np.testing.assert_allclose(
            found.probabilities, expected.probabilities, atol=1e-3
        )
        assert found.labels.shape == picture.shape


def test_a_trunk_that_reads_evidence_is_segmented_as_it_is(
    picture: np.ndarray, strokes: np.ndarray
) -> None:
    trunk = instant(made(), Annotation(picture, strokes)).model
    tuner = Tuner(trunk, device="cpu")
    found = tuner.segment(picture, 0, model=trunk, name="image", rgb=None)
    expected = complete(segment(picture, trunk, device="cpu"))
    np.testing.assert_allclose(found.probabilities, expected.probabilities, atol=1e-3)
