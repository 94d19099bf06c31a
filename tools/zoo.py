"""Make the models that ship: train, evaluate, and write their cards.

``make zoo`` does all that is not done yet, one model after the other. Training goes on
from its last epoch. What is made lies in a folder of its own until it is finished;
then the weights go into the package, in 16 bits, and scores and card into the
documentation.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from napari_fovea.device import fast_precision, pick

ROOT = Path(__file__).parents[1]
WEIGHTS = ROOT / "src" / "napari_fovea" / "models" / "weights"
CARDS = ROOT / "docs" / "models"

MODELS = (
    "r2-attention-unet-nuclei",
    "focusnet-nuclei",
    "focusnet-plus-nuclei",
    "mask-rcnn-nuclei",
    "retina-shared-nuclei",
    "retina-nuclei",
)
MORE = {"focusnet-nuclei": ("focusnet-nuclei-more",)}
"""Recipes by which a model learns on, after the one of its own name."""

ENSEMBLE = "ensemble-nuclei"
MEMBERS = (
    "r2-attention-unet-nuclei",
    "focusnet-nuclei",
    "focusnet-plus-nuclei",
    "mask-rcnn-nuclei",
    "retina-shared-nuclei",
)
"""Members of the ensemble, the one that measures objects first; see its card."""

DATA_NOTE = "2018 Data Science Bowl, stage 1 (BBBC038), CC0"


def main() -> None:
    """Do what is asked, for the models that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "steps", nargs="+", choices=["train", "score", "cards"], help="what to do"
    )
    parser.add_argument("--model", nargs="+", choices=[*MODELS, ENSEMBLE])
    parser.add_argument(
        "--nuclei",
        type=Path,
        default=ROOT.parent / "shared" / "data" / "nuclei",
        help="folder with train, val and index.csv",
    )
    parser.add_argument(
        "--runs", type=Path, default=ROOT / "runs" / "zoo", help="where training lies"
    )
    parser.add_argument("--device", default="auto")
    told = parser.parse_args()
    asked = told.model or [*MODELS, ENSEMBLE]
    told.runs.mkdir(parents=True, exist_ok=True)
    if "train" in told.steps:
        for name in (m for m in MODELS if m in asked):
            train(name, told.nuclei, told.runs, told.device)
        gather()
    if "score" in told.steps:
        for name in asked:
            score(name, told.nuclei, told.device)
    if "cards" in told.steps:
        from cards import write, write_tables

        for name in asked:
            write(name, CARDS, told.nuclei)
        write_tables(CARDS)


def train(name: str, nuclei: Path, runs: Path, device: str) -> None:
    """Train a model, or go on where training was left, and put it into the package."""
    start: tuple[object, ...] = ()
    for recipe in recipes(name):
        finished = runs / f"{recipe}.safetensors"
        if not finished.is_file():
            # What a run that failed leaves is not to be taken for a model.
            under_way = runs / f"{recipe}.part.safetensors"
            fast = str(fast_precision(pick(device))).removeprefix("torch.")
            call(
                *("train", "--recipe", recipe, "--name", name, "--classes", "nucleus"),
                *("--images", nuclei / "train" / "images"),
                *("--labels", nuclei / "train" / "labels"),
                *("--val-images", nuclei / "val" / "images"),
                *("--val-labels", nuclei / "val" / "labels"),
                *("--note", DATA_NOTE, "--precision", fast, "--device", device),
                *("--output", under_way, *start),
            )
            under_way.replace(finished)
        start = ("--start", finished)
    ship(finished, name)


def recipes(name: str) -> tuple[str, ...]:
    """Name the recipes of a model, one after the other."""
    return name, *MORE.get(name, ())


def ship(path: Path, name: str) -> None:
    """Write a trained model into the package, if it is not the one that is there."""
    from napari_fovea import Model

    made = Model.load(path)
    there = WEIGHTS / f"{name}.safetensors"
    if there.is_file() and _weights(Model.load(there)) == _weights(made, half=True):
        return
    made.save(there, half=True)
    # What was scored was another model.
    (CARDS / f"{name}.json").unlink(missing_ok=True)
    if name in MEMBERS:
        (CARDS / f"{ENSEMBLE}.json").unlink(missing_ok=True)


def gather() -> None:
    """Write the ensemble, which takes its weights from the files of its members."""
    from napari_fovea import Model
    from napari_fovea.models.checkpoint import header_of, read_header, save

    path = WEIGHTS / f"{ENSEMBLE}.safetensors"
    files = [WEIGHTS / f"{name}.safetensors" for name in MEMBERS]
    if not all(file.is_file() for file in files):
        return
    made = Model.ensemble([Model.load(file) for file in files], name=ENSEMBLE)
    parts = [file.name for file in files]
    if path.is_file():
        both = (read_header(path), header_of(made, parts=parts))
        there, now = (h.model_dump_json(exclude={"provenance"}) for h in both)
        if there == now:
            return  # the same members; their weights lie in their own files
    save(made, path, parts=parts)


def score(name: str, nuclei: Path, device: str) -> None:
    """Evaluate a model that ships, unless that was done already."""
    from napari_fovea import Model

    told = CARDS / f"{name}.json"
    path = WEIGHTS / f"{name}.safetensors"
    if not told.is_file():
        told.parent.mkdir(exist_ok=True)
        call(
            *("evaluate", "--model", path, "--robustness", "--json", told),
            *("--images", nuclei / "val" / "images"),
            *("--labels", nuclei / "val" / "labels"),
            *("--groups", nuclei / "index.csv", "--device", device),
        )
    scores = json.loads(told.read_text(encoding="utf-8"))
    every = scores["summary"]
    short = {"all": {k: every[k] for k in ("images", "dice", "ap")}}
    model = Model.load(path)
    if model.provenance.get("validation") == short:
        return
    known = replace(model, provenance={**model.provenance, "validation": short})
    if name == ENSEMBLE:
        from napari_fovea.models.checkpoint import save

        save(known, path, parts=[f"{member}.safetensors" for member in MEMBERS])
    else:
        known.save(path, half=True)


def call(*arguments: object) -> None:
    """Run a command of napari-fovea in a process of its own."""
    program = "from napari_fovea.cli import main; main()"
    words = [str(a) for a in arguments]
    sys.stdout.write(f"napari-fovea {' '.join(words)}\n")
    sys.stdout.flush()
    subprocess.run([sys.executable, "-c", program, *words], check=True)


def _weights(model: Any, *, half: bool = False) -> list[float]:
    """Tell one set of weights from another, as they are after they were in 16 bits."""
    tensors = model.network.state_dict().values()
    return [
        float((t.half().float() if half and t.ndim > 1 else t.float()).double().sum())
        for t in tensors
        if isinstance(t, torch.Tensor)
    ]


if __name__ == "__main__":
    main()
