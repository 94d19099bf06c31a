"""A detector that reads tiles tells every object once."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import nn

from following import check, followed
from napari_fovea import complete, segment
from napari_fovea.inference import Tiled, detect
from napari_fovea.inference.detect import DetectorReader
from napari_fovea.inference.tiles import Tiling
from napari_fovea.metrics import average_precision
from napari_fovea.models import Model
from napari_fovea.networks import MaskRCNNConfig, build
from napari_fovea.networks.mask_rcnn import Detections, paste

CPU = torch.device("cpu")


# -- detectors -------------------------------------------------------------------------


class Bright(nn.Module):
    """Finds every bright region that it is shown, however little of it."""

    def __init__(self, score: float = 0.9) -> None:
        super().__init__()
        self.config = MaskRCNNConfig()
        self.score = score

    def forward(self, images: torch.Tensor) -> list[Detections]:
        found, _ = ndimage.label(images[0, 0].numpy() > 0.5)
        places = ndimage.find_objects(found)
        boxes = [[x.start, y.start, x.stop, y.stop] for y, x in places]
        n = len(boxes)
        return [
            Detections(
                boxes=torch.tensor(boxes, dtype=torch.float32).reshape(n, 4),
                scores=torch.full((n,), self.score),
                labels=torch.ones(n, dtype=torch.int64),
                masks=torch.ones(n, 8, 8),
                classes=2,
            )
        ]


def finder(**changes: Any) -> Model:
    return Model("bright", Bright(**changes), ("background", "square"), (0, 1))


def squares(
    shape: tuple[int, int], *, largest: int, seed: int
) -> tuple[torch.Tensor, np.ndarray]:
    """Bright squares that do not touch, and their numbers."""
    rng = np.random.default_rng(seed)
    truth = np.zeros(shape, dtype=np.int32)
    for _ in range(1500):
        side = int(rng.integers(3, largest + 1))
        y, x = (int(rng.integers(0, n - side + 1)) for n in shape)
        if not truth[max(0, y - 1) : y + side + 1, max(0, x - 1) : x + side + 1].any():
            truth[y : y + side, x : x + side] = truth.max() + 1
    image = torch.from_numpy((truth > 0).astype(np.float32))
    return image.expand(3, *shape), truth


def boxes_of(truth: np.ndarray) -> list[tuple[float, ...]]:
    places = ndimage.find_objects(truth)
    return sorted((x.start, y.start, x.stop, y.stop) for y, x in places)


@pytest.fixture
def pasted(monkeypatch: pytest.MonkeyPatch) -> list[list[tuple[float, ...]]]:
    """Boxes that were laid on the plane, which hides those that it was told twice."""
    told = []

    def kept(found: Detections, shape: tuple[int, int]) -> Any:
        told.append(sorted(map(tuple, found.boxes.tolist())))
        return paste(found, shape)

    monkeypatch.setattr(detect, "paste", kept)
    return told


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("shape", [(300, 421), (129, 128), (64, 500)])
def test_every_object_is_told_once(
    shape: tuple[int, int], seed: int, pasted: list[Any]
) -> None:
    image, truth = squares(shape, largest=22, seed=seed)
    assert truth.max() > 20
    whole = complete(DetectorReader(finder(), CPU).read(image))
    reader = DetectorReader(finder(), CPU, tiling=Tiling(128, halo=24, blend=0))
    events, seen = followed(reader.read(image))
    assert len(events) > 1
    assert events[-1].fraction == 1
    assert seen.weights.all()
    assert pasted == [boxes_of(truth)] * 2
    for found in (whole, seen):
        assert found.instances.max() == truth.max()
        assert average_precision(found.instances, truth, thresholds=(0.99,)) == 1
        np.testing.assert_array_equal(found.labels, truth > 0)
    torch.testing.assert_close(seen.outputs, whole.outputs)


def test_objects_larger_than_the_halo_may_be_cut() -> None:
    image, truth = squares((300, 300), largest=60, seed=0)
    reader = DetectorReader(finder(), CPU, tiling=Tiling(96, halo=2, blend=0))
    seen = complete(reader.read(image))
    assert average_precision(seen.instances, truth, thresholds=(0.99,)) < 1


def test_an_object_on_the_border_of_two_tiles_has_one_owner(pasted: list[Any]) -> None:
    # Tiles of 128 begin at 0 and 64: centres at 96 lie on the border between them.
    for y, x in ((95, 30), (96, 30), (97, 30), (30, 95), (30, 96), (96, 96)):
        image = torch.zeros(3, 192, 192)
        image[:, y - 4 : y + 4, x - 6 : x + 6] = 1
        reader = DetectorReader(finder(), CPU, tiling=Tiling(128, halo=24, blend=0))
        seen = complete(reader.read(image))
        assert pasted.pop() == [(x - 6, y - 4, x + 6, y + 4)]
        assert (seen.instances > 0).sum() == 8 * 12


def test_doubtful_objects_are_left_out_and_cancelling_keeps_the_rest() -> None:
    image, truth = squares((300, 300), largest=22, seed=0)
    seen = complete(DetectorReader(finder(score=0.4), CPU).read(image))
    assert not seen.instances.any()
    tiling = Tiling(128, halo=24, blend=0)
    reader = DetectorReader(finder(), CPU, tiling=tiling)
    events, seen = followed(reader.read(image, cancelled=lambda: True))
    assert len(events) == 1
    assert 0 < seen.instances.max() < truth.max()
    assert not seen.instances[128:].any()
    outputs, weights = events[0].peek()
    torch.testing.assert_close(outputs, seen.outputs)
    assert weights.sum() == 128**2


@pytest.mark.parametrize("shape", [(70, 90), (70, 90, 3), (2, 40, 50)])
@pytest.mark.parametrize("diameter", [None, 24.0])
def test_a_detector_gives_a_result_of_the_images_size(
    shape: tuple[int, ...], diameter: float | None
) -> None:
    network = build(
        "mask-rcnn",
        {
            "backbone": "resnet18",
            "width": 8,
            "norm": "group",
            "pyramid": 16,
            "head_width": 16,
            "mask_width": 8,
            "mask_layers": 1,
            "mask_side": 14,
            "before_inference": 50,
            "after_inference": 50,
        },
    )
    with torch.no_grad():  # sure of everything
        network.boxes.logits.bias[1] += 3
        network.masks[-1].bias += 1
    model = Model("detector", network.eval(), ("background", "nucleus"), (0, 1), None)
    model = replace(model, object_diameter=12.0)
    image = np.random.default_rng(0).random(shape)
    events, result = followed(segment(image, model, diameter=diameter, device="cpu"))
    expected = shape[:-1] if shape[-1] == 3 else shape
    check(result, expected)
    assert result.instances.max() > 1
    np.testing.assert_array_equal(result.instances > 0, result.labels > 0)
    assert result.provenance["system"] == "S4"
    assert sum(isinstance(e, Tiled) for e in events) == (
        2 if len(shape) == 3 and shape[-1] != 3 else 1
    )
    numbers = np.unique(result.instances)
    np.testing.assert_array_equal(numbers, np.arange(len(numbers)))
