"""Shared by all tests: small models, and real images where they exist."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from napari_fovea.models import Model
from napari_fovea.networks import build
from napari_fovea.training.painted import Annotation

DATA = Path(__file__).parents[2] / "shared" / "data"


def pytest_configure() -> None:
    """Give each of several workers, and the programs it starts, its own cores."""
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 1))
    if workers > 1:
        threads = max(1, torch.get_num_threads() // workers)
        torch.set_num_threads(threads)
        os.environ["OMP_NUM_THREADS"] = str(threads)


@pytest.hookimpl(tryfirst=True)  # xdist reads the groups in this same hook
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Open windows in one worker, one after the other: they compete for the focus."""
    for item in items:
        if "make_napari_viewer_proxy" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.xdist_group("window"))


@pytest.fixture(scope="session")
def nuclei() -> Path:
    folder = DATA / "nuclei"
    if not folder.is_dir():
        pytest.skip("the nuclei images are not on this machine")
    return folder


@pytest.fixture(autouse=True)
def _same_chance() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _own_home(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No test sees the developer's own models, unfinished work and preferences."""
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("NAPARI_FOVEA_HOME", str(home))
    settings = sys.modules.get("napari.settings")
    if settings is not None:
        monkeypatch.setattr(settings, "_CFG_PATH", str(home / "settings.yaml"))
        settings._PLUGIN_SETTINGS.clear()


def tiny_model(
    *, channels: int = 3, outputs: int = 3, d: int = 32, r: int = 2, norm: bool = True
) -> Model:
    """A network of random weights whose outputs depend on the image."""
    settings = {
        "channels": channels,
        "classes": outputs,
        "d": d,
        "r": r,
        "width": 4,
        "units": 16,
        "norm": norm,
    }
    network = build("retina-vgg", settings)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 1.5)
    torch.nn.init.normal_(network.head[-1].weight, std=0.5)
    deep = outputs == 3
    return Model(
        name="tiny",
        network=network.eval().requires_grad_(False),
        classes=("background", "nucleus")
        if deep
        else ("background", *(f"class {i}" for i in range(1, outputs))),
        outputs=(0, 1, 1) if deep else tuple(range(outputs)),
        depths=(0.0, 0.25, 0.75) if deep else None,
        object_diameter=12.0,
        provenance={"data": "nothing"},
    )


@pytest.fixture
def tiny() -> Model:
    return tiny_model()


@pytest.fixture
def tiny_file(tiny: Model, tmp_path: Path) -> Path:
    path = tmp_path / "tiny.safetensors"
    tiny.save(path)
    return path


@pytest.fixture
def picture() -> np.ndarray:
    """Bright discs on a dark ground, 8 bit."""
    y, x = np.mgrid[:70, :90]
    discs = sum(
        ((y - cy) ** 2 + (x - cx) ** 2 < 49).astype(int)
        for cy, cx in ((15, 20), (40, 60), (55, 25))
    )
    rng = np.random.default_rng(0)
    return (40 + 150 * discs + rng.integers(0, 20, (70, 90))).astype(np.uint8)


@pytest.fixture
def strokes(picture: np.ndarray) -> np.ndarray:
    labels = np.zeros(picture.shape, np.uint8)
    for y, x in ((15, 20), (40, 60), (55, 25)):
        labels[y, x - 4 : x + 5] = 2
        labels[y + 3, x - 3 : x + 4] = 2
    for y in (3, 28, 66):
        labels[y, 32:50], labels[y, 75:88] = 1, 1
    return labels


@pytest.fixture
def one(picture: np.ndarray, strokes: np.ndarray) -> Annotation:
    return Annotation(picture, strokes)
