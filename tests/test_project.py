"""Projects: which image strokes are of, and folders that hold the work."""

from __future__ import annotations

import io
import json
import resource
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from conftest import tiny_model
from kept_work import (
    IMAGE,
    content,
    equal,
    full,
    step,
    strokes,
    weights,
    work,
)
from napari_fovea.errors import ProjectError
from napari_fovea.models import DEFAULT, Model
from napari_fovea.project import (
    Project,
    Strokes,
    identify,
    load_step,
    open_project,
    same,
    save_project,
    step_file,
)

# --- images ---------------------------------------------------------------------------


def test_an_image_is_known_again_by_its_values() -> None:
    rng = np.random.default_rng(0)
    data = rng.integers(0, 4000, (3, 40, 50), dtype=np.uint16)
    first = identify(data, "a", Path("/data/a.tif"))
    assert first.path == "/data/a.tif"
    assert first.shape == (3, 40, 50)
    again = identify(data.astype(">u2"), "b")
    assert again != first
    assert same(first, again)
    other = data.copy()
    other[1, 2, 3] += 1
    assert not same(first, identify(other, "a"))
    assert not same(first, identify(data.reshape(3, 50, 40), "a"))
    assert not same(first, identify(data.astype(np.uint32), "a"))


@pytest.mark.parametrize(
    "shape",
    [(3000, 2000), (40, 600, 700), (2000, 1500, 3), (5, 4, 600, 700), (1, 9**7)],
)
def test_of_large_images_a_sample_is_read(shape: tuple[int, ...]) -> None:
    class Lazy:
        def __init__(self, data: np.ndarray) -> None:
            self.data, self.shape, self.dtype = data, data.shape, data.dtype
            self.read: np.ndarray

        def __getitem__(self, index: tuple[slice, ...]) -> np.ndarray:
            self.read = self.data[index]
            return self.read

    lazy = Lazy(np.random.default_rng(0).integers(0, 255, shape, dtype=np.uint8))
    assert same(identify(lazy, "lazy"), identify(lazy.data, "whole"))
    assert 2**17 <= lazy.read.size <= 2**20
    if len(shape) > 2 and shape[-1] > 3:
        assert np.prod(lazy.read.shape[:-2]) <= 16


def test_images_without_pixels_and_names_json_cannot_hold(tmp_path: Path) -> None:
    odd = identify(np.zeros((0, 4)), "caf\udce9", "/x/caf\udce9.tif")
    project = Project("caf\udce9", (Strokes(odd, "\udce9", np.zeros((0, 4), int)),))
    save_project(tmp_path, project, {})
    assert open_project(tmp_path).strokes[0].image == odd


# --- projects -------------------------------------------------------------------------


def test_a_project_comes_back_as_it_was(tiny: Model, tmp_path: Path) -> None:
    folder = tmp_path / "new" / "project"
    save_project(folder, work(), {"models/001.safetensors": tiny})
    assert equal(open_project(folder), work())
    np.testing.assert_array_equal(
        weights(load_step(folder, work().steps[1])), weights(tiny)
    )
    assert load_step(folder, work().steps[0]).name == DEFAULT
    assert step_file(folder, work().steps[1]).parent == folder / "models"
    with pytest.raises(ProjectError, match="no model of step 'step 7'"):
        load_step(folder, step(7))


@settings(max_examples=60, deadline=None)
@given(
    labels=st.one_of(
        hnp.arrays(
            hnp.integer_dtypes(endianness="?") | hnp.unsigned_integer_dtypes(),
            hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=9),
        ),
        # More than 256 and 65536 pixels, few of them painted.
        hnp.arrays(
            np.int16, st.sampled_from([(17, 16), (5, 130, 140)]), fill=st.just(0)
        ),
    )
)
def test_strokes_come_back_whatever_their_shape_and_type(
    labels: np.ndarray, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("strokes")
    save_project(folder, Project("", (Strokes(IMAGE, "l", labels),)), {})
    (found,) = open_project(folder).strokes
    assert found.labels.dtype == labels.dtype
    np.testing.assert_array_equal(found.labels, labels)


def test_files_hold_only_what_is_painted(tmp_path: Path) -> None:
    labels = np.zeros((64, 2048, 2048), np.uint8)
    labels[3, 100:200, 100:200] = 2
    save_project(tmp_path, Project("", (Strokes(IMAGE, "l", labels),)), {})
    assert sum(p.stat().st_size for p in tmp_path.rglob("*.npz")) < 100_000


def test_saving_again_keeps_models_and_removes_what_is_no_longer_named(
    tmp_path: Path,
) -> None:
    one, two = tiny_model(), tiny_model()
    project = replace(work(), steps=(step(1), step(2)))
    save_project(
        tmp_path,
        project,
        {"models/001.safetensors": one, "models/002.safetensors": two},
    )
    (tmp_path / "models" / "mine.txt").write_text("the user's")
    (tmp_path / "strokes" / "mine.npz").write_text("the user's")
    fewer = replace(project, strokes=(strokes(7),), steps=(step(2),), current=0)
    save_project(tmp_path, fewer, {})
    assert equal(open_project(tmp_path), fewer)
    np.testing.assert_array_equal(weights(load_step(tmp_path, step(2))), weights(two))
    kept = content(tmp_path)
    assert {"models/mine.txt", "strokes/mine.npz"} < kept
    assert len(kept) == 5  # and project.json, one file of strokes, one model


def test_models_are_copied_to_another_folder(tiny: Model, tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    save_project(here, work(), {"models/001.safetensors": tiny})
    save_project(there, work(2), {}, source=here)
    assert equal(open_project(there), work(2))
    assert weights(load_step(there, step(1))).size
    with pytest.raises(ProjectError, match="no project"):
        save_project(tmp_path / "nowhere", work(), {})
    assert not (tmp_path / "nowhere").exists()


def test_a_model_of_the_same_name_takes_the_place_of_the_old_one(
    tmp_path: Path,
) -> None:
    old, new = tiny_model(), tiny_model()
    save_project(tmp_path, work(), {"models/001.safetensors": old})
    save_project(tmp_path, work(), {"models/001.safetensors": new})
    np.testing.assert_array_equal(weights(load_step(tmp_path, step(1))), weights(new))
    save_project(tmp_path, work(), {})
    np.testing.assert_array_equal(weights(load_step(tmp_path, step(1))), weights(new))
    assert len(list((tmp_path / "models").iterdir())) == 1


@pytest.mark.parametrize("writes", range(4))
def test_a_write_that_fails_leaves_the_old_project(
    writes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = tiny_model(), tiny_model()
    save_project(tmp_path, work(), {"models/001.safetensors": old})
    before = content(tmp_path)
    done = 0
    replaces = Path.replace

    def failing(self: Path, target: Path) -> Path:
        nonlocal done
        done += 1
        if done > writes:
            full()
        return replaces(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", failing)
        with pytest.raises(ProjectError, match=r"cannot be written \(No space left"):
            save_project(tmp_path, work(5), {"models/001.safetensors": new})
    assert done == writes + 1
    assert content(tmp_path) == before
    assert equal(open_project(tmp_path), work())
    np.testing.assert_array_equal(weights(load_step(tmp_path, step(1))), weights(old))


def test_what_cannot_be_opened_again_is_not_written(
    tiny: Model, tmp_path: Path
) -> None:
    floats = replace(strokes(), labels=np.ones((8, 9)))
    inside = tmp_path / "file"
    inside.write_text("")
    for folder, project, match in (
        (tmp_path / "a", replace(work(), strokes=(floats,)), "whole numbers"),
        (tmp_path / "a", replace(work(), current=2), "current"),
        (
            tmp_path / "a",
            replace(work(), steps=(replace(step(1), date="today"),)),
            "ISO",
        ),
        (inside / "b", work(), "cannot be written"),
    ):
        with pytest.raises(ProjectError, match=match):
            save_project(folder, project, {"models/001.safetensors": tiny})
    outside = replace(step(1), file="../001.safetensors")
    with pytest.raises(ProjectError, match="file like"):
        save_project(
            tmp_path / "a",
            replace(work(), steps=(outside,), current=0),
            {"../001.safetensors": tiny},
        )
    assert content(tmp_path) == {"file"}


def test_scores_that_are_no_numbers_are_left_out(tmp_path: Path) -> None:
    odd = replace(step(1, file=False), before=float("nan"), after=np.float32(0.5))
    save_project(tmp_path, Project("", steps=(odd,)), {})
    assert open_project(tmp_path).steps == (replace(odd, before=None, after=0.5),)


# --- hostile and damaged files --------------------------------------------------------


@pytest.fixture
def saved(tiny: Model, tmp_path: Path) -> Path:
    folder = tmp_path / "project"
    save_project(folder, work(), {"models/001.safetensors": tiny})
    return folder


def rewrite(folder: Path, change: object) -> None:
    path = folder / "project.json"
    raw = json.loads(path.read_text())
    change(raw)
    path.write_text(json.dumps(raw))


def test_what_is_no_project(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(ProjectError, match="no project"):
        open_project(tmp_path)
    rewrite(saved, lambda raw: raw.update(format=2))
    for act in (open_project, lambda f: save_project(f, Project(""), {})):
        with pytest.raises(ProjectError, match="update napari-fovea"):
            act(saved)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "3", '{"format": null}', "[" * 100_000, "\xff"]
)
def test_project_json_that_is_damaged(saved: Path, text: str) -> None:
    (saved / "project.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(ProjectError, match="damaged"):
        open_project(saved)
    save_project(saved, Project("new"), {})
    assert open_project(saved) == Project("new")


@pytest.mark.parametrize(
    "change",
    [
        lambda raw: raw.pop("base"),
        lambda raw: raw.update(current=2),
        lambda raw: raw.update(current=-2),
        lambda raw: raw.update(classes={"one": "x"}),
        lambda raw: raw.update(settings=[]),
        lambda raw: raw["steps"][1].update(file="/etc/passwd"),
        lambda raw: raw["steps"][1].update(file="models/../../x.safetensors"),
        lambda raw: raw["steps"][1].update(file=None),
        lambda raw: raw["steps"][1]["step"].update(file="../x.safetensors"),
        lambda raw: raw["steps"][1]["step"].update(mode="magic"),
        lambda raw: raw["steps"][1]["step"].update(date="yesterday"),
        lambda raw: raw["steps"][1]["step"].update(after=float("inf")),
        lambda raw: raw["strokes"][0].update(dtype="|O"),
        lambda raw: raw["strokes"][0].update(dtype="<f4"),
        lambda raw: raw["strokes"][0].update(shape=[8, -9]),
        lambda raw: raw["strokes"][0].update(shape=[2**20, 2**20]),
        lambda raw: [s.update(shape=[2**17, 2**17]) for s in raw["strokes"]],
        lambda raw: raw["strokes"][0].update(shape=[8, 10]),
        lambda raw: raw["strokes"][0].update(shape=[0, 9]),
        lambda raw: raw["strokes"][0].update(dtype="<i8"),
        lambda raw: raw["strokes"][0]["parts"][0].update(plane=[8]),
        lambda raw: raw["strokes"][0]["parts"][0].update(plane=[0]),
        lambda raw: raw["strokes"][0]["parts"][0].update(file="/dev/zero"),
        lambda raw: raw["strokes"][0]["parts"][0].update(file="strokes/../x.npz"),
        lambda raw: raw["strokes"][0]["parts"][0].update(file="strokes/999.npz"),
    ],
)
def test_project_json_that_is_hostile(saved: Path, change: object) -> None:
    rewrite(saved, change)
    with pytest.raises(ProjectError):
        open_project(saved)


def npz(**arrays: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.savez_compressed(stream, **arrays)
    return stream.getvalue()


def bomb() -> bytes:
    """Claim more values than there are pixels, and hold none of them."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as file:
        for name in ("indices", "values", "shape"):
            head = io.BytesIO()
            np.lib.format.write_array_header_1_0(
                head, {"descr": "<i4", "fortran_order": False, "shape": (2**40,)}
            )
            file.writestr(f"{name}.npy", head.getvalue())
    return stream.getvalue()


GOOD = {
    "indices": np.array([3], np.uint8),
    "values": np.array([1], np.int32),
    "shape": np.array([8, 9]),
}


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"no archive",
        npz(**GOOD)[:-40],
        npz(),
        npz(**GOOD | {"indices": np.array([72], np.uint8)}),
        npz(**GOOD | {"indices": np.array([-1], np.int8)}),
        npz(**GOOD | {"indices": np.array([1, 2], np.uint8)}),
        npz(**GOOD | {"indices": np.array([[1]], np.uint8)}),
        npz(**GOOD | {"indices": np.array([1.0])}),
        npz(**GOOD | {"values": np.array([1], np.int64)}),
        npz(**GOOD | {"values": np.array([1.0], np.float32)}),
        npz(**GOOD | {"values": np.array([{}], object)}),
        npz(**GOOD | {"shape": np.array([9, 8])}),
        npz(**GOOD | {"shape": np.array([72])}),
        bomb(),
    ],
)
def test_strokes_that_are_damaged(saved: Path, raw: bytes) -> None:
    path = sorted((saved / "strokes").iterdir())[0]
    path.write_bytes(npz(**GOOD))
    assert open_project(saved).strokes[0].labels.sum() == 1
    path.write_bytes(raw)
    with pytest.raises(ProjectError, match=r"damaged.*get the project again"):
        open_project(saved)


def test_labels_of_zeros_take_no_memory(saved: Path) -> None:
    def large(raw: dict) -> None:
        raw["strokes"] = raw["strokes"][:1]
        raw["strokes"][0].update(shape=[2**17, 2**17], dtype="|u1")

    rewrite(saved, large)
    path = next((saved / "strokes").iterdir())
    path.write_bytes(
        npz(
            indices=np.array([2**34 - 1], np.uint64),
            values=np.array([5], np.uint8),
            shape=np.array([2**17, 2**17]),
        )
    )
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        project = open_project(saved)
    except ProjectError:
        pytest.skip("this machine promises no more memory than it has")
    assert project.strokes[0].labels[-1, -1] == 5
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**20  # KiB


def test_links_lead_nowhere(saved: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    (saved / "models").rename(outside)
    (saved / "models").symlink_to(outside)
    before = content(outside)
    with pytest.raises(ProjectError, match="outside"):
        open_project(saved)
    with pytest.raises(ProjectError):
        save_project(saved, work(), {"models/001.safetensors": tiny_model()})
    assert content(outside) == before
