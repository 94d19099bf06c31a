"""Fine-tuning from the command line, on folders."""

from __future__ import annotations

import json
import signal
import sys
from typing import TYPE_CHECKING, Any

import imageio.v3 as imageio
import numpy as np
import pytest
import tifffile

from napari_fovea.cli import main
from napari_fovea.models import Model
from napari_fovea.models.checkpoint import read_header
from napari_fovea.training import finetune
from painting import DISCS, GROUND
from small_networks import tiny

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "unet.safetensors"
    Model("unet", tiny("unet"), ("background", "nucleus"), (0, 1)).save(path)
    return path


@pytest.fixture
def strokes(picture: np.ndarray) -> np.ndarray:
    labels = np.zeros(picture.shape, np.uint8)
    for number, lines in ((1, GROUND), (2, DISCS)):
        for row, columns in lines:
            labels[row, columns] = number
    return labels


class Run:
    """What a run of the program came to."""

    def __init__(self, code: int, told: str, wrong: str) -> None:
        self.code, self.told, self.wrong = code, told, wrong


class Folders:
    """Two folders and a model; runs the command on them."""

    def __init__(self, root: Path, model: Path, run: Any) -> None:
        self.images, self.labels = root / "images", root / "labels"
        self.images.mkdir()
        self.labels.mkdir()
        self.model, self.output = model, root / "mine.safetensors"
        self._run = run

    def add(self, name: str, image: np.ndarray, labels: np.ndarray) -> None:
        for folder, array in ((self.images, image), (self.labels, labels)):
            write = tifffile.imwrite if name.endswith(".tif") else imageio.imwrite
            write(folder / name, array)

    def arguments(self, *more: object) -> list[str]:
        base = ["finetune", "--model", self.model, "--output", self.output]
        base += ["--images", self.images, "--labels", self.labels, "--device", "cpu"]
        return [*map(str, base), *map(str, more)]

    def learn(self, *more: object) -> Run:
        return self._run(*self.arguments(*more))

    @property
    def made(self) -> dict[str, Any]:
        return read_header(self.output).provenance["fine_tuned"]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    def call(*arguments: object) -> Run:
        monkeypatch.setattr(sys, "argv", ["napari-fovea", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            main()
        told = capsys.readouterr()
        assert "Traceback" not in told.err
        return Run(int(end.value.code or 0), told.out, told.err)

    return call


@pytest.fixture
def folders(
    tmp_path: Path, model: Path, run: Any, picture: np.ndarray, strokes: np.ndarray
) -> Folders:
    folders = Folders(tmp_path, model, run)
    folders.add("a.png", picture, strokes)
    return folders


def test_an_instant_refit_is_written_and_usable(
    folders: Folders, run: Any, picture: np.ndarray, strokes: np.ndarray, tmp_path: Path
) -> None:
    folders.add("b.tif", picture[::-1].copy(), strokes[::-1].copy())
    done = folders.learn("--unpainted", 0, "--instant", "--name", "my cells")
    assert done.code == 0, done.wrong
    assert "strokes: 6 of background" in done.told
    assert "saved" in done.told
    pixels = {
        "background": int(2 * (strokes == 1).sum()),
        "nucleus": int(2 * (strokes == 2).sum()),
    }
    assert folders.made["strokes"] == {"background": 6, "nucleus": 6}
    assert folders.made["pixels"] == pixels
    assert read_header(folders.output).name == "my cells"
    out = tmp_path / "out"
    image = folders.images / "a.png"
    used = run("segment", image, "--model", folders.output, "--output", out)
    assert used.code == 0, used.wrong
    told = json.loads((out / "a.json").read_text())
    assert told["model"] == "my cells"
    found = tifffile.imread(out / "a_classes.tif")
    assert (found[strokes == 2] == 1).mean() > 0.8


def test_thorough_learning_takes_its_time(folders: Folders) -> None:
    done = folders.learn("--unpainted", 0, "--seconds", 1, "--anyway")
    assert done.code == 0, done.wrong
    assert "thorough" in done.told
    assert folders.made["strokes"] == {"background": 3, "nucleus": 3}
    assert Model.load(folders.output).name == "mine"


def test_any_number_can_mean_unpainted(
    folders: Folders, picture: np.ndarray, strokes: np.ndarray
) -> None:
    shifted = np.where(strokes == 0, 255, strokes.astype(int) - 1).astype(np.uint8)
    folders.add("a.png", picture, shifted)
    options = ("--unpainted", 255, "--instant", "--classes", "ground, cell")
    done = folders.learn(*options)
    assert done.code == 0, done.wrong
    assert folders.made["strokes"] == {"ground": 3, "cell": 3}
    assert folders.made["pixels"]["ground"] == int((strokes == 1).sum())
    assert Model.load(folders.output).classes == ("ground", "cell")


@pytest.mark.parametrize("kind", ["classes", "instances"])
def test_complete_labels_work(folders: Folders, picture: np.ndarray, kind: str) -> None:
    from skimage.measure import label

    truth = picture > 100
    numbers = label(truth) if kind == "instances" else truth
    folders.add("a.png", picture, numbers.astype(np.uint8))
    done = folders.learn("--labels-are", kind, "--instant", "--anyway")
    assert done.code == 0, done.wrong
    pixels = folders.made["pixels"]
    assert pixels["nucleus"] == int(truth.sum())
    assert sum(pixels.values()) == picture.size


def test_what_is_no_better_is_written_only_if_asked(
    folders: Folders, picture: np.ndarray
) -> None:
    few = np.zeros(picture.shape, np.uint8)
    few[3, 30:50], few[15, 16:25] = 1, 2  # nothing can be held out
    folders.add("a.png", picture, few)
    options = ("--unpainted", 0, "--instant")
    done = folders.learn(*options)
    assert done.code == 1
    assert "nothing was written" in done.wrong
    assert "--anyway" in done.wrong
    assert not folders.output.exists()
    assert folders.learn(*options, "--anyway").code == 0
    assert Model.load(folders.output).provenance["fine_tuned"]


def test_what_was_learned_before_is_shown_again(
    folders: Folders, picture: np.ndarray, tmp_path: Path
) -> None:
    from skimage.measure import label

    old = tmp_path / "old images", tmp_path / "old labels"
    for folder, array in zip(old, (picture, label(picture > 100)), strict=True):
        folder.mkdir()
        imageio.imwrite(folder / "x.png", array.astype(np.uint8))
    options = ("--unpainted", 0, "--seconds", 1, "--anyway")
    replay = ("--replay-images", old[0], "--replay-labels", old[1])
    done = folders.learn(*options, *replay)
    assert done.code == 0, done.wrong
    assert folders.made["settings"]["replayed_images"] == 1


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--instant", "--seconds", 5], "Both --instant and --seconds"),
        (["--instant", "--classes", "one"], "expected as many names"),
        (["--instant", "--classes", "a, b, c"], "2 numbers are painted"),
        (["--instant", "--replay-images", "."], "both folders, or neither"),
        (["--instant", "--output", "m.checkpoint"], "ending in .safetensors"),
        (["--instant", "--model", "no-such-model"], "no model"),
        (["--instant", "--seed", -1], "seed"),
        (["--instant", "--device", "abacus"], "abacus"),
        (["--seconds", 1, "--precision", "int3"], "int3"),
    ],
)
def test_bad_requests_end_in_a_sentence(
    folders: Folders, options: list[object], says: str
) -> None:
    done = folders.learn("--unpainted", 0, *options)
    assert done.code == 1
    assert says in done.wrong.replace("\n", " ")
    assert not folders.output.exists()


def test_a_missing_label_file_is_named(folders: Folders, picture: np.ndarray) -> None:
    imageio.imwrite(folders.images / "alone.png", picture)
    done = folders.learn("--unpainted", 0, "--instant")
    assert done.code == 1
    assert "alone.png" in done.wrong


def test_labels_of_another_size_are_named(
    folders: Folders, picture: np.ndarray, strokes: np.ndarray
) -> None:
    folders.add("c.png", picture, strokes[:30])
    done = folders.learn("--unpainted", 0, "--instant")
    assert done.code == 1
    assert "c.png" in done.wrong
    assert "(30, 90)" in done.wrong


def test_an_interrupt_keeps_what_was_learned(
    folders: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*arguments: Any, **options: Any) -> Any:
        run = learning(*arguments, **options)
        losses = 0
        while True:
            try:
                event = next(run)
            except StopIteration as end:
                return end.value
            yield event
            losses += event.loss is not None
            if losses == 2:
                signal.raise_signal(signal.SIGINT)

    learning = finetune.fine_tune
    monkeypatch.setattr(finetune, "fine_tune", interrupted)
    done = folders.learn("--unpainted", 0, "--seconds", 300, "--anyway")
    assert done.code == 0, done.wrong
    assert "what is done is kept" in done.wrong
    assert Model.load(folders.output).name == "mine"
