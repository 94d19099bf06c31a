"""The command line, run as a program."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import imageio.v3 as imageio
import numpy as np
import pytest
import tifffile

from napari_fovea import complete, segment
from napari_fovea.models import DEFAULT
from napari_fovea.sample_data import make_nuclei

ROOT = Path(__file__).parents[1]


def call(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "napari_fovea.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def test_models_are_listed_for_people_and_programs() -> None:
    listed = call("models")
    assert listed.returncode == 0
    assert "retina-nuclei" in listed.stdout
    facts = json.loads(call("models", "--json").stdout)
    assert facts[0]["name"] == DEFAULT
    assert facts[0]["system"] == "S2"
    assert facts[0]["classes"] == ["background", "nucleus"]
    assert facts[0]["megabytes"] <= 12
    assert Path(facts[0]["file"]).is_file()


def test_one_bad_image_does_not_stop_the_rest(
    tmp_path: Path, tiny_file: Path, picture: np.ndarray
) -> None:
    first, last = tmp_path / "first.png", tmp_path / "last.tif"
    broken, flat = tmp_path / "broken.png", tmp_path / "flat.png"
    imageio.imwrite(first, picture)
    tifffile.imwrite(
        last, np.stack([picture, picture.T[:70, :70].repeat(2, 1)[:, :90]])
    )
    broken.write_bytes(b"\x89PNG and then nothing")
    imageio.imwrite(flat, np.zeros((8, 8), np.uint8))
    out = tmp_path / "out"
    options = ["--model", tiny_file, "--output", out, "--budget", 40, "--probabilities"]
    done = call("segment", first, broken, flat, last, *options)
    assert done.returncode == 1
    assert "broken.png" in done.stderr
    assert "constant" in done.stderr
    assert "Traceback" not in done.stderr
    assert "2 of 4" in done.stdout
    suffixes = ["_classes.tif", "_instances.tif", "_probabilities.tif", ".json"]
    assert sorted(p.name for p in out.iterdir()) == sorted(
        f"{stem}{suffix}" for stem in ("first", "last") for suffix in suffixes
    )
    # Command line and Python give the same.
    expected = complete(segment(picture, tiny_file, budget=40))
    np.testing.assert_array_equal(
        tifffile.imread(out / "first_classes.tif"), expected.labels
    )
    np.testing.assert_array_equal(
        tifffile.imread(out / "first_instances.tif"), expected.instances
    )
    assert tifffile.imread(out / "last_classes.tif").shape == (2, 70, 90)
    assert tifffile.imread(out / "first_probabilities.tif").shape == (2, 70, 90)
    told = json.loads((out / "first.json").read_text())
    assert told["model"] == "tiny"
    assert told["fixations"] <= 40
    assert told["settings"]["budget"] == 40
    assert told["seconds"] > 0
    assert set(told["versions"]) >= {"napari-fovea", "torch", "python"}


def test_all_good_images_end_in_zero(
    tmp_path: Path, tiny_file: Path, picture: np.ndarray
) -> None:
    image = tmp_path / "a.png"
    imageio.imwrite(image, picture)
    options = ["--policy", "raster", "--diameter", 20, "--device", "cpu"]
    options += ["--precision", "bfloat16", "--memory", "1.5GiB"]
    done = call(
        "segment", image, "--model", tiny_file, "--output", tmp_path / "o", *options
    )
    assert done.returncode == 0, done.stderr
    told = json.loads((tmp_path / "o" / "a.json").read_text())
    assert told["settings"]["policy"] == "raster"
    assert told["settings"]["fusion"] == "mean"
    assert told["precision"] == "bfloat16"
    assert told["resized_by"] == pytest.approx(12 / 20)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--model", "no-such-model"], "no model"),
        (["--device", "abacus"], "abacus"),
        (["--memory", "plenty"], "'plenty' is no amount of memory"),
        (["--axes", "QQ"], "do not describe"),
    ],
)
def test_bad_requests_end_in_a_sentence(
    tmp_path: Path, tiny_file: Path, picture: np.ndarray, options: list, says: str
) -> None:
    image = tmp_path / "a.png"
    imageio.imwrite(image, picture)
    base = ["--model", tiny_file, "--output", tmp_path / "o"]
    done = call("segment", image, *base, *options)
    assert done.returncode == 1
    assert says in done.stderr
    assert "Traceback" not in done.stderr


def test_images_of_the_same_name_do_not_overwrite_each_other(
    tmp_path: Path, tiny_file: Path, picture: np.ndarray
) -> None:
    for name in ("a.png", "a.tif"):
        imageio.imwrite(tmp_path / name, picture)
    options = ["--model", tiny_file, "--output", tmp_path / "o", "--budget", 10]
    done = call("segment", tmp_path / "a.png", tmp_path / "a.tif", *options)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "o" / "a.png_classes.tif").is_file()
    assert (tmp_path / "o" / "a.tif_classes.tif").is_file()


def test_a_model_can_be_trained_from_folders_and_used(tmp_path: Path) -> None:
    images, labels = tmp_path / "images", tmp_path / "labels"
    images.mkdir()
    labels.mkdir()
    for i in range(2):
        image, truth = make_nuclei((96, 96), count=8, seed=i)
        tifffile.imwrite(images / f"{i}.tif", image)
        imageio.imwrite(labels / f"{i}.png", truth.astype(np.uint16))
    model = tmp_path / "mine.safetensors"
    arguments = ["train", "--images", images, "--labels", labels, "--output", model]
    arguments += ["--val-images", images, "--val-labels", labels, "--views", 64]
    arguments += ["--config", '{"d": 32, "r": 2, "width": 4, "units": 16}']
    arguments += ["--epochs", 2, "--classes", "nucleus", "--note", "made-up nuclei"]
    done = call(*arguments)
    assert done.returncode == 0, done.stderr
    assert "epoch 2/2" in done.stdout
    assert "score" in done.stdout
    assert [p.name for p in tmp_path.glob("mine*")] == ["mine.safetensors"]
    out = tmp_path / "out"
    used = call("segment", images / "0.tif", "--model", model, "--output", out)
    assert used.returncode == 0, used.stderr
    told = json.loads((out / "0.json").read_text())
    assert told["model"] == "mine"
    assert told["classes"] == ["background", "nucleus"]


def test_three_planes_stay_planes_and_brackets_stay_in_names(
    tmp_path: Path, tiny_file: Path, picture: np.ndarray
) -> None:
    stack = tmp_path / "x[red].tif"
    tifffile.imwrite(stack, np.stack([picture] * 3), photometric="minisblack")
    missing = tmp_path / "y[blue].tif"
    options = ["--model", tiny_file, "--output", tmp_path / "o", "--budget", 10]
    done = call("segment", stack, missing, *options)
    assert done.returncode == 1
    assert "y[blue].tif is no file" in done.stderr.replace("\n", "")
    with tifffile.TiffFile(tmp_path / "o" / "x[red]_classes.tif") as file:
        assert file.asarray().shape == (3, 70, 90)
        assert len(file.pages) == 3


def test_training_without_labels_ends_in_a_sentence(tmp_path: Path) -> None:
    model = tmp_path / "m.safetensors"
    folders = ["--images", tmp_path, "--labels", tmp_path]
    done = call("train", *folders, "--output", model)
    assert done.returncode == 1
    assert "holds no images" in done.stderr
    done = call("train", *folders, "--output", tmp_path / "m.checkpoint")
    assert done.returncode == 1
    assert "ending in .safetensors" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.xdist_group("window")  # it opens one, too
def test_the_demo_writes_its_files(tmp_path: Path) -> None:
    done = call("demo", "--headless", "--output", tmp_path / "demo")
    assert done.returncode == 0, done.stderr
    names = sorted(p.name for p in (tmp_path / "demo").iterdir())
    assert names == ["labels.tif", "provenance.json", "screenshot.png"]
    labels = tifffile.imread(tmp_path / "demo" / "labels.tif")
    assert labels.shape == (512, 512)
    assert labels.max() > 20
    shot = imageio.imread(tmp_path / "demo" / "screenshot.png")
    assert min(shot.shape[:2]) > 600
    assert shot[..., :3].std() > 20
    told = json.loads((tmp_path / "demo" / "provenance.json").read_text())
    assert told["model"] == DEFAULT


def test_attention_maps_are_written(
    tmp_path: Path, tiny_file: Path, picture: np.ndarray
) -> None:
    image, out = tmp_path / "cells.png", tmp_path / "out"
    imageio.imwrite(image, picture)
    options = ["--model", tiny_file, "--output", out, "--budget", 30]
    done = call("segment", image, *options, "--attention", "all")
    assert done.returncode == 0
    made = json.loads((out / "cells.json").read_text())
    assert len(made["attention"]) == 4
    assert made["attention"]["overlap"] == {"scale": [1, 1], "offset": [0, 0]}
    level = tifffile.imread(out / "cells_attention_finest-level-seen.tif")
    unseen = tifffile.imread(out / "cells_attention_never-seen-at-high-resolution.tif")
    assert level.shape == picture.shape
    np.testing.assert_array_equal(unseen, level < level.max())
    wrong = call("segment", image, *options, "--attention", "gaze")
    assert wrong.returncode == 1
    assert "no attention map 'gaze'" in wrong.stderr
    assert "Traceback" not in wrong.stderr
