"""The models that ship, their cards, and what these say."""

from __future__ import annotations

import csv
import json
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

import learning
from napari_fovea import Model, complete
from napari_fovea.evaluation import CHANGES, evaluate
from napari_fovea.models import DEFAULT, Entry, shipped
from napari_fovea.training.recipes import RECIPES
from napari_fovea.training.samples import pair_files

ROOT = Path(__file__).parents[1]
CARDS = ROOT / "docs" / "models"
NAMES = [entry.name for entry in shipped()]
CARDED = [name for name in NAMES if (CARDS / f"{name}.json").is_file()]
"""Models that were evaluated; the others are of an older recipe."""

all_evaluated = pytest.mark.skipif(
    CARDED != NAMES, reason="some models were not evaluated yet"
)


def entry_of(name: str) -> Entry:
    return next(e for e in shipped() if e.name == name)


def scores_of(name: str) -> dict[str, Any]:
    return json.loads((CARDS / f"{name}.json").read_text(encoding="utf-8"))


@pytest.fixture
def zoo(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(ROOT / "tools")
    import zoo

    return zoo


@pytest.fixture
def cards(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(ROOT / "tools")
    monkeypatch.delitem(sys.modules, "cards", raising=False)
    import cards

    return cards


def test_every_system_ships_and_all_are_small() -> None:
    systems = {entry.system for entry in shipped()}
    assert systems - {"ensemble"} == {"S0", "S1", "S2", "S3", "S4"}
    networks = {entry.header.network for entry in shipped()}
    assert {"retina-vgg", "retina-shared"} <= networks
    sizes = [entry.path.stat().st_size for entry in shipped()]
    assert max(sizes) <= 12e6
    assert sum(sizes) <= 45e6


@all_evaluated
def test_the_default_is_the_best_single_model() -> None:
    alone = [name for name in CARDED if entry_of(name).system != "ensemble"]
    assert len(alone) == len(NAMES) - 1, "an ensemble ships as well"
    best = max(alone, key=lambda name: scores_of(name)["summary"]["ap"]["mean"])
    assert best == DEFAULT
    assert NAMES[0] == DEFAULT


def test_the_ensemble_is_gathered_anew_when_members_change(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, zoo: Any
) -> None:
    monkeypatch.setattr(zoo, "WEIGHTS", tmp_path)
    monkeypatch.setattr(zoo, "MEMBERS", ("unet", "focusnet"))
    path = tmp_path / f"{zoo.ENSEMBLE}.safetensors"
    member = tmp_path / "unet.safetensors"
    zoo.gather()
    assert not path.exists(), "a member is missing"
    for name in zoo.MEMBERS:
        learning.made(name).save(tmp_path / f"{name}.safetensors")
    zoo.gather()
    assert [m.name for m in Model.load(path).members] == ["unet", "focusnet"]
    first = path.stat().st_mtime_ns
    zoo.gather()
    assert path.stat().st_mtime_ns == first
    other = learning.made("r2-attention-unet")
    replace(other, name="unet").save(member)
    zoo.gather()
    assert Model.load(path).members[0].config == other.config


@pytest.mark.parametrize("name", CARDED)
def test_models_say_what_made_them_and_how_good_they_are(name: str, zoo: Any) -> None:
    header = entry_of(name).header
    made, told = header.provenance, scores_of(name)["summary"]
    assert "CC0" in made["data"]
    for key in ("dice", "ap"):
        assert made["validation"]["all"][key] == told[key]
    if header.parts:
        assert all(
            (entry_of(name).path.parent / part).is_file() for part in header.parts
        )
        return
    assert made["training_images"] == 501
    for step in reversed(zoo.recipes(name)):
        recipe = RECIPES[step]
        assert made["recipe"] == json.loads(json.dumps(asdict(recipe)))
        made = made["started_from"]
    assert made is None
    assert header.network == recipe.network
    assert header.object_diameter == recipe.diameter
    assert header.scan.diameter == "auto"


@pytest.mark.parametrize("name", CARDED)
def test_cards_hold_what_was_evaluated(name: str, cards: Any) -> None:
    text = (CARDS / f"{name}.md").read_text(encoding="utf-8")
    assert text == cards.text(name, CARDS)
    scores = scores_of(name)
    assert scores["summary"]["images"] == 99
    assert set(scores["robustness"]) == {"as they are", *CHANGES}
    for key in ("dice", "ap", "roc_auc", "cohen_kappa"):
        assert f"{scores['summary'][key]['mean']:.3f}" in text
    assert (CARDS / f"{name}.png").is_file()


@all_evaluated
def test_pages_compare_all_models(cards: Any) -> None:
    for page, table in cards.tables(CARDS).items():
        assert table in page.read_text(encoding="utf-8")
        assert all(name in table for name in CARDED)


def test_the_page_of_comparisons_holds_what_was_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And by what is compared now: runs of other recipes are not found."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import comparisons

    runs = comparisons.kept(CARDS / "comparisons.json")
    page = (CARDS / "comparisons.md").read_text(encoding="utf-8")
    assert comparisons.filled(page, runs) == page
    for name in comparisons.COMPARISONS:
        assert f"<!-- {name} -->" in page
    assert runs


@pytest.mark.parametrize("name", CARDED)
def test_an_evaluation_tells_what_the_card_says(name: str, nuclei: Path) -> None:
    """On a few small images; the whole set takes minutes."""
    told = {row["name"]: row for row in scores_of(name)["images"]}
    with (nuclei / "index.csv").open() as file:
        small = {
            row["id"]
            for row in csv.DictReader(file)
            if int(row["height"]) * int(row["width"]) <= 256 * 320
        }
    pairs = pair_files(nuclei / "val" / "images", nuclei / "val" / "labels")
    chosen = [pair for pair in pairs if pair[0].stem in small][3::40]
    assert len(chosen) in (2, 3)
    scored = complete(evaluate(Model.load(name), chosen)).images
    for image in scored:
        for key in ("dice", "precision", "recall", "roc_auc"):
            assert image.scores[key] == pytest.approx(told[image.name][key], abs=2e-3)
        assert image.scores["ap"] == pytest.approx(told[image.name]["ap"], abs=0.02)
