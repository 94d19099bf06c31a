"""Many image files at once: found, read ahead, written behind."""

from __future__ import annotations

import errno
import json
import signal
import threading
from typing import TYPE_CHECKING, Any

import imageio.v3 as imageio
import numpy as np
import pytest
import tifffile
from typer.testing import CliRunner

from following import followed
from napari_fovea.cli import app
from napari_fovea.errors import FoveaError, ImageError, OutputError
from napari_fovea.files import read_image
from napari_fovea.inference import (
    Computing,
    Failed,
    Found,
    Written,
    batch,
    complete,
    find_images,
    folders,
    segment,
    segment_files,
)
from napari_fovea.models import Model
from small_networks import tiny

if TYPE_CHECKING:
    from pathlib import Path

    from click.testing import Result

RESULTS = ("_classes.tif", "_instances.tif", ".json")


@pytest.fixture(scope="module")
def model() -> Model:
    return Model(
        name="small",
        network=tiny("unet", channels=1),
        classes=("background", "cell"),
        outputs=(0, 1),
    )


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Two images, two more in a folder, and what is no image."""
    folder = tmp_path / "images"
    draw(folder / "a.png", 1)
    draw(folder / "b.tif", 2)
    draw(folder / "day 1" / "a.png", 3)
    draw(folder / "day 1" / "deep" / "c.PNG", 4)
    draw(folder / ".hidden" / "d.png", 5)
    draw(folder / "._a.png", 6)
    (folder / "notes.txt").write_text("no image")
    return folder


def draw(path: Path, seed: int, side: int = 24) -> np.ndarray:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (side, side), np.uint8)
    imageio.imwrite(path, pixels)
    return pixels


def names(folder: Path) -> list[str]:
    return sorted(
        p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()
    )


def found(inputs: list[object], output: Path, **options: Any) -> dict[str, str]:
    """Images by what their results are called."""
    return {
        i.record.relative_to(output).with_suffix("").as_posix(): i.path.name
        for i in find_images(inputs, output, **options)  # type: ignore[arg-type]
    }


def test_a_folder_stands_for_the_images_in_it(images: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert found([images], out) == {"a": "a.png", "b": "b.tif"}
    assert list(found([images], out, recursive=True)) == [
        "a",
        "b",
        "day 1/a",
        "day 1/deep/c",
    ]


def test_patterns_keep_the_folders_that_they_leave_open(
    images: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert found([images / "*.png"], out) == {"a": "a.png"}
    assert list(found([images / "**" / "*"], out)) == [
        "a",
        "b",
        "day 1/a",
        "day 1/deep/c",
    ]
    assert list(found([images / "*" / "a.png"], out)) == ["day 1/a"]


def test_each_image_is_taken_once(images: Path, tmp_path: Path) -> None:
    twice = [images / "a.png", images, images / "day 1" / ".." / "*.png"]
    assert found(twice, tmp_path / "out") == {"a": "a.png", "b": "b.tif"}


def test_names_with_signs_are_names_where_there_is_such_a_file(tmp_path: Path) -> None:
    draw(tmp_path / "x[red].png", 1)
    draw(tmp_path / "xr.png", 2)
    here = [tmp_path / "x[red].png", tmp_path / "y[blue].png"]
    assert list(found(here, tmp_path / "out")) == ["x[red]", "y[blue]"]


def test_images_of_one_stem_keep_their_endings(tmp_path: Path) -> None:
    draw(tmp_path / "in" / "a.png", 1)
    draw(tmp_path / "in" / "a.tif", 1)
    draw(tmp_path / "in" / "b.png", 1)
    draw(tmp_path / "other" / "b.png", 1)
    out = tmp_path / "out"
    assert list(found([tmp_path / "in"], out)) == ["a.png", "a.tif", "b"]
    with pytest.raises(OutputError, match=r"Two images are called b\.png"):
        found([tmp_path / "in", tmp_path / "other"], out)


def test_results_of_earlier_runs_are_no_images(images: Path, model: Model) -> None:
    out = images / "results"
    for _ in range(2):
        done = complete(segment_files([images], model, out, recursive=True))
        assert len(done.written) == 4
    assert list(found([images / "**" / "*.tif"], out)) == ["b"]
    with pytest.raises(OutputError, match="lie among the images"):
        find_images([images], images / "day 1" / "..")


@pytest.mark.parametrize("recursive", [True, False])
def test_a_folder_without_images_is_told(tmp_path: Path, recursive: bool) -> None:
    draw(tmp_path / ".hidden" / "a.png", 1)
    with pytest.raises(ImageError, match="holds no images; expected") as told:
        find_images([tmp_path], tmp_path / "out", recursive=recursive)
    assert ("recursively" in str(told.value)) is not recursive


def test_files_give_what_each_gives_by_itself(
    images: Path, model: Model, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    run = segment_files([images], model, out, recursive=True, probabilities=True)
    events = list(run)
    assert events[0] == Found(4, 0)
    told = [e.path for e in events if isinstance(e, Written)]
    assert told == [i.path for i in find_images([images], out, recursive=True)]
    assert {e.path for e in events if isinstance(e, Computing)} == set(told)
    shares = [e.fraction for e in events]
    assert shares == sorted(shares)
    assert shares[-1] == 1
    endings = (*RESULTS, "_probabilities.tif")
    assert names(out) == sorted(
        stem + e for stem in ("a", "b", "day 1/a", "day 1/deep/c") for e in endings
    )
    for image in find_images([images], out, recursive=True):
        alone = complete(segment(imageio.imread(image.path), model))
        for name, array in (
            ("classes", alone.labels),
            ("instances", alone.instances),
            ("probabilities", alone.probabilities),
        ):
            written = tifffile.imread(image.folder / f"{image.stem}_{name}.tif")
            np.testing.assert_array_equal(written, array)
        made = json.loads(image.record.read_text())
        assert made["file"] == str(image.path)
        assert made["objects"] == alone.instances.max()


def test_what_is_there_is_skipped(images: Path, model: Model, tmp_path: Path) -> None:
    out = tmp_path / "out"
    complete(segment_files([images], model, out))
    (out / "a.json").unlink()  # as if it had been killed before the last file
    before = (out / "b.json").stat().st_mtime_ns
    run = segment_files([images], model, out, skip_existing=True)
    assert next(run) == Found(images=1, skipped=1)
    done = complete(run)
    assert done.written == (images / "a.png",)
    assert done.skipped == 1
    assert (out / "b.json").stat().st_mtime_ns == before
    run = segment_files([images], model, out, skip_existing=True)
    assert followed(run)[0] == [Found(0, 2)]


def test_what_fails_is_told_and_the_rest_goes_on(model: Model, tmp_path: Path) -> None:
    folder, out = tmp_path / "in", tmp_path / "out"
    for i in range(5):
        draw(folder / f"{i}.png", i)
    (folder / "1.png").write_bytes(b"\x89PNG and then nothing")
    imageio.imwrite(folder / "2.png", np.zeros((8, 8), np.uint8))
    (out / "3.json").mkdir(parents=True)  # its results cannot be written
    run = segment_files([folder, tmp_path / "none.png"], model, out)
    events, done = followed(run)
    failed = tuple(e for e in events if isinstance(e, Failed))
    assert sorted(f.path.stem for f in failed) == ["1", "2", "3", "none"]
    assert done.failed == failed
    assert [p.name for p in done.written] == ["0.png", "4.png"]
    reasons = {f.path.stem: f.reason for f in failed}
    assert "cannot be read" in reasons["1"]
    assert "constant" in reasons["2"]
    assert "is no file" in reasons["none"]
    assert not [n for n in names(out) if n.startswith(".")]


@pytest.fixture
def ten(tmp_path: Path) -> Path:
    for i in range(10):
        draw(tmp_path / "ten" / f"{i}.png", i)
    return tmp_path / "ten"


def test_one_image_is_read_while_another_is_computed(
    ten: Path, model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = []
    second = threading.Event()

    def reading(path: Path) -> Any:
        assert threading.current_thread() is not threading.main_thread()
        read.append(path)
        if len(read) == 2:
            second.set()
        return read_image(path)

    monkeypatch.setattr(batch, "read_image", reading)
    begun: list[Path] = []
    for event in segment_files([ten], model, tmp_path / "out"):
        if isinstance(event, Computing) and event.path not in begun:
            begun.append(event.path)
            assert second.wait(30)  # is read while the first is computed
            assert len(read) <= len(begun) + 1  # and no more are
    assert read == begun


def test_results_are_written_while_others_are_computed(
    ten: Path, model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    third = threading.Event()
    writing: list[Path] = []

    def write(result: Any, image: Any, **options: Any) -> None:
        assert threading.current_thread() is not threading.main_thread()
        assert third.wait(30)
        writing.append(image.path)
        folders.write_results(result, image, **options)

    monkeypatch.setattr(batch, "write_results", write)
    begun: list[Path] = []
    for event in segment_files([ten], model, tmp_path / "out"):
        if isinstance(event, Computing) and event.path not in begun:
            begun.append(event.path)
            if len(begun) == 3:
                assert not writing
                third.set()
            assert len(begun) <= len(writing) + 4  # two wait, one is being written
    assert writing == begun


def test_a_full_disk_ends_it_at_once(
    ten: Path, model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill_after(6, monkeypatch)
    events = []
    with pytest.raises(OutputError, match=r"no space left .* 3 of 10 images are done"):
        events.extend(segment_files([ten], model, tmp_path / "out"))
    assert sum(isinstance(e, Written) for e in events) == 3
    assert not any(isinstance(e, Failed) for e in events)
    assert len(names(tmp_path / "out")) == 9  # and no halves


def fill_after(writings: int, monkeypatch: pytest.MonkeyPatch) -> None:
    left = [writings]
    write = tifffile.imwrite

    def limited(*arguments: Any, **options: Any) -> None:
        if not left[0]:
            raise OSError(errno.ENOSPC, "No space left on device")
        left[0] -= 1
        write(*arguments, **options)

    monkeypatch.setattr(tifffile, "imwrite", limited)


def test_a_folder_that_cannot_be_written_is_told_first(
    ten: Path, model: Model, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(OutputError, match=r"cannot be written to .*another folder"):
        next(segment_files([ten], model, tmp_path / "file" / "out"))


def test_what_is_wrong_for_all_is_told_once(
    ten: Path, model: Model, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    with pytest.raises(FoveaError, match="abacus"):
        next(segment_files([ten], model, out, device="abacus"))
    with pytest.raises(FoveaError, match="no attention"):
        next(segment_files([ten], model, out, attention=["gaze"]))
    with pytest.raises(TypeError, match="buget"):
        next(segment_files([ten], model, out, buget=3))
    assert not out.exists()


def test_it_stops_between_batches(ten: Path, model: Model, tmp_path: Path) -> None:
    stop = threading.Event()
    run = segment_files([ten], model, tmp_path / "out", cancelled=stop.is_set)
    for event in run:
        if isinstance(event, Written):
            stop.set()
            break
    _, done = followed(run)
    assert 1 <= len(done.written) < 10
    assert done.left == 10 - len(done.written)
    assert len(names(tmp_path / "out")) == 3 * len(done.written)


# -- the command -------------------------------------------------------------


def call(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["segment", *map(str, arguments)])


@pytest.fixture
def options(model: Model, tmp_path: Path) -> list[object]:
    model.save(tmp_path / "small.safetensors")
    return ["--model", tmp_path / "small.safetensors", "--output", tmp_path / "out"]


def test_the_command_mirrors_folders_and_goes_on(
    images: Path, options: list[object], tmp_path: Path
) -> None:
    done = call(images, *options, "--recursive")
    assert done.exit_code == 0, done.output
    assert "4 of 4 images segmented" in done.stdout
    assert "images per second" in done.stdout
    assert len(names(tmp_path / "out")) == 4 * len(RESULTS)
    (tmp_path / "out" / "day 1" / "a.json").unlink()
    done = call(images, *options, "--recursive", "--skip-existing")
    assert done.exit_code == 0
    assert "1 of 1 images segmented" in done.stdout
    assert "3 had results" in done.stdout
    done = call(images, *options, "--skip-existing")
    assert done.exit_code == 0
    assert "0 of 0" in done.stdout


def test_the_command_lists_again_what_failed(ten: Path, options: list[object]) -> None:
    for broken in ("1.png", "7.png"):
        (ten / broken).write_bytes(b"no image")
    done = call(ten, *options)
    assert done.exit_code == 1
    assert "8 of 10 images segmented" in done.stdout
    told = done.stderr.replace("\n", "")
    before, after = told.split("2 images failed:")
    for broken in ("1.png", "7.png"):
        assert before.count(broken) == after.count(broken) > 0
    assert "cannot be read" in after


def test_an_interrupt_ends_the_command_in_order(
    ten: Path,
    options: list[object],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def reading(path: Path) -> Any:
        if path.name == "4.png":
            signal.raise_signal(signal.SIGINT)
        return read_image(path)

    monkeypatch.setattr(batch, "read_image", reading)
    handler = signal.getsignal(signal.SIGINT)
    done = call(ten, *options)
    assert signal.getsignal(signal.SIGINT) is handler
    assert done.exit_code == 130
    written = len(names(tmp_path / "out")) // 3
    assert 1 <= written <= 5
    assert f"{written} of 10 images segmented" in done.stdout
    assert f"{10 - written} left" in done.stderr


def test_the_command_tells_of_a_full_disk(
    ten: Path, options: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    (ten / "0.png").write_bytes(b"no image")
    (ten / "1.png").write_bytes(b"no image")
    fill_after(4, monkeypatch)
    done = call(ten, *options)
    assert isinstance(done.exception, OutputError)  # `main` makes a sentence of it
    assert "2 of 10 images are done" in str(done.exception)
    assert "2 images failed:" in done.stderr


def test_a_tiff_without_a_page_is_damaged_and_not_empty(tmp_path: Path) -> None:
    path = tmp_path / "cut.tif"
    tifffile.imwrite(path, np.ones((64, 64), np.uint8))
    path.write_bytes(path.read_bytes()[:4] + b"\xff\xff\xff\x7f")
    with pytest.raises(ImageError, match=r"cut\.tif cannot be read as an image"):
        read_image(path)
