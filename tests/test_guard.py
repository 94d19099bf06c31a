"""Whether a model may take over, by strokes that were held out."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from napari_fovea.training.guard import (
    FOLDS,
    Stroke,
    balanced,
    carried,
    fold_strokes,
    judge,
    stroke_scores,
    strokes_of,
)
from napari_fovea.training.painted import PaintedPlane, number_strokes
from napari_fovea.training.samples import VOID

KEY = ("image", 0)


def painted(*strokes: tuple[slice, int], blocks: bool = False) -> PaintedPlane:
    classes = np.full((20, 24), VOID, np.uint8)
    for place, c in strokes:
        classes[place] = c
    return plane_of(classes, blocks=blocks)


def plane_of(classes: np.ndarray, *, blocks: bool = False) -> PaintedPlane:
    image = torch.zeros(3, *classes.shape)
    return PaintedPlane(KEY, image, classes, number_strokes(classes, blocks=blocks))


# -- folds ---------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 2), st.integers(0, 3)), max_size=30),
    st.integers(2, 6),
)
def test_every_class_keeps_a_stroke_to_learn_from(
    pairs: list[tuple[int, int]], folds: int
) -> None:
    strokes = [Stroke(("a", p), i, c) for i, (p, c) in enumerate(pairs, start=1)]
    parts = fold_strokes(strokes, folds=folds)
    assert set(parts) == set(strokes)
    assert all(-1 <= part < folds for part in parts.values())
    for c in {s.label for s in strokes}:
        own = [parts[s] for s in strokes if s.label == c]
        if len(own) == 1:
            assert own == [-1]
        else:
            assert -1 not in own
            assert len(set(own)) == min(len(own), folds), "no part holds all of it"
            counts = np.bincount(own, minlength=folds)
            assert counts.max() - counts.min() <= 1


@pytest.mark.parametrize(
    "blocks",
    [
        [(0, 0), (0, 1)],
        [(0, 0), (1, 3)],
        [(0, 3), (1, 2), (2, 1), (3, 0)],
        [(i, j) for i in range(4) for j in range(4)],
    ],
)
def test_every_class_of_complete_labels_keeps_a_block_to_learn_from(
    blocks: list[tuple[int, int]],
) -> None:
    classes = np.zeros((40, 40), np.uint8)
    for i, j in blocks:
        classes[10 * i + 2 : 10 * i + 6, 10 * j + 2 : 10 * j + 6] = 1
    plane = plane_of(classes, blocks=True)
    parts = fold_strokes(strokes_of([plane]), complete=True)
    for c in (0, 1):
        own = {part for s, part in parts.items() if s.label == c}
        assert len(own) > 1, f"class {c} is held out as a whole"


def test_what_lies_in_one_block_is_held_out_together() -> None:
    rng = np.random.default_rng(0)
    classes = rng.integers(0, 3, (40, 40)).astype(np.uint8)
    plane = plane_of(classes, blocks=True)
    parts = fold_strokes(strokes_of([plane]), complete=True)
    by_block: dict[tuple[int, int], set[int]] = {}
    for stroke, part in parts.items():
        place = tuple((np.argwhere(plane.strokes == stroke.number)[0] // 10).tolist())
        by_block.setdefault(place, set()).add(part)
    assert len(by_block) == 16
    assert all(len(some) == 1 for some in by_block.values())
    assert {part for some in by_block.values() for part in some} == set(range(FOLDS))


def test_strokes_are_held_out_whole() -> None:
    plane = painted((np.s_[0, :5], 0), (np.s_[9, :], 0), (np.s_[5:7, 1:9], 1))
    strokes = strokes_of([plane])
    assert [s.label for s in strokes] == [0, 0, 1]
    assert len({(s.plane, s.number) for s in strokes}) == len(strokes)


# -- the verdict ---------------------------------------------------------------------


def some(*labels: int) -> list[Stroke]:
    return [Stroke(KEY, i, c) for i, c in enumerate(labels, start=1)]


def test_what_scores_higher_is_better() -> None:
    strokes = some(0, 0, 1)
    verdict = judge(dict.fromkeys(strokes, 0.5), dict.fromkeys(strokes, 0.9))
    assert verdict.better
    assert verdict.strokes == 3
    assert (verdict.before, verdict.after) == pytest.approx((0.5, 0.9))
    assert verdict.gained == pytest.approx(0.4)
    assert verdict.lost == 0
    assert "0.500 → 0.900" in str(verdict)


def test_what_scores_the_same_or_lower_is_no_better() -> None:
    strokes = some(0, 0, 1)
    for after in (0.5, 0.5005, 0.1):
        verdict = judge(dict.fromkeys(strokes, 0.5), dict.fromkeys(strokes, after))
        assert not verdict.better
        assert "no better" in str(verdict)


def test_what_gains_here_and_loses_there_is_no_better() -> None:
    strokes = some(0, 0, 1, 1)
    after = dict(zip(strokes, (1.0, 0.3, 1.0, 0.3), strict=True))
    verdict = judge(dict.fromkeys(strokes, 0.55), after)
    assert verdict.after > verdict.before
    assert not verdict.better
    assert "contradict" in str(verdict)
    assert verdict.gained - verdict.lost == pytest.approx(
        verdict.after - verdict.before
    )


def test_with_nothing_held_out_nothing_is_said() -> None:
    for before, after in (({}, {}), ({some(0)[0]: 0.5}, {}), ({}, {some(0)[0]: 0.9})):
        verdict = judge(before, after)
        assert not verdict.better
        assert verdict.strokes == 0
        assert "two strokes" in str(verdict)


def test_only_strokes_both_were_scored_on_count() -> None:
    a, b, c = some(0, 0, 1)
    verdict = judge({a: 0.5, b: 0.1}, {a: 0.6, c: 0.0})
    assert (verdict.before, verdict.after, verdict.strokes) == (0.5, 0.6, 1)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 2), st.floats(0, 1), st.floats(0, 1)), min_size=1)
)
def test_gains_and_losses_make_the_difference(
    rows: list[tuple[int, float, float]],
) -> None:
    strokes = some(*(c for c, _, _ in rows))
    before = {s: x for s, (_, x, _) in zip(strokes, rows, strict=True)}
    after = {s: x for s, (_, _, x) in zip(strokes, rows, strict=True)}
    verdict = judge(before, after)
    means = []
    for c in {c for c, _, _ in rows}:
        means.append(np.mean([y for k, _, y in rows if k == c]))
    assert verdict.after == pytest.approx(np.mean(means))
    assert verdict.after == pytest.approx(balanced(after))
    assert min(verdict.gained, verdict.lost) >= 0
    assert verdict.gained - verdict.lost == pytest.approx(
        verdict.after - verdict.before, abs=1e-9
    )


def test_a_class_of_many_strokes_counts_as_one() -> None:
    many = some(*[0] * 9, 1)
    scores = dict.fromkeys(many, 1.0) | {many[-1]: 0.0}
    assert balanced(scores) == 0.5
    assert balanced({}) == 0


# -- scores of strokes ---------------------------------------------------------------


def test_a_strokes_score_is_its_mean_probability() -> None:
    rng = np.random.default_rng(0)
    classes = rng.choice([0, 1, 2, VOID, VOID, VOID], (20, 24)).astype(np.uint8)
    plane = plane_of(classes)
    p = rng.dirichlet((1, 1, 1), (20, 24)).transpose(2, 0, 1)
    found = stroke_scores(plane, p)
    assert set(found) == set(strokes_of([plane]))
    for stroke, score in found.items():
        given_ = [
            p[stroke.label, y, x]
            for y in range(20)
            for x in range(24)
            if plane.strokes[y, x] == stroke.number
        ]
        assert score == pytest.approx(np.mean(given_))


def test_nothing_painted_has_no_scores() -> None:
    plane = painted()
    assert stroke_scores(plane, np.full((2, 20, 24), 0.5)) == {}
    assert strokes_of([plane]) == []


# -- what is carried over ------------------------------------------------------------


def test_scores_are_carried_over_when_strokes_are_numbered_anew() -> None:
    old = painted((np.s_[9, :5], 0), (np.s_[15, 3:9], 1))
    scores = {s: 0.1 + 0.5 * s.label for s in strokes_of([old])}
    new = painted((np.s_[1, 7:9], 0), (np.s_[9, :5], 0), (np.s_[15, 3:9], 1))
    found = carried([old], scores, new)
    assert {s.number for s in found} == {2, 3}
    assert {s.label: x for s, x in found.items()} == {0: 0.1, 1: 0.6}


def test_a_longer_stroke_keeps_its_score() -> None:
    old = painted((np.s_[9, :5], 0))
    new = painted((np.s_[9, :20], 0))
    assert list(carried([old], {strokes_of([old])[0]: 0.3}, new).values()) == [0.3]


def test_joined_strokes_take_the_mean_by_pixels() -> None:
    old = painted((np.s_[9, :6], 0), (np.s_[9, 10:12], 0))
    first, second = strokes_of([old])
    new = painted((np.s_[9, :12], 0))
    found = carried([old], {first: 0.2, second: 1.0}, new)
    assert list(found.values()) == [pytest.approx((6 * 0.2 + 2 * 1.0) / 8)]
    assert list(carried([old], {second: 1.0}, new).values()) == [1.0]


def test_what_was_erased_or_repainted_carries_nothing() -> None:
    old = painted((np.s_[9, :5], 0), (np.s_[15, 3:9], 1))
    scores = dict.fromkeys(strokes_of([old]), 0.5)
    recoloured = painted((np.s_[9, :5], 1), (np.s_[15, 3:9], 1))
    assert {s.number for s in carried([old], scores, recoloured)} == {2}
    assert carried([old], scores, painted((np.s_[2, :5], 0))) == {}
    assert carried([old], scores, painted()) == {}
    assert carried([], scores, old) == {}
    elsewhere = PaintedPlane(("other", 0), old.image, old.classes, old.strokes)
    assert carried([elsewhere], scores, old) == {}
    smaller = plane_of(old.classes[:10])
    assert carried([smaller], scores, old) == {}
