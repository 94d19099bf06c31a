"""Planes read in tiles are as if they were read whole."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn

from following import check, followed
from napari_fovea import complete, segment
from napari_fovea.errors import ImageError, ModelError
from napari_fovea.inference import Preview, Separating, Started, Tiled
from napari_fovea.inference.dense import DenseReader, default_tiling
from napari_fovea.inference.tiles import Tiling, plan_tiles, ramp, tile_length, tiled
from napari_fovea.models import Model
from napari_fovea.networks import build, probabilities
from napari_fovea.networks.blocks import he_initialise

CPU = torch.device("cpu")
# No network here sees further than 32 pixels.
NETWORKS: dict[str, dict[str, Any]] = {
    "unet": {"width": 4, "depth": 3},
    "r2-attention-unet": {"width": 4, "depth": 2, "steps": 1},
    "focusnet-plus": {
        "stem": 4,
        "widths": (8, 12),
        "units": (1, 1),
        "side": 4,
        "last": (6,),
    },
}


def dense(name: str = "unet", classes: int = 3, **changes: Any) -> Model:
    network = build(name, NETWORKS[name] | {"classes": classes} | changes)
    he_initialise(network)
    for key, value in network.state_dict().items():
        if key.endswith("running_var"):
            value.uniform_(0.5, 1.5)
        elif value.is_floating_point() and value.ndim <= 1:
            value.add_(torch.randn_like(value), alpha=0.1)
    border = classes == 3
    return Model(
        name="dense",
        network=network.eval().requires_grad_(False),
        classes=("background", "nucleus") if border else ("background", "cell"),
        outputs=(0, 1, 1) if border else (0, 1),
        depths=(0.0, 0.25, 0.75) if border else None,
        object_diameter=12.0,
    )


# -- where tiles lie -------------------------------------------------------------------


tilings = st.builds(
    lambda halo, blend, more, even: Tiling(2 * halo + blend + more, halo, blend, even),
    st.integers(0, 20),
    st.integers(0, 20),
    st.integers(1, 60),
    st.booleans(),
)


@settings(deadline=None)
@given(tilings, st.integers(1, 60), st.sampled_from([1, 2, 4, 16, 32]))
def test_tiles_cover_a_plane_and_overlap_enough(
    tiling: Tiling, count: int, multiple: int
) -> None:
    length = count * multiple
    starts = plan_tiles(length, tiling, multiple=multiple)
    size = tile_length(length, tiling, multiple=multiple)
    assert starts[0] == 0
    assert starts[-1] + size == length
    assert size % multiple == 0
    assert all(start % multiple == 0 for start in starts)
    for before, after in itertools.pairwise(starts):
        assert before < after, "every tile shows something new"
        assert before + size - after >= tiling.overlap
    assert size <= max(tiling.size, tiling.overlap + 2 * multiple)


@settings(deadline=None)
@given(tilings, st.integers(1, 60), st.sampled_from([1, 2, 4, 16, 32]))
def test_even_tiles_are_as_many_and_share_no_more_than_they_need(
    tiling: Tiling, count: int, multiple: int
) -> None:
    length = count * multiple
    even, uneven = (replace(tiling, even=e) for e in (True, False))
    starts = plan_tiles(length, even, multiple=multiple)
    assert len(starts) == len(plan_tiles(length, uneven, multiple=multiple))
    size = tile_length(length, even, multiple=multiple)
    assert size <= tile_length(length, uneven, multiple=multiple)
    # A tile smaller by one multiple would leave pixels out, or share too little.
    shared = -(-tiling.overlap // multiple) * multiple
    assert len(starts) * (size - multiple - shared) + shared < length


@settings(deadline=None)
@given(tilings, st.integers(1, 60), st.sampled_from([1, 2, 4, 16]))
def test_every_pixel_counts_but_not_in_a_halo(
    tiling: Tiling, count: int, multiple: int
) -> None:
    length = count * multiple
    size = tile_length(length, tiling, multiple=multiple)
    total = torch.zeros(length)
    for start in plan_tiles(length, tiling, multiple=multiple):
        weights = ramp(start, size, length, tiling)
        assert weights.min() >= 0
        assert weights.max() <= 1
        if start > 0:
            assert not weights[: tiling.halo].any()
        if start + size < length:
            assert not weights[size - tiling.halo :].any()
        total[start : start + size] += weights
    assert total.min() > 0
    assert total[0] > 0.99
    assert total[-1] > 0.99


@settings(deadline=None, max_examples=40)
@given(
    tilings,
    st.integers(1, 130),
    st.integers(1, 130),
    st.sampled_from([1, 4, 16]),
    st.integers(1, 5),
)
def test_tiles_of_an_image_make_the_image(
    tiling: Tiling, height: int, width: int, multiple: int, batch_size: int
) -> None:
    assume(tiling.size - tiling.overlap > 4 or height * width < 2000)
    image = torch.rand(2, height, width)
    shapes = set()

    def forward(batch: torch.Tensor) -> torch.Tensor:
        shapes.add(tuple(batch.shape[2:]))
        assert len(batch) <= batch_size
        return torch.cat([batch, 1 - batch], dim=1)

    events, seen = followed(
        tiled(
            forward,
            image,
            outputs=4,
            tiling=tiling,
            multiple=multiple,
            batch_size=batch_size,
        )
    )
    assert seen.outputs.shape == (4, height, width)
    expected = torch.cat([image, 1 - image])
    torch.testing.assert_close(seen.outputs, expected, atol=1e-5, rtol=0)
    assert (seen.weights > 0).all()
    assert len(shapes) == 1
    assert all(side % multiple == 0 for side in shapes.pop())
    fractions = [event.fraction for event in events]
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1


def test_a_model_says_how_large_its_tiles_are() -> None:
    assert default_tiling(dense()) == Tiling()
    trained = replace(dense(), scan={"tile": 192})
    assert default_tiling(trained) == Tiling(192, 0, 48)


@pytest.mark.parametrize("numbers", [(64, 32, 0), (64, 16, 32), (10, -1, 0), (0, 0, 0)])
def test_tiles_that_cannot_overlap_so_are_refused(
    numbers: tuple[int, int, int],
) -> None:
    with pytest.raises(ImageError, match="larger tiles"):
        Tiling(*numbers)


# -- networks that give pixels their classes -------------------------------------------


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("shape", [(150, 203), (40, 271), (128, 160)])
def test_tiles_leave_no_seams(name: str, shape: tuple[int, int]) -> None:
    model = dense(name)
    image = torch.rand(3, *shape)
    with torch.inference_mode():
        whole = probabilities(model.network(image[None]))[0]

    def read(tiling: Tiling, batch_size: int = 1) -> torch.Tensor:
        reader = DenseReader(model, CPU, tiling=tiling, batch_size=batch_size)
        events, seen = followed(reader.read(image))
        assert len(events) > 1
        return seen.outputs

    assert whole.std() > 0.01
    for batch_size in (1, 3):
        seen = read(Tiling(112, halo=32, blend=16), batch_size)
        torch.testing.assert_close(seen, whole, atol=1e-4, rtol=0)
    narrow = read(Tiling(64, halo=0, blend=16))
    assert (narrow - whole).abs().max() > 1e-3, "without a halo they see too little"


@pytest.mark.parametrize("step", [1, 3])
def test_patches_are_centred_on_their_pixels(step: int) -> None:
    d, (height, width) = 16, (11, 14)
    torch.manual_seed(1)
    network = build(
        "patch-center", {"d": d, "width": 4, "units": 16, "step": step, "classes": 3}
    )
    nn.init.normal_(network.head[-1].weight, std=0.5)
    model = Model("patch", network.eval(), ("a", "b", "c"), (0, 1, 2))
    image = torch.rand(3, height, width)
    events, seen = followed(DenseReader(model, CPU).read(image))
    before = (d - 1) // 2
    sides = ((0, 0), (before, d - before), (before, d - before))
    padded = torch.from_numpy(np.pad(image.numpy(), sides, mode="reflect"))
    assert seen.outputs.shape == (3, height, width)
    for y in range(step // 2, height, step):
        for x in range(step // 2, width, step):
            patch = padded[None, :, y : y + d, x : x + d]
            expected = network(patch)[0].softmax(0)
            torch.testing.assert_close(
                seen.outputs[:, y, x], expected, atol=1e-5, rtol=0
            )
    assert seen.outputs.std(dim=(1, 2)).min() > 1e-3
    assert len(events) == -(-height // step)


@pytest.mark.parametrize(
    "shape", [(50, 61), (50, 61, 3), (2, 30, 41), (2, 2, 20, 31), (1, 9), (30, 20, 4)]
)
@pytest.mark.parametrize("diameter", [None, 24.0, 6.0])
def test_any_image_gives_a_result_of_its_size(
    shape: tuple[int, ...], diameter: float | None
) -> None:
    image = np.random.default_rng(0).integers(0, 4000, shape).astype(np.uint16)
    before = image.copy()
    result = complete(segment(image, dense(), diameter=diameter, device="cpu"))
    check(result, shape[:-1] if shape[-1] in (3, 4) else shape)
    np.testing.assert_array_equal(image, before)
    assert result.provenance["resized_by"] == 12 / (diameter or 12)
    assert result.provenance["system"] == "S0"


def test_events_tell_of_the_tiles(picture: np.ndarray) -> None:
    stack = np.stack([picture, picture[::-1]])
    events, result = followed(
        segment(
            stack,
            dense(classes=2),
            tiling=Tiling(48, halo=8, blend=8),
            preview_every=0.0,
            device="cpu",
        )
    )
    check(result, stack.shape)
    assert events[0] == Started(stack.shape, picture.shape, 2, focused=False)
    told = [e for e in events if isinstance(e, Tiled)]
    # Tiles of 48 begin at 0 and 24 of 72 rows, and 0, 24 and 44 of 92 columns.
    assert [e.plane for e in told] == [0] * 6 + [1] * 6
    assert [e.fraction for e in told] == pytest.approx(np.arange(1, 13) / 12)
    previews = [e for e in events if isinstance(e, Preview)]
    assert previews
    assert all(e.overlap is None for e in previews)
    assert all(e.labels.shape == picture.shape for e in previews)
    assert sum(isinstance(e, Separating) for e in events) == 2
    told_to = result.provenance["settings"]["tiling"]
    assert told_to == {"size": 48, "halo": 8, "blend": 8, "even": False}


def test_cancelling_keeps_the_first_tile(picture: np.ndarray) -> None:
    events, result = followed(
        segment(
            picture,
            dense(),
            tiling=Tiling(32, halo=4, blend=4),
            device="cpu",
            cancelled=lambda: True,
        )
    )
    check(result, picture.shape)
    assert sum(isinstance(e, Tiled) for e in events) == 1
    assert result.provenance["cancelled"]
    unseen = np.ones(picture.shape, dtype=bool)
    unseen[:32, :32] = False
    assert not result.labels[unseen].any(), "nothing is known there"
    np.testing.assert_allclose(result.probabilities[:, unseen], 0.5)
    assert (result.probabilities[:, :20, :20] != 0.5).all()


@pytest.mark.parametrize(
    ("setting", "value"), [("policy", "seek"), ("fusion", "mean"), ("budget", 9)]
)
def test_a_network_without_a_focus_has_none_to_set(
    picture: np.ndarray, setting: str, value: object
) -> None:
    with pytest.raises(ModelError, match=f"expected no {setting}") as caught:
        complete(segment(picture, dense(), **{setting: value}))
    assert "\n" not in str(caught.value)
