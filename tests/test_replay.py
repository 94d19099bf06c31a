"""Replaying a scan, and asking its path, against slow and literal loops."""

from __future__ import annotations

import math
import time
import tracemalloc
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from napari_fovea import complete, segment
from napari_fovea.errors import FoveaError
from napari_fovea.retina import (
    FUSIONS,
    FocusPath,
    Fusion,
    Moment,
    Replay,
    RetinaGrid,
    VoteMap,
    finest_levels,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from napari_fovea.models import Model

MEAN, PRECISION = FUSIONS["mean"], FUSIONS["precision"]

grids = st.builds(
    lambda r, k: RetinaGrid(d=k * 2 ** (r + 1), r=r),
    r=st.integers(1, 3),
    k=st.integers(1, 2),
)
seeds = st.integers(0, 2**32 - 1)


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """Threads wait for each other longer than they need for maps this small."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def random_path(
    rng: np.random.Generator,
    *,
    grid: RetinaGrid,
    n: int | None = None,
    classes: int = 3,
    least: int = 1,
    most: int = 24,
    **fields: Any,
) -> FocusPath:
    """Fixations whose subareas lie partly outside a small image."""
    shape = fields.pop("shape", tuple(int(s) for s in rng.integers(least, most, 2)))
    n = int(rng.integers(1, 7)) if n is None else n
    half = grid.d // 2
    corners = np.stack([rng.integers(-half, s - half + 1, n) for s in shape], axis=1)
    pmfs = rng.dirichlet(np.ones(classes) * 0.5, (n, grid.n_cells))
    return FocusPath(
        corners=corners,
        entropies=rng.random(n, dtype=np.float32),
        steps=rng.integers(1, grid.d + 1, n),
        grid=grid,
        pmfs=pmfs.astype(np.float16),
        shape=shape,
        **fields,
    )


def literal_votes(path: FocusPath, *, power: float = 0.0) -> list[Any]:
    """Votes and overlap before the first and after each fixation, pixel by pixel."""
    height, width = path.shape
    votes = np.zeros((path.pmfs.shape[-1], height, width))
    overlap = np.zeros((height, width))
    found = [(votes.copy(), overlap.copy())]
    for (y, x), pmfs in zip(path.corners, path.pmfs.astype(float), strict=True):
        for (top, left, bottom, right), pmf in zip(path.grid.cells, pmfs, strict=True):
            weight = (path.grid.finest**2 / ((bottom - top) * (right - left))) ** power
            for row in range(max(0, y + top), min(height, y + bottom)):
                for column in range(max(0, x + left), min(width, x + right)):
                    votes[:, row, column] += weight * pmf
                    overlap[row, column] += 1
        found.append((votes.copy(), overlap.copy()))
    return found


def normalised(votes: NDArray[Any]) -> NDArray[Any]:
    total = votes.sum(0)
    seen = total > 0
    return np.where(seen, votes / np.where(seen, total, 1), 1 / len(votes))


def painted(path: FocusPath, count: int) -> NDArray[Any]:
    """The map of the first fixations as a scan paints it."""
    height, width = path.shape
    d = path.grid.d
    canvas = VoteMap(
        (height + 2 * d, width + 2 * d),
        grid=path.grid,
        classes=path.pmfs.shape[-1],
        fusion=path.fusion,
        device=torch.device("cpu"),
    )
    pmfs = torch.tensor(path.pmfs[:count].astype(np.float32))
    canvas.paint(torch.tensor(path.corners[:count] + d), pmfs)
    votes = canvas.votes[:, d : d + height, d : d + width]
    return path.fusion.read_out(votes, path.grid).numpy()


def same_bits(a: Moment, b: Moment) -> bool:
    return (
        a.step == b.step
        and a.probabilities.tobytes() == b.probabilities.tobytes()
        and a.overlap.tobytes() == b.overlap.tobytes()
    )


def only(path: FocusPath, chosen: NDArray[Any]) -> FocusPath:
    """Make an image's path of some fixations."""
    return FocusPath(
        corners=path.corners[chosen],
        entropies=path.entropies[chosen],
        steps=path.steps[chosen],
        grid=path.grid,
        scale=path.scale,
        pmfs=path.pmfs[chosen],
        shape=path.shape,
        fusion=path.fusion,
        classes=path.classes,
    )


# -- the map after any fixation ----------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(grid=grids, seed=seeds)
def test_the_mean_map_equals_voting_pixel_by_pixel(grid: RetinaGrid, seed: int) -> None:
    rng = np.random.default_rng(seed)
    path = random_path(rng, grid=grid, fusion=MEAN)
    replay, expected = Replay(path), literal_votes(path)
    assert len(replay) == len(path)
    for step in rng.integers(-1, len(path), 8):
        moment = replay.at(int(step))
        votes, overlap = expected[step + 1]
        assert moment.step == step
        assert moment.probabilities.dtype == moment.overlap.dtype == np.float32
        np.testing.assert_array_equal(moment.overlap, overlap)
        np.testing.assert_allclose(moment.probabilities, normalised(votes), atol=1e-3)


@settings(max_examples=40, deadline=None)
@given(
    grid=grids,
    fusion=st.sampled_from([PRECISION, Fusion(2.0), Fusion(0.0, linear=True)]),
    seed=seeds,
)
def test_other_fusions_give_the_map_that_a_scan_paints(
    grid: RetinaGrid, fusion: Fusion, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    path = random_path(rng, grid=grid, fusion=fusion)
    replay = Replay(path)
    for step in rng.integers(-1, len(path), 8):
        found = replay.at(int(step)).probabilities
        np.testing.assert_allclose(found, painted(path, step + 1), atol=1e-3)


@settings(max_examples=40, deadline=None)
@given(
    grid=grids,
    fusion=st.sampled_from([MEAN, PRECISION]),
    most=st.sampled_from([2**20, 60]),
    seed=seeds,
)
def test_a_map_does_not_depend_on_how_it_was_reached(
    grid: RetinaGrid, fusion: Fusion, most: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    path = random_path(rng, grid=grid, fusion=fusion)
    replay = Replay(path, most=most)
    for step in [*rng.integers(-1, len(path), 8).tolist(), -1, len(path) - 1]:
        assert same_bits(replay.at(step), Replay(path, most=most).at(step))


@pytest.mark.parametrize("fusion", [MEAN, PRECISION])
def test_before_the_first_fixation_all_is_open(fusion: Fusion) -> None:
    rng = np.random.default_rng(0)
    replay = Replay(random_path(rng, grid=RetinaGrid(16, 2), fusion=fusion, classes=4))
    replay.at(len(replay) - 1)
    moment = replay.at(-1)
    assert (moment.probabilities == 0.25).all()
    assert not moment.overlap.any()
    np.testing.assert_allclose(moment.uncertainty, math.log(4), rtol=1e-6)


def test_the_uncertainty_is_the_entropy_of_the_map() -> None:
    replay = Replay(random_path(np.random.default_rng(0), grid=RetinaGrid(16, 2)))
    moment = replay.at(0)
    p = moment.probabilities.astype(float)
    expected = -np.where(p > 0, p * np.log(np.where(p > 0, p, 1)), 0).sum(0)
    np.testing.assert_allclose(moment.uncertainty, expected, atol=1e-5)


@pytest.mark.parametrize("step", [-2, 3, 99])
def test_a_fixation_that_was_not_made_is_refused(step: int) -> None:
    path = random_path(np.random.default_rng(0), grid=RetinaGrid(8, 1), n=3)
    with pytest.raises(FoveaError, match=f"no fixation {step}; expected -1 to 2"):
        Replay(path).at(step)


def test_a_path_that_does_not_tell_what_was_seen_is_refused() -> None:
    grid = RetinaGrid(8, 1)
    path = random_path(np.random.default_rng(0), grid=grid, n=3)
    blind = FocusPath(path.corners, path.entropies, path.steps, grid, shape=path.shape)
    with pytest.raises(FoveaError, match="not what it saw"):
        Replay(blind)


@pytest.mark.parametrize("policy", ["seek", "raster"])
def test_the_last_map_is_that_of_the_segmentation(
    tiny: Model, picture: NDArray[Any], policy: str
) -> None:
    result = complete(segment(picture, tiny, policy=policy))
    assert result.path.scale == (1, 1)
    assert result.path.classes == tiny.classes
    replay = Replay(result.path)
    moment = replay.at(len(replay) - 1)
    (overlap,) = result.attention
    np.testing.assert_array_equal(moment.overlap, overlap.array)
    np.testing.assert_allclose(moment.probabilities, result.probabilities, atol=2e-3)
    earlier = replay.at(len(replay) // 2)
    assert np.abs(earlier.probabilities - result.probabilities).max() > 0.05


# -- shrunk maps -------------------------------------------------------------------


def block_means(array: NDArray[Any], side: int) -> NDArray[Any]:
    """Mean of each block, of those of its pixels that the image has."""
    height, width = (-(-n // side) for n in array.shape[-2:])
    found = np.zeros((*array.shape[:-2], height, width))
    for y in range(height):
        for x in range(width):
            block = array[..., y * side : (y + 1) * side, x * side : (x + 1) * side]
            found[..., y, x] = block.mean((-2, -1))
    return found


def under_a_tent(votes: NDArray[Any], side: int) -> NDArray[Any]:
    tent = np.convolve(np.ones(side), np.ones(side)) / side**2

    def smooth(line: NDArray[Any]) -> NDArray[Any]:
        return np.convolve(np.pad(line, side - 1, mode="edge"), tent, "valid")

    return np.apply_along_axis(smooth, 2, np.apply_along_axis(smooth, 1, votes))


@settings(max_examples=25, deadline=None)
@given(grid=grids, most=st.integers(4, 150), seed=seeds)
def test_a_shrunk_map_shows_the_mean_votes(
    grid: RetinaGrid, most: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    path = random_path(rng, grid=grid, fusion=MEAN, scale=(0.5, 3.0))
    replay, expected = Replay(path, most=most), literal_votes(path)
    assert replay.shape == tuple(math.ceil(n / replay.shrunk) for n in path.shape)
    assert math.prod(replay.shape) <= most
    if replay.shrunk > 1:
        larger = (math.ceil(n / (replay.shrunk / 2)) for n in path.shape)
        assert math.prod(larger) > most, "shrunk no more than is needed"
    assert replay.scale == (0.5 * replay.shrunk, 3.0 * replay.shrunk)
    for step in rng.integers(-1, len(path), 4):
        moment = replay.at(int(step))
        votes, overlap = (block_means(a, replay.shrunk) for a in expected[step + 1])
        assert moment.probabilities.shape[1:] == moment.overlap.shape == replay.shape
        np.testing.assert_allclose(moment.overlap, overlap, rtol=1e-6)
        np.testing.assert_allclose(moment.probabilities, normalised(votes), atol=1e-3)


@pytest.mark.parametrize("shape", [(32, 48), (29, 43)])
@pytest.mark.parametrize(("most", "shrunk"), [(400, 2), (100, 4), (30, 8)])
def test_a_shrunk_map_is_drawn_with_lines_as_the_whole_one_is(
    most: int, shrunk: int, shape: tuple[int, int]
) -> None:
    grid = RetinaGrid(32, 1)  # cells of 8 pixels
    rng = np.random.default_rng(1)
    path = random_path(rng, grid=grid, n=5, fusion=PRECISION, shape=shape)
    replay = Replay(path, most=most)
    assert replay.shrunk == shrunk
    votes = block_means(literal_votes(path, power=1.0)[-1][0], shrunk)
    expected = normalised(under_a_tent(votes, 8 // shrunk))
    np.testing.assert_allclose(replay.at(4).probabilities, expected, atol=1e-3)
    if shrunk < 8:  # the smallest cells are larger than a pixel: there are lines
        whole = block_means(Replay(path).at(4).probabilities, shrunk)
        assert np.abs(replay.at(4).probabilities - whole).mean() < 0.03


# -- long scans --------------------------------------------------------------------


def long_path(n: int, shape: tuple[int, int]) -> FocusPath:
    rng = np.random.default_rng(3)
    return random_path(rng, grid=RetinaGrid(4, 1), n=n, classes=2, shape=shape)


def test_a_long_scan_can_be_visited_in_any_order() -> None:
    path = long_path(3 * 2048 + 57, (6, 7))
    expected, replay = literal_votes(path), Replay(path)
    rng = np.random.default_rng(0)
    around = [m * 2048 + k for m in (1, 2, 3) for k in (-2, -1, 0)]
    steps = [*around, *rng.integers(-1, len(path), 20).tolist(), -1, len(path) - 1]
    rng.shuffle(steps)
    for step in steps:
        moment = replay.at(step)
        votes, overlap = expected[step + 1]
        np.testing.assert_array_equal(moment.overlap, overlap)
        np.testing.assert_allclose(moment.probabilities, normalised(votes), atol=1e-3)
    for step in steps[:5]:
        assert same_bits(replay.at(step), Replay(path).at(step))


def grown(replay: Replay) -> int:
    """Bytes that a replay keeps more after it was seen to its end."""
    tracemalloc.start()
    try:
        replay.at(len(replay) - 1)
        replay.at(0)
        replay.at(len(replay) - 1)
        return tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()


def test_keyframes_stay_within_their_memory() -> None:
    path = long_path(5 * 2048 + 1, (255, 255))
    state = 3 * 256**2 * 8  # two classes and the overlap, with far corners
    slack = state // 4
    plenty, tight, none = (Replay(path, memory=m) for m in (2**27, 2 * state + 9, 0))
    assert 3 * state < grown(plenty) <= 5 * state + slack, "there are keyframes"
    assert grown(tight) <= 2 * state + slack
    assert grown(none) <= state + slack
    for step in (7000, 2047, 2048, 10_000, 6144, 3, 5122):
        moment = plenty.at(step)
        assert same_bits(tight.at(step), moment)
        assert same_bits(none.at(step), moment)


def test_keyframes_make_jumps_faster_than_beginning_anew() -> None:
    path = long_path(6 * 2048, (8, 8))

    def seconds(replay: Replay, step: int) -> float:
        start = time.process_time()
        replay.at(step)
        return time.process_time() - start

    anew = min(seconds(Replay(path), len(path) - 1) for _ in range(3))
    replay = Replay(path)
    replay.at(len(path) - 1)
    jumps = [seconds(replay, m * 2048 + 5) for m in (2, 5, 1, 4, 3)]
    assert sorted(jumps)[2] < anew / 4


# -- stacks ------------------------------------------------------------------------


@settings(max_examples=20, deadline=None)
@given(grid=grids, seed=seeds)
def test_a_plane_of_a_stack_knows_its_own_fixations_alone(
    grid: RetinaGrid, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    planes = rng.integers(0, 3, 6)
    path = random_path(
        rng, grid=grid, n=6, fusion=PRECISION, lead=(3,), planes=planes, scale=(2, 2)
    )
    for plane in range(3):
        own = only(path, planes == plane)
        part = path.of_plane(plane)
        for name in ("corners", "entropies", "steps", "planes", "pmfs"):
            np.testing.assert_array_equal(getattr(part, name), getattr(own, name))
        assert part.lead == ()
        assert (part.shape, part.scale) == (path.shape, (2, 2))
        replay = Replay(path, plane=plane)
        assert len(replay) == len(own)
        for step in range(-1, len(own)):
            assert same_bits(replay.at(step), Replay(own).at(step))
        levels = finest_levels(path, plane=plane)
        np.testing.assert_array_equal(levels, finest_levels(own))


def test_each_plane_of_a_segmented_stack_can_be_replayed(
    tiny: Model, picture: NDArray[Any]
) -> None:
    stack = np.stack([picture, np.zeros_like(picture), picture[::-1]])
    result = complete(segment(stack, tiny, budget=15))
    assert result.path.lead == (3,)
    for plane in (0, 2):
        replay = Replay(result.path, plane=plane)
        assert len(replay) == 15
        found = replay.at(14).probabilities
        np.testing.assert_allclose(found, result.probabilities[:, plane], atol=2e-3)
    empty = Replay(result.path, plane=1)
    assert len(empty) == 0
    assert (empty.at(-1).probabilities == 0.5).all()
    with pytest.raises(FoveaError, match="no fixation 0"):
        empty.at(0)


def test_a_path_without_pmfs_has_planes_too() -> None:
    path = FocusPath(
        np.array([[0, 0], [1, 1], [2, 2]]),
        np.zeros(3, np.float32),
        np.ones(3, np.int64),
        RetinaGrid(8, 1),
        planes=np.array([0, 1, 0]),
    )
    assert path.of_plane(0).corners.tolist() == [[0, 0], [2, 2]]
    assert path.of_plane(0).pmfs is None


# -- how finely it was seen --------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(grid=grids, seed=seeds)
def test_finest_levels_equal_looking_at_every_pixel(
    grid: RetinaGrid, seed: int
) -> None:
    path = random_path(np.random.default_rng(seed), grid=grid)
    height, width = path.shape
    expected = np.zeros((height, width), int)
    for y, x in path.corners:
        for top, left, bottom, right in grid.cells:
            level = {grid.d >> (n + 1): n for n in range(1, grid.r + 1)}[bottom - top]
            for row in range(max(0, y + top), min(height, y + bottom)):
                for column in range(max(0, x + left), min(width, x + right)):
                    expected[row, column] = max(expected[row, column], level)
    found = finest_levels(path)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, expected)


@settings(max_examples=60, deadline=None)
@given(grid=grids, scale=st.sampled_from([1.0, 0.5, 2.0, 1.5]), seed=seeds)
def test_the_best_look_is_by_the_smallest_cell_then_the_nearest(
    grid: RetinaGrid, scale: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    planes = rng.integers(0, 2, 8)
    path = random_path(
        rng, grid=grid, n=8, most=50, lead=(2,), planes=planes, scale=(scale, scale)
    )
    for _ in range(8):
        # Also where no pixel is, and between pixels.
        size = np.array(path.shape) * scale
        point = rng.integers(-4, 4 * size.astype(int) + 16, 2) / 4
        best, expected = (math.inf, math.inf), None
        for step in np.flatnonzero(planes == 1).tolist():
            far = math.dist(point, path.centres[step])
            for top, left, bottom, right in path.cells(step):
                if top <= point[0] < bottom and left <= point[1] < right:
                    area = (bottom - top) * (right - left)
                    look = (round(area, 9), round(far, 9))
                    if look < best:
                        best, expected = look, step
        assert path.best_look(tuple(point), plane=1) == expected


def test_a_small_cell_sees_better_than_a_near_centre() -> None:
    # The fovea reaches 4 pixels from its centre along each axis.
    corners = np.array([[-1, 3], [0, 0], [0, 0]])
    path = FocusPath(corners, np.zeros(3, "f4"), np.ones(3, int), RetinaGrid(32, 3))
    point = (19, 19)
    assert math.dist(point, path.centres[0]) < math.dist(point, path.centres[1])
    assert path.best_look(point) == 1, "of two that saw it as well, the first"


def test_cells_and_centres_lie_on_the_users_image() -> None:
    grid = RetinaGrid(8, 1)
    one = {"entropies": np.zeros(1, np.float32), "steps": np.ones(1, np.int64)}
    path = FocusPath(np.array([[10, -4]]), **one, grid=grid, scale=(2.0, 0.5))
    # Rows 10 to 17 of the scanned image are rows 20 to 35 of the user's.
    assert path.centres.tolist() == [[27.5, -0.5]]
    cells = path.cells(0)
    assert cells[0].tolist() == [19.5, -2.5, 23.5, -1.5]
    assert cells[-1].tolist() == [31.5, 0.5, 35.5, 1.5]
    assert path.best_look((20, -2)) == path.best_look((35, 1)) == 0
    assert path.best_look((36, 0)) is path.best_look((19, 0)) is None
    assert path.best_look((25, 2)) is path.best_look((25, -3)) is None
    assert path.best_look((25, 0), plane=1) is None


# -- the path on images ------------------------------------------------------------


def test_a_path_can_be_laid_on_an_image_of_another_size() -> None:
    rng = np.random.default_rng(0)
    path = random_path(rng, grid=RetinaGrid(8, 1), shape=(20, 30), scale=(1.5, 2.0))
    assert path.image_shape == (30, 60)
    laid = path.laid_on((40, 15))
    assert laid.image_shape == (40, 15)
    assert laid.scale == (2.0, 0.5)
    centres = (path.corners + 4) * [2.0, 0.5] - 0.5
    np.testing.assert_allclose(laid.centres, centres)
    np.testing.assert_array_equal(laid.pmfs, path.pmfs)
    assert path.image_shape == (30, 60), "the path itself is left as it is"


def test_the_size_of_a_resized_image_is_found_again() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        image, scanned = rng.integers(1, 3000, 2), rng.integers(1, 3000, 2)
        path = random_path(
            rng,
            grid=RetinaGrid(8, 1),
            n=1,
            shape=tuple(scanned.tolist()),
            scale=tuple((image / scanned).tolist()),
        )
        assert path.image_shape == tuple(image)


def test_a_path_that_does_not_know_its_image_says_so() -> None:
    grid = RetinaGrid(8, 1)
    path = FocusPath(np.zeros((2, 2), int), np.zeros(2, "f4"), np.ones(2, int), grid)
    assert path.image_shape is None
    with pytest.raises(FoveaError, match="how large its image was"):
        path.laid_on((5, 5))
    with pytest.raises(FoveaError, match="how large its image was"):
        finest_levels(path)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("corners", np.zeros((4, 3), np.int64)),
        ("corners", np.zeros((3, 2), np.int64)),
        ("corners", np.zeros(4, np.int64)),
        ("corners", np.array(4)),
        ("entropies", np.zeros(3, np.float32)),
        ("entropies", np.zeros((4, 2), np.float32)),
        ("steps", np.ones((4, 1), np.int64)),
        ("planes", np.zeros((4, 2), np.int64)),
        ("pmfs", np.zeros((4, 15, 2), np.float16)),
        ("pmfs", np.zeros((3, 16, 2), np.float16)),
        ("pmfs", np.zeros((4, 16), np.float16)),
    ],
)
def test_a_path_of_pieces_that_do_not_fit_is_refused(
    name: str, value: NDArray[Any]
) -> None:
    pieces: dict[str, Any] = {
        "corners": np.zeros((4, 2), np.int64),
        "entropies": np.zeros(4, np.float32),
        "steps": np.ones(4, np.int64),
        "planes": np.zeros(4, np.int64),
        "pmfs": np.zeros((4, 16, 2), np.float16),
        "grid": RetinaGrid(8, 1),
    }
    FocusPath(**pieces)
    with pytest.raises(FoveaError, match=r"expected|needs"):
        FocusPath(**pieces | {name: value})
