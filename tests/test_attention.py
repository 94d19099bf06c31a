"""Attention maps of runs: what there is, how tiles join, and where maps lie."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from conftest import tiny_model
from napari_fovea import complete, segment
from napari_fovea.errors import AttentionError
from napari_fovea.inference import (
    AttentionMap,
    Tiling,
    attends,
    means_of_instances,
)
from napari_fovea.models import Model
from napari_fovea.networks import build, capture_attention
from napari_fovea.networks.ensemble import gather
from napari_fovea.networks.gates import Coefficients
from small_networks import tiny

NETWORKS = ("focusnet", "r2-attention-unet", "focusnet-plus", "mask-rcnn")


def model_of(name: str) -> Model:
    torch.manual_seed(0)
    return Model(name, tiny(name, classes=2), ("background", "nucleus"), (0, 1))


def run(image: np.ndarray, model: Model, *names: str, **options: Any) -> Any:
    return complete(segment(image, model, device="cpu", attention=names, **options))


def by_name(result: Any) -> dict[str, AttentionMap]:
    return {a.name: a for a in result.attention}


@pytest.fixture
def image() -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.integers(0, 255, (96, 128), dtype=np.uint8)


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_shows_what_it_computed(name: str, image: np.ndarray) -> None:
    model = model_of(name)
    names = tuple(a.name for a in attends(model))
    assert names, "the network has attention"
    maps = by_name(run(image, model, *names))
    assert tuple(maps) == names
    with capture_attention(model.network) as whole, torch.inference_mode():
        model.network(_shown(image, model))
    for one in attends(model):
        expected = whole[one.name]
        assert expected.shape[1] == one.channels
        found = maps[one.name]
        assert found.array.dtype == np.float32
        np.testing.assert_allclose(
            found.array, expected.mean(1)[0].numpy(), atol=1e-4, err_msg=one.name
        )
        # Pixels of the map are whole pixels of the image.
        assert found.scale[0] == 96 / found.array.shape[0]
        assert found.offset[0] == (found.scale[0] - 1) / 2


def _shown(image: np.ndarray, model: Model) -> torch.Tensor:
    """The image as `segment` shows it to the network."""
    from napari_fovea.images import read_planes, to_tensor

    planes = read_planes(image).for_network(model.channels)
    limits = model.normalisation.limits(planes)
    return to_tensor(planes.data[0], limits=limits, channels=model.channels)[None]


def test_a_channel_can_be_asked_for_alone(image: np.ndarray) -> None:
    model = model_of("focusnet")
    first = attends(model)[0]
    assert first.channels > 2
    maps = by_name(run(image, model, f"{first.name} [2]"))
    with capture_attention(model.network) as whole, torch.inference_mode():
        model.network(_shown(image, model))
    np.testing.assert_allclose(
        maps[f"{first.name} [2]"].array, whole[first.name][0, 2].numpy(), atol=2e-6
    )


@pytest.mark.parametrize("shape", [(1, 1), (7, 50), (33, 17), (64, 64), (65, 100)])
@pytest.mark.parametrize("name", NETWORKS)
def test_images_of_any_size_have_maps(name: str, shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    small = rng.integers(0, 255, shape, dtype=np.uint8)
    model = model_of(name)
    names = tuple(a.name for a in attends(model))
    for one in run(small, model, *names, blank=True).attention:
        covered = np.array(one.array.shape) * one.scale
        assert (covered >= shape).all()
        assert (covered - shape < one.scale).all(), "no pixel more than is needed"


class Eye(nn.Module):
    """Attends to light: its coefficients are the image itself, pooled."""

    multiple = 8

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.config = build("unet", {"width": 2, "depth": 2, "classes": 2}).config
        self.pool = nn.MaxPool2d(stride)
        self.coefficients = Coefficients("light")

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        self.coefficients(20 * self.pool(image[:, :1]) - 10)
        return torch.cat([1 - image[:, :1], image[:, :1]], dim=1)


@pytest.mark.parametrize("stride", [1, 2, 8])
@pytest.mark.parametrize("tiling", [None, Tiling(48, halo=8, blend=8)])
@pytest.mark.parametrize("resized", [None, 24.0])
def test_a_landmark_lies_where_it_is(
    monkeypatch: pytest.MonkeyPatch,
    stride: int,
    tiling: Tiling | None,
    resized: float | None,
) -> None:
    monkeypatch.setattr(Model, "system", "none of the five")
    image = np.zeros((112, 128), np.uint8)
    for y, x in ((16, 32), (48, 96), (80, 64)):
        image[y : y + 16, x : x + 16] = 255
    model = Model(
        "eye", Eye(stride), ("background", "light"), (0, 1), object_diameter=12.0
    )
    found = by_name(run(image, model, "light", tiling=tiling, diameter=resized))[
        "light"
    ]
    assert found.scale == (stride * (2.0 if resized else 1.0),) * 2
    y, x = (
        np.arange(n) * s + o
        for n, s, o in zip(found.array.shape, found.scale, found.offset, strict=True)
    )
    # The centre of every pixel of the map is light where the image is light there.
    inside = image[np.ix_(y.round().astype(int), x.round().astype(int))] > 0
    np.testing.assert_array_equal(found.array > 0.5, inside)


@pytest.mark.parametrize("name", ["r2-attention-unet", "focusnet-plus"])
def test_tiles_join_to_the_map_of_the_whole(name: str) -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 255, (160, 320), dtype=np.uint8)
    model = model_of(name)
    names = tuple(a.name for a in attends(model))
    whole = by_name(run(image, model, *names))
    # A halo as wide as the network sees.
    tiling = Tiling(224, halo=88, blend=16)
    tiled = by_name(run(image, model, *names, tiling=tiling, batch_size=2))
    for key, one in whole.items():
        other = tiled[key]
        assert (one.array.shape, one.scale) == (other.array.shape, other.scale)
        np.testing.assert_allclose(one.array, other.array, atol=1e-3, err_msg=key)


def test_the_detectors_tiles_cover_the_plane() -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 255, (160, 224), dtype=np.uint8)
    model = model_of("mask-rcnn")
    names = tuple(a.name for a in attends(model))
    whole = by_name(run(image, model, *names))
    tiled = by_name(run(image, model, *names, tiling=Tiling(128, 32, 0)))
    for key, one in whole.items():
        assert one.array.shape == tiled[key].array.shape
        assert (tiled[key].array > 0).all(), "coefficients are never 0"


def test_ensembles_tell_each_member_apart(image: np.ndarray) -> None:
    members = [tiny("r2-attention-unet", classes=2) for _ in range(2)]
    model = Model("two", gather(members), ("background", "nucleus"), (0, 1))
    names = [a.name for a in attends(model)]
    assert {n[:8] for n in names} == {"member 1", "member 2"}
    maps = by_name(run(image, model, *names))
    assert list(maps) == names


def test_gammas_stand_beside_their_levels() -> None:
    model = model_of("mask-rcnn")
    with torch.no_grad():
        for block in model.network.pyramid.blocks:
            block.gamma.fill_(0.25)
    assert [a.value for a in attends(model)] == ["γ = 0.25"] * 3


def test_a_retina_tells_of_its_looks(picture: np.ndarray) -> None:
    model = tiny_model()
    names = [a.name for a in attends(model)]
    result = run(picture, model, *names, budget=40)
    maps = by_name(result)
    assert list(maps) == names
    overlap, entropy, level, unseen = (maps[n].array for n in names)
    np.testing.assert_array_equal(entropy, result.uncertainty)
    r = model.config.grid.r
    np.testing.assert_array_equal(unseen, level < r)
    np.testing.assert_array_equal(overlap == 0, level == 0)
    assert level.max() == r


def test_stacks_have_stacks_of_maps(image: np.ndarray) -> None:
    stack = np.stack([image, np.full_like(image, 9), image[::-1]])
    model = model_of("r2-attention-unet")
    name = attends(model)[0].name
    found = by_name(run(stack, model, name, axes="ZYX"))[name]
    assert found.array.shape[0] == 3
    assert not found.array[1].any(), "an empty plane is not read"
    assert np.abs(found.array[0] - found.array[2]).max() > 0
    retina = tiny_model()
    names = [a.name for a in attends(retina)]
    for one in run(stack, retina, *names, axes="ZYX", budget=9).attention:
        assert one.array.shape == stack.shape


def test_nothing_is_kept_that_was_not_asked_for(image: np.ndarray) -> None:
    model = model_of("focusnet")
    assert run(image, model).attention == ()
    hooks = [m._forward_hooks for m in model.network.modules()]
    assert not any(hooks)
    assert [a.name for a in run(image, tiny_model(), budget=4).attention] == ["overlap"]


def test_wrong_names_are_told(image: np.ndarray) -> None:
    model = model_of("focusnet")
    first = attends(model)[0]
    with pytest.raises(
        AttentionError, match="no attention map 'gaze'; expected one of"
    ):
        run(image, model, "gaze")
    with pytest.raises(
        AttentionError, match=f"no channel {first.channels}; expected 0"
    ):
        run(image, model, f"{first.name} [{first.channels}]")
    with pytest.raises(AttentionError, match="has no attention to show"):
        run(image, model_of("unet"), "gate 1/1")
    assert attends(model_of("unet")) == ()


def test_means_over_objects_agree_with_a_loop() -> None:
    rng = np.random.default_rng(0)
    instances = rng.integers(0, 5, (40, 60))
    instances[instances == 3] = 0  # a number that is not used
    attention = AttentionMap("a", rng.random((10, 15)).astype("f4"), (4, 4), (1.5, 1.5))
    full = attention.array.repeat(4, 0).repeat(4, 1).astype(float)
    means = means_of_instances(attention, instances)
    for number in (0, 1, 2, 4):
        assert means[number] == pytest.approx(full[instances == number].mean())
    assert np.isnan(means[3])


def test_objects_beyond_the_map_have_no_mean() -> None:
    instances = np.zeros((20, 20), int)
    instances[2:4, 2:4], instances[15:18, 15:18] = 1, 2
    attention = AttentionMap("a", np.ones((5, 5), "f4"), (2, 2), (0.5, 0.5))
    means = means_of_instances(attention, instances)
    assert means[1] == 1
    assert np.isnan(means[2])
    with pytest.raises(AttentionError, match="stack axes"):
        means_of_instances(attention, np.zeros((2, 20, 20), int))
