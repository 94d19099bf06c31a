"""Metrics against brute force, scikit-image and scikit-learn."""

from __future__ import annotations

import math
from itertools import permutations

import numpy as np
import pytest
import sklearn.metrics as learned
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from skimage.measure import label
from skimage.metrics import contingency_table

from napari_fovea.errors import ImageError
from napari_fovea.metrics import (
    DSB_THRESHOLDS,
    Confusion,
    accuracy,
    average_precision,
    cohen_kappa,
    dice,
    instance_scores,
    iou_matrix,
    jaccard,
    match,
    precision,
    recall,
    roc_auc,
    specificity,
)

seeds = st.integers(0, 2**32 - 1)
MEASURES = {
    "dice": dice,
    "jaccard": jaccard,
    "precision": precision,
    "recall": recall,
    "specificity": specificity,
    "accuracy": accuracy,
    "cohen_kappa": cohen_kappa,
}


def two_masks(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Two masks that agree now and then, and what to ignore."""
    rng = np.random.default_rng(seed)
    truth = rng.random((9, 11)) > rng.random()
    found = np.where(rng.random((9, 11)) > rng.random(), truth, ~truth)
    return found, truth, rng.random((9, 11)) > rng.random()


def objects(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Labels, and the same eroded, merged and invented here and there."""
    rng = np.random.default_rng(seed)
    truth = label(rng.random((24, 24)) > 0.6)
    found = np.where(rng.random((24, 24)) > rng.random() * 0.6, truth, 0)
    found[found == 3] = 77  # labels need not be consecutive
    found[found == 5] = 6
    found[:4, :4] = 900
    return found, truth


def brute_iou(found: np.ndarray, truth: np.ndarray) -> tuple[list, list, np.ndarray]:
    found_ids, true_ids = (np.unique(x[x > 0]).tolist() for x in (found, truth))
    iou = np.zeros((len(found_ids), len(true_ids)))
    for i, f in enumerate(found_ids):
        for j, t in enumerate(true_ids):
            union = ((found == f) | (truth == t)).sum()
            iou[i, j] = ((found == f) & (truth == t)).sum() / union
    return found_ids, true_ids, iou


@given(seeds)
@settings(deadline=None, max_examples=60)
def test_measures_of_masks_equal_counting(seed: int) -> None:
    found, truth, ignore = two_masks(seed)
    tp = fp = fn = tn = 0
    for p, g, i in zip(found.flat, truth.flat, ignore.flat, strict=True):
        if i:
            continue
        tp += bool(p and g)
        fp += bool(p and not g)
        fn += bool(g and not p)
        tn += bool(not p and not g)
    n = tp + fp + fn + tn
    confusion = Confusion.of(found, truth, ignore=ignore)
    assert (confusion.tp, confusion.fp, confusion.fn, confusion.tn) == (tp, fp, fn, tn)

    def ratio(a: float, b: float, neither: float) -> float:
        return pytest.approx(a / b if b else float(neither))

    chance = ((tp + fp) * (tp + fn) + (tn + fn) * (tn + fp)) / n**2 if n else 1
    expected = {
        "dice": ratio(2 * tp, 2 * tp + fp + fn, 1),
        "jaccard": ratio(tp, tp + fp + fn, 1),
        "precision": ratio(tp, tp + fp, fn == 0),
        "recall": ratio(tp, tp + fn, fp == 0),
        "specificity": ratio(tn, tn + fp, fn == 0),
        "accuracy": ratio(tp + tn, n, 1),
        "cohen_kappa": ratio((tp + tn) / max(n, 1) - chance, 1 - chance, 1),
    }
    for name, measure in MEASURES.items():
        assert measure(found, truth, ignore=ignore) == expected[name], name
        assert getattr(confusion, name) == expected[name], name


@pytest.mark.parametrize("name", MEASURES)
def test_empty_and_full_masks(name: str) -> None:
    empty, full = np.zeros((3, 3), int), np.full((3, 3), 7)
    measure = MEASURES[name]
    assert measure(empty, empty) == 1
    assert measure(full, full) == 1
    assert measure(empty, full) == 0
    assert measure(full, empty) == 0
    assert measure(full, empty, ignore=full) == 1  # no pixel is left


def test_kappa_is_0_by_chance_and_negative_below() -> None:
    truth = np.array([0, 0, 1, 1])
    assert cohen_kappa(np.array([0, 1, 0, 1]), truth) == 0
    assert cohen_kappa(1 - truth, truth) == -1
    assert cohen_kappa(np.zeros(4), truth) == 0


@given(seeds)
@settings(deadline=None, max_examples=20)
def test_confusions_add_up(seed: int) -> None:
    found, truth, ignore = two_masks(seed)
    whole = Confusion.of(found, truth, ignore=ignore)
    parts = [
        Confusion.of(f, t, ignore=i)
        for f, t, i in zip(found, truth, ignore, strict=True)
    ]
    assert sum(parts[1:], parts[0]) == whole
    with pytest.raises(TypeError):
        whole + 1


@given(seeds, st.integers(1, 40))
@settings(deadline=None, max_examples=40)
def test_roc_auc_equals_counting_pairs(seed: int, levels: int) -> None:
    rng = np.random.default_rng(seed)
    truth = rng.random((7, 8)) > rng.random()
    scores = rng.integers(0, levels, (7, 8)) / levels + 0.2 * truth
    ignore = rng.random((7, 8)) > 0.7
    right = pairs = 0.0
    for high in scores[truth & ~ignore]:
        for low in scores[~truth & ~ignore]:
            right += 1.0 if high > low else 0.5 if high == low else 0.0
            pairs += 1
    area = roc_auc(scores, truth, ignore=ignore)
    if pairs:
        assert area == pytest.approx(right / pairs)
        assert roc_auc(-scores, truth, ignore=ignore) == pytest.approx(1 - area)
    else:
        assert math.isnan(area)


def test_roc_auc_of_one_class_is_not_a_number() -> None:
    scores = np.linspace(0, 1, 6)
    assert math.isnan(roc_auc(scores, np.zeros(6)))
    assert math.isnan(roc_auc(scores, np.ones(6)))
    assert roc_auc(scores, scores > 0.5) == 1
    assert roc_auc(np.zeros(6), scores > 0.5) == 0.5


def test_roc_auc_does_not_overflow_on_large_images() -> None:
    rng = np.random.default_rng(0)
    truth = rng.random((1024, 1024)) > 0.5
    scores = rng.random((1024, 1024), dtype=np.float32) + truth.astype(np.float32) / 2
    # P(u + ½ > v) for u, v uniform on [0, 1].
    assert roc_auc(scores, truth) == pytest.approx(7 / 8, abs=2e-3)


@given(seeds)
@settings(deadline=None, max_examples=25)
def test_average_precision_equals_brute_force(seed: int) -> None:
    found, truth = objects(seed)
    found_ids, true_ids, iou = brute_iou(found, truth)
    np.testing.assert_allclose(iou_matrix(found, truth), iou)
    shared = contingency_table(found, truth).toarray()[np.ix_(found_ids, true_ids)]
    areas = np.bincount(found.ravel())[found_ids], np.bincount(truth.ravel())[true_ids]
    np.testing.assert_allclose(iou, shared / (np.add.outer(*areas) - shared))
    precisions = []
    for threshold in DSB_THRESHOLDS:
        tp = fp = 0
        for row in iou:
            hit = any(value > threshold for value in row)
            tp, fp = tp + hit, fp + (not hit)
        fn = sum(not any(v > threshold for v in column) for column in iou.T)
        precisions.append(tp / (tp + fp + fn))
    assert average_precision(found, truth) == pytest.approx(np.mean(precisions))
    scores = instance_scores(found, truth)
    tp = int((iou > 0.5).sum())
    assert scores == {
        "ap": pytest.approx(np.mean(precisions)),
        "ap50": pytest.approx(precisions[0]),
        "ap75": pytest.approx(precisions[5]),
        "precision50": pytest.approx(tp / len(found_ids)),
        "recall50": pytest.approx(tp / len(true_ids)),
        "f1_50": pytest.approx(2 * tp / (len(found_ids) + len(true_ids))),
    }


@given(seeds, st.sampled_from([0.5, 0.6, 0.75, 0.9]))
@settings(deadline=None, max_examples=25)
def test_match_finds_the_pairs_above_the_threshold(seed: int, threshold: float) -> None:
    found, truth = objects(seed)
    found_ids, true_ids, iou = brute_iou(found, truth)
    expected = {
        (f, t): iou[i, j]
        for i, f in enumerate(found_ids)
        for j, t in enumerate(true_ids)
        if iou[i, j] > threshold
    }
    result = match(found, truth, threshold=threshold)
    pairs = [(int(f), int(t)) for f, t in result.pairs]
    assert dict(zip(pairs, result.ious.tolist(), strict=True)) == pytest.approx(
        expected
    )
    assert (result.found, result.true) == (len(found_ids), len(true_ids))
    assert (result.tp, result.fp, result.fn) == (
        len(expected),
        len(found_ids) - len(expected),
        len(true_ids) - len(expected),
    )


@given(seeds, st.sampled_from([0.0, 0.1, 0.25, 0.4]))
@settings(deadline=None, max_examples=40)
def test_low_thresholds_match_as_many_as_possible(seed: int, threshold: float) -> None:
    rng = np.random.default_rng(seed)
    found, truth = (rng.integers(0, 5, (2, 3, 5))).astype(np.int16)
    _, _, iou = brute_iou(found, truth)
    if iou.shape[0] > iou.shape[1]:
        iou = iou.T
    best = (0, 0.0)
    for columns in permutations(range(iou.shape[1]), iou.shape[0]):
        values = [iou[i, j] for i, j in enumerate(columns) if iou[i, j] > threshold]
        best = max(best, (len(values), round(sum(values), 9)))
    result = match(found, truth, threshold=threshold)
    assert (result.tp, round(float(result.ious.sum()), 9)) == best
    assert len(set(result.pairs[:, 0].tolist())) == result.tp
    assert len(set(result.pairs[:, 1].tolist())) == result.tp
    for (f, t), value in zip(result.pairs, result.ious, strict=True):
        union = ((found == f) | (truth == t)).sum()
        assert value == pytest.approx(((found == f) & (truth == t)).sum() / union)
        assert value > threshold
    single = average_precision(found, truth, thresholds=(threshold,))
    total = result.found + result.true - result.tp
    assert single == pytest.approx(result.tp / total if total else 1)


def test_the_more_pairs_win_over_the_closer_one() -> None:
    # 1 overlaps 11 most, yet only if it takes 12 does 2 find a partner.
    found = np.array([1] * 10 + [2] * 2)
    truth = np.array([12] * 4 + [11] * 8)
    assert match(found, truth, threshold=0.1).pairs.tolist() == [[1, 12], [2, 11]]
    assert match(found, truth, threshold=0.3).pairs.tolist() == [[1, 11]]


def test_an_iou_at_the_threshold_is_no_match() -> None:
    found, truth = np.array([1, 1, 0, 0]), np.array([2, 2, 2, 2])
    assert match(found, truth).tp == 0
    assert match(found, truth, threshold=0.49).tp == 1
    assert average_precision(found, truth, thresholds=(0.5,)) == 0


def test_thresholds_are_those_of_the_data_science_bowl() -> None:
    np.testing.assert_allclose(DSB_THRESHOLDS, np.linspace(0.5, 0.95, 10))


@pytest.mark.parametrize("threshold", [0.2, 0.5])
def test_perfect_empty_and_missed(threshold: float) -> None:
    truth, empty = label(np.eye(5)), np.zeros((5, 5), int)
    for found, true, score in (
        (truth, truth, 1),
        (empty, empty, 1),
        (empty, truth, 0),
        (truth, empty, 0),
    ):
        assert average_precision(found, true) == score
        assert set(instance_scores(found, true).values()) == {score}
        result = match(found, true, threshold=threshold)
        assert result.pairs.shape == (result.tp, 2)
        assert result.precision == result.recall == result.f1 == score


def test_shapes_must_agree() -> None:
    small, large = np.ones((4, 5), int), np.ones((5, 5), int)
    for measure in (
        *MEASURES.values(),
        Confusion.of,
        roc_auc,
        iou_matrix,
        match,
        average_precision,
        instance_scores,
    ):
        with pytest.raises(ImageError, match=r"\(4, 5\).*\(5, 5\)\.$"):
            measure(small, large)
    with pytest.raises(ImageError, match=r"ignore has shape \(4, 5\)"):
        dice(large, large, ignore=small)


# -- against scikit-learn --------------------------------------------------------


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**31), st.floats(0.05, 0.95))
def test_measures_are_those_of_scikit_learn(seed: int, share: float) -> None:
    rng = np.random.default_rng(seed)
    truth = rng.random(200) < share
    scores = np.round(rng.random(200) * 0.6 + truth * 0.3, 1)  # many are equal
    found = scores > 0.5
    ignore = rng.random(200) < 0.2
    assume(0 < truth[~ignore].sum() < (~ignore).sum())
    assume(found[~ignore].any())
    a, b = truth[~ignore], found[~ignore]
    expected = {
        "dice": learned.f1_score(a, b),
        "jaccard": learned.jaccard_score(a, b),
        "precision": learned.precision_score(a, b),
        "recall": learned.recall_score(a, b),
        "specificity": learned.recall_score(~a, ~b),
        "accuracy": learned.accuracy_score(a, b),
        "cohen_kappa": learned.cohen_kappa_score(a, b),
    }
    for name, value in expected.items():
        told = MEASURES[name](found, truth, ignore=ignore)
        assert told == pytest.approx(value), name
    area = learned.roc_auc_score(a, scores[~ignore])
    assert roc_auc(scores, truth, ignore=ignore) == pytest.approx(area)
