"""Changes of images that tell what a model withstands, and their evaluation."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING

import imageio.v3 as imageio
import numpy as np
import pytest

from conftest import tiny_model
from following import followed
from napari_fovea import complete, metrics, segment
from napari_fovea.errors import TrainingError
from napari_fovea.evaluation import CHANGES, evaluate
from napari_fovea.inference.sizes import typical_diameter
from napari_fovea.sample_data import make_nuclei
from napari_fovea.training.labelling import Labelling
from napari_fovea.training.samples import pair_files
from test_cli import call
from test_evaluation import folders  # noqa: F401  a fixture

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.parametrize("channels", [0, 3])
def test_changes_leave_objects_where_they_are(name: str, channels: int) -> None:
    image, labels = make_nuclei((64, 90), count=6, seed=1)
    if channels:
        image = np.stack([image] * channels, -1)
    before = image.copy()
    change = CHANGES[name]
    changed, moved = change.apply(image, labels, seed=0)
    np.testing.assert_array_equal(image, before)
    factor = {"halved": 0.5, "doubled": 2}.get(name, 1)
    assert moved.shape == (64 * factor, 90 * factor)
    assert changed.shape == (*moved.shape, *image.shape[2:])
    assert set(np.unique(moved)) == set(np.unique(labels))
    size, was = typical_diameter(moved), typical_diameter(labels)
    assert size == pytest.approx(was * factor, rel=0.05)
    # Nuclei stay brighter than the ground, or darker where contrast is inverted.
    gray = changed.astype(float).reshape(*moved.shape, -1).mean(-1)
    brighter = gray[moved > 0].mean() - gray[moved == 0].mean()
    assert (brighter > 0) == (name != "inverted")
    again = change.apply(image, labels, seed=0)[0]
    np.testing.assert_array_equal(changed, again)


def test_changes_are_what_they_say() -> None:
    image = np.linspace(0, 1000, 4096, dtype=np.float64).reshape(64, 64)
    labels = np.ones((64, 64), int)
    made = {n: c.apply(image, labels, seed=3)[0] for n, c in CHANGES.items()}
    plain = image / 1000
    np.testing.assert_allclose(made["inverted"], 1 - plain, atol=1e-6)
    np.testing.assert_allclose(made["gamma-0.5"], plain**0.5, atol=1e-6)
    np.testing.assert_allclose(made["gamma-2"], plain**2, atol=1e-6)
    assert made["dim"].dtype == np.uint16
    assert (made["dim"].min(), made["dim"].max()) == (100, 700)
    assert np.std(made["noise"] - plain) == pytest.approx(0.05, rel=0.05)
    assert abs(np.mean(made["noise"] - plain)) < 0.005
    point = np.zeros((33, 33))
    point[16, 16] = 1
    spread = CHANGES["blur"].apply(point, labels[:33, :33], seed=0)[0]
    y = np.arange(33) - 16
    assert (spread.sum(1) * y**2).sum() / spread.sum() == pytest.approx(1, rel=0.05)


def test_an_evaluation_with_the_diameter_of_the_labels(
    folders: tuple[Path, Path],  # noqa: F811
) -> None:
    model = replace(tiny_model(), object_diameter=9.0)
    pairs = pair_files(*folders)[:2]
    _, given = followed(evaluate(model, pairs, budget=40, diameter="labels"))
    image, truth = (imageio.imread(p) for p in pairs[1])
    size = typical_diameter(truth)
    found = complete(segment(image, model, budget=40, diameter=size))
    assert given.images[1].scores["dice"] == metrics.dice(found.labels, truth > 0)
    assert given.images[1].pixels == truth.size
    told = given.summary()["seconds_per_megapixel"]["mean"]
    each = [1e6 * i.seconds / i.pixels for i in given.images]
    assert told == pytest.approx(np.mean(each), rel=1e-4)


def test_an_evaluation_of_changed_images(
    folders: tuple[Path, Path],  # noqa: F811
) -> None:
    model, pairs = tiny_model(), pair_files(*folders)[:2]
    change = CHANGES["halved"]
    run = evaluate(model, pairs, budget=40, diameter="labels", change=change)
    _, scored = followed(run)
    image, truth = (imageio.imread(p) for p in pairs[0])
    small, labels = change.apply(image, truth, seed=0)
    size = typical_diameter(labels)
    found = complete(segment(small, model, budget=40, diameter=size))
    assert scored.images[0].scores["dice"] == pytest.approx(
        metrics.dice(found.labels, labels > 0)
    )
    assert scored.images[0].pixels == labels.size


def test_classes_tell_no_diameter(
    folders: tuple[Path, Path],  # noqa: F811
) -> None:
    pairs = pair_files(*folders)
    classes = Labelling(from_instances=False)
    with pytest.raises(TrainingError, match="do not tell how large objects are"):
        complete(evaluate(tiny_model(), pairs, labelling=classes, diameter="labels"))


def test_robustness_is_told_to_people_and_programs(
    folders: tuple[Path, Path],  # noqa: F811
    tmp_path: Path,
) -> None:
    images, labels = folders
    for folder in folders:
        for path in sorted(folder.iterdir())[1:]:
            path.unlink()
    model = tmp_path / "tiny.safetensors"
    tiny_model().save(model)
    told = tmp_path / "told.json"
    result = call(
        "evaluate",
        *("--model", model, "--images", images, "--labels", labels),
        *("--budget", 30, "--robustness", "--json", told),
    )
    assert result.returncode == 0, result.stderr
    for name in ("as they are", *CHANGES):
        assert name in result.stdout
    scores = json.loads(told.read_text())
    assert set(scores["robustness"]) == {"as they are", *CHANGES}
    assert scores["robustness"]["blur"]["note"] == CHANGES["blur"].note
    assert scores["robustness"]["blur"]["summary"]["images"] == 1
    assert scores["given"]["summary"]["dice"]["mean"] is not None
    assert scores["summary"]["seconds_per_megapixel"]["mean"] > 0
