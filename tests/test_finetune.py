"""Models that learn from strokes, and are taken only if they are better."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from skimage.measure import label

from conftest import tiny_model
from following import followed
from learning import (
    instant,
    made,
    right,
    same,
    short,
    swapped,
    thorough,
    weights,
)
from napari_fovea import complete, segment
from napari_fovea.errors import TrainingError
from napari_fovea.models import Model
from napari_fovea.networks import Adapted, AdaptedRetina
from napari_fovea.training.finetune import fine_tune
from napari_fovea.training.guard import strokes_of
from napari_fovea.training.painted import Annotation
from napari_fovea.training.samples import make_sample
from small_networks import DENSE

# -- instant -------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*DENSE, "ensemble", "retina-vgg", "retina-shared"])
def test_a_wrong_model_is_better_in_an_instant(
    name: str, one: Annotation, picture: np.ndarray
) -> None:
    model = tiny_model() if name == "retina-vgg" else made(name)
    before = weights(model)
    events, tuned = followed(fine_tune([one], model, device="cpu", name="mine"))
    assert tuned.verdict.better, str(tuned.verdict)
    assert tuned.verdict.strokes == len(strokes_of(tuned.planes))
    assert tuned.model.name == "mine"
    assert (tuned.model.classes, tuned.model.outputs) == (model.classes, model.outputs)
    assert isinstance(tuned.model.network, Adapted | AdaptedRetina)
    assert tuned.model.system == model.system
    assert same(weights(model), before), "what it started from is left alone"
    # One shape of disc, seen by cells or by pixels.
    assert right(tuned.model, picture) > (0.9 if name.startswith("retina") else 0.98)
    assert {e.phase for e in events} == {"looking", "fitting"}
    fractions = [e.fraction for e in events]
    assert fractions == sorted(fractions)
    assert 0 < fractions[0] <= fractions[-1] <= 1


@pytest.mark.parametrize("name", ["unet", "focusnet", "retina-vgg"])
def test_contradicting_strokes_are_refused(
    name: str, picture: np.ndarray, strokes: np.ndarray
) -> None:
    model = tiny_model() if name == "retina-vgg" else made(name)
    tuned = instant(model, Annotation(picture, swapped(strokes)))
    assert not tuned.verdict.better, str(tuned.verdict)


def test_the_same_strokes_give_the_same_model(one: Annotation) -> None:
    a, b = (instant(made(outputs=3), one) for _ in range(2))
    assert same(weights(a.model), weights(b.model))
    assert a.verdict == b.verdict


@pytest.mark.parametrize("name", ["unet", "retina-vgg"])
def test_other_classes_are_learned_from_nothing(
    name: str, picture: np.ndarray, strokes: np.ndarray
) -> None:
    model = tiny_model() if name == "retina-vgg" else made(name, outputs=3)
    more = strokes.copy()
    more[15:30, 16:18], more[55:70, 60:62] = 4, 5
    more[0, :9], more[69, :9] = 7, 7
    tuned = instant(model, Annotation(picture, more))
    assert tuned.model.classes == ("background", *(f"class {i}" for i in (2, 4, 5, 7)))
    assert tuned.model.outputs == (0, 1, 2, 3, 4)
    assert tuned.verdict.before == pytest.approx(0.2, abs=1e-6)
    assert tuned.verdict.strokes >= 8, "single strokes are not held out"
    found = complete(segment(picture, tuned.model, device="cpu"))
    assert found.probabilities.shape == (5, 70, 90)


def test_what_was_saved_goes_on(one: Annotation, tmp_path: Path) -> None:
    first = instant(made(outputs=3), one)
    first.model.save(tmp_path / "a.safetensors")
    loaded = Model.load(tmp_path / "a.safetensors")
    assert same(weights(loaded), weights(first.model))
    again = instant(loaded, one)
    assert type(again.model.network) is Adapted
    assert not isinstance(again.model.network.base, Adapted)
    assert again.verdict.before > 0.9
    assert again.model.provenance["started_from"]["fine_tuned"]["base"] == "unet"


def test_no_stroke_to_hold_out_is_no_reason_to_take_over(
    picture: np.ndarray,
) -> None:
    labels = np.zeros(picture.shape, np.uint8)
    labels[3, 3:9], labels[15, 18:23] = 1, 2
    for model in (made(), tiny_model()):
        tuned = instant(model, Annotation(picture, labels))
        assert tuned.verdict.strokes == 0
        assert not tuned.verdict.better
        assert "two strokes" in str(tuned.verdict)


@pytest.mark.parametrize(
    ("shape", "channels"), [((1, 2), 3), ((3, 3), 1), ((9, 40), 4), ((33, 17), 2)]
)
def test_strokes_of_single_pixels_in_small_planes(
    shape: tuple[int, int], channels: int
) -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 255, (*shape, channels)).astype(np.uint8)
    labels = np.zeros(shape, np.uint8)
    labels[0, 0], labels[-1, -1], labels[0, -1] = 1, 1, 2
    if shape[0] > 1:
        labels[-1, 0] = 2
    for model in (
        made(channels=channels),
        tiny_model(channels=channels),
        made("focusnet", channels=channels, outputs=3),
    ):
        tuned = instant(model, Annotation(image, labels, rgb=True))
        assert all(v.isfinite().all() for v in weights(tuned.model).values())
        found = complete(segment(image, tuned.model, rgb=True, device="cpu"))
        assert found.labels.shape == shape


def test_empty_planes_of_a_stack_are_learned_from(
    picture: np.ndarray, strokes: np.ndarray
) -> None:
    stack = np.stack([picture, np.zeros_like(picture)])
    labels = np.stack([strokes, np.zeros_like(strokes)])
    labels[1, 5:9, 5:50] = labels[1, 40, 5:50] = 1
    for model in (made(), tiny_model()):
        tuned = instant(model, Annotation(stack, labels))
        assert tuned.verdict.better, str(tuned.verdict)
        assert all(v.isfinite().all() for v in weights(tuned.model).values())


def test_complete_labels_are_learned_in_an_instant(picture: np.ndarray) -> None:
    whole = (picture > 120).astype(np.uint8)
    for labels, objects in ((whole, False), (label(whole), True)):
        tuned = instant(
            made(outputs=3),
            Annotation(picture, labels, unpainted=False, objects=objects),
        )
        assert tuned.verdict.better, str(tuned.verdict)
        assert tuned.model.provenance["fine_tuned"]["complete"] is True


def test_detectors_and_patches_cannot_learn_in_an_instant(one: Annotation) -> None:
    for name in ("mask-rcnn", "patch-center"):
        with pytest.raises(TrainingError, match=r"cannot be refitted|class of patches"):
            instant(made(name), one)


def test_there_are_two_modes(one: Annotation) -> None:
    with pytest.raises(TrainingError):
        followed(
            fine_tune([one], made(), mode="quick", device="cpu", cancelled=lambda: True)  # type: ignore[arg-type]
        )


def test_provenance_tells_what_was_learned_from(
    one: Annotation, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    short(monkeypatch, epochs=1)
    model = replace(made(outputs=3), provenance={"data": "first"})
    sample = make_sample(one.image, np.asarray(one.labels) > 1, channels=3, outputs=3)
    for tuned in (
        instant(model, one),
        thorough(model, one)[1],
        thorough(model, one, replay=[sample])[1],
    ):
        told = tuned.model.provenance
        assert json.loads(json.dumps(told)) is not None
        own = told["fine_tuned"]
        assert own["strokes"] == {"background": 6, "nucleus": 6}
        painted = np.asarray(one.labels)
        assert own["pixels"] == {
            "background": int((painted == 1).sum()),
            "nucleus": int((painted == 2).sum()),
        }
        assert (own["planes"], own["complete"]) == (1, False)
        assert own["settings"]["mode"] == tuned.mode
        assert own["held_out_strokes"] == tuned.verdict.strokes
        assert told["started_from"] == {"data": "first"}
        tuned.model.save(tmp_path / "m.safetensors")
        again = Model.load(tmp_path / "m.safetensors").provenance
        assert again == json.loads(json.dumps(told))


def test_what_a_user_has_is_never_changed(
    one: Annotation, monkeypatch: pytest.MonkeyPatch
) -> None:
    short(monkeypatch, epochs=1)
    image, labels = np.array(one.image), np.array(one.labels)
    image.flags.writeable = labels.flags.writeable = False
    frozen = Annotation(image, labels)
    for model in (made(), tiny_model()):
        instant(model, frozen)
        thorough(model, frozen)
    assert (image == one.image).all()
    assert (labels == one.labels).all()


# -- real images ---------------------------------------------------------------------


@pytest.mark.slow
def test_a_model_that_ships_gets_no_worse(nuclei: Path) -> None:
    sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
    try:
        from strokes import simulated
    finally:
        sys.path.pop(0)
    from napari_fovea.files import read_image, read_labels
    from napari_fovea.metrics import dice
    from napari_fovea.training.samples import pair_files

    model = Model.load("focusnet-nuclei")
    pairs = pair_files(nuclei / "val" / "images", nuclei / "val" / "labels")
    before, in_use = [], []
    for i, (image_file, labels_file) in enumerate(pairs[:4]):
        image, truth = read_image(image_file), read_labels(labels_file)
        painted = simulated(truth, seed=i)
        tuned = instant(model, Annotation(image, painted))
        scores = [
            dice(complete(segment(image, m, device="cpu")).labels > 0, truth > 0)
            for m in (model, tuned.model)
        ]
        before.append(scores[0])
        in_use.append(scores[tuned.verdict.better])
        assert in_use[-1] > before[-1] - 0.03, image_file.name
        wrong = instant(model, Annotation(image, swapped(painted)))
        assert not wrong.verdict.better, str(wrong.verdict)
    assert np.mean(in_use) > np.mean(before) - 0.02
