"""Sample data."""

from __future__ import annotations

import numpy as np
import pytest
from skimage import data

from napari_fovea import sample_data
from napari_fovea.errors import ImageError


@pytest.mark.parametrize(
    ("sample", "shape"), [("ihc", (512, 512, 3)), ("cell", (660, 550))]
)
def test_images_that_come_along(sample: str, shape: tuple[int, ...]) -> None:
    (array, settings, kind), *others = getattr(sample_data, sample)()
    assert array.shape == shape
    assert settings["name"] == sample
    assert kind == "image"
    assert all(other.shape == shape[:2] for other, _, _ in others)


def test_haematoxylin_is_where_tissue_is_blue() -> None:
    (image, _, _), (nuclei, _, _) = sample_data.ihc()
    red, _, blue = image.astype(float).transpose(2, 0, 1)
    blueish, brown, white = blue - red > 20, red - blue > 80, image.min(-1) > 220
    assert nuclei[blueish].mean() > 4 * nuclei[brown].mean()
    assert nuclei[blueish].mean() > 4 * nuclei[white].mean()


def test_synthetic_nuclei_come_with_the_truth() -> None:
    (image, _, _), (truth, _, kind) = sample_data.synthetic_nuclei()
    assert kind == "labels"
    assert image.shape == truth.shape == (256, 256)
    assert truth.max() > 20
    assert image[truth > 0].mean() > 3 * image[truth == 0].mean()
    again, _ = sample_data.make_nuclei()
    np.testing.assert_array_equal(image, again)
    other, _ = sample_data.make_nuclei(seed=1)
    assert (image != other).any()


@pytest.mark.parametrize("sample", ["human_mitosis", "cells3d"])
def test_downloads_fail_with_a_sentence_offline(
    sample: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def offline() -> None:
        raise ConnectionError("no route to host")

    monkeypatch.setattr(data, sample, offline)
    with pytest.raises(ImageError, match="connect to the internet") as caught:
        getattr(sample_data, sample)()
    assert "\n" not in str(caught.value)


def test_downloads_become_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    stack = np.zeros((6, 2, 8, 9), np.uint16)
    stack[:, 1] = 7
    monkeypatch.setattr(data, "cells3d", lambda: stack)
    monkeypatch.setattr(data, "human_mitosis", lambda: stack[0, 0])
    ((nuclei, settings, _),) = sample_data.cells3d()
    assert nuclei.shape == (6, 8, 9)
    assert (nuclei == 7).all()
    assert settings["scale"] == (0.29, 0.26, 0.26)
    ((mitosis, _, _),) = sample_data.human_mitosis()
    assert mitosis.shape == (8, 9)
