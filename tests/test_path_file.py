"""Focus paths as files: what is written is read again, and rubbish is refused."""

from __future__ import annotations

import csv
import json
import struct
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from napari_fovea import complete, segment
from napari_fovea.errors import PathError
from napari_fovea.retina import (
    FUSIONS,
    FocusPath,
    Fusion,
    Recorded,
    Replay,
    RetinaGrid,
    load_path,
    save_path,
    write_table,
)
from napari_fovea.retina.path_file import FORMAT, SUFFIX

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from napari_fovea.models import Model

ARRAYS = ("corners", "entropies", "steps", "planes", "pmfs")
FIELDS = (
    *("format", "d", "r", "scale", "shape", "lead", "power", "linear"),
    *("classes", "image", "provenance"),
)
KEY = "napari_fovea_path"

# The files that hypothesis spoils are made once for all its examples.
same_file = settings(
    max_examples=100,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def some_path(n: int = 6, **fields: Any) -> FocusPath:
    rng = np.random.default_rng(7)
    grid = fields.pop("grid", RetinaGrid(16, 2))
    pmfs = rng.dirichlet(np.ones(3), (n, grid.n_cells)).astype(np.float16)
    known: dict[str, Any] = {
        "pmfs": pmfs,
        "shape": (20, 30),
        "scale": (1.5, 2 / 3),
        "fusion": FUSIONS["precision"],
        "classes": ("background", "cell", "a, b"),
    }
    return FocusPath(
        corners=rng.integers(-8, 20, (n, 2)),
        entropies=rng.random(n, dtype=np.float32),
        steps=rng.integers(1, 17, n),
        grid=grid,
        **known | fields,
    )


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A good file."""
    path = tmp_path / f"good{SUFFIX}"
    save_path(Recorded(some_path()), path)
    return path


def header(file: Path) -> dict[str, Any]:
    with safe_open(file, "np") as opened:
        return json.loads(opened.metadata()[KEY])


def refused(file: Path, match: str) -> None:
    """Expect one sentence that names the file."""
    with pytest.raises(PathError, match=match) as caught:
        load_path(file)
    message = str(caught.value)
    assert message.startswith(str(file))
    rest = message.removeprefix(str(file))
    assert rest.endswith(".")
    assert ". " not in rest
    assert "\n" not in rest
    assert len(rest) < 300


# -- writing and reading -----------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    [
        some_path(),
        some_path(0),
        some_path(pmfs=None, classes=(), shape=None),
        some_path(fusion=Fusion(0.5), scale=(0.1, 7.3), grid=RetinaGrid(64, 4)),
        some_path(lead=(2, 3), planes=np.array([0, 0, 5, 5, 1, 0])),
    ],
    ids=["whole", "empty", "without pmfs", "other settings", "stack"],
)
def test_a_path_that_was_written_is_read_again(path: FocusPath, tmp_path: Path) -> None:
    image = {"name": "Zelle µ", "shape": [20, 30], "dtype": "uint8", "digest": "0af"}
    provenance = {"model": {"name": "tiny"}, "budget": None, "seconds": 0.25}
    file = tmp_path / "made" / "for it" / f"x{SUFFIX}"
    save_path(Recorded(path, image, provenance), file)
    assert [p.name for p in file.parent.iterdir()] == [file.name]
    found = load_path(str(file))
    assert (found.image, found.provenance) == (image, provenance)
    for name in ARRAYS:
        expected, array = getattr(path, name), getattr(found.path, name)
        if expected is None:
            assert array is None
            continue
        assert array.dtype == expected.dtype
        np.testing.assert_array_equal(array, expected)
    for name in ("grid", "scale", "shape", "lead", "fusion", "classes"):
        assert getattr(found.path, name) == getattr(path, name)


def test_nothing_need_be_known_of_the_image(file: Path) -> None:
    found = load_path(file)
    assert (found.image, found.provenance) == ({}, {})


def test_what_was_read_replays_as_what_was_seen(
    tiny: Model, picture: np.ndarray, tmp_path: Path
) -> None:
    result = complete(segment(picture, tiny, budget=12))
    file = tmp_path / f"x{SUFFIX}"
    save_path(Recorded(result.path, provenance=result.provenance), file)
    found = load_path(file)
    assert found.provenance == json.loads(json.dumps(result.provenance))
    for step in (3, len(result.path) - 1):
        again, moment = (Replay(p).at(step) for p in (found.path, result.path))
        np.testing.assert_array_equal(again.probabilities, moment.probabilities)
        np.testing.assert_array_equal(again.overlap, moment.overlap)


def test_a_file_takes_the_place_of_an_older_one(file: Path) -> None:
    save_path(Recorded(some_path(2)), file)
    assert len(load_path(file).path) == 2


def test_a_file_with_more_in_it_is_read(file: Path) -> None:
    arrays, told = load_file(file), header(file) | {"mood": "good"}
    arrays["extra"] = np.zeros(3)
    save_file(arrays, file, metadata={KEY: json.dumps(told)})
    np.testing.assert_array_equal(load_path(file).path.corners, some_path().corners)


# -- failing to write --------------------------------------------------------------

writers = pytest.mark.parametrize(
    "write",
    [
        lambda file: save_path(Recorded(some_path()), file),
        lambda file: write_table(some_path(), file),
    ],
    ids=["path", "table"],
)


def everything(folder: Path) -> dict[str, bytes | None]:
    found = folder.rglob("*")
    return {str(p): p.read_bytes() if p.is_file() else None for p in found}


@writers
def test_nothing_is_left_where_the_folder_is_a_file(
    write: Callable[[Path], None], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("mine")
    before = everything(tmp_path)
    with pytest.raises(PathError, match="cannot be written"):
        write(tmp_path / "file" / "x")
    assert everything(tmp_path) == before


@writers
def test_nothing_is_left_where_the_name_is_a_folders(
    write: Callable[[Path], None], tmp_path: Path
) -> None:
    (tmp_path / "x" / "deep").mkdir(parents=True)
    before = everything(tmp_path)
    with pytest.raises(PathError, match="cannot be written"):
        write(tmp_path / "x")
    assert everything(tmp_path) == before


@pytest.mark.parametrize("written", [0, 100])
def test_an_older_file_outlives_a_full_disk(
    file: Path, monkeypatch: pytest.MonkeyPatch, written: int
) -> None:
    def full(tensors: Any, name: Path, **_: Any) -> None:
        name.write_bytes(bytes(written))
        raise OSError("No space left on device")

    before = everything(file.parent)
    monkeypatch.setattr("napari_fovea.retina.path_file.save_file", full)
    with pytest.raises(PathError, match="No space"):
        save_path(Recorded(some_path(2)), file)
    assert everything(file.parent) == before


# -- files that are refused --------------------------------------------------------


@pytest.mark.parametrize("keep", [0, 1, 7, 8, 9, 200, 0.5, 0.9, -1])
def test_a_truncated_file_is_refused(file: Path, keep: float) -> None:
    data = file.read_bytes()
    file.write_bytes(data[: int(keep * len(data)) if 0 < keep < 1 else int(keep)])
    refused(file, "truncated")


def test_other_files_are_refused(file: Path, tiny_file: Path) -> None:
    refused(tiny_file, "no focus path")
    for data in (
        np.random.default_rng(0).bytes(3000),
        bytes(3000),
        b"fixation,plane,y,x\r\n0,0,1,2\r\n",
        struct.pack("<Q", 2**63) + bytes(100),
        file.read_bytes() + b"more",
    ):
        file.write_bytes(data)
        refused(file, "no focus path")
    save_file({"x": np.zeros(2)}, file)
    refused(file, "holds no focus path")


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    refused(tmp_path / "nothing", "is no file")
    refused(tmp_path, "is no file")


def put(name: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda arrays: arrays.update({name: value(arrays[name])})


def with_value(value: float) -> Callable[[np.ndarray], np.ndarray]:
    def change(array: np.ndarray) -> np.ndarray:
        array = array.copy()
        array.flat[3] = value
        return array

    return change


@pytest.mark.parametrize(
    ("spoil", "match"),
    [
        *((lambda a, n=n: a.pop(n), f"holds no {n}") for n in ARRAYS[:-1]),
        # Types
        (put("corners", lambda a: a.astype(np.float64)), "corners are float64"),
        (put("corners", lambda a: a.astype(np.uint8)), "corners are uint8"),
        (put("steps", lambda a: a.astype(bool)), "steps are bool"),
        (put("planes", lambda a: a.astype(np.float32)), "planes are float32"),
        (put("entropies", lambda a: a.astype(np.int32)), "entropies are int32"),
        (put("entropies", lambda a: a.astype(float) * 1e300), "entropies are float64"),
        (put("pmfs", lambda a: (a * 255).astype(np.uint8)), "pmfs are uint8"),
        # Shapes
        (put("corners", lambda a: a[:, :1]), "corners"),
        (put("corners", lambda a: a[:-1]), "corners"),
        (put("corners", lambda a: a[0, 0]), "corners"),
        (put("corners", lambda a: a[None]), "corners"),
        (put("entropies", lambda a: a[:-1]), "entropies"),
        (put("entropies", lambda a: a[:, None]), "entropies"),
        (put("steps", lambda a: np.stack([a, a], 1)), "steps"),
        (put("planes", lambda a: a[0]), "planes"),
        (put("planes", lambda a: a[:, None]), "planes"),
        (put("pmfs", lambda a: a[:-1]), "pmfs"),
        (put("pmfs", lambda a: a[:, :-1]), "pmfs"),
        (put("pmfs", lambda a: a[..., 0]), "pmfs"),
        (put("pmfs", lambda a: a[0, 0, 0]), "pmfs"),
        (put("pmfs", lambda a: a[..., :0]), "pmfs"),
        (put("pmfs", lambda a: a[..., :2]), "classes"),
        # Values
        (put("entropies", with_value(np.nan)), "entropies hold NaN"),
        (put("entropies", with_value(-np.inf)), "entropies hold NaN"),
        (put("pmfs", with_value(np.nan)), "pmfs hold NaN"),
        (put("pmfs", with_value(1.01)), r"pmfs leave \[0, 1\]"),
        (put("pmfs", with_value(-0.01)), r"pmfs leave \[0, 1\]"),
        (put("planes", with_value(1)), "planes lie outside"),
        (put("planes", with_value(-1)), "planes lie outside"),
        (put("corners", with_value(-17)), "outside its image"),
        (put("corners", with_value(47)), "outside its image"),
        (put("corners", with_value(-(2**63))), "outside its image"),
        (put("corners", with_value(2**63 - 1)), "outside its image"),
    ],
)
def test_arrays_that_no_scan_made_are_refused(
    file: Path, spoil: Callable[[dict[str, Any]], None], match: str
) -> None:
    arrays, told = load_file(file), header(file)
    spoil(arrays)
    arrays = {n: np.ascontiguousarray(a).reshape(a.shape) for n, a in arrays.items()}
    save_file(arrays, file, metadata={KEY: json.dumps(told)})
    refused(file, match)


@pytest.mark.parametrize("dtype", ["BF16", "F8_E4M3", "F8_E5M2"])
def test_types_that_numpy_does_not_know_are_refused(file: Path, dtype: str) -> None:
    data = file.read_bytes()
    (size,) = struct.unpack("<Q", data[:8])
    head = json.loads(data[8 : 8 + size])
    head["pmfs"]["dtype"] = dtype
    if dtype != "BF16":
        head["pmfs"]["shape"][-1] *= 2
    text = json.dumps(head).encode()
    text += b" " * (-len(text) % 8)
    file.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + size :])
    refused(file, "expected a file that was saved")


@pytest.mark.parametrize(
    ("field", "value", "match"),
    [
        ("format", FORMAT + 1, "update napari-fovea"),
        ("format", 10**40, "update napari-fovea"),
        ("format", 0, "damaged"),
        ("format", FORMAT + 1.0, "damaged"),
        ("format", None, "damaged"),
        ("d", 20, "multiple of 8"),
        ("d", 0, "damaged"),
        ("d", 2**40, "damaged"),
        ("r", 3, "pmfs"),
        ("r", 0, "damaged"),
        ("r", 10**9, "damaged"),
        ("scale", [0, 1], "scale"),
        ("scale", [1, -1], "scale"),
        ("scale", [1, 1e300], "scale"),
        ("scale", [1, float("inf")], "damaged"),
        ("scale", [float("nan"), 1], "damaged"),
        ("scale", [10**400, 1], "damaged"),
        ("scale", [1], "damaged"),
        ("scale", None, "damaged"),
        ("shape", [0, 30], "0×30"),
        ("shape", [-20, 30], "-20×30"),
        ("shape", [20, 10**30], "pixels"),
        ("shape", [20.5, 30], "damaged"),
        ("lead", [0], "stack"),
        ("lead", [-1, -1], "stack"),
        ("lead", [10**30], "stack"),
        ("power", -1, "damaged"),
        ("power", 1e9, "damaged"),
        ("classes", ["one"], "classes"),
        ("classes", "cell", "damaged"),
        ("image", [1, 2], "damaged"),
        ("provenance", "mine", "damaged"),
    ],
)
def test_headers_that_no_scan_made_are_refused(
    file: Path, field: str, value: Any, match: str
) -> None:
    told = header(file) | {field: value}
    save_file(load_file(file), file, metadata={KEY: json.dumps(told)})
    refused(file, match)


@pytest.mark.parametrize("field", ["format", "d", "r", "scale"])
def test_a_header_without_what_it_needs_is_refused(file: Path, field: str) -> None:
    told = header(file)
    del told[field]
    save_file(load_file(file), file, metadata={KEY: json.dumps(told)})
    refused(file, "damaged header")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "no JSON",
        "[]",
        "[1, 2]",
        "null",
        "1",
        '"text"',
        "{}",
        "{",
        "[" * 100_000,
        '{"format":' * 100_000,
        '{"format": 1, "image": ' + '{"a":' * 50_000 + "1" + "}" * 50_001,
        '{"format": ' + "9" * 5000 + "}",
    ],
    ids=lambda text: text[:24] or "empty",
)
def test_a_header_that_is_none_is_refused(file: Path, text: str) -> None:
    save_file(load_file(file), file, metadata={KEY: text})
    refused(file, "damaged header")


# -- rubbish -----------------------------------------------------------------------


def read_or_refused(file: Path) -> None:
    """Expect what is read to be fit for use."""
    try:
        path = load_path(file).path
    except PathError:
        return
    assert path.centres.shape == (len(path), 2)
    assert path.of_plane(0).best_look((3, 3)) is None or len(path)
    assert path.image_shape is None or min(path.image_shape) >= 0
    write_table(path, file.with_suffix(".csv"))


@same_file
@given(data=st.data())
def test_a_file_with_wrong_bytes_is_read_or_refused(
    data: st.DataObject, file: Path
) -> None:
    save_path(Recorded(some_path(3)), file)
    content = bytearray(file.read_bytes())
    places = st.integers(0, len(content) - 1)
    for place in data.draw(st.lists(places, min_size=1, max_size=6)):
        content[place] = data.draw(st.integers(0, 255))
    if data.draw(st.booleans()):
        del content[data.draw(places) :]
    file.write_bytes(content)
    read_or_refused(file)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=4), inner, max_size=2)
    ),
    max_leaves=6,
)


@same_file
@given(
    changes=st.dictionaries(
        st.sampled_from(FIELDS),
        json_values,
        min_size=1,
        max_size=2,
    ),
    pmfs=st.booleans(),
)
def test_a_file_with_a_wrong_header_is_read_or_refused(
    changes: dict[str, Any], pmfs: bool, file: Path
) -> None:
    save_path(Recorded(some_path(3)), file)
    arrays, told = load_file(file), header(file) | changes
    if not pmfs:
        del arrays["pmfs"]
    save_file(arrays, file, metadata={KEY: json.dumps(told)})
    read_or_refused(file)


# -- the table ---------------------------------------------------------------------


def rows(file: Path) -> list[dict[str, str]]:
    with file.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


@pytest.mark.parametrize("grid", [RetinaGrid(16, 2), RetinaGrid(8, 1)])
def test_the_table_has_a_row_for_each_fixation(
    grid: RetinaGrid, tmp_path: Path
) -> None:
    classes = ("background", "cell, round", 'a "big"\none, µ')
    planes = np.array([0] * 10 + [1] * 20 + [5] * 10)
    path = some_path(40, grid=grid, lead=(6,), planes=planes, classes=classes)
    write_table(path, tmp_path / "made" / "x.csv")
    assert [p.name for p in (tmp_path / "made").iterdir()] == ["x.csv"]
    found = rows(tmp_path / "made" / "x.csv")
    assert len(found) == 40
    for i, row in enumerate(found):
        y, x = (path.corners[i] + grid.d / 2) * path.scale - 0.5
        fovea = path.pmfs[i, grid.areas == grid.areas.min()].astype(float).mean(0)
        assert list(row) == [
            *("fixation", "plane", "y", "x", "entropy", "step", "class", "probability")
        ]
        assert (int(row["fixation"]), int(row["plane"])) == (i, planes[i])
        assert float(row["y"]) == pytest.approx(y, abs=6e-4)
        assert float(row["x"]) == pytest.approx(x, abs=6e-4)
        assert float(row["entropy"]) == pytest.approx(path.entropies[i], rel=1e-5)
        assert int(row["step"]) == path.steps[i]
        assert row["class"] == classes[fovea.argmax()]
        assert float(row["probability"]) == pytest.approx(fovea.max(), abs=1e-4)
    assert {row["class"] for row in found} == set(classes)


def test_classes_without_names_have_numbers(tmp_path: Path) -> None:
    write_table(some_path(classes=()), tmp_path / "x.csv")
    path = some_path()
    for name, classes in (("named", path.classes), ("numbered", ())):
        write_table(some_path(classes=classes), tmp_path / name)
    expected = [str(path.classes.index(r["class"])) for r in rows(tmp_path / "named")]
    assert [r["class"] for r in rows(tmp_path / "numbered")] == expected


def test_a_path_without_pmfs_has_a_table_without_classes(tmp_path: Path) -> None:
    path = some_path(pmfs=None)
    write_table(path, tmp_path / "x.csv")
    found = rows(tmp_path / "x.csv")
    assert list(found[0]) == ["fixation", "plane", "y", "x", "entropy", "step"]
    assert len(found) == len(path)


@pytest.mark.parametrize("pmfs", [True, False])
def test_a_path_without_fixations_has_a_table_of_no_rows(
    tmp_path: Path, pmfs: bool
) -> None:
    path = some_path(0) if pmfs else some_path(0, pmfs=None)
    write_table(path, tmp_path / "x.csv")
    assert rows(tmp_path / "x.csv") == []
    assert (tmp_path / "x.csv").read_text().startswith("fixation,plane,y,x")
