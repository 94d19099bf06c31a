"""Metrics against brute force and scikit-image."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.measure import label

from napari_fovea.metrics import DSB_THRESHOLDS, average_precision, dice, iou_matrix

seeds = st.integers(0, 2**32 - 1)


@given(seeds)
@settings(deadline=None, max_examples=40)
def test_dice_equals_counting(seed: int) -> None:
    rng = np.random.default_rng(seed)
    a, b = rng.random((2, 9, 11)) > rng.random()
    both = sum(bool(p and q) for p, q in zip(a.flat, b.flat, strict=True))
    total = sum(map(bool, a.flat)) + sum(map(bool, b.flat))
    assert dice(a, b) == pytest.approx(2 * both / total if total else 1.0)


@given(seeds)
@settings(deadline=None, max_examples=25)
def test_average_precision_equals_brute_force(seed: int) -> None:
    rng = np.random.default_rng(seed)
    truth = label(rng.random((24, 24)) > 0.6)
    found = np.where(rng.random((24, 24)) > 0.15, truth, 0)
    found[found == 3] = 77  # labels need not be consecutive
    true_ids, found_ids = (np.unique(x[x > 0]) for x in (truth, found))
    iou = np.zeros((len(found_ids), len(true_ids)))
    for i, f in enumerate(found_ids):
        for j, t in enumerate(true_ids):
            union = ((found == f) | (truth == t)).sum()
            iou[i, j] = ((found == f) & (truth == t)).sum() / union
    np.testing.assert_allclose(iou_matrix(found, truth), iou)
    precisions = []
    for threshold in DSB_THRESHOLDS:
        hits = int((iou > threshold).sum())
        precisions.append(hits / (len(found_ids) + len(true_ids) - hits))
    assert average_precision(found, truth) == pytest.approx(np.mean(precisions))


def test_thresholds_are_those_of_the_data_science_bowl() -> None:
    np.testing.assert_allclose(DSB_THRESHOLDS, np.linspace(0.5, 0.95, 10))


def test_perfect_empty_and_missed() -> None:
    truth = label(np.eye(5))
    empty = np.zeros((5, 5), int)
    assert average_precision(truth, truth) == 1
    assert average_precision(empty, empty) == 1
    assert average_precision(empty, truth) == 0
    assert average_precision(truth, empty) == 0
    assert dice(empty, empty) == 1
