"""The command that shows where a retina model looked."""

from __future__ import annotations

import csv
import subprocess
import sys
from typing import TYPE_CHECKING

import imageio.v3 as imageio
import numpy as np
import pytest
import tifffile

from napari_fovea import cli
from napari_fovea.inference import complete, segment
from napari_fovea.models import Model
from napari_fovea.networks import build
from napari_fovea.project.identity import identify
from napari_fovea.retina import load_path
from napari_fovea.views.animation import render

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Run the command in this process, which spares its start."""
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)

    def run(*arguments: object) -> tuple[int, str, str]:
        command = ["napari-fovea", "focus", *map(str, arguments)]
        monkeypatch.setattr(sys, "argv", command)
        with pytest.raises(SystemExit) as end:
            cli.main()
        said = capsys.readouterr()
        return int(end.value.code or 0), said.out, " ".join(said.err.split())

    return run


@pytest.fixture
def image(tmp_path: Path, picture: np.ndarray) -> Path:
    file = tmp_path / "a.png"
    imageio.imwrite(file, picture)
    return file


@pytest.fixture
def no_scan(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever runs a model fails."""

    def never(*_: object, **__: object) -> None:
        raise AssertionError("the model was run")

    monkeypatch.setattr("napari_fovea.inference.segment", never)


def test_one_run_writes_all_kinds_of_files(
    tmp_path: Path, tiny_file: Path, image: Path, picture: np.ndarray
) -> None:
    out = tmp_path / "o[1]"
    files = [out / f"a{suffix}" for suffix in (".gif", ".png", ".csv", ".focus")]
    outputs = [part for file in files for part in ("--output", file)]
    options = ["--budget", 30, "--device", "cpu", "--side", 90, "--fps", 10]
    command = ["focus", image, "--model", tiny_file, *outputs, *options]
    done = subprocess.run(
        [sys.executable, "-m", "napari_fovea.cli", *map(str, command)],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    path = complete(segment(picture, tiny_file, budget=30)).path
    assert path is not None
    n = len(path)
    assert sorted(done.stdout.splitlines()) == sorted(
        f"wrote {file} ({n} fixations)" for file in files
    )
    assert sorted(p.name for p in out.iterdir()) == sorted(f.name for f in files)
    gif = imageio.imread(out / "a.gif")
    assert gif.shape == (n, 70, 90, 3)
    still = imageio.imread(out / "a.png")
    np.testing.assert_array_equal(still, render(picture, path, n - 1, side=90))
    with (out / "a.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    columns = ["fixation", "plane", "y", "x", "entropy", "step"]
    assert list(rows[0]) == [*columns, "class", "probability"]
    assert len(rows) == n
    np.testing.assert_allclose([float(row["x"]) for row in rows], path.centres[:, 1])
    recorded = load_path(out / "a.focus")
    np.testing.assert_array_equal(recorded.path.corners, path.corners)
    assert recorded.provenance["model"] == "tiny"
    assert recorded.provenance["settings"]["budget"] == 30
    known = identify(picture, "a.png")
    assert recorded.image["name"] == "a.png"
    assert recorded.image["digest"] == known.digest
    assert tuple(recorded.image["shape"]) == (70, 90)
    assert recorded.image["dtype"] == "uint8"


def test_a_saved_path_is_shown_without_a_model(
    tmp_path: Path, tiny_file: Path, image: Path, picture: np.ndarray, call
) -> None:
    saved, first = tmp_path / "p.focus", tmp_path / "first.png"
    options = ["--budget", 12, "--output", saved, "--output", first]
    assert call(image, "--model", tiny_file, *options)[0] == 0
    tiny_file.unlink()
    again, table = tmp_path / "again.png", tmp_path / "again.csv"
    copy = tmp_path / "copy.focus"
    outputs = ["--output", again, "--output", table, "--output", copy]
    code, out, err = call(image, "--path", saved, *outputs)
    assert (code, err) == (0, "")
    assert out.count("12 fixations") == 3
    np.testing.assert_array_equal(imageio.imread(again), imageio.imread(first))
    assert load_path(copy).image == load_path(saved).image

    # Other pixels of the same size: shown, but said.
    other = tmp_path / "other.png"
    imageio.imwrite(other, 255 - picture)
    code, out, err = call(other, "--path", saved, "--output", again)
    assert code == 0
    assert "note: p.focus was made on other pixels than those of other.png" in err
    assert (imageio.imread(again) != imageio.imread(first)).any()

    # Another size: only if asked for.
    small = tmp_path / "small.png"
    imageio.imwrite(small, picture[:35])
    code, out, err = call(small, "--path", saved, "--output", tmp_path / "s.png")
    assert code == 1
    assert "70×90 pixels, small.png has 35×90" in err
    assert "--stretch" in err
    assert not (tmp_path / "s.png").exists()
    stretched = ["--path", saved, "--stretch", "--side", 90]
    code, out, err = call(small, *stretched, "--output", tmp_path / "s.png")
    assert (code, err) == (0, "")
    path = load_path(saved).path.laid_on((35, 90))
    expected = render(picture[:35], path, 11, side=90)
    np.testing.assert_array_equal(imageio.imread(tmp_path / "s.png"), expected)


def test_planes_of_a_stack_are_chosen(
    tmp_path: Path, tiny_file: Path, picture: np.ndarray, call
) -> None:
    stack = tmp_path / "s.tif"
    tifffile.imwrite(stack, np.stack([picture, np.ascontiguousarray(picture[::-1])]))
    shown, saved, table = (tmp_path / f"s{x}" for x in (".png", ".focus", ".csv"))
    options = ["--model", tiny_file, "--budget", 10, "--side", 90, "--plane", 1]
    outputs = ["--output", shown, "--output", saved, "--output", table]
    code, out, err = call(stack, *options, *outputs)
    assert code == 0, err
    assert f"wrote {shown} (10 fixations)" in out
    assert f"wrote {table} (20 fixations)" in out
    path = load_path(saved).path
    assert path.lead == (2,)
    expected = render(picture[::-1], path, 9, plane=1, side=90)
    np.testing.assert_array_equal(imageio.imread(shown), expected)


@pytest.mark.usefixtures("no_scan")
def test_bad_requests_end_in_a_sentence_before_the_model_is_run(
    tmp_path: Path, tiny_file: Path, image: Path, call
) -> None:
    model, good = ["--model", tiny_file], ["--output", tmp_path / "o.gif"]
    (tmp_path / "folder.gif").mkdir()
    stray = ["--output", tmp_path / "o.avi"]
    for options, says in (
        ([*model, *good, *stray], "o.avi; expected a name ending in .gif, .mp4, .png"),
        ([*model, "--output", image], "is what is read"),
        ([*model, "--output", tmp_path / "folder.gif"], "it is a folder"),
        ([*model, "--output", image / "o.gif"], "a.png takes no files"),
        ([*model, *good, "--plane", 1], "no plane 1 in a.png; expected 0 to 0"),
        ([*model, *good, "--stretch"], "--stretch with --path"),
        ([*model, *good, "--device", "abacus"], "abacus"),
        ([*model, *good, "--memory", "0"], "'0' is no amount of memory"),
        ([*model, *good, "--axes", "QQ"], "do not describe"),
        (good, "neither of --model and --path"),
        ([*model, *good, "--path", tmp_path / "p.focus"], "both of --model and --path"),
        ([*good, "--path", tmp_path / "p.focus"], "p.focus is no file"),
        ([*good, "--path", tmp_path / "p.focus", "--pixel-size", 1], "no --pixel-size"),
    ):
        code, out, err = call(image, *options)
        assert (code, out) == (1, "")
        assert err.startswith("error: ")
        assert says in err
    assert not (tmp_path / "o.gif").exists()


@pytest.mark.usefixtures("no_scan")
def test_a_model_that_moves_no_focus_is_refused(
    tmp_path: Path, image: Path, call
) -> None:
    network = build("unet", {"channels": 1, "classes": 2, "width": 2})
    plain = Model("plain", network, ("background", "nucleus"), (0, 1))
    file = tmp_path / "plain.safetensors"
    plain.save(file)
    code, out, err = call(image, "--model", file, "--output", tmp_path / "o.csv")
    assert (code, out) == (1, "")
    assert "'plain'" in err
    assert "moves no focus; expected a retina model (S0)" in err


def test_a_plane_without_fixations_still_leaves_the_record(
    tmp_path: Path, tiny_file: Path, picture: np.ndarray, call
) -> None:
    stack = tmp_path / "s.tif"
    tifffile.imwrite(stack, np.stack([np.zeros_like(picture), picture]))
    shown, saved = tmp_path / "s.gif", tmp_path / "s.focus"
    options = ["--model", tiny_file, "--budget", 10]
    code, out, err = call(stack, *options, "--output", shown, "--output", saved)
    assert code == 1
    assert "no fixation in plane 0" in err
    assert out == f"wrote {saved} (10 fixations)\n"
    assert not shown.exists()
