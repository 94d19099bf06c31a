"""What was painted, read as classes and divided into strokes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from napari_fovea.errors import TrainingError
from napari_fovea.models import Model
from napari_fovea.training.guard import strokes_of
from napari_fovea.training.painted import (
    BLOCKS,
    Annotation,
    Painted,
    block_of,
    number_strokes,
    read_painted,
)
from napari_fovea.training.samples import VOID
from small_networks import tiny

NUCLEI = ("background", "nucleus")


@pytest.fixture(scope="module")
def model() -> Model:
    torch.manual_seed(0)
    return Model("unet", tiny("unet"), NUCLEI, (0, 1))


@pytest.fixture
def strokes(picture: np.ndarray) -> np.ndarray:
    labels = np.zeros(picture.shape, np.uint8)
    labels[3, 30:50], labels[65, 30:50] = 1, 1
    labels[15, 16:25], labels[40, 56:65] = 2, 2
    return labels


# -- reading -------------------------------------------------------------------------


def test_strokes_are_read_as_classes(
    picture: np.ndarray, strokes: np.ndarray, model: Model
) -> None:
    painted = read_painted([Annotation(picture, strokes, "a")], model)
    assert painted.classes == NUCLEI
    assert painted.numbers == (1, 2)
    assert not painted.complete
    assert painted.pixels() == {"background": 40, "nucleus": 18}
    assert painted.strokes() == {"background": 2, "nucleus": 2}
    (plane,) = painted.planes
    assert plane.key == ("a", 0)
    assert plane.image.shape == (3, 70, 90)
    assert plane.instances is None
    np.testing.assert_array_equal(plane.classes == VOID, strokes == 0)
    np.testing.assert_array_equal(plane.classes == 1, strokes == 2)
    np.testing.assert_array_equal(plane.strokes > 0, strokes > 0)
    assert plane.stroke_classes() == {1: 0, 2: 0, 3: 1, 4: 1}


def test_colours_and_gray_are_read(
    picture: np.ndarray, strokes: np.ndarray, model: Model
) -> None:
    colour = np.stack([picture, 255 - picture, picture // 2], axis=-1)
    for rgb in (None, True):
        plane = read_painted([Annotation(colour, strokes, rgb=rgb)], model).planes[0]
        assert plane.image.shape == (3, 70, 90)
        assert not torch.equal(plane.image[0], plane.image[1])
    gray = read_painted([Annotation(picture, strokes, rgb=False)], model).planes[0]
    assert torch.equal(gray.image[0], gray.image[2])
    alpha = np.concatenate([colour, np.full((70, 90, 1), 255, np.uint8)], axis=-1)
    plane = read_painted([Annotation(alpha, strokes)], model).planes[0]
    assert plane.image.shape == (3, 70, 90)


def test_only_painted_planes_of_a_stack_are_read(
    picture: np.ndarray, strokes: np.ndarray, model: Model
) -> None:
    stack = np.stack([picture, picture // 2, picture[::-1], 0 * picture])
    labels = np.zeros(stack.shape, np.int64)
    labels[0], labels[2] = strokes, strokes[::-1]
    painted = read_painted([Annotation(stack, labels, "s")], model)
    assert [p.key for p in painted.planes] == [("s", 0), ("s", 2)]
    assert painted.strokes() == {"background": 4, "nucleus": 4}
    # One scale for the whole stack.
    alone = read_painted([Annotation(picture, strokes)], model).planes[0].image
    assert not torch.equal(painted.planes[0].image, alone)
    labels[:, 0, 0] = 1
    colour = np.repeat(stack[..., None], 3, axis=-1)
    painted = read_painted([Annotation(colour, labels, "s")], model)
    assert [p.key[1] for p in painted.planes] == [0, 1, 2, 3]


def test_a_class_may_be_painted_on_another_plane(
    picture: np.ndarray, strokes: np.ndarray, model: Model
) -> None:
    first, second = np.where(strokes == 1, 1, 0), np.where(strokes == 2, 2, 0)
    painted = read_painted(
        [Annotation(picture, first, "a"), Annotation(picture, second, "b")], model
    )
    assert [p.pixels() for p in [painted]] == [{"background": 40, "nucleus": 18}]


@pytest.mark.parametrize(
    ("painted", "names", "classes", "numbers"),
    [
        ((3, 7), None, NUCLEI, (3, 7)),
        ((1, 2, 5), None, ("background", "class 2", "class 5"), (1, 2, 5)),
        ((1, 2), {2: "b", 1: "a"}, ("a", "b"), (1, 2)),
        ((1, 2), {1: "a", 2: "b", 9: "c"}, ("a", "b", "c"), (1, 2, 9)),
    ],
)
def test_numbers_become_classes(
    picture: np.ndarray,
    model: Model,
    painted: tuple[int, ...],
    names: dict[int, str] | None,
    classes: tuple[str, ...],
    numbers: tuple[int, ...],
) -> None:
    labels = np.zeros(picture.shape, np.int32)
    for i, number in enumerate(painted):
        labels[5 * i, :4] = number
    found = read_painted([Annotation(picture, labels)], model, names=names)
    assert (found.classes, found.numbers) == (classes, numbers)
    plane = found.planes[0]
    for i, number in enumerate(painted):
        assert (plane.classes[5 * i, :4] == numbers.index(number)).all()


def test_names_of_nothing_leave_unpainted_pixels_unknown(
    picture: np.ndarray, strokes: np.ndarray, model: Model
) -> None:
    names = {0: "unpainted", 1: "background", 2: "nucleus"}
    try:
        painted = read_painted([Annotation(picture, strokes)], model, names=names)
    except TrainingError:
        return
    assert sum(painted.pixels().values()) == (strokes > 0).sum()


def test_complete_labels_are_cut_in_blocks(picture: np.ndarray, model: Model) -> None:
    labels = (picture > 120).astype(np.uint8)
    one = Annotation(picture, labels, unpainted=False)
    painted = read_painted([one], model)
    assert painted.complete
    assert painted.classes == NUCLEI
    plane = painted.planes[0]
    assert (plane.classes == labels).all()
    for stroke, c in plane.stroke_classes().items():
        rows, columns = np.nonzero(plane.strokes == stroke)
        i, j = block_of(stroke)
        assert (rows * BLOCKS // 70 == i).all()
        assert (columns * BLOCKS // 90 == j).all()
        assert (labels[rows, columns] == c).all()
    assert painted.strokes()["background"] == BLOCKS**2
    assert sum(painted.pixels().values()) == 70 * 90


def test_objects_keep_their_numbers(picture: np.ndarray, model: Model) -> None:
    labels = np.zeros(picture.shape, np.uint16)
    labels[5:20, 5:20], labels[30:40, 40:60] = 300, 7
    one = Annotation(picture, labels, unpainted=False, objects=True)
    painted = read_painted([one], model)
    plane = painted.planes[0]
    assert painted.numbers == (0, 1)
    np.testing.assert_array_equal(plane.instances, labels)
    np.testing.assert_array_equal(plane.classes, labels > 0)


def test_many_objects_are_no_classes(picture: np.ndarray, model: Model) -> None:
    labels = np.arange(picture.size).reshape(picture.shape)
    one = Annotation(picture, labels, unpainted=False, objects=True)
    assert read_painted([one], model).classes == NUCLEI


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int8, np.uint64])
def test_any_whole_numbers_are_read(
    picture: np.ndarray, model: Model, dtype: Any
) -> None:
    labels = (picture > 120).astype(dtype)
    one = Annotation(picture, labels, unpainted=False)
    assert read_painted([one], model).pixels()["nucleus"] == (picture > 120).sum()


def test_images_of_one_name_are_not_mixed_up(
    picture: np.ndarray, strokes: np.ndarray, model: Model
) -> None:
    pair = [
        Annotation(picture, strokes),
        Annotation(picture[::-1].copy(), strokes[::-1].copy()),
    ]
    try:
        painted = read_painted(pair, model)
    except TrainingError:
        return
    assert len({p.key for p in painted.planes}) == 2
    strokes_found = strokes_of(painted.planes)
    assert len(set(strokes_found)) == len(strokes_found)


def test_labels_are_left_alone(
    picture: np.ndarray, strokes: np.ndarray, model: Model
) -> None:
    image, labels = picture.copy(), strokes.copy()
    image.flags.writeable = labels.flags.writeable = False
    read_painted([Annotation(image, labels)], model)
    assert (image == picture).all()
    assert (labels == strokes).all()


# -- what cannot be used -------------------------------------------------------------


def bad(picture: np.ndarray, strokes: np.ndarray) -> dict[str, Annotation]:
    numbers = np.arange(1, picture.size + 1).reshape(picture.shape)
    nan = picture.astype(np.float32)
    nan[0, 0] = np.nan
    flat = np.zeros_like(picture)
    return {
        r"\(5, 90\).*\(70, 90\)": Annotation(picture, strokes[:5], "a"),
        r"\(70, 90, 3\)": Annotation(picture, np.repeat(strokes[..., None], 3, -1)),
        r"\(70, 90\).*\(70, 90, 3\)": Annotation(
            np.repeat(picture[..., None], 3, -1), strokes, "a", rgb=False
        ),
        "float32.*whole numbers": Annotation(picture, strokes.astype(np.float32)),
        "labels hold -1": Annotation(picture, strokes.astype(np.int16) - 1),
        "Only one class.*background": Annotation(picture, np.minimum(strokes, 1)),
        "Nothing is painted": Annotation(picture, 0 * strokes),
        "Strokes cannot tell objects": Annotation(picture, strokes, objects=True),
        "at most 255": Annotation(picture, numbers),
        "NaN": Annotation(nan, strokes),
        "constant": Annotation(flat, strokes),
        "empty|Nothing is painted": Annotation(picture[:0], strokes[:0]),
        "channels": Annotation(np.repeat(picture[..., None], 2, -1), strokes, rgb=True),
        "<U1|expected numbers": Annotation(picture.astype(str), strokes),
    }


@pytest.mark.parametrize("says", bad(np.zeros((70, 90)), np.zeros((70, 90), int)))
def test_what_cannot_be_used_gets_one_sentence(
    says: str, picture: np.ndarray, strokes: np.ndarray, model: Model
) -> None:
    with pytest.raises(TrainingError, match=says) as caught:
        read_painted([bad(picture, strokes)[says]], model)
    assert "\n" not in str(caught.value)
    assert ": " in str(caught.value), "it says what to do"


def test_other_bad_input_gets_one_sentence_too(
    picture: np.ndarray, strokes: np.ndarray, model: Model
) -> None:
    one = Annotation(picture, strokes)
    with pytest.raises(TrainingError, match="nothing to learn from"):
        read_painted([], model)
    with pytest.raises(TrainingError, match="one kind"):
        read_painted([one, Annotation(picture, strokes, unpainted=False)], model)
    with pytest.raises(TrainingError, match=r"painted with 2.*no class.*1 \(ground\)"):
        read_painted([one], model, names={1: "ground", 3: "thing"})
    ones = Annotation(picture, np.minimum(strokes, 1))
    with pytest.raises(TrainingError, match="Only one class is painted"):
        read_painted([ones], model, names={1: "ground", 3: "thing"})
    whole = Annotation(picture, 0 * strokes, unpainted=False)
    with pytest.raises(TrainingError, match=r"Only one class.*background"):
        read_painted([whole], model)


def test_more_names_than_can_be_told_apart_get_a_sentence(
    picture: np.ndarray, strokes: np.ndarray, model: Model
) -> None:
    names = {i: f"class {i}" for i in range(1, 300)}
    with pytest.raises(TrainingError, match="255"):
        read_painted([Annotation(picture, strokes)], model, names=names)


# -- strokes -------------------------------------------------------------------------


def flooded(classes: np.ndarray) -> list[tuple[int, frozenset[tuple[int, int]]]]:
    """Connected pieces of each class, by a flood fill."""
    left = {tuple(p) for p in np.argwhere(classes != VOID).tolist()}
    pieces = []
    while left:
        start = left.pop()
        c, piece, edge = classes[start], {start}, [start]
        while edge:
            y, x = edge.pop()
            for near in [(y + i, x + j) for i in (-1, 0, 1) for j in (-1, 0, 1)]:
                if near in left and classes[near] == c:
                    left.remove(near)
                    piece.add(near)
                    edge.append(near)
        pieces.append((int(c), frozenset(piece)))
    return pieces


images = arrays.arrays(
    np.uint8,
    arrays.array_shapes(min_dims=2, max_dims=2, max_side=9),
    elements=st.sampled_from([0, 1, 2, 254, VOID, VOID]),
)


@settings(max_examples=80, deadline=None)
@given(images)
def test_strokes_are_connected_pieces_of_one_class(classes: np.ndarray) -> None:
    strokes = number_strokes(classes)
    assert strokes.dtype == np.int32
    assert ((strokes > 0) == (classes != VOID)).all()
    count = strokes.max(initial=0)
    found = {
        frozenset(map(tuple, np.argwhere(strokes == n).tolist()))
        for n in range(1, count + 1)
    }
    expected = flooded(classes)
    assert found == {piece for _, piece in expected}
    assert count == len(expected)


@settings(max_examples=50, deadline=None)
@given(images)
def test_blocks_hold_one_class_of_one_place(classes: np.ndarray) -> None:
    strokes = number_strokes(classes, blocks=True)
    assert ((strokes > 0) == (classes != VOID)).all()
    height, width = classes.shape
    seen: dict[int, tuple[int, int, int]] = {}
    for y, x in np.argwhere(strokes > 0).tolist():
        place = (y * BLOCKS // height, x * BLOCKS // width, int(classes[y, x]))
        assert seen.setdefault(int(strokes[y, x]), place) == place
        assert block_of(int(strokes[y, x])) == place[:2]
    assert len(set(seen.values())) == len(seen)


def test_counts_are_sums_over_planes() -> None:
    empty = Painted((), NUCLEI, (1, 2), False)
    assert empty.pixels() == empty.strokes() == {"background": 0, "nucleus": 0}
