"""Following generators of events, and what every result of a segmentation is."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Generator


def followed(run: Generator[Any, None, Any]) -> tuple[list[Any], Any]:
    events = []
    try:
        while True:
            events.append(next(run))
    except StopIteration as end:
        return events, end.value


def check(result: Any, shape: tuple[int, ...]) -> None:
    assert result.labels.shape == result.instances.shape == shape
    assert result.uncertainty.shape == shape
    assert result.probabilities.shape == (2, *shape)
    assert result.labels.dtype == np.uint8
    assert result.instances.dtype == np.int32
    assert result.probabilities.dtype == result.uncertainty.dtype == np.float32
    np.testing.assert_allclose(result.probabilities.sum(0), 1, atol=1e-4)
    assert ((result.instances > 0) <= (result.labels > 0)).all()
    assert result.path is None
    assert json.loads(json.dumps(result.provenance))["fixations"] is None
