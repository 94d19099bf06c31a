"""The retina with a shared trunk, and what makes a scan with it fast."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from napari_fovea import Model, complete, segment
from napari_fovea.errors import OutOfMemoryError
from napari_fovea.inference import trunk
from napari_fovea.inference.runner import Runner
from napari_fovea.inference.trunk import Trunk
from napari_fovea.networks import SharedRetinaConfig, build
from napari_fovea.networks.shared_retina import CONFIGS, STRIDES, places_of
from napari_fovea.retina import FUSIONS, RetinaGrid, Seek, VoteMap, lay
from napari_fovea.retina.fusion import add_tiles, scatter_tiles
from napari_fovea.retina.running import running_max, running_mean
from small_networks import tiny


def model_of(network: nn.Module, **changes: Any) -> Model:
    outputs = tuple(range(network.config.classes))  # type: ignore[union-attr]
    names = ("background", "cell", "other")[: len(outputs)]
    return Model("shared", network, names, outputs, **changes)


def looking(network: Any, image: torch.Tensor, *, tile: int) -> Any:
    # Another network for each, or the features of the first would be kept.
    runner = Runner(model_of(copy.deepcopy(network)), "cpu")
    return Trunk(runner, tile=tile).look(image, margin=7)


# -- the network -----------------------------------------------------------------------


def read_by_hand(network: Any, image: torch.Tensor, corner: tuple[int, int]) -> Any:
    """Logits of one fixation, place by place, from features of the whole image."""
    config, grid = network.config, network.grid
    features = network.features(image[None])
    told, seen = [], []
    for level in range(grid.r):
        stride, over = places_of(config, level)
        side = grid.d // 2 ** (level + 2)
        start = (grid.d - 4 * side) / 2
        plane = features[level][0].double()
        places = []
        for row in range(4):
            for column in range(4):
                y, x = (
                    (c + start + (i + 0.5) * side) / stride - over / 2
                    for c, i in zip(corner, (row, column), strict=True)
                )
                value = torch.zeros(plane.shape[0], dtype=torch.float64)
                for i in (int(np.floor(y)), int(np.floor(y)) + 1):
                    for j in (int(np.floor(x)), int(np.floor(x)) + 1):
                        weight = max(0, 1 - abs(y - i)) * max(0, 1 - abs(x - j))
                        i_, j_ = (
                            min(max(k, 0), n - 1)
                            for k, n in zip((i, j), plane.shape[1:], strict=True)
                        )
                        value += weight * plane[:, i_, j_]
                places.append(value.float())
        seen += places
        central = {(1, 1), (1, 2), (2, 1), (2, 2)} if level < grid.r - 1 else set()
        told += [
            network.cells[level](places[4 * row + column])
            for row in range(4)
            for column in range(4)
            if (row, column) not in central
        ]
    return torch.stack(told) + network.window(torch.cat(seen)).view(len(told), -1)


@pytest.mark.parametrize(("d", "r"), [(32, 2), (64, 4), (48, 2), (32, 4)])
def test_a_fixation_reads_what_reading_by_hand_does(d: int, r: int) -> None:
    torch.manual_seed(0)
    network: Any = tiny("retina-shared", d=d, r=r, classes=3)
    images = torch.rand(2, 3, 80, 100)
    corners = torch.tensor([[[0, 0], [3, 7]], [[80 - d, 100 - d], [5, 2]]])
    logits = network(images, corners)
    assert logits.shape == (4, network.grid.n_cells, 3)
    for found, (image, corner) in zip(
        logits, [(i, c) for i in (0, 1) for c in corners[i].tolist()], strict=True
    ):
        expected = read_by_hand(network, images[image], corner)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_crops_are_reflected_and_seen_in_the_middle() -> None:
    network: Any = tiny("retina-shared")
    crops = torch.rand(3, 3, 32, 32)
    images = torch.from_numpy(
        np.pad(crops.numpy(), [(0, 0), (0, 0), (8, 8), (8, 8)], mode="reflect")
    )
    middle = torch.full((3, 1, 2), 8)
    torch.testing.assert_close(network(crops), network(images, middle))


@pytest.mark.parametrize("settings", [{"d": 32, "r": 2}, {"d": 192, "r": 3}])
def test_tiles_give_the_features_of_the_whole(settings: dict[str, int]) -> None:
    network: Any = tiny("retina-shared", **settings)
    image = torch.rand(3, 330, 270)
    whole = looking(network, image, tile=4096)
    tiles = looking(network, image, tile=64)
    d = network.grid.d
    far = [330 + 7 - d, 270 + 7 - d]
    corners = torch.tensor([[-7, -7], far, [61, 33], [20, 50]])
    torch.testing.assert_close(whole(corners), tiles(corners), atol=1e-5, rtol=1e-4)
    assert whole(corners).sum(-1).allclose(torch.ones(()))


def test_what_is_out_of_reach_changes_nothing() -> None:
    """The reach is enough, and not twice what is needed."""
    network: Any = tiny("retina-shared", d=64, r=4)
    image = torch.rand(1, 3, 512, 512)
    place = 256
    other = image.clone()
    outside = torch.ones(512, 512, dtype=torch.bool)
    low, high = place - network.reach, place + 64 + network.reach
    outside[low:high, low:high] = False
    other[:, :, outside] = 0
    corners = torch.tensor([[[place, place]]])
    torch.testing.assert_close(network(image, corners), network(other, corners))
    near = image.clone()
    near[:, :, : place - network.reach // 2] = 0
    assert not torch.equal(network(image, corners), network(near, corners))


def test_folding_normalisation_changes_nothing_but_rounding() -> None:
    network: Any = tiny("retina-shared")
    crops = torch.rand(4, 3, 32, 32)
    folded = network.folded()
    assert not any(isinstance(m, nn.BatchNorm2d) for m in folded.modules())
    torch.testing.assert_close(folded(crops), network(crops), atol=1e-4, rtol=1e-4)
    assert any(isinstance(m, nn.BatchNorm2d) for m in network.modules())


def test_the_paper_settings_have_ten_convolutions_in_the_trunk() -> None:
    with torch.device("meta"):
        network: Any = build("retina-shared", CONFIGS["paper"])
    convolutions = [m for m in network.blocks.modules() if isinstance(m, nn.Conv2d)]
    assert [c.out_channels for c in convolutions] == (
        [64] * 2 + [128] * 2 + [256] * 3 + [512] * 3
    )
    # Cells of 48, 24, 12 and 6 pixels are means of 3×3 features each.
    levels = [places_of(network.config, level) for level in range(4)]
    assert levels == [(stride, 3) for stride in reversed(STRIDES)]


def test_cells_smaller_than_a_feature_are_read_from_the_finest_scale() -> None:
    config = SharedRetinaConfig(d=32, r=4)
    levels = [places_of(config, level) for level in range(4)]
    assert levels == [(8, 1), (4, 1), (2, 1), (2, 1)]


# -- whole runs ------------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["seek", "raster"])
@pytest.mark.parametrize("shape", [(1, 1), (9, 50), (70, 90)])
def test_it_segments_images_of_any_size(policy: str, shape: tuple[int, int]) -> None:
    model = model_of(tiny("retina-shared"))
    image = np.random.default_rng(0).random(shape)
    if shape == (1, 1):
        with pytest.raises(ValueError, match="constant"):
            complete(segment(image, model, policy=policy))
        return
    found = complete(segment(image, model, policy=policy, budget=60))
    assert found.labels.shape == shape
    assert found.path is not None
    assert len(found.path.pmfs) == len(found.path)
    assert (found.attention[0].array >= 1).all()
    np.testing.assert_allclose(found.probabilities.sum(0), 1, atol=1e-5)


def test_a_model_file_keeps_it(tmp_path: Any) -> None:
    model = model_of(tiny("retina-shared"), scan={"policy": "seek"})
    model.save(tmp_path / "shared.safetensors")
    again = Model.load(tmp_path / "shared.safetensors")
    assert again.system == "S0"
    image = np.random.default_rng(0).random((64, 64))
    first, second = (
        complete(segment(image, m, budget=40)).probabilities for m in (model, again)
    )
    np.testing.assert_array_equal(first, second)


def test_a_second_scan_reads_the_features_of_the_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = []
    real = trunk.make_features
    monkeypatch.setattr(
        trunk, "make_features", lambda *a, **k: made.append(1) or real(*a, **k)
    )
    model = model_of(tiny("retina-shared"))
    rng = np.random.default_rng(0)
    image, other = rng.random((2, 64, 64))

    def seen(of: np.ndarray, **how: Any) -> np.ndarray:
        return complete(segment(of, model, device="cpu", **how)).probabilities

    first = seen(image, budget=20)
    np.testing.assert_array_equal(seen(image, budget=20), first)
    assert len(made) == 1
    seen(image, budget=60)
    assert len(made) == 1, "another budget looks at the same"
    seen(image, policy="raster")
    assert len(made) == 2, "its margin is another"
    seen(other, budget=20)
    assert len(made) == 3
    with torch.no_grad():
        model.network.window[0].weight.mul_(1.5)  # type: ignore[index, union-attr]
    assert not np.array_equal(seen(image, budget=20), first)
    assert len(made) == 4, "weights have changed"
    monkeypatch.setattr(trunk, "KEPT", 100)
    seen(other, budget=20)
    seen(other, budget=20)
    assert len(made) == 6, "too large to be kept"


def test_a_trunk_makes_smaller_tiles_where_memory_runs_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = model_of(tiny("retina-shared"))
    image = np.random.default_rng(0).random((300, 700))
    expected = complete(segment(image, model, device="cpu", budget=30))
    real = trunk.make_features

    def limited(network: Any, canvas: torch.Tensor, tile: int, **how: Any) -> Any:
        if tile > 256:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return real(network, canvas, tile, **how)

    monkeypatch.setattr(trunk, "make_features", limited)
    trunk._kept.clear()
    found = complete(segment(image, model, device="cpu", budget=30))
    np.testing.assert_allclose(found.probabilities, expected.probabilities, atol=1e-5)
    steps = ["tile 732 → 366", "tile 366 → 256"]
    assert found.provenance["recovered"] == steps
    read = tiny("retina-shared").read
    monkeypatch.setattr(
        type(model.network),
        "read",
        lambda self, features, corners, index=None: (
            _refused() if len(corners) > 5 else read.__func__(self, features, corners)
        ),
    )
    again = complete(segment(image, model, device="cpu", budget=30))
    np.testing.assert_allclose(again.probabilities, expected.probabilities, atol=1e-5)
    monkeypatch.setattr(trunk, "make_features", lambda *a, **k: _refused())
    trunk._kept.clear()
    with pytest.raises(OutOfMemoryError, match="a tile of 256 pixels"):
        complete(segment(image, model, device="cpu", budget=30))


def _refused() -> Any:
    raise RuntimeError("DefaultCPUAllocator: can't allocate memory")


# -- what makes it fast ----------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(
    height=st.integers(1, 12),
    width=st.integers(1, 12),
    size=st.integers(1, 9),
    seed=st.integers(0, 99),
)
def test_running_windows_equal_pooling(
    height: int, width: int, size: int, seed: int
) -> None:
    shape = (height + size - 1, width + size - 1)
    plane = torch.rand(2, *shape, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(
        running_max(plane, size), functional.max_pool2d(plane[None], size, 1)[0]
    )
    torch.testing.assert_close(
        running_mean(plane, size), functional.avg_pool2d(plane[None], size, 1)[0]
    )


@settings(max_examples=20, deadline=None)
@given(r=st.integers(1, 5), times=st.integers(1, 3), lead=st.integers(0, 2))
def test_cells_are_laid_where_the_index_says(r: int, times: int, lead: int) -> None:
    grid = RetinaGrid(times * 2 ** (r + 1), r)
    values = torch.rand(*(2,) * lead, grid.n_cells)
    expected = values[..., torch.from_numpy(grid.cell_index)]
    assert torch.equal(lay(values, grid), expected)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 9)), max_size=8))
def test_one_scatter_paints_what_tiles_one_by_one_do(
    corners: list[tuple[int, int]],
) -> None:
    where = torch.tensor(corners, dtype=torch.int64).view(-1, 2)
    tiles = torch.randint(0, 99, (len(corners), 3, 8, 8)).float()
    one, other = torch.zeros(2, 3, 28, 17)
    add_tiles(one, where, tiles)
    scatter_tiles(other, where, tiles)
    assert torch.equal(one, other)


def test_painting_by_batches_gives_the_same_map() -> None:
    grid = RetinaGrid(16, 2)
    corners = torch.randint(0, 30, (9, 2))
    pmfs = torch.rand(9, grid.n_cells, 3).softmax(-1)
    maps = []
    for size in (9, 2):
        canvas = VoteMap(
            (46, 46),
            grid=grid,
            classes=3,
            fusion=FUSIONS["precision"],
            device=torch.device("cpu"),
        )
        for part, seen in zip(corners.split(size), pmfs.split(size), strict=True):
            canvas.paint(part, seen)
        maps.append(canvas.votes.clone())
    torch.testing.assert_close(*maps)
    assert Seek().margin(grid) == 8
