"""Evaluation: its scores are those of the metrics, its folds divide the images."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

import imageio.v3 as imageio
import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st

from conftest import tiny_model
from following import followed
from napari_fovea import complete, metrics, segment
from napari_fovea.errors import FoveaError, TrainingError
from napari_fovea.evaluation import cross_validate, evaluate, mean_and_std, split
from napari_fovea.sample_data import make_nuclei
from napari_fovea.training.labelling import Labelling
from napari_fovea.training.recipes import RECIPES
from napari_fovea.training.samples import pair_files
from test_cli import call

if TYPE_CHECKING:
    from pathlib import Path

CLASSES = Labelling(from_instances=False)
QUICK = {"epochs": 1, "views": 4, "batch_size": 2, "side": 64}
TINY = json.dumps({"width": 4, "depth": 3})


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    images, labels = tmp_path / "images", tmp_path / "labels"
    images.mkdir()
    labels.mkdir()
    for i in range(4):
        image, truth = make_nuclei((72, 80), count=6, seed=i)
        imageio.imwrite(images / f"n{i}.png", (image / image.max() * 255).astype("u1"))
        imageio.imwrite(labels / f"n{i}.png", truth.astype("u2"))
    return images, labels


def test_scores_are_those_of_the_metrics(folders: tuple[Path, Path]) -> None:
    model = tiny_model()
    pairs = pair_files(*folders)
    run = evaluate(model, pairs, budget=40, groups={"n1": "odd", "n3": "odd"})
    told, result = followed(run)
    assert [t.done for t in told] == [1, 2, 3, 4]
    assert tuple(told) == result.images
    image, truth = (imageio.imread(p) for p in pairs[1])
    found = complete(segment(image, model, budget=40))
    scores = told[1].scores
    for name in ("dice", "jaccard", "precision", "recall", "accuracy", "cohen_kappa"):
        expected = getattr(metrics, name)(found.labels, truth > 0)
        assert scores[name] == pytest.approx(expected)
    assert scores["roc_auc"] == pytest.approx(
        metrics.roc_auc(found.probabilities[1], truth > 0)
    )
    assert scores["ap"] == metrics.average_precision(found.instances, truth)
    assert scores["fixations"] == len(found.path)
    summary = result.summary()
    dice = [t.scores["dice"] for t in told]
    assert summary["dice"]["mean"] == pytest.approx(np.mean(dice), abs=1e-5)
    assert summary["dice"]["std"] == pytest.approx(np.std(dice), abs=1e-5)
    assert result.groups == ("odd",)
    odd = result.summary("odd")
    assert odd["images"] == 2
    assert odd["dice"]["mean"] == pytest.approx((dice[1] + dice[3]) / 2, abs=1e-5)
    json.dumps(result.as_json(), allow_nan=False)


def test_ignored_labels_count_for_nothing(folders: tuple[Path, Path]) -> None:
    images, labels = folders
    model = tiny_model()
    before = complete(evaluate(model, pair_files(images, labels)[:1], budget=40))
    path = labels / "n0.png"
    truth = imageio.imread(path)
    found = complete(segment(imageio.imread(images / "n0.png"), model, budget=40))
    wrong = (found.labels > 0) != (truth > 0)
    imageio.imwrite(path, np.where(wrong, 999, truth).astype("u2"))
    run = evaluate(
        model,
        pair_files(images, labels)[:1],
        labelling=Labelling(ignore=999),
        budget=40,
    )
    (scored,) = complete(run).images
    assert before.images[0].scores["dice"] < 1
    assert scored.scores["dice"] == scored.scores["accuracy"] == 1


def test_of_several_classes_each_is_told(folders: tuple[Path, Path]) -> None:
    images, labels = folders
    rng = np.random.default_rng(0)
    for path in labels.iterdir():
        kinds = rng.integers(0, 3, imageio.imread(path).shape)
        imageio.imwrite(path, kinds.astype("u1"))
    model = tiny_model(outputs=4)
    labelling = Labelling(model.classes, from_instances=False)
    run = evaluate(model, pair_files(images, labels), labelling=labelling, budget=20)
    scores = complete(run).images[0].scores
    each = [scores[f"dice_{k}"] for k in (1, 2, 3)]
    assert scores["dice"] == pytest.approx(np.mean(each))
    assert "ap" not in scores
    with pytest.raises(TrainingError, match="labels that are classes"):
        next(evaluate(model, pair_files(images, labels)))


def test_what_cannot_be_told_is_left_out_of_the_mean() -> None:
    assert mean_and_std([1.0, math.nan, 3.0]) == {"mean": 2.0, "std": 1.0}
    assert mean_and_std([math.nan, None]) == {"mean": None, "std": None}


def test_a_class_that_does_not_occur_has_no_say_in_what_cannot_be_told(
    folders: tuple[Path, Path],
) -> None:
    images, labels = folders
    for path in labels.iterdir():
        kinds = np.where(imageio.imread(path) > 0, 2, 0)
        imageio.imwrite(path, kinds.astype("u1"))
    model = tiny_model(outputs=4)
    labelling = Labelling(model.classes, from_instances=False)
    run = evaluate(model, pair_files(images, labels)[:1], labelling=labelling)
    scored = complete(run).images[0]
    image, truth = (imageio.imread(p) for p in pair_files(images, labels)[0])
    found = complete(segment(image, model))
    expected = metrics.roc_auc(found.probabilities[2], truth == 2)
    assert scored.scores["roc_auc"] == pytest.approx(expected)


def test_blank_images_and_any_order_of_axes_are_evaluated(tmp_path: Path) -> None:
    images, labels = tmp_path / "images", tmp_path / "labels"
    images.mkdir()
    labels.mkdir()
    image, truth = make_nuclei((72, 80), count=6)
    first = np.stack([image, image[::-1], image]).astype(np.float32)
    for name, array, objects in (
        ("blank", np.zeros((72, 80), np.uint8), np.zeros((72, 80))),
        ("first", first, truth),
        ("last", first.transpose(1, 2, 0), truth),
    ):
        tifffile.imwrite(images / f"{name}.tif", array, photometric="minisblack")
        tifffile.imwrite(labels / f"{name}.tif", objects.astype(np.uint16))
    result = complete(evaluate(tiny_model(), pair_files(images, labels), budget=20))
    blank, first, last = result.images
    assert blank.scores["dice"] == blank.scores["ap"] == 1
    assert math.isnan(blank.scores["roc_auc"])
    assert dict(first.scores) == dict(last.scores)


@given(st.integers(2, 40), st.data())
def test_folds_divide_the_images(n: int, data: Any) -> None:
    folds = data.draw(st.integers(2, n))
    parts = split(n, folds, seed=data.draw(st.integers(0, 5)))
    assert len(parts) == folds
    assert sorted(i for part in parts for i in part) == list(range(n))
    sizes = [len(part) for part in parts]
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("few", [False, True])
def test_every_fold_is_trained_and_evaluated_apart(
    folders: tuple[Path, Path], tmp_path: Path, few: bool
) -> None:
    def run() -> tuple[list[Any], Any]:
        going = cross_validate(
            *folders,
            recipe="unet-small",
            folds=2,
            few=few,
            config=TINY,
            changes=QUICK,
            device="cpu",
            output=tmp_path / "folds",
        )
        return followed(going)

    events, result = run()
    assert {e.fold for e in events} == {1, 2}
    assert all(e.seconds_left >= 0 for e in events)
    assert events[0].seconds_left > events[-1].seconds_left == 0
    names = [{i.name for i in fold.images} for fold in result.folds]
    assert not names[0] & names[1]
    assert names[0] | names[1] == {f"n{i}.png" for i in range(4)}
    means = [fold.summary()["dice"]["mean"] for fold in result.folds]
    assert result.summary()["dice"]["mean"] == pytest.approx(np.mean(means), abs=1e-5)
    assert (tmp_path / "folds" / "fold1.safetensors").is_file()
    again, same = run()
    assert not again, "what is there is not done again"
    assert same.summary() == result.summary()
    (tmp_path / "folds" / "fold2.json").write_text("{}")
    with pytest.raises(TrainingError, match="holds no fold"):
        run()


def test_few_trains_on_one_fold_and_evaluates_on_all_others(
    folders: tuple[Path, Path],
) -> None:
    settings = {"config": TINY, "changes": QUICK, "device": "cpu", "folds": 4}
    run = cross_validate(*folders, recipe="unet-small", few=True, **settings)
    result = complete(run)
    assert [len(fold.images) for fold in result.folds] == [3, 3, 3, 3]


def test_a_measure_of_no_fold_is_no_hindrance(folders: tuple[Path, Path]) -> None:
    _, labels = folders
    for name in ("n0.png", "n1.png"):
        truth = imageio.imread(labels / name)
        imageio.imwrite(labels / name, np.zeros_like(truth))
    settings = {"config": TINY, "changes": QUICK, "device": "cpu", "folds": 4}
    result = complete(cross_validate(*folders, recipe="unet-small", **settings))
    telling = [f for f in result.folds if f.summary()["roc_auc"]["mean"] is not None]
    assert len(telling) == 2
    mean = np.mean([f.summary()["roc_auc"]["mean"] for f in telling])
    told = result.summary()["roc_auc"]["mean"]
    assert told == pytest.approx(mean, abs=1e-5)


@pytest.mark.parametrize(
    "change",
    [
        {"folds": 3},
        {"labelling": Labelling(ignore=1)},
        {"precision": "bfloat16"},
        {"seed": 1},
        {"labels": True},
    ],
)
def test_folds_of_another_cross_validation_are_refused(
    folders: tuple[Path, Path], tmp_path: Path, change: dict[str, Any]
) -> None:
    settings = {"recipe": "unet-small", "config": TINY, "changes": QUICK, "folds": 2}
    settings |= {"device": "cpu", "output": tmp_path / "folds"}
    complete(cross_validate(*folders, **settings))
    if change.pop("labels", False):
        path = folders[1] / "n0.png"
        truth = imageio.imread(path)
        truth[:5] = 0
        imageio.imwrite(path, truth)
    with pytest.raises(TrainingError, match="other settings or images"):
        next(cross_validate(*folders, **settings | change))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"policy": "raster"}, "no policy"),
        ({"seed": -1}, "seed is -1"),
        ({"precision": "int4"}, "no precision"),
        ({"folds": 5}, "4 images cannot be divided into 5 folds"),
        ({"recipe": "soup"}, "no recipe"),
        ({"recipe": "r2-attention-unet-paper"}, "best checkpoints"),
        ({"recipe": "mask-rcnn-small", "labelling": CLASSES}, "number objects"),
    ],
)
def test_a_senseless_cross_validation_is_refused(
    folders: tuple[Path, Path], options: dict[str, Any], says: str
) -> None:
    with pytest.raises(FoveaError, match=says):
        next(
            cross_validate(*folders, **{"recipe": "unet-small", "folds": 2, **options})
        )


# -- the commands ----------------------------------------------------------------


def test_evaluate_tells_people_and_programs(
    folders: tuple[Path, Path], tiny_file: Path, tmp_path: Path
) -> None:
    images, labels = folders
    kinds = tmp_path / "kinds.csv"
    text = "id,kind\nn0,round\nn1,round\n"
    kinds.write_text(text, encoding="utf-8-sig")  # as a spreadsheet saves it
    told = tmp_path / "scores.json"
    where = ["--images", images, "--labels", labels]
    options = ["--model", tiny_file, "--json", told, "--groups", kinds, "--budget", 20]
    done = call("evaluate", *where, *options)
    assert done.returncode == 0, done.stderr
    assert "round (2)" in done.stdout
    scores = json.loads(told.read_text())
    assert scores["summary"]["images"] == 4
    assert f"{scores['summary']['dice']['mean']:.4f}" in done.stdout
    assert {row["name"] for row in scores["images"]} == {f"n{i}.png" for i in range(4)}
    done = call("evaluate", *where, "--model", tiny_file, "--groups", told)
    assert done.returncode == 1
    assert "columns id and kind" in done.stderr
    kinds.write_text("id,kind\nn0.png,round\n")
    done = call("evaluate", *where, "--model", tiny_file, "--groups", kinds)
    assert done.returncode == 1
    assert "such as n0" in done.stderr
    (labels / "n2.png").unlink()
    done = call("evaluate", *where, "--model", tiny_file)
    assert done.returncode == 1
    assert "n2.png" in done.stderr
    assert "Traceback" not in done.stderr


def test_crossval_tells_every_epoch_and_the_mean_over_folds(
    folders: tuple[Path, Path], tmp_path: Path
) -> None:
    images, labels = folders
    told = tmp_path / "folds.json"
    quick = ["--epochs", 2, "--views", 8, "--config", TINY, "--device", "cpu"]
    where = ["--images", images, "--labels", labels, "--folds", 2, "--json", told]
    done = call("crossval", "--recipe", "unet-small", *where, *quick)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    told_of = [line for line in lines if line.startswith("fold")]
    assert len(told_of) == 8  # two epochs and two images in each fold
    assert all(line.endswith(" left in all") for line in told_of)
    assert told_of[-1] == "fold 2/2: 2 of 2 images evaluated, 0 s left in all"
    assert json.loads(told.read_text())["summary"]["folds"] == 2
    done = call("crossval", "--recipe", "unet-small", *where, "--folds", 9)
    assert done.returncode == 1
    assert "9 folds" in done.stderr


def test_recipes_are_listed() -> None:
    listed = call("recipes").stdout
    assert all(name in listed for name in RECIPES)
