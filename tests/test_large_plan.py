"""How large images are cut, and how objects that are cut become one again."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import ndimage

from conftest import tiny_model
from large import dense, finder, partition
from napari_fovea.errors import ImageError
from napari_fovea.inference import Tiling, complete
from napari_fovea.inference.detect import TILING
from napari_fovea.inference.tiles import plan_tiles
from napari_fovea.scale import Plan, cut, joining, shrinking
from napari_fovea.scale.plan import chunk_of, halo_of
from napari_fovea.scale.work import Work, objects_of

if TYPE_CHECKING:
    from pathlib import Path

    from napari_fovea.models import Model

SHAPES = st.tuples(st.integers(1, 300), st.integers(1, 300))


@given(st.integers(1, 3), SHAPES, st.integers(32, 200), st.sampled_from([32, 64, 96]))
@example(1, (1, 1), 32, 32)
def test_cores_part_the_planes_and_halos_surround_them(
    planes: int, shape: tuple[int, int], chunk: int, halo: int
) -> None:
    plan = cut(planes, shape, halo=halo, chunk=chunk)
    times = np.zeros((planes, *shape), int)
    for number, block in enumerate(plan):
        assert block.index == number
        assert max(block.shape) <= chunk
        times[block.plane, slice(*block.rows), slice(*block.columns)] += 1
        for length, core, seen in zip(
            shape,
            (block.rows, block.columns),
            (block.seen_rows, block.seen_columns),
            strict=True,
        ):
            assert seen == (max(0, core[0] - halo), min(length, core[1] + halo))
            assert core[0] % 32 == seen[0] % 32 == 0, "pooling falls as on the whole"
        ys, xs = block.inner
        assert (ys.stop - ys.start, xs.stop - xs.start) == block.shape
    assert len(plan) == number + 1
    assert (times == 1).all()


@given(SHAPES, st.integers(1, 3))
def test_pairs_of_neighbours_are_told_once(shape: tuple[int, int], planes: int) -> None:
    plan = cut(planes, shape, halo=32, chunk=64)
    told = [(i, j) for i in range(len(plan)) for j, *_ in plan.neighbours(i)]

    def apart(a: tuple[int, int], b: tuple[int, int]) -> int:
        return max(a[0], b[0]) - min(a[1], b[1])

    meant = [
        (a.index, b.index)
        for a in plan
        for b in plan
        if a.index < b.index
        and a.plane == b.plane
        and apart(a.rows, b.rows) <= 0
        and apart(a.columns, b.columns) <= 0
    ]
    assert sorted(told) == meant


def test_blocks_near_a_place_come_first() -> None:
    plan = cut(2, (200, 300), halo=32, chunk=100)
    left = set(range(len(plan)))
    assert plan.nearest(left, None) == 0
    assert plan.nearest(left, (190, 290)) == len(plan) // 2 - 1
    assert plan.nearest(left, (1, 190, 290)) == len(plan) - 1
    with pytest.raises(ImageError, match="row and column"):
        plan.nearest(left, (1,))


@given(
    st.tuples(st.integers(1, 3), st.integers(32, 300), st.integers(32, 300)),
    st.sampled_from([32, 64, 96]),
    st.lists(st.floats(-50, 400), min_size=2, max_size=3),
    st.data(),
)
def test_the_nearest_block_is_what_the_loop_says(
    shape: tuple[int, int, int], chunk: int, near: list[float], data: st.DataObject
) -> None:
    plan = cut(shape[0], shape[1:], halo=32, chunk=chunk)
    among = data.draw(st.sets(st.integers(0, len(plan) - 1), min_size=1))

    def away(index: int) -> tuple[float, float, int]:
        block = plan[index]
        planes = abs(block.plane - near[0]) if len(near) == 3 else block.plane
        y, x = (sum(span) / 2 for span in (block.rows, block.columns))
        return planes, float(np.hypot(y - near[-2], x - near[-1])), index

    assert plan.nearest(among, tuple(near)) == min(among, key=away)


@pytest.mark.parametrize("side", [2000, 20_000, 100_000])
def test_the_result_is_shrunk_until_a_plane_can_be_seen_at_once(side: int) -> None:
    plan = cut(1, (side, side), halo=96)
    assert plan.grid == (-(-side // 2048),) * 2
    assert side >> (plan.levels - 1) <= max(512, side >> 5)
    assert plan.core[0] % 2 ** (plan.levels - 1) == 0
    with pytest.raises(ImageError, match="32 pixels or more"):
        cut(1, (99, 99), halo=32, chunk=31)


@pytest.mark.parametrize("model", [finder(), dense()])
@pytest.mark.parametrize("factor", [0.5, 1, 2])
def test_cores_and_halos_are_as_wide_as_whole_tiles(
    model: Model, factor: float
) -> None:
    tiling = TILING if model.name == "bright" else Tiling()
    halo = halo_of(model, factor)
    core = chunk_of(model, factor, halo, side=None)
    assert 512 <= core <= 2048

    def tiles(side: int) -> int:
        return len(plan_tiles(round((side + 2 * halo) * factor), tiling))

    assert tiles(core) < tiles(core + 64)
    assert chunk_of(tiny_model(), factor, 32, side=None) == 2048


def test_a_core_with_its_halo_is_a_tile_that_fits() -> None:
    assert chunk_of(dense(), 1, 64, side=900) == 768
    assert chunk_of(dense(), 1, 64, side=4096) == 2048
    assert chunk_of(dense(), 1, 64, side=256) == 512
    assert chunk_of(dense(), 2, 64, side=2000) == 864


def test_every_kind_of_model_sees_far_enough() -> None:
    assert halo_of(tiny_model(), 1) == 32
    assert halo_of(dense(), 1) == 64
    assert halo_of(finder(), 1) == 96
    assert halo_of(finder(), 0.5) == 192
    assert halo_of(tiny_model(), 0.1) == 320


@given(st.integers(1, 40), st.integers(1, 40), st.sampled_from([2, 4, 8]))
def test_shrunk_copies_are_as_the_loop_says(h: int, w: int, factor: int) -> None:
    values = np.random.default_rng(0).integers(0, 99, (h, w))
    small, labels = shrinking.mean(values, factor), shrinking.nearest(values, factor)
    assert small.shape == labels.shape == (-(-h // factor), -(-w // factor))
    for y, x in np.ndindex(small.shape):
        part = values[y * factor : (y + 1) * factor, x * factor : (x + 1) * factor]
        assert small[y, x] == pytest.approx(part.mean(), rel=1e-5)
        middle = [min(factor // 2, n - 1) for n in part.shape]
        assert labels[y, x] == part[tuple(middle)]


# -- joining ---------------------------------------------------------------------------


def joined(labels: np.ndarray, plan: Plan, folder: Path, order: list[int]) -> tuple:
    """Label blocks by themselves, and join them."""
    work = Work.create(folder, plan)
    for index in order:
        block = plan[index]
        seen = labels[slice(*block.seen_rows), slice(*block.seen_columns)]
        own, _ = ndimage.label(seen)
        work.keep(block, objects_of(own, block, plan), {})
    numbering = complete(joining.number(work))
    whole = np.zeros(plan.shape, np.int32)
    for block in plan:
        numbers = numbering.renumber(block.index, work.raw(block))
        whole[slice(*block.rows), slice(*block.columns)] = numbers
    return whole, numbering.count


def blobs(shape: tuple[int, int], count: int, seed: int) -> np.ndarray:
    """Ellipses of all sizes, merged where they touch."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: shape[0], : shape[1]]
    mask = np.zeros(shape, bool)
    for _ in range(count):
        cy, cx = rng.uniform(0, shape[0]), rng.uniform(0, shape[1])
        a, b = rng.uniform(1, 30, 2)
        grown = ((y - cy) / (a + 2)) ** 2 + ((x - cx) / (b + 2)) ** 2 < 1
        if not mask[grown].any():
            mask |= ((y - cy) / a) ** 2 + ((x - cx) / b) ** 2 < 1
    return ndimage.label(mask)[0]


@settings(max_examples=25, deadline=None)
@given(
    st.tuples(st.integers(1, 170), st.integers(1, 170)),
    st.integers(0, 30),
    st.integers(0, 10**6),
    st.randoms(use_true_random=False),
)
def test_objects_are_what_they_are_on_the_whole(
    tmp_path_factory: pytest.TempPathFactory, shape, count, seed, random
) -> None:
    truth = blobs(shape, count, seed)
    plan = cut(1, shape, halo=32, chunk=48)
    order = list(range(len(plan)))
    random.shuffle(order)
    folder = tmp_path_factory.mktemp("work")
    whole, found = joined(truth, plan, folder / "a", order)
    assert partition(whole) == partition(truth)
    assert set(np.unique(whole)) - {0} == set(range(1, found + 1))
    again, _ = joined(truth, plan, folder / "b", order[::-1])
    np.testing.assert_array_equal(again, whole)


@pytest.mark.parametrize(
    "pixels",
    [
        [(64, 64), (63, 63), (63, 64)],  # a corner, of three blocks
        [(64, 64), (63, 63), (63, 64), (64, 63)],
        [(y, x) for y in range(60, 70) for x in range(5, 120)],  # along a border
        [(y, 64) for y in range(5, 120)] + [(64, x) for x in range(5, 120)],
        [(64, 64)],
    ],
)
def test_objects_at_corners_are_one(tmp_path: Path, pixels: list) -> None:
    truth = np.zeros((130, 130), int)
    truth[tuple(np.transpose(pixels))] = 1
    plan = cut(1, truth.shape, halo=32, chunk=64)
    whole, found = joined(truth, plan, tmp_path / "w", list(range(len(plan))))
    assert found == 1
    np.testing.assert_array_equal(whole, truth)


@given(st.integers(0, 10**6))
def test_links_are_those_of_the_loop(seed: int) -> None:
    rng = np.random.default_rng(seed)
    a, b = (np.kron(rng.integers(0, 4, (5, 5)), np.ones((2, 2), int)) for _ in "ab")
    b = np.roll(b, 1, axis=1)
    meant = set()
    for i in set(a.ravel().tolist()) - {0}:
        for j in set(b.ravel().tolist()) - {0}:
            shared = ((a == i) & (b == j)).sum()
            if shared > min((a == i).sum(), (b == j).sum()) / 2:
                meant.add((i, j))
    assert set(map(tuple, joining.links(a, b).tolist())) == meant


def test_what_no_neighbour_sees_belongs_to_whom_most_of_it_lies_with(
    tmp_path: Path,
) -> None:
    plan = cut(1, (64, 128), halo=32, chunk=64)
    whole = {}
    for reach in (10, 30):  # pixels that the left block sees beyond its core
        for right_is_there in (True, False):
            work = Work.create(tmp_path / f"{reach}{right_is_there}", plan)
            seen = np.zeros((64, 96), np.int32)
            seen[20:30, 44 : 64 + reach] = 1
            work.keep(plan[0], objects_of(seen, plan[0], plan), {})
            if right_is_there:
                work.keep(plan[1], objects_of(0 * seen, plan[1], plan), {})
            whole[reach, right_is_there] = complete(joining.number(work)).count
    assert whole == {(10, True): 1, (30, True): 0, (10, False): 1, (30, False): 1}
