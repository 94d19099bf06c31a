"""Journals: work that is kept as it is done, and found after a crash."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from conftest import tiny_model
from kept_work import (
    DATE,
    IMAGE,
    content,
    equal,
    full,
    painted,
    step,
    weights,
    work,
)
from napari_fovea import files
from napari_fovea.errors import ProjectError
from napari_fovea.files import home
from napari_fovea.models import DEFAULT, Model
from napari_fovea.project import (
    Journal,
    Step,
    discard,
    identify,
    journal,
    journals,
    load_step,
    open_project,
    prune,
    same,
    save_project,
    unfinished,
    writer,
)

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


def test_only_journals_are_discarded(
    tmp_path: Path, tiny: Model, keeping: Journal
) -> None:
    saved = tmp_path / "project"
    save_project(saved, work(), {"models/001.safetensors": tiny})
    with pytest.raises(ProjectError, match="no journal"):
        discard(saved)
    assert len(list(saved.rglob("*.safetensors"))) == 1
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
