"""How readily a model calls a pixel background, after training."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import nn

from conftest import tiny_model
from learning import made
from napari_fovea.inference.dense import DenseReader
from napari_fovea.inference.detect import DetectorReader
from napari_fovea.inference.reading import complete
from napari_fovea.metrics import dice
from napari_fovea.models import Model
from napari_fovea.networks import build
from napari_fovea.sample_data import make_nuclei
from napari_fovea.training import calibration
from napari_fovea.training.calibration import calibrated
from napari_fovea.training.samples import Sample, make_sample
from small_networks import TINY

if TYPE_CHECKING:
    from pathlib import Path


def brightness(outputs: int, bias: float) -> Model:
    """A network whose logits are the brightness of a pixel, and a bias."""
    settings: dict[str, Any] = {"width": 4, "depth": 2, "classes": outputs}
    network = build("unet", settings | {"channels": 1})

    class Bright(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.config = network.config
            self.out = nn.Conv2d(1, network.config.logits, 1)
            with torch.no_grad():
                self.out.weight.fill_(8.0)
                self.out.bias.fill_(bias - 4.0)
                if outputs > 2:
                    self.out.weight[0], self.out.bias[0] = 0.0, 0.0

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return self.out(image)  # type: ignore[no-any-return]

    inner = Bright().eval().requires_grad_(False)
    belongs = (0, *[1] * (outputs - 1))
    return Model("bright", inner, ("background", "nucleus"), belongs)


def samples() -> list[Sample]:
    found = []
    for seed in range(2):
        truth = make_nuclei((64, 64), count=5, seed=seed)[1]
        rng = np.random.default_rng(seed)
        image = np.where(truth, 0.75, 0.25) + rng.normal(0, 0.02, truth.shape)
        image.flat[:60], image.flat[-60:] = 0.0, 1.0  # what becomes 0 and 1
        found.append(make_sample(image, truth, channels=1, outputs=2))
    return found


def score(model: Model, one: Sample) -> float:
    read = DenseReader(model, torch.device("cpu")).read(one.image)
    background = complete(read).outputs[0].numpy()
    return dice(background < 0.5, one.classes.numpy() > 0)


@pytest.mark.parametrize("outputs", [2, 3])
@pytest.mark.parametrize("bias", [-2.5, 2.5])
def test_the_shift_takes_a_bias_back(outputs: int, bias: float) -> None:
    model = brightness(outputs, bias)
    before = model.network.out.bias.clone()
    better, shift = calibrated(model, samples())
    assert np.sign(shift) == np.sign(bias)
    gains = [score(better, s) - score(model, s) for s in samples()]
    assert min(gains) > 0.05
    torch.testing.assert_close(model.network.out.bias, before, rtol=0, atol=0)


def test_what_is_good_is_left_as_it_is() -> None:
    model = brightness(2, 0.0)
    better, shift = calibrated(model, samples())
    assert shift == 0
    assert better.network.out.bias.item() == model.network.out.bias.item()


def test_there_may_be_nothing_to_choose_by() -> None:
    model = made()
    assert calibrated(model, []) == (model, 0.0)
    three = replace(made(outputs=3), classes=("a", "b", "c"), outputs=(0, 1, 2))
    for other in (tiny_model(), replace(three, depths=None)):
        assert calibrated(other, samples()) == (other, 0.0)


def test_of_a_detector_the_least_score_is_chosen_and_kept(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    network = build("mask-rcnn", TINY["mask-rcnn"] | {"channels": 1})
    model = Model("finds", network.eval(), ("background", "nucleus"), (0, 1))
    assert DetectorReader(model, "cpu").score == 0.5
    tried = []

    def ap(reader: DetectorReader, _: Sample) -> float:
        tried.append(reader.score)
        return 1 - abs(reader.score - 0.7)

    monkeypatch.setattr(calibration, "found_ap", ap)
    better, _ = calibrated(model, samples())
    assert len(set(tried)) > 5
    better.save(tmp_path / "finds.safetensors")
    again = Model.load(tmp_path / "finds.safetensors")
    assert again.scan["score"] == 0.7
    assert DetectorReader(again, "cpu").score == 0.7
    assert "score" not in model.scan


def test_an_ensemble_keeps_the_least_score_of_its_detector() -> None:
    network = build("mask-rcnn", TINY["mask-rcnn"] | {"channels": 1})
    finds = Model(
        "finds", network.eval(), ("background", "nucleus"), (0, 1), scan={"score": 0.3}
    )
    both = Model.ensemble([finds, made(outputs=2, channels=1)], name="both")
    assert [m.scan.get("score") for m in both.members] == [0.3, None]
