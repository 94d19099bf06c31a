"""Images and labels to train on: what is made of them, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import imageio.v3 as imageio
import numpy as np
import pytest
import tifffile
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from skimage.measure import label, regionprops
from skimage.segmentation import clear_border

from napari_fovea.errors import FoveaError, ModelError, TrainingError
from napari_fovea.losses import LOSSES
from napari_fovea.sample_data import make_nuclei
from napari_fovea.training.augment import Geometry
from napari_fovea.training.labelling import Labelling
from napari_fovea.training.recipes import RECIPES
from napari_fovea.training.run import train
from napari_fovea.training.samples import (
    DEPTHS,
    VOID,
    Sample,
    boundary_places,
    common_diameter,
    depth_classes,
    make_sample,
    pair_files,
)
from napari_fovea.training.views import Views, _reflected, together

QUICK = {"epochs": 1, "views": 16, "batch_size": 16}
CLASSES = Labelling(from_instances=False)


THREE = (0.0, 0.25, 0.75)


def nuclei_sample() -> Sample:
    image, truth = make_nuclei((96, 96), count=8)
    return make_sample(image, truth, channels=3, outputs=3, depths=THREE)


def write(folder: Path, name: str, array: np.ndarray) -> None:
    folder.mkdir(exist_ok=True)
    writer = tifffile.imwrite if name.endswith("tif") else imageio.imwrite
    writer(folder / name, array)


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Two images of nuclei and their labels."""
    images, labels = tmp_path / "images", tmp_path / "labels"
    for i in range(2):
        image, truth = make_nuclei((64, 64), count=5, seed=i)
        write(images, f"{i}.tif", image)
        write(labels, f"{i}.png", truth.astype(np.uint16))
    return images, labels


# -- what is made of labels ------------------------------------------------------------


def literal_depths(objects: np.ndarray, steps: int) -> np.ndarray:
    """What `depth_classes` says, pixel by pixel."""
    deltas = np.zeros(objects.shape)
    places = np.argwhere(objects > 0)
    near = ((0, 1), (0, -1), (1, 0), (-1, 0))
    edges = [
        (y, x)
        for y, x in np.argwhere(objects >= 0)
        if objects[y, x] == 0
        or any(
            0 <= y + i < objects.shape[0]
            and 0 <= x + j < objects.shape[1]
            and objects[y + i, x + j] != objects[y, x]
            for i, j in near
        )
    ]
    for y, x in places:
        away = min((np.hypot(y - i, x - j) for i, j in edges), default=0.0)
        deltas[y, x] = away + 0.5
    classes = np.zeros(objects.shape, int)
    for y, x in places:
        deepest = deltas[objects == objects[y, x]].max()
        share = int(deltas[y, x] / deepest * steps)
        classes[y, x] = 1 + min(share, steps - 1)
    return classes


def test_depth_grows_from_the_edge_of_an_object_to_its_core() -> None:
    objects = np.zeros((20, 30), int)
    objects[4:16, 4:14], objects[4:16, 14:29] = 1, 7
    for steps in (1, 2, 4):
        depths = (0.0, *(np.arange(steps) / steps))
        classes = depth_classes(objects, depths=depths)
        np.testing.assert_array_equal(classes, literal_depths(objects, steps))
    assert set(classes[9, 4:14]) == {1, 2, 3, 4}
    assert (classes[4:16, 13:15] == 1).all(), "touching objects meet at their edges"


def test_an_object_goes_on_beyond_the_image() -> None:
    objects = np.zeros((30, 30), int)
    objects[10:20, :12] = 1
    classes = depth_classes(objects)
    assert (classes[14:16, 0] == 4).all()
    np.testing.assert_array_equal(depth_classes(np.ones((9, 9), int) * 5), 4)
    assert not depth_classes(np.zeros((9, 9), int)).any()


@given(
    objects=arrays(np.int32, (9, 11), elements=st.integers(0, 3)),
    steps=st.integers(1, 5),
)
def test_depths_of_any_labels_are_those_of_the_definition(
    objects: np.ndarray, steps: int
) -> None:
    if not (objects == 0).any() and len(np.unique(objects)) == 1:
        objects[0, 0] = 0  # without an edge all is as deep
    depths = (0.0, *((np.arange(steps) + 0.5) / steps))
    found = depth_classes(objects, depths=depths)
    np.testing.assert_array_equal(found, literal_depths(objects, steps))


def test_outputs_of_depths_may_have_any_order() -> None:
    objects = make_nuclei((96, 96), count=8)[1]
    two = depth_classes(objects, depths=(0.0, 0.0, 1.0))
    turned = depth_classes(objects, depths=(0.0, 1.0, 0.0))
    np.testing.assert_array_equal(turned, np.array([0, 2, 1])[two])


def test_near_void_nobody_knows_how_deep_a_pixel_lies() -> None:
    objects = np.zeros((24, 24), int)
    objects[4:20, 4:20] = 3
    void = np.zeros(objects.shape, bool)
    void[10:14, 10:14] = True  # in the middle of the object
    void[:10, 20:] = True  # along a part of its right edge
    hidden = np.where(void, 0, objects)
    classes = depth_classes(hidden, void=void)
    whole = depth_classes(objects)
    told = classes != VOID
    assert (classes[told] == whole[told]).all(), "no ring is drawn around the hole"
    assert (classes[void] == VOID).all()
    assert (classes[6:9, 18:20] == VOID).all(), "the edge may lie beyond"
    assert told[4:20, 4:7].all()
    assert told[14:20, 18:20].all()
    sample = make_sample(
        np.arange(576.0).reshape(24, 24),
        np.where(void, 9, objects),
        channels=1,
        outputs=5,
        depths=DEPTHS,
        ignore=9,
    )
    np.testing.assert_array_equal(sample.classes.numpy(), classes)


@pytest.mark.parametrize("last", [True, False])
@pytest.mark.parametrize("channels", [2, 3, 4])
def test_channels_may_come_first_or_last(channels: int, last: bool) -> None:
    image = np.random.default_rng(0).random((channels, 20, 24))
    truth = np.zeros((20, 24), int)
    truth[4:9, 4:9] = 1
    given = image.transpose(1, 2, 0) if last else image
    sample = make_sample(given, truth, channels=channels, outputs=2)
    assert sample.image.shape == (channels, 20, 24)
    order = sample.image.flatten().argsort()
    np.testing.assert_array_equal(order[500:600], image.ravel().argsort()[500:600])


def test_a_blank_field_is_a_sample_like_any_other(folders: tuple[Path, Path]) -> None:
    images, labels = folders
    write(images, "blank.tif", np.zeros((64, 64), np.uint16))
    write(labels, "blank.png", np.zeros((64, 64), np.uint16))
    settings = {"recipe": "unet-small", "config": '{"width": 4, "depth": 2}'}
    events = train(images, labels, changes=QUICK, device="cpu", **settings)
    assert np.isfinite(next(events).loss)


def test_an_image_that_cannot_be_used_is_named(folders: tuple[Path, Path]) -> None:
    images, labels = folders
    write(images, "1.tif", np.full((64, 64), np.nan, np.float32))
    with pytest.raises(TrainingError, match=r"1\.tif: The image holds 4096 pixel"):
        next(train(images, labels))


def test_files_of_the_same_stem_are_refused(folders: tuple[Path, Path]) -> None:
    images, labels = folders
    for folder in folders:
        twin = folder / "1.bmp"
        write(folder, twin.name, np.zeros((64, 64), np.uint8))
        with pytest.raises(TrainingError, match=r"1\.\w+ and 1\.\w+ in .* same stem"):
            pair_files(images, labels)
        twin.unlink()


def test_boundaries_are_where_classes_meet() -> None:
    sample = nuclei_sample()
    places = boundary_places(sample)
    classes = sample.classes.numpy()
    for y, x in places[::50]:
        around = classes[max(0, y - 1) : y + 2, max(0, x - 1) : x + 2]
        assert len(np.unique(around)) > 1


def test_the_diameter_is_that_of_a_disc_of_typical_area() -> None:
    y, x = np.mgrid[:60, :60]
    disc = ((y - 30) ** 2 + (x - 30) ** 2 < 100).astype(int)
    disc[0, ::2] = np.arange(2, 32)  # specks do not make it smaller
    image = np.random.default_rng(0).random((60, 60))
    sample = make_sample(image, disc, channels=1, outputs=2)
    assert common_diameter([sample]) == pytest.approx(20, abs=0.5)
    classes = make_sample(image, disc > 0, channels=1, outputs=2, from_instances=False)
    assert common_diameter([classes]) is None
    blank = make_sample(image, np.zeros((60, 60), int), channels=1, outputs=2)
    assert common_diameter([blank]) is None


def test_objects_of_very_large_numbers_stay_apart() -> None:
    labels = np.zeros((9, 9), np.int64)
    labels[:4], labels[5:] = 2**24, 2**24 + 1  # one and the same in float32
    image = np.random.default_rng(0).random((9, 9))
    sample = make_sample(image, labels, channels=1, outputs=2)
    np.testing.assert_array_equal(np.unique(sample.instances), [0, 1, 2])
    np.testing.assert_array_equal(sample.instances > 0, labels > 0)


# -- what is refused -------------------------------------------------------------------

MASK = np.where(np.eye(9) > 0, 255, 0).astype(np.uint8)


@pytest.mark.parametrize(
    ("labels", "options", "says"),
    [
        (np.zeros((9, 8), int), {}, "shape"),
        (np.zeros((18, 18), int), {}, r"labels have shape \(18, 18\), the image"),
        (np.zeros((9, 9)), {}, "integers"),
        (np.full((9, 9), 5), {"from_instances": False}, "classes 0 to 2"),
        (np.full((9, 9), -1), {}, "labels hold -1"),
        (MASK, {}, "a mask, not single objects"),
        (MASK, {"from_instances": False}, r"from 0 to 255; .*divide by 255"),
        (np.dstack([MASK] * 3), {}, "colour image"),
        (np.dstack([MASK] * 4), {"from_instances": False}, "colour image"),
    ],
)
def test_labels_that_do_not_fit_are_refused(labels, options, says) -> None:
    image = np.random.default_rng(0).random((9, 9))
    with pytest.raises(TrainingError, match=says):
        make_sample(image, labels, channels=3, outputs=3, **options)


def test_folders_pair_up_by_stem_or_say_what_is_missing(tmp_path: Path) -> None:
    images, labels = tmp_path / "i", tmp_path / "l"
    with pytest.raises(TrainingError, match="no folder"):
        pair_files(images, labels)
    images.mkdir()
    labels.mkdir()
    with pytest.raises(TrainingError, match="no images"):
        pair_files(images, labels)
    square = np.zeros((4, 4), np.uint8)
    for name in ("a.png", "b.png", "c.tif", "d.png", "e.png"):
        write(images, name, square)
    with pytest.raises(TrainingError, match=r"a\.png, b\.png, c\.tif and 2 more in"):
        pair_files(images, labels)
    for stem in "abcde":
        write(labels, f"{stem}.tif", square)
    write(labels, "f.tif", square)
    with pytest.raises(TrainingError, match=r"f\.tif in .* have no image in"):
        pair_files(images, labels)
    write(images, "f.png", square)
    (images / "notes.txt").write_text("no image")
    (images / ".hidden.png").write_text("no image")
    pairs = pair_files(images, labels)
    assert pairs[0] == (images / "a.png", labels / "a.tif")
    assert [image.stem for image, _ in pairs] == list("abcdef")


def refused(folders: tuple[Path, Path], says: str, **options: Any) -> None:
    """Check that training is refused in one sentence, before its first epoch."""
    options.setdefault("changes", QUICK)
    with pytest.raises(FoveaError, match=says) as said:
        next(train(*folders, device="cpu", **options))
    sentence = str(said.value)
    assert "\n" not in sentence
    assert sentence.endswith(".")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"recipe": "soup"}, "no recipe 'soup'"),
        ({"config": "huge"}, "no configuration 'huge'"),
        ({"config": '{"width": 0}'}, "width"),
        ({"config": "[1]"}, r"no configuration"),
        ({"precision": "int4"}, "no precision 'int4'"),
        ({"val_images": Path("x")}, "give both"),
        ({"start": "retina-nuclei", "channels": 1}, "expected 1 channels"),
        ({"seed": -1}, "seed is -1"),
        ({"backbone": Path("x.pt")}, "belongs into mask-rcnn"),
        ({"recipe": "unet-small", "changes": {"loss": "soup"}}, "no loss 'soup'"),
        ({"changes": {"loss": "dice"}}, "always learns by cell cross-entropy"),
        ({"recipe": "mask-rcnn-small", "changes": {"loss": "bce"}}, "Mask R-CNN's"),
        ({"recipe": "mask-rcnn-small", "labelling": CLASSES}, "learns single objects"),
    ],
)
def test_senseless_requests_are_refused(tmp_path: Path, options, says) -> None:
    # There is nothing in the folder: it is not even read.
    refused((tmp_path, tmp_path), says, **options)


def test_every_named_loss_is_known() -> None:
    assert {recipe.loss for recipe in RECIPES.values()} <= set(LOSSES)


def test_objects_are_of_one_class() -> None:
    with pytest.raises(TrainingError, match="make one class"):
        Labelling(classes=("background", "a", "b"))
    names = ("background", "a", "b")
    assert Labelling(classes=names, from_instances=False).classes == names


def test_folders_that_do_not_match_are_refused(folders: tuple[Path, Path]) -> None:
    write(folders[0], "odd.png", np.eye(9, dtype=np.uint8))
    refused(folders, r"odd\.png in .*images have no labels in .*labels;")


def test_labels_of_one_class_alone_are_refused(folders: tuple[Path, Path]) -> None:
    labels = folders[1]
    for path in labels.iterdir():
        write(labels, path.name, np.zeros((64, 64), np.uint8))
    refused(folders, "labels of all 2 images hold background alone")
    refused(folders, "background alone", labelling=CLASSES)
    for path in labels.iterdir():
        write(labels, path.name, np.ones((64, 64), np.uint8))
    refused(folders, "hold object alone")
    refused(folders, "hold nothing alone", labelling=Labelling(ignore=1))


def test_one_image_with_both_classes_is_enough(folders: tuple[Path, Path]) -> None:
    write(folders[1], "0.png", np.zeros((64, 64), np.uint8))
    config = '{"d": 32, "r": 2, "width": 4, "units": 16}'
    event = next(train(*folders, device="cpu", changes=QUICK, config=config))
    assert event.epoch == 1


def test_an_empty_validation_folder_is_refused(
    folders: tuple[Path, Path], tmp_path: Path
) -> None:
    (tmp_path / "none").mkdir()
    none = {"val_images": tmp_path / "none", "val_labels": tmp_path / "none"}
    refused(folders, "none holds no images", **none)
    refused(folders, "none holds no images", **none | {"val_labels": folders[1]})
    gone = {"val_images": folders[0], "val_labels": tmp_path / "gone"}
    refused(folders, "gone is no folder", **gone)


@pytest.mark.parametrize("bad", ["large", "mask", "colour"])
def test_the_image_with_bad_labels_is_named(
    folders: tuple[Path, Path], bad: str
) -> None:
    square = np.zeros((64, 64), np.uint8)
    arrays = {
        "large": np.eye(65, dtype=np.uint8),
        "mask": np.eye(64, dtype=np.uint8) * 255,
        "colour": np.dstack([np.eye(64, dtype=np.uint8)] * 2 + [square]),
    }
    write(folders[1], "1.png", arrays[bad])
    refused(folders, r"^1\.tif: labels ")
    write(folders[1], "0.png", np.eye(64, dtype=np.uint8))
    refused(folders, r"^1\.tif: labels ", labelling=CLASSES)


def test_batches_that_cannot_be_divided_are_refused(
    folders: tuple[Path, Path],
) -> None:
    refused(folders, "cannot be divided into 3 equal parts", accumulate=3)


def test_an_unknown_device_is_refused(folders: tuple[Path, Path]) -> None:
    with pytest.raises(FoveaError, match="abacus"):
        next(train(*folders, device="abacus"))


def test_a_network_that_is_told_too_much_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="wings"):
        next(train(tmp_path, tmp_path, config='{"wings": 2}'))


# -- views -----------------------------------------------------------------------------

STILL = Geometry(turn=False, flip=False, rotate=0.0, zoom=(1.0, 1.0), shear=0.0)


def two_discs(shape: tuple[int, int] = (96, 96)) -> Sample:
    """An image that is bright where its labels are: objects 1 and 9."""
    y, x = np.mgrid[: shape[0], : shape[1]]
    labels = 1 * ((y - 40) ** 2 + (x - 55) ** 2 < 150)
    labels += 9 * ((y - 60) ** 2 + (x - 25) ** 2 < 150)
    return make_sample((labels > 0) * 100.0, labels, channels=1, outputs=2)


def drawn(sample: Sample, side: int | None, geometry: Geometry, n: int = 10):
    views = Views([sample], side=side, geometry=geometry)
    rng = np.random.default_rng(0)
    return [views.draw(rng) for _ in range(n)]


@pytest.mark.parametrize(
    "changes",
    [
        {"rotate": 180.0},
        {"zoom": (0.5, 2.0)},
        {"shear": 0.3},
        {"elastic": 4.0},
        {"rotate": 180.0, "zoom": (0.7, 1.5), "shear": 0.1, "elastic": 2.0},
        {"turn": True, "flip": True},
    ],
)
def test_image_and_labels_of_a_view_move_together(changes: dict[str, Any]) -> None:
    views = drawn(two_discs(), 48, replace(STILL, **changes))
    for view in views:
        assert view.image.shape == (1, 48, 48)
        assert (view.classes.dtype, view.instances.dtype) == (torch.uint8, torch.int32)
        assert torch.equal(view.classes > 0, view.instances > 0)
        assert set(view.instances.unique().tolist()) <= {0, 1, 9}
        agree = ((view.image[0] > 0.5) == (view.classes > 0)).float().mean()
        assert agree > 0.95
    # Something moved: not every view is a window of the image.
    assert len({view.image.sum().item() for view in views}) > 1


def test_the_same_generator_draws_the_same_view() -> None:
    sample = nuclei_sample()
    views = Views([sample, sample], side=48, geometry=Geometry(elastic=3), boundary=0.5)
    again = Views([sample, sample], side=48, geometry=Geometry(elastic=3), boundary=0.5)
    for seed in range(3):
        a, b = (v.draw(np.random.default_rng(seed)) for v in (views, again))
        other = views.draw(np.random.default_rng(seed + 10))
        assert torch.equal(a.image, b.image)
        assert torch.equal(a.instances, b.instances)
        assert not torch.equal(a.image, other.image)


@pytest.mark.parametrize("zoom", [0.5, 1.0, 1.5])
def test_zoom_magnifies(zoom: float) -> None:
    zooming = replace(STILL, zoom=(zoom, zoom))
    areas = []
    for view in drawn(two_discs(), 96, zooming, 20):
        # Whole discs only, not what is cut off or touches its mirror image.
        pieces = label(view.instances.numpy() == 9)
        found = regionprops(clear_border(pieces))
        areas += [d.area for d in found if d.eccentricity < 0.4]
    assert np.median(areas) == pytest.approx(471 * zoom**2, rel=0.1)


def test_a_deformation_of_nothing_is_the_window_itself() -> None:
    sample = nuclei_sample()
    view = drawn(sample, 48, replace(STILL, zoom=(1 + 1e-9,) * 2), 1)[0]
    # Where it was cut is found by what it shows.
    image, part = sample.image[0].numpy(), view.image[0].numpy()
    windows = np.lib.stride_tricks.sliding_window_view(
        np.pad(image, 48, mode="reflect"), (48, 48)
    )
    assert np.abs(windows - part).max((-2, -1)).min() < 1e-3


def test_crops_without_deformation_stay_inside_the_image() -> None:
    sample = nuclei_sample()
    windows = np.lib.stride_tricks.sliding_window_view(sample.image[0], (48, 48))
    for view in drawn(sample, 48, STILL, 3):
        assert (windows == view.image[0].numpy()).all((-2, -1)).any()


@pytest.mark.parametrize("geometry", [STILL, Geometry(elastic=2.0)])
def test_images_smaller_than_the_crop_are_mirrored(geometry: Geometry) -> None:
    small = make_sample(
        np.eye(20, 31), np.eye(20, 31, dtype=int), channels=1, outputs=2
    )
    (view,) = drawn(small, 64, geometry, 1)
    assert view.image.shape == (1, 64, 64)
    assert set(view.classes.unique().tolist()) == {0, 1}
    dot = make_sample(np.eye(1, 2), np.eye(1, 2, dtype=int), channels=1, outputs=2)
    assert drawn(dot, 16, geometry, 1)[0].image.isfinite().all()


def test_without_a_side_the_whole_image_is_shown_and_turned() -> None:
    image, labels = np.random.default_rng(0).random((20, 31)), np.eye(20, 31, dtype=int)
    sample = make_sample(image, labels, channels=1, outputs=2)
    (view,) = drawn(sample, None, STILL, 1)
    assert torch.equal(view.image, sample.image)
    assert torch.equal(view.classes, sample.classes)
    shapes = set()
    for turned in drawn(sample, None, replace(STILL, turn=True, flip=True), 20):
        shapes.add(tuple(turned.classes.shape))
        values = turned.image.flatten().sort().values
        assert torch.equal(values, view.image.flatten().sort().values)
        assert turned.classes.sum() == labels.sum()
    assert shapes == {(20, 31), (31, 20)}


def test_views_of_different_sizes_are_joined_with_void() -> None:
    a, b = (drawn(two_discs(s), None, STILL, 1)[0] for s in ((70, 96), (96, 80)))
    batch = together([a, b])
    assert batch.image.shape == (2, 1, 96, 96)
    assert torch.equal(batch.classes[0, :70], a.classes)
    assert (batch.classes[0, 70:] == VOID).all()
    assert (batch.classes[1, :, 80:] == VOID).all()
    assert torch.equal(batch.instances[1, :, :80], b.instances)
    assert not batch.instances[0, 70:].any()
    assert not batch.image[1, :, :, 80:].any()


@given(st.integers(-50, 50), st.integers(1, 60), st.integers(1, 12))
def test_counting_beyond_the_edge_is_numpys_reflection(
    start: int, count: int, length: int
) -> None:
    padded = np.pad(np.arange(length), 120, mode="reflect")
    expected = padded[120 + start : 120 + start + count]
    np.testing.assert_array_equal(_reflected(start, count, length), expected)
