"""Animations of focus paths, with made-up paths and without any network."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import TYPE_CHECKING

import imageio.v3 as imageio
import numpy as np
import pytest
from PIL import Image

from napari_fovea.errors import FoveaError, ImageError, PathError
from napari_fovea.retina import FocusPath, Replay, RetinaGrid
from napari_fovea.views import animation
from napari_fovea.views.animation import Frame, animate, render, spread
from napari_fovea.views.colours import cell_colours, class_colours
from napari_fovea.views.contrast import to_rgb
from napari_fovea.views.scene import Scene, viridis

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path

GRID = RetinaGrid(32, 2)
NUCLEUS = class_colours(2)[1] * 255


def path_of(
    corners: list[tuple[int, int]] | np.ndarray,
    *,
    shape: tuple[int, int] | None = (70, 90),
    nucleus: float | np.ndarray | None = 0.0,
    scale: tuple[float, float] = (1.0, 1.0),
    planes: np.ndarray | None = None,
) -> FocusPath:
    """A path whose cells are all seen as nucleus with one probability."""
    n = len(corners)
    pmfs = None
    if nucleus is not None:
        pmfs = np.empty((n, GRID.n_cells, 2), np.float16)
        pmfs[..., 1] = nucleus
        pmfs[..., 0] = 1 - pmfs[..., 1]
    return FocusPath(
        np.asarray(corners, np.int64).reshape(n, 2),
        np.zeros(n, np.float32),
        np.ones(n, np.int64),
        GRID,
        scale=scale,
        planes=np.zeros(n, np.int64) if planes is None else planes,
        pmfs=pmfs,
        shape=shape,
    )


def walk(n: int, *, seed: int = 0, **more: object) -> FocusPath:
    rng = np.random.default_rng(seed)
    corners = np.stack([rng.integers(-8, 46, n), rng.integers(-8, 66, n)], axis=-1)
    nucleus = rng.random((n, GRID.n_cells))
    return path_of(corners, **{"nucleus": nucleus} | more)  # type: ignore[arg-type]


def run(events: Generator[Frame, None, Path | None]) -> tuple[list[Frame], object]:
    seen = []
    while True:
        try:
            seen.append(next(events))
        except StopIteration as end:
            return seen, end.value


def test_a_gif_has_its_frames_and_its_length(
    tmp_path: Path, picture: np.ndarray
) -> None:
    file = tmp_path / "new" / "a.gif"
    path = walk(37)
    seen, made = run(animate(picture, path, file, fps=6, seconds=1.5, side=180))
    assert made == file
    assert seen == [Frame(i, 9) for i in range(1, 10)]
    assert seen[-1].fraction == 1
    frames = imageio.imread(file)
    assert frames.shape == (9, 140, 180, 3)
    with Image.open(file) as opened:
        delays = []
        for i in range(opened.n_frames):
            opened.seek(i)
            delays.append(opened.info["duration"])
        assert opened.info["loop"] == 0
    assert sum(delays[:-1]) + delays[-1] - 1500 == 1500
    assert max(delays[:-1]) - min(delays[:-1]) <= 10
    # A palette of 255 colours is near to what was drawn, at the end and before.
    scene = Scene(picture, path, side=180)
    steps = spread(37, 9)
    for i in (0, 4, 8):
        off = frames[i].astype(float) - scene.frame(steps[i])
        assert np.abs(off).mean() < 4


def test_a_film_has_even_sides_and_is_held(tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(0, 255, (71, 91)).astype(np.uint8)
    path = walk(30, shape=(71, 91))
    file = tmp_path / "a.mp4"
    seen, made = run(animate(image, path, file, fps=10, seconds=0.8, side=91))
    assert made == file
    assert len(seen) == 8
    with warnings.catch_warnings():
        # The reader leaves pipes open that it has read to their end.
        warnings.simplefilter("ignore", ResourceWarning)
        frames = imageio.imread(file, plugin="FFMPEG")
        told = imageio.immeta(file, plugin="FFMPEG")
    assert frames.shape == (8 + 15, 72, 92, 3)
    assert told["codec"] == "h264"
    assert told["pix_fmt"].startswith("yuv420p")
    last = render(image, path, 29, side=91).astype(float)
    for frame in (frames[7], frames[-1]):
        assert np.abs(frame[:71, :91] - last).mean() < 12
    assert [p.name for p in tmp_path.iterdir()] == ["a.mp4"]


def test_a_still_is_the_last_frame(tmp_path: Path, picture: np.ndarray) -> None:
    path = walk(30)
    seen, _ = run(animate(picture, path, tmp_path / "a.PNG", side=90))
    assert seen == [Frame(1, 1)]
    still = imageio.imread(tmp_path / "a.PNG")
    np.testing.assert_array_equal(still, render(picture, path, 29, side=90))


@pytest.mark.parametrize(("count", "most"), [(1, 5), (7, 3), (7, 7), (7, 2.9), (9, 90)])
def test_steps_are_spread_evenly_to_the_last(count: int, most: float) -> None:
    steps = spread(count, most)
    assert len(steps) == min(count, int(most))
    assert steps[-1] == count - 1
    apart = np.diff([-1, *steps])
    assert apart.min() >= 1
    assert apart.max() - apart.min() <= 1


@pytest.mark.parametrize("nucleus", [None, 0.0], ids=["no pmfs", "background"])
def test_outside_map_and_grid_there_is_the_image(nucleus: float | None) -> None:
    image = np.random.default_rng(0).integers(0, 60000, (70, 90)).astype(np.uint16)
    path = path_of([(20, 30)], nucleus=nucleus)
    if nucleus is not None:  # one look tells of the whole image
        path = path_of([(0, 0), (0, 32), (0, 58), (38, 0), (38, 32), (38, 58)])
    top, left = path.corners[-1]
    frame = render(image, path, len(path) - 1, side=180)
    plain = to_rgb(image).repeat(2, 0).repeat(2, 1)
    outside = np.ones((140, 180), bool)
    outside[2 * top - 2 : 2 * top + 66, 2 * left - 2 : 2 * left + 66] = False
    outside[-3:] = False  # the progress
    for y, x in path.centres * 2:  # and the way from look to look
        outside[max(0, int(y) - 4) : int(y) + 8] = False
        outside[:, max(0, int(x) - 4) : int(x) + 8] = False
    if len(path) > 1:
        outside[25:115] = False
    assert outside.sum() > 1000
    np.testing.assert_array_equal(frame[outside], plain[outside])
    assert (frame != plain)[2 * top : 2 * top + 64].any()


@pytest.mark.parametrize("corner", [(20, 30), (-9, -11), (55, 80)])
@pytest.mark.parametrize("enlarged", [1, 3])
def test_the_cells_are_drawn_where_the_path_has_them(
    corner: tuple[int, int], enlarged: int
) -> None:
    image = np.full((70, 90), 100, np.uint8)
    image[0, 0], image[0, 1] = 0, 200  # black and white
    plain = to_rgb(image).astype(float)[-1, -1]
    sure = np.zeros((1, GRID.n_cells))
    sure[0, ::3] = 1  # every third cell is surely nucleus, the others are not
    path = path_of([corner], nucleus=sure, shape=None)
    frame = render(image, path, 0, side=90 * enlarged).astype(float)
    assert path.pmfs is not None
    faces, _ = cell_colours(path.pmfs[0])
    assert (faces[1] != faces[0]).any()
    drawn = 0
    for i, (top, left, bottom, right) in enumerate(path.cells(0) + 0.5):
        inside = frame[
            round(max(0, top) * enlarged) : round(max(0, bottom) * enlarged),
            round(max(0, left) * enlarged) : round(max(0, right) * enlarged),
        ]
        if min(inside.shape[:2]) < 2 or bottom >= 69:
            continue
        # The last pixel of a cell is not of its outline.
        found = inside[-1, -1]
        *colour, share = faces[i]
        expected = plain + (np.array(colour) * 255 - plain) * share
        np.testing.assert_allclose(found, expected, atol=2)
        drawn += 1
    assert drawn >= 3


def test_cells_of_a_resized_scan_lie_in_pixels_of_the_image() -> None:
    image = np.random.default_rng(0).random((140, 180))
    path = path_of([(10, 20)], shape=(70, 90), scale=(2.0, 2.0), nucleus=None)
    frame = render(image, path, 0, side=180)
    changed = (frame != to_rgb(image)).any(-1)[:-3]
    rows, columns = np.flatnonzero(changed.any(1)), np.flatnonzero(changed.any(0))
    # From corner to corner, and two pixels of the frame around it.
    assert (rows[0], rows[-1]) == (20 - 2, 20 + 64 + 1)
    assert (columns[0], columns[-1]) == (40 - 2, 40 + 64 + 1)
    # Outlines say where cells are, even where nothing is known of them.
    assert changed[20:84, 40 + 16].mean() > 0.9


def test_the_map_is_drawn_as_it_stood() -> None:
    image = np.full((70, 90), 100, np.uint8)
    image[0, 0], image[0, 1] = 0, 200
    sure = np.zeros((2, GRID.n_cells))
    sure[0] = 1
    path = path_of([(0, 0), (38, 58)], nucleus=sure)
    plain = to_rgb(image)[-1, -1].astype(float)
    nucleus = plain + (NUCLEUS - plain) * 0.5
    later = render(image, path, 1, side=90).astype(float)
    np.testing.assert_allclose(later[4, 12], nucleus, atol=2)
    np.testing.assert_allclose(later[4, 30], nucleus, atol=2)
    # Not looked at by then: doubt, and something else than where it is background.
    before = render(image, path, 0, side=90)
    assert (before[60, 50] == later[60, 50].astype(int)).all()
    assert not np.allclose(before[64, 64], later[4, 12], atol=20)
    assert before[64, 64, 0] > before[64, 64, 2] + 10  # yellow
    # A replay that is at hand draws the same.
    replay = Replay(path)
    np.testing.assert_array_equal(render(image, replay, 1, side=90), later)


def test_a_large_image_is_shrunk_to_means_and_so_is_its_map() -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 255, (140, 201)).astype(np.uint8)
    path = walk(20, shape=(140, 201))
    frame = render(image, path, 19, side=50)
    assert frame.shape == (35, 50, 3)
    flat = render(image[:, :200], path_of([(0, 0)], shape=None), 0, side=50)
    means = to_rgb(image[:, :200])[..., 0].reshape(35, 4, 50, 4).mean((1, 3))
    away = np.abs(flat[15:-3, 15:, 0] - means[15:-3, 15:])
    assert away.max() <= 1


def test_a_shrunk_map_lies_where_the_whole_one_does() -> None:
    # 65 is no multiple of 8: the map's last pixels reach beyond the image.
    sure = np.zeros((4, GRID.n_cells))
    sure[[1, 3]] = 1  # the right half
    corners = [(y, x) for y in (0, 33) for x in (0, 33)]
    path = path_of(corners, shape=(65, 65), nucleus=sure)
    image = np.zeros((65, 65), np.uint8)
    assert Replay(path, most=16 * 16).shrunk == 8
    shrunk = render(image, path, 3, side=16).astype(int)
    whole = render(image, Replay(path), 3, side=16)
    assert np.abs(shrunk - whole).max() < 40


def test_frames_in_their_order_are_frames_by_themselves(picture: np.ndarray) -> None:
    path = walk(150)
    scene = Scene(picture, path, side=90)
    for step in (0, 3, 70, 149, 20, 80):
        one = render(picture, path, step, side=90)
        np.testing.assert_array_equal(scene.frame(step), one)


def test_the_path_is_coloured_by_time_and_fades() -> None:
    image = np.zeros((70, 90), np.uint8)
    # Along the top, then along the bottom; both rows lie clear of the last grid.
    corners = [(-12, x) for x in range(-16, 44)] + [(40, x) for x in range(43, -17, -1)]
    path = path_of(corners, shape=None, nucleus=None)
    last = len(path) - 1
    frame = render(image, path, last, side=90).astype(float)
    old = frame[2:6, 5:40].sum(0).mean(0)
    recent = frame[54:59, 40:56].sum(0).mean(0)
    assert recent.sum() > 2 * old.sum() > 0
    early, late = viridis(np.array([20 / last, 70 / last])).astype(float)
    assert np.corrcoef(old, early)[0, 1] > 0.95
    assert np.corrcoef(recent, late)[0, 1] > 0.95
    # What is still to be walked is not drawn.
    half = render(image, path, 59, side=90)
    assert not half[50:64, :30].any()


def test_the_line_at_the_bottom_tells_how_much_is_done(picture: np.ndarray) -> None:
    path = walk(20, nucleus=None)
    for step, share in ((0, 1 / 20), (9, 0.5), (19, 1.0)):
        line = render(picture, path, step, side=180)[-1]
        done = round(180 * share)
        np.testing.assert_array_equal(
            line[:done], viridis(np.linspace(0, 1, 180))[:done]
        )
        assert (line[done:] < 70).all()


def test_any_kind_of_plane_is_shown(picture: np.ndarray) -> None:
    path = walk(5, nucleus=None)
    grey = render(picture, path, 4, side=90)
    colour = np.stack([picture, picture // 2, picture // 4], axis=-1)
    shown = render(colour, path, 4, side=90)
    # Nothing is drawn in the far corner, and colours stay what they are there.
    assert shown[64, 86, 0] > shown[64, 86, 1] > shown[64, 86, 2]
    alpha = np.dstack([colour, np.full_like(picture, 255)])
    np.testing.assert_array_equal(render(alpha, path, 4, side=90), shown)
    for other in (picture.astype(np.uint16) * 200, picture / 7.0):
        assert np.abs(render(other, path, 4, side=90) - grey.astype(int)).max() <= 1
    holes = picture.astype(np.float32)
    holes[60:64, 80:] = np.nan
    holes[66, 80:] = np.inf
    shown = render(holes, path, 4, side=90)
    assert not shown[60:64, 80:].any()
    assert (shown[66, 80:] == 255).all()
    intact = np.s_[:58]
    assert np.abs(shown[intact] - grey[intact].astype(int)).max() <= 3
    for empty in (np.full((70, 90), np.nan), np.zeros((70, 90)), picture > 100):
        assert render(empty, path, 4, side=90).shape == (70, 90, 3)


def test_only_the_plane_that_is_asked_for_is_shown(
    tmp_path: Path, picture: np.ndarray
) -> None:
    planes = np.repeat([0, 1], [12, 5])
    path = walk(17, planes=planes)
    seen, _ = run(animate(picture, path, tmp_path / "a.png", plane=1, side=90))
    assert len(seen) == 1
    shown = imageio.imread(tmp_path / "a.png")
    alone = render(picture, path.of_plane(1), 4, side=90)
    np.testing.assert_array_equal(shown, alone)
    assert (shown != render(picture, path, 11, side=90)).any()
    with pytest.raises(PathError, match="no fixation in plane 2"):
        next(animate(picture, path, tmp_path / "b.png", plane=2))


@pytest.mark.parametrize("suffix", [".gif", ".mp4"])
@pytest.mark.parametrize("how", ["cancelled", "closed"])
def test_a_run_that_stops_leaves_the_old_file(
    tmp_path: Path, picture: np.ndarray, suffix: str, how: str
) -> None:
    file = tmp_path / f"a{suffix}"
    file.write_bytes(b"old")
    seen: list[Frame] = []
    stop = how == "cancelled"
    events = animate(
        picture, walk(9), file, side=90, cancelled=lambda: stop and len(seen) == 3
    )
    made: object = None
    if stop:
        while True:
            try:
                seen.append(next(events))
            except StopIteration as end:
                made = end.value
                break
        assert len(seen) == 3
    else:
        next(events)
        events.close()
    assert made is None
    assert file.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [file]


def test_cancelling_after_the_last_frame_counts(
    tmp_path: Path, picture: np.ndarray
) -> None:
    asked = iter([False, True])
    file = tmp_path / "a.png"
    seen, made = run(
        animate(picture, walk(3), file, side=90, cancelled=lambda: next(asked))
    )
    assert (len(seen), made) == (1, None)
    assert not list(tmp_path.iterdir())


def test_what_does_not_fit_is_told(tmp_path: Path, picture: np.ndarray) -> None:
    path, file = walk(4), tmp_path / "a.gif"
    with pytest.raises(PathError, match=r"called a\.avi; .*\.gif, \.mp4 or \.png"):
        next(animate(picture, path, tmp_path / "a.avi"))
    with pytest.raises(PathError, match=r"70×90 pixels.*35×90.*laid_on\(\(35, 90\)\)"):
        next(animate(picture[:35], path, file))
    with pytest.raises(PathError, match="no fixation"):
        next(animate(picture, path_of([]), file))
    with pytest.raises(PathError, match="length in seconds"):
        next(animate(picture, path, file, seconds=0))
    with pytest.raises(PathError, match="frames per second"):
        next(animate(picture, path, file, fps=float("nan")))
    with pytest.raises(PathError, match="side of the frames"):
        next(animate(picture, path, file, side=1))
    with pytest.raises(ImageError, match=r"shape \(2, 70, 90\)"):
        next(animate(np.stack([picture] * 2), path, file))
    with pytest.raises(ImageError, match="complex"):
        render(picture * 1j, path, 0)
    with pytest.raises(FoveaError, match="no fixation 4; expected 0 to 3"):
        render(picture, path, 4)
    assert not list(tmp_path.iterdir())
    stretched = path.laid_on((35, 90))
    assert render(picture[:35], stretched, 3, side=90).shape == (35, 90, 3)


def test_a_file_that_cannot_be_written_is_told(
    tmp_path: Path, picture: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(PathError, match="cannot be written"):
        next(animate(picture, walk(3), tmp_path / "file" / "a.png"))

    def missing() -> str:
        raise RuntimeError("No ffmpeg exe could be found.")

    monkeypatch.setattr(animation.imageio_ffmpeg, "get_ffmpeg_exe", missing)
    with pytest.raises(PathError, match="ffmpeg is missing"):
        next(animate(picture, walk(3), tmp_path / "a.mp4"))


def test_a_film_that_the_encoder_gave_up_is_told(
    tmp_path: Path, picture: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    def silent(*_: object, **__: object) -> Generator[None, object, None]:
        while True:
            yield

    monkeypatch.setattr(animation.imageio_ffmpeg, "write_frames", silent)
    with pytest.raises(PathError, match="the encoder stopped"):
        run(animate(picture, walk(3), tmp_path / "a.mp4", side=90))
    assert not list(tmp_path.iterdir())


def test_very_long_images_and_unknown_sizes_are_drawn() -> None:
    image = np.arange(3 * 900.0).reshape(3, 900)
    path = path_of([(-14, 400), (-14, 800)], shape=(3, 900), nucleus=0.5)
    frame = render(image, path, 1, side=64)
    assert frame.shape == (1, 64, 3)
    unknown = replace(path, shape=None)
    assert render(image, unknown, 1, side=900).shape == (3, 900, 3)
