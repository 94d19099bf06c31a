"""Docks open at once: what takes long to import is imported in a thread, or later."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

import numpy as np

from conftest import tiny_model
from napari_fovea import complete, segment
from napari_fovea.models import Entry, Model
from napari_fovea.models.checkpoint import read_header
from napari_fovea.widgets.session import Session

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

OPENING = """
import importlib, json, os, sys, threading, time
from npe2 import PluginManifest
from qtpy.QtWidgets import QApplication
from napari.components import ViewerModel

heavy = {"torch", "monai", "lightning", "pandas", "pyqtgraph", "skimage.measure"}
threads = []

class Watch:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            threads.append(threading.current_thread() is threading.main_thread())

sys.meta_path.insert(0, Watch())
app = QApplication([])
before = set(sys.modules)
viewer = ViewerModel()
manifest = PluginManifest.from_distribution("napari-fovea")
commands = manifest.contributions.commands
docks = {}
for widget in manifest.contributions.widgets:
    (path,) = {c.python_name for c in commands if c.id == widget.command}
    module, name = path.split(":")
    docks[name] = getattr(importlib.import_module(module), name)(viewer)
opened = sorted(heavy & (set(sys.modules) - before))
model = docks["ModelDock"]
until = time.monotonic() + 120
while not model.session.entries and time.monotonic() < until:
    app.processEvents()
print(json.dumps([sorted(docks), opened, threads, len(model.session.entries)]))
sys.stdout.flush()
os._exit(0)  # the session's jobs may still be at work
"""


def test_docks_open_without_what_is_slow_to_import() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", OPENING],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    docks, opened, main_thread, entries = json.loads(done.stdout.splitlines()[-1])
    assert len(docks) == 5
    assert opened == []
    assert main_thread == [False]  # and models are listed by a job
    assert entries >= 5


def entry(path: Path) -> Entry:
    return Entry(path, read_header(path))


def test_the_last_models_stay_loaded(
    tiny_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [tmp_path / f"{i}.safetensors" for i in range(4)]
    for file in files:
        shutil.copy(tiny_file, file)
    first, *others = map(entry, files)
    shared = Session()
    models = {e.path: shared.load(e) for e in (first, *others[:2])}
    read: list[Path] = []
    load = Model.load
    monkeypatch.setattr(Model, "load", lambda p: read.append(p) or load(p))
    for one in (others[0], first, others[1], first):
        assert shared.load(one) is models[one.path]
    assert not read
    shared.load(others[2])  # the one that was not used for longest goes
    assert shared.load(first) is models[first.path]
    assert read == [others[2].path]
    assert shared.load(others[0]) is not models[others[0].path]


def test_a_model_that_was_trained_anew_is_read_again(
    tiny_file: Path, picture: np.ndarray
) -> None:
    shared = Session()
    chosen = entry(tiny_file)
    before = shared.load(chosen)
    earlier = tiny_file.stat().st_mtime_ns
    tiny_model().save(tiny_file)  # other random weights
    os.utime(tiny_file, ns=(earlier + 1_000_000,) * 2)
    after = shared.load(chosen)
    assert after is not before
    maps = [
        complete(segment(picture, m, budget=5)).probabilities for m in (before, after)
    ]
    assert not np.array_equal(*maps)
