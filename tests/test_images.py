"""Reading arrays: axes, channels, types, and everything that can be wrong."""

from __future__ import annotations

import numpy as np
import pytest

from napari_fovea.errors import ImageError
from napari_fovea.images import (
    Normalisation,
    axes_beside,
    guess_axes,
    read_planes,
    resize,
    to_tensor,
)


def chance(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).random(shape)


@pytest.mark.parametrize(
    ("shape", "axes"),
    [
        ((20, 30), "YX"),
        ((20, 30, 3), "YXC"),
        ((20, 30, 4), "YXC"),
        ((20, 30, 1), "YXC"),
        ((3, 20, 30), "ZYX"),
        ((20, 3, 3), "ZYX"),  # a thin stack rather than a thin colour image
        ((5, 20, 30, 3), "ZYXC"),
        ((2, 5, 20, 30), "TZYX"),
        ((2, 5, 20, 30, 3), "TZYXC"),
    ],
)
def test_axes_are_guessed(shape: tuple[int, ...], axes: str) -> None:
    assert guess_axes(shape) == axes


def test_what_the_user_says_counts_more() -> None:
    assert guess_axes((20, 30, 3), rgb=False) == "ZYX"
    assert guess_axes((20, 30, 2), rgb=True) == "YXC"
    planes = read_planes(chance(3, 20, 30), axes="CYX")
    assert len(planes) == 1
    assert planes.channels == 3
    assert planes.shape == (20, 30)


@pytest.mark.parametrize("shape", [(), (5,), (2, 2, 2, 2, 9), (1,) * 6])
def test_impossible_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ImageError, match="shape"):
        read_planes(chance(*shape))


@pytest.mark.parametrize("axes", ["YY", "XC", "YXQ", "ZYX"])
def test_axes_that_make_no_sense_are_refused(axes: str) -> None:
    with pytest.raises(ImageError, match="do not describe"):
        read_planes(chance(4, 5), axes=axes)


@pytest.mark.parametrize(
    ("image", "says"),
    [
        (np.zeros((0, 5)), "empty"),
        (np.array([[1.0, np.nan], [0, np.inf]]), "2 pixel values"),
        (np.array([["a", "b"]] * 2), "type <U1"),
        (np.array([[{}, None]] * 2), "type object"),
        (np.ones((3, 3), complex), "complex"),
    ],
)
def test_unusable_values_are_refused(image: np.ndarray, says: str) -> None:
    with pytest.raises(ImageError, match=says):
        read_planes(image)


def test_a_blank_image_is_refused_unless_it_is_one_of_many() -> None:
    for value, kind in ((0, float), (7, np.uint8)):
        planes = read_planes(np.full((5, 5), value, kind))
        with pytest.raises(ImageError, match=f"every pixel is {value}"):
            planes.for_network(1)
        blank = planes.for_network(1, blank=True)
        limits = Normalisation().limits(blank)
        tensor = to_tensor(blank.data[0], limits=limits, channels=1)
        assert (tensor == 0).all()
    # What is left without alpha counts.
    image = np.zeros((6, 6, 4), np.uint8)
    image[:3, :, 3] = 255
    with pytest.raises(ImageError, match="constant"):
        read_planes(image).for_network(3)


@pytest.mark.parametrize(
    ("shape", "axes"),
    [
        ((6, 7, 2), "YXC"),
        ((2, 6, 7), "CYX"),
        ((4, 6, 7), "CYX"),
        ((1, 6, 7), "CYX"),
        ((6, 7), None),
        ((6, 7, 9), None),
        ((9, 6, 7), None),
        ((7, 6, 3), None),
        ((2, 6, 7, 3), None),
    ],
)
def test_labels_tell_which_axis_holds_channels(shape, axes) -> None:
    assert axes_beside(shape, (6, 7)) == axes


DTYPES = [
    "bool",
    "u1",
    "u2",
    "u4",
    "u8",
    "i1",
    "i2",
    "i4",
    "i8",
    "f2",
    "f4",
    "f8",
    ">u2",
    ">f4",
]


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_numeric_type_gives_the_same_tensor(dtype: str) -> None:
    values = np.array([[0, 1, 1], [1, 0, 0]] * 4)
    image = values.astype(dtype)
    before = image.copy()
    planes = read_planes(image)
    limits = Normalisation().limits(planes)
    tensor = to_tensor(planes.data[0], limits=limits, channels=3)
    assert tensor.shape == (3, 8, 3)
    np.testing.assert_allclose(tensor, np.broadcast_to(values, (3, 8, 3)), atol=1e-5)
    np.testing.assert_array_equal(image, before)


def test_large_offsets_do_not_swallow_the_signal() -> None:
    image = np.array([[0.0, 1], [2, 3]]) + 2.0**40
    planes = read_planes(image)
    tensor = to_tensor(planes.data[0], limits=(2.0**40, 2.0**40 + 3), channels=1)
    np.testing.assert_allclose(tensor[0], [[0, 1 / 3], [2 / 3, 1]], atol=1e-6)


def test_a_read_only_image_can_be_used() -> None:
    image = np.random.default_rng(0).random((6, 6)).astype(np.float32)
    image.flags.writeable = False
    planes = read_planes(image)
    assert to_tensor(planes.data[0], limits=(0, 1), channels=1).shape == (1, 6, 6)


@pytest.mark.parametrize(
    ("have", "takes", "fits"),
    [(1, 3, True), (3, 3, True), (4, 3, True), (2, 3, False), (3, 1, False)],
)
def test_channels_fit_or_say_why(have: int, takes: int, fits: bool) -> None:
    plane = np.random.default_rng(0).random((6, 7, have))
    planes = read_planes(plane, rgb=True)
    if not fits:
        with pytest.raises(ImageError, match=f"{have} channels"):
            planes.for_network(takes)
        return
    fitted = planes.for_network(takes)
    tensor = to_tensor(fitted.data[0], limits=(0, 1), channels=takes)
    assert tensor.shape == (takes, 6, 7)


def test_limits_are_percentiles_even_of_large_images() -> None:
    rng = np.random.default_rng(0)
    small, large = rng.random((40, 50)), rng.random((3, 2000, 1500))
    low, high = Normalisation().limits(read_planes(small))
    assert (low, high) == tuple(np.percentile(small, [1, 99.8]))
    low, high = Normalisation().limits(read_planes(large))
    assert low == pytest.approx(0.01, abs=0.002)
    assert high == pytest.approx(0.998, abs=0.002)


def test_a_few_bright_pixels_are_signal_enough() -> None:
    image = np.zeros((200, 200))
    image[0, 0] = 5
    assert Normalisation().limits(read_planes(image)) == (0, 5)


def test_resizing_keeps_the_mean() -> None:
    import torch

    image = torch.rand(2, 60, 80)
    assert resize(image, (60, 80)) is image
    smaller = resize(image, (30, 40))
    assert smaller.shape == (2, 30, 40)
    assert torch.allclose(smaller.mean(), image.mean(), atol=0.01)
