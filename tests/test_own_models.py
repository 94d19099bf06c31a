"""The user's own models."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from kept_work import (
    content,
    full,
    weights,
)
from napari_fovea.errors import FoveaError, ModelError
from napari_fovea.files import home
from napari_fovea.models import DEFAULT, Model
from napari_fovea.models.zoo import entries, keep, shipped

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
