"""Work in progress: projects, journals, and the user's own models."""

from __future__ import annotations

import errno
import io
import json
import os
import resource
import signal
import subprocess
import sys
import time
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from conftest import tiny_model
from napari_fovea import files
from napari_fovea.errors import FoveaError, ModelError, ProjectError
from napari_fovea.files import home
from napari_fovea.models import DEFAULT, Model
from napari_fovea.models.zoo import entries, keep, shipped
from napari_fovea.project import (
    ImageId,
    Journal,
    Project,
    Step,
    Strokes,
    discard,
    identify,
    journal,
    journals,
    load_step,
    open_project,
    prune,
    same,
    save_project,
    step_file,
    unfinished,
    writer,
)

DATE = "2024-05-06T07:08:09"
IMAGE = ImageId("cells", (8, 9), "uint8", "0" * 64)


def painted(value: int = 1, shape: tuple[int, ...] = (8, 9)) -> np.ndarray:
    labels = np.zeros(shape, np.int32)
    labels[..., 2:4, 3:5] = value
    return labels


def strokes(value: int = 1) -> Strokes:
    return Strokes(IMAGE, "strokes", painted(value))


def step(number: int, *, file: bool = True) -> Step:
    name = f"models/{number:03}.safetensors" if file else None
    return Step(f"step {number}", "instant", 0.5, 0.75, DATE, name)


def work(value: int = 1) -> Project:
    return Project(
        base=DEFAULT,
        strokes=(strokes(value), replace(strokes(2), layer="more")),
        classes={1: "background", 2: "nucleus"},
        settings={"mode": "instant", "seconds": 60, "deep": {"list": [1, None]}},
        steps=(Step("start", "start", None, None, DATE), step(1)),
        current=1,
    )


def equal(a: Project, b: Project) -> bool:
    for one, other in zip(a.strokes, b.strokes, strict=True):
        assert (one.image, one.layer) == (other.image, other.layer)
        assert one.labels.dtype == other.labels.dtype
        np.testing.assert_array_equal(one.labels, other.labels)
    return replace(a, strokes=()) == replace(b, strokes=())


def content(folder: Path) -> set[str]:
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}


def weights(model: Model) -> np.ndarray:
    return np.concatenate([v.numpy().ravel() for v in model.network.parameters()])


def full(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


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


# --- journals -------------------------------------------------------------------------


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "journals"


@pytest.fixture
def keeping(root: Path) -> Journal:
    made = Journal(root)
    yield made
    made.close()


def left_behind(root: Path, value: int = 1) -> Path:
    made = Journal(root)
    made.strokes("a", IMAGE, "strokes", painted(value))
    assert made.flush()
    made.close()
    return made.folder


def test_nothing_is_made_before_the_first_word(root: Path) -> None:
    made = Journal(root)
    assert made.flush()
    made.close()
    assert made.folder is None
    assert not root.exists()
    assert unfinished(root) == ()
    prune(root)
    assert not root.exists()


def test_a_journal_is_found_in_the_users_folder() -> None:
    folder = left_behind(None)
    assert folder.parent == home() / "journal"
    (found,) = unfinished()
    assert found.folder == folder
    assert abs(found.changed.timestamp() - time.time()) < 60
    discard(folder)
    discard(folder)
    assert unfinished() == ()


def test_a_journal_keeps_all_of_the_work(
    keeping: Journal, root: Path, tiny: Model, tmp_path: Path
) -> None:
    file = tmp_path / "other.safetensors"
    other = tiny_model()
    other.save(file)
    keeping.settings(DEFAULT, {1: "background"}, {"seconds": 60})
    keeping.strokes("a", IMAGE, "strokes", painted(1))
    keeping.strokes("b", IMAGE, "more", painted(2))
    keeping.strokes("c", IMAGE, "gone", painted(3))
    keeping.drop("c")
    keeping.drop("never there")
    keeping.step(Step("start", "start", None, None, DATE))
    keeping.step(step(1), tiny)
    keeping.step(step(2), file)
    keeping.current(1)
    assert keeping.flush()
    found = open_project(keeping.folder)
    assert (found.base, found.classes) == (DEFAULT, {1: "background"})
    assert found.settings == {"seconds": 60}
    assert [s.layer for s in found.strokes] == ["strokes", "more"]
    np.testing.assert_array_equal(found.strokes[1].labels, painted(2))
    assert [s.name for s in found.steps] == ["start", "step 1", "step 2"]
    assert found.current == 1
    assert load_step(keeping.folder, found.steps[0]).name == DEFAULT
    for number, model in ((1, tiny), (2, other)):
        loaded = load_step(keeping.folder, found.steps[number])
        np.testing.assert_array_equal(weights(loaded), weights(model))
    assert unfinished(root) == ()  # somebody is at it
    keeping.drop("b")
    keeping.close()
    (left,) = unfinished(root)
    assert [s.layer for s in left.project.strokes] == ["strokes"]
    # And it becomes a project like any other.
    save_project(tmp_path / "saved", left.project, {}, source=left.folder)
    assert equal(open_project(tmp_path / "saved"), left.project)


def test_the_newest_wins_and_older_files_go(keeping: Journal) -> None:
    for value in range(1, 200):
        keeping.strokes("a", IMAGE, "strokes", painted(value))
        keeping.settings("base", {}, {"value": value})
        if value % 50 == 0:
            assert keeping.flush()
    assert keeping.flush()
    found = open_project(keeping.folder)
    np.testing.assert_array_equal(found.strokes[0].labels, painted(199))
    assert found.settings == {"value": 199}
    assert len(content(keeping.folder)) == 3  # lock, project.json, strokes


@pytest.mark.parametrize("flushed", [True, False])
def test_planes_of_a_stack_are_merged(keeping: Journal, flushed: bool) -> None:
    stack = np.zeros((6, 2, 8, 9), np.int32)
    stack[1] = 3

    def told() -> None:
        assert not flushed or keeping.flush()

    keeping.strokes("a", IMAGE, "strokes", stack.copy())
    told()
    for index, value in (((1, 0), 4), ((5, 1), 5), ((1, 0), 6), ((2,), 7), ((2, 1), 8)):
        plane = np.full(stack.shape[len(index) :], value, np.int32)
        plane[..., 0] = 0
        keeping.plane("a", index, plane)
        stack[index] = plane
        told()
    keeping.plane("a", (1, 1), np.zeros((8, 9), np.int32))
    keeping.plane("a", (2,), np.zeros((2, 8, 9), np.int32))
    stack[1, 1] = stack[2] = 0
    assert keeping.flush()
    found = open_project(keeping.folder).strokes[0].labels
    np.testing.assert_array_equal(found, stack)
    keeping.strokes("a", IMAGE, "strokes", stack[:1].copy())
    assert keeping.flush()
    assert open_project(keeping.folder).strokes[0].labels.shape == (1, 2, 8, 9)
    assert len(content(keeping.folder)) == 3


def test_words_that_make_no_sense(keeping: Journal) -> None:
    with pytest.raises(KeyError):
        keeping.plane("a", (0,), painted())
    with pytest.raises(ProjectError, match="whole numbers"):
        keeping.strokes("a", IMAGE, "strokes", np.ones((8, 9)))
    keeping.strokes("a", IMAGE, "strokes", painted(shape=(3, 8, 9)))
    for index, plane in (
        ((3,), painted()),
        ((-1,), painted()),
        ((0,), painted(shape=(9, 8))),
        ((0,), painted().astype(np.int64)),
        ((0, 0, 0, 0), np.array(1, np.int32)),
    ):
        with pytest.raises(ProjectError, match="whole layer"):
            keeping.plane("a", index, plane)
    with pytest.raises(ProjectError, match="ISO"):
        keeping.step(replace(step(1), date="today"))
    with pytest.raises(TypeError):
        keeping.settings("base", {}, {"what": object()})
    assert keeping.flush()
    assert open_project(keeping.folder).steps == ()


def test_old_models_go_but_not_the_current_one(
    keeping: Journal, tiny: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "MODELS", 4)
    keeping.strokes("a", IMAGE, "strokes", painted())
    keeping.step(Step("start", "start", None, None, DATE))
    for number in range(1, 10):
        keeping.step(step(number), tiny)
        keeping.current(2 if number > 1 else 1)
        assert keeping.flush()
    found = open_project(keeping.folder)
    assert [s.name for s in found.steps] == [
        "start",
        "step 2",
        "step 7",
        "step 8",
        "step 9",
    ]
    assert found.steps[found.current].name == "step 2"
    assert len(list((keeping.folder / "models").iterdir())) == 4
    for one in found.steps[1:]:
        assert load_step(keeping.folder, one).name == "tiny"
    keeping.current(3)  # a model that has been forgotten
    assert keeping.flush()
    assert open_project(keeping.folder).current == -1


def test_only_so_many_journals_are_kept(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journals, "JOURNALS", 3)
    alive = Journal(root)
    alive.strokes("a", IMAGE, "strokes", painted())
    assert alive.flush()
    (root / "mine").mkdir()
    for value in range(1, 6):
        left_behind(root, value)
    prune(root)
    found = unfinished(root)
    assert [int(w.project.strokes[0].labels.max()) for w in found] == [5, 4]
    assert alive.folder.is_dir()
    assert (root / "mine").is_dir()
    monkeypatch.setattr(journals, "BYTES", 1)
    prune(root)
    assert [w.folder for w in unfinished(root)] == [found[0].folder]
    alive.close(discard=True)
    assert not alive.folder.exists()
    hollow = root / "20200101-000000-000000-00000000"
    hollow.mkdir()
    prune(root)
    assert not hollow.exists()


def test_only_journals_are_discarded(saved: Path, keeping: Journal) -> None:
    with pytest.raises(ProjectError, match="no journal"):
        discard(saved)
    keeping.strokes("a", IMAGE, "strokes", painted())
    assert keeping.flush()
    with pytest.raises(ProjectError, match="in use"):
        discard(keeping.folder)
    assert len(open_project(keeping.folder).strokes) == 1


def test_journals_without_strokes_or_damaged_ones_are_left_out(root: Path) -> None:
    good, bad, worse = (left_behind(root, n) for n in (1, 2, 3))
    (bad / "project.json").write_text("{")
    next((worse / "strokes").iterdir()).unlink()
    empty = Journal(root)
    empty.settings("base", {}, {})
    empty.strokes("a", IMAGE, "strokes", painted(0))
    empty.close()
    assert empty.folder.is_dir()
    assert [w.folder for w in unfinished(root)] == [good]


def test_a_full_disk_loses_nothing(
    root: Path, tiny: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal, "RETRY", 0.2)
    errors: list[str] = []

    def listener(error: str) -> None:
        errors.append(error)
        raise RuntimeError("gone")

    keeping = Journal(root, on_error=listener)
    stack = painted(1, (3, 8, 9))
    keeping.strokes("a", IMAGE, "strokes", stack)
    keeping.strokes("b", IMAGE, "more", painted(1))
    assert keeping.flush()
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", full)
        keeping.plane("a", (1,), painted(2))
        assert not keeping.flush()
        keeping.plane("a", (2,), painted(3))
        keeping.plane("a", (1,), painted(4))
        keeping.settings("base", {}, {})
        keeping.step(step(1), tiny)
        keeping.current(0)
        keeping.drop("b")
        assert not keeping.flush()
        assert "No space left on device" in keeping.error
        assert str(root) in keeping.error
        assert len(errors) == 1
        old = open_project(keeping.folder)
        np.testing.assert_array_equal(old.strokes[0].labels, stack)
        assert len(content(keeping.folder)) == 4
    deadline = time.monotonic() + 10
    while keeping.error is not None and time.monotonic() < deadline:
        time.sleep(0.05)  # it tries again by itself
    assert keeping.error is None
    found = open_project(keeping.folder)
    assert len(found.strokes) == 1
    np.testing.assert_array_equal(
        found.strokes[0].labels, np.stack([painted(1), painted(4), painted(3)])
    )
    assert found.steps[found.current].name == "step 1"
    keeping.close(discard=True)
    assert list(root.glob("2*")) == []


def test_models_that_wait_for_a_full_disk_are_few(
    root: Path, tiny: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "MODELS", 3)
    keeping = Journal(root)
    keeping.current(0)
    with monkeypatch.context() as patch:
        patch.setattr(files.tempfile, "mkstemp", full)
        for number in range(8):
            keeping.step(step(number), tiny)
        assert not keeping.flush()
    assert keeping.flush()
    found = open_project(keeping.folder)
    assert [s.name for s in found.steps] == ["step 0", "step 6", "step 7"]
    keeping.close()


def test_a_root_that_cannot_be_written(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    keeping = Journal(file / "journals")
    keeping.strokes("a", IMAGE, "strokes", painted())
    assert not keeping.flush()
    assert "Not a directory" in keeping.error
    file.unlink()
    assert keeping.flush()
    assert keeping.error is None
    keeping.close()
    keeping.strokes("a", IMAGE, "strokes", painted())  # too late, but no error
    assert not keeping.flush()
    keeping.close()


PAINTER = """
import sys, time
from pathlib import Path
import numpy as np
from napari_fovea.project import Journal, identify

root = Path(sys.argv[1])
image = np.arange(3 * 64 * 64, dtype=np.uint16).reshape(3, 64, 64)
journal = Journal(root)
labels = np.zeros(image.shape, np.uint64)
labels[0, 10, :5] = 1
journal.strokes("a", identify(image, "stack"), "strokes", labels.copy())
labels[2, 20:22] = 2
journal.plane("a", (2,), labels[2].copy())
print("painted", flush=True)
while True:
    now = int(1000 * time.time())
    journal.plane("a", (1,), np.full((64, 64), now, np.uint64))
    time.sleep(0.005)
"""


def painter(root: Path) -> subprocess.Popen:
    started = subprocess.Popen(
        [sys.executable, "-c", PAINTER, str(root)], stdout=subprocess.PIPE, text=True
    )
    assert started.stdout.readline() == "painted\n"
    return started


def test_what_was_painted_survives_a_kill(root: Path) -> None:
    first, second = painter(root), painter(root)
    try:
        time.sleep(2.5)
        assert unfinished(root) == ()  # both are alive
        killed = 1000 * time.time()
        os.kill(first.pid, signal.SIGKILL)
        first.wait()
        (found,) = unfinished(root)
        (kept,) = found.project.strokes
        image = np.arange(3 * 64 * 64, dtype=np.uint16).reshape(3, 64, 64)
        assert same(kept.image, identify(image, "again"))
        labels = np.zeros(image.shape, np.uint64)
        labels[0, 10, :5] = 1
        labels[2, 20:22] = 2
        np.testing.assert_array_equal(kept.labels[[0, 2]], labels[[0, 2]])
        assert kept.labels[1].min() == kept.labels[1].max()
        assert killed - int(kept.labels[1].max()) < 2000  # milliseconds lost
        with pytest.raises(ProjectError, match="in use"):
            discard(next(f for f in root.glob("2*") if f != found.folder))
        discard(found.folder)
        assert unfinished(root) == ()
    finally:
        for process in (first, second):
            process.kill()
            process.wait()
            process.stdout.close()
    assert len(unfinished(root)) == 1


def test_two_who_look_at_once_both_see_what_is_unfinished(root: Path) -> None:
    from concurrent.futures import ThreadPoolExecutor

    left_behind(root)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(unfinished, [root] * 40))
    assert {len(one) for one in found} == {1}


# --- the user's own models ------------------------------------------------------------


def test_where_home_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("NAPARI_FOVEA_HOME", str(tmp_path))
    assert home() == tmp_path
    monkeypatch.delenv("NAPARI_FOVEA_HOME")
    assert home().name == "napari-fovea"


def test_own_models_come_after_those_that_ship(tiny: Model) -> None:
    assert entries() == shipped()
    second = keep(replace(tiny, name="zebra"))
    first = keep(replace(tiny, name="ape"))
    (home() / "models" / "broken.safetensors").write_bytes(b"nothing")
    (home() / "models" / "notes.txt").write_text("the user's")
    assert entries() == (*shipped(), first, second)
    assert entries()[0].name == DEFAULT
    assert [e.own for e in entries()[-3:]] == [False, True, True]
    assert shipped() == entries()[:-2]
    assert Model.load("zebra").name == "zebra"
    np.testing.assert_array_equal(weights(Model.load("ape")), weights(tiny))
    with pytest.raises(ModelError, match="'ape'"):
        Model.load("bear")


def test_no_model_replaces_another(tiny: Model) -> None:
    kept = [keep(tiny), keep(tiny), keep(tiny), keep(replace(tiny, name=DEFAULT))]
    assert [e.name for e in kept] == ["tiny", "tiny 2", "tiny 3", f"{DEFAULT} 2"]
    assert len({e.path for e in kept}) == 4
    assert Model.load("tiny 2").name == "tiny 2"
    # A file that the user put there under the name of one that ships.
    file = home() / "models" / "mine.safetensors"
    replace(tiny, name=DEFAULT).save(file)
    assert [e.path for e in entries() if e.name == DEFAULT][1] == file
    assert Model.load(DEFAULT).config.model_dump() != tiny.config.model_dump()
    assert Model.load(file).config.model_dump() == tiny.config.model_dump()


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("../../etc/passwd", "etc-passwd"),
        ("Zellen für HeLa: μ=3", "Zellen fur HeLa- -3"),
        ("", "model"),
        ("細胞", "model"),
        ("x" * 500, "x" * 80),
        (".hidden", "hidden"),
    ],
)
def test_files_have_safe_names(name: str, file: str, tiny: Model) -> None:
    for number in ("", " 2"):
        entry = keep(replace(tiny, name=name))
        assert entry.path == home() / "models" / f"{file}{number}.safetensors"
        assert entry.name == (name or "model") + number
        assert Model.load(entry.name).name == entry.name


def test_a_model_that_cannot_be_kept_leaves_nothing(
    tiny: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", full)
        with pytest.raises(FoveaError, match="No space left on device"):
            keep(tiny)
    assert content(home()) == set()
    assert keep(tiny).name == "tiny"
