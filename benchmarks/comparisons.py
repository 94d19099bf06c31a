"""What the papers compare, on the nuclei, with the same small budget for each side.

``detector``: Mask R-CNN with the residual attention FPN and with a plain one (S4).
``ablations``: the recurrent residual attention U-Net without its parts (S2), with the
loss of its paper.
``losses``: the same network with the losses that its paper compares.
``few``: the learning curve for 1, 5, 20, 100 and all training images, the retina (S0)
beside dense networks; each system sees as many crops as take it about as long.

Of every comparison each side sees the same number of crops, drawn with the same seeds,
and is scored on every third validation image with the diameter of its labels given.
Every run that is done is kept in a file, and a second start goes on from there.
Prints one JSON line per comparison, means and standard deviations over seeds, and lays
what is known of all of them out in the page beside that file.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from machine import DATA, machine, tell
from napari_fovea import complete
from napari_fovea.device import fast_precision
from napari_fovea.evaluation import evaluate, mean_and_std
from napari_fovea.files import replacing
from napari_fovea.networks import named_configs
from napari_fovea.training.augment import Augmentation
from napari_fovea.training.labelling import Labelling
from napari_fovea.training.recipes import RECIPES
from napari_fovea.training.run import fresh_model, train_on
from napari_fovea.training.samples import pair_files, read_folder

if TYPE_CHECKING:
    from napari_fovea.training.recipe import Recipe
    from napari_fovea.training.samples import Sample

LABELLING = Labelling(("background", "nucleus"))
MEASURES = {
    "dice": "Dice",
    "precision": "precision",
    "recall": "recall",
    "accuracy": "accuracy",
    "cohen_kappa": "κ",
    "roc_auc": "ROC-AUC",
    "ap": "AP",
    "ap50": "AP at 0.5",
}
EVERY = 3
EPOCHS = 4
KEPT = Path(__file__).parents[1] / "docs" / "models" / "comparisons.json"
SIZES = (1, 5, 20, 100, None)
Scores = dict[str, float]


@dataclass(frozen=True)
class Side:
    """One side of a comparison.

    Attributes
    ----------
    recipe : Recipe
        How it is trained, but for its epochs.
    crops : int
        Crops it sees.
    config : dict
        What differs from the settings of the recipe's network.
    images : int or None
        Training images, drawn anew for each seed; None for all.
    """

    recipe: Recipe
    crops: int
    config: dict[str, Any] = field(default_factory=dict)
    images: int | None = None

    def trained(self, share: float) -> Recipe:
        """Give the recipe with its share of the crops.

        In a few epochs, so that a retina can be shown where it is uncertain.
        """
        views = max(self.recipe.batch_size, round(self.crops * share / EPOCHS))
        return replace(self.recipe, epochs=EPOCHS, views=views, validate_every=EPOCHS)

    def digest(self, seed: int, share: float) -> str:
        """Tell a run from every other, and from those of earlier recipes."""
        settings = named_configs(self.recipe.network)[self.recipe.config] | self.config
        told = (self.trained(share), sorted(settings.items()), self.images, seed, EVERY)
        return hashlib.sha256(repr(told).encode()).hexdigest()[:16]


def _plain(name: str, **changes: Any) -> Recipe:
    """Give a recipe of those that ship neither depths nor what is chosen on images."""
    own: dict[str, Any] = {"averaging": 0.99, "calibrate": False, "choice": "last"}
    return replace(RECIPES[name], **(own | changes))


# In small crops, so that a small budget holds many steps.
_SMALL = 128
# With its gates normalised: as it ships, so short a time hardly gets it away from
# background alone.
_ODD: dict[str, Any] = {"gamma": (0.4, 2.5), "invert": 0.15}
_S1 = _plain(
    "focusnet-nuclei",
    side=_SMALL,
    learning_rate=2e-3,
    batch_size=8,
    augmentation=Augmentation(**_ODD),
    last=0.2,
    last_augmentation=replace(RECIPES["focusnet-nuclei"].last_augmentation, **_ODD),
)
_S2 = _plain("r2-attention-unet-nuclei", depth=False, side=_SMALL)
_S4 = _plain("mask-rcnn-nuclei")
_ABLATIONS: dict[str, dict[str, Any]] = {
    "full": {},
    "without attention": {"attention": False},
    "without residual": {"residual": False},
    "without recurrence": {"steps": 0},
    "plain U-Net": {"steps": 0, "residual": False, "attention": False},
}

COMPARISONS: dict[str, dict[str, Side]] = {
    "detector": {
        name: Side(_S4, 2_400, {"attention": name}) for name in ("proposed", "none")
    },
    "ablations": {
        name: Side(replace(_S2, loss="focal-tversky"), 4_800, config)
        for name, config in _ABLATIONS.items()
    },
    "losses": {
        loss: Side(replace(_S2, loss=loss), 4_800)
        for loss in (
            "focal-tversky",
            "tversky",
            "dice",
            "bce",
            "weighted-bce",
            "bce-dice",
        )
    },
    "few": {
        f"{system}, {size or 'all'} images": Side(recipe, crops, config, images=size)
        for size in SIZES
        for system, recipe, crops, config in (
            ("S0 retina", _plain("retina-nuclei"), 53_248, {}),
            ("S0 shared", _plain("retina-shared-nuclei"), 3_000, {}),
            ("S1 FocusNet", _S1, 4_800, {"normalise": True}),
            ("S2", _plain("r2-attention-unet-nuclei", side=_SMALL), 4_800, {}),
        )
    },
}


def main() -> None:
    """Train, score, print and lay out."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("comparison", nargs="*", help=", ".join(COMPARISONS))
    parser.add_argument("--kept", type=Path, default=KEPT, help="runs that are done")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--share", type=float, default=1.0, help="of the crops")
    told = parser.parse_args()
    if unknown := set(told.comparison) - set(COMPARISONS):
        parser.error(f"no such comparison: {', '.join(unknown)}")
    folder = DATA / "nuclei" / "train"
    samples: dict[tuple[int, bool], list[Sample]] = {}
    runs = kept(told.kept)
    for comparison in told.comparison:
        sides = COMPARISONS[comparison]
        for seed in range(told.seeds):
            for name, side in sides.items():
                run = side.digest(seed, told.share)
                if run in runs:
                    continue
                done = one(side, samples, folder, seed=seed, share=told.share)
                runs[run] = {
                    "comparison": comparison,
                    "side": name,
                    "seed": seed,
                    "share": told.share,
                    **done,
                    "machine": machine(),
                }
                with replacing(told.kept) as temporary:
                    temporary.write_text(json.dumps(runs, indent=1) + "\n")
                print(name, seed, json.dumps(done["scores"]), flush=True)
        rows = {
            name: [
                runs[side.digest(seed, told.share)]["scores"]
                for seed in range(told.seeds)
            ]
            for name, side in sides.items()
        }
        scores = {
            name: {m: mean_and_std([r[m] for r in each]) for m in MEASURES}
            for name, each in rows.items()
        }
        figures: dict[str, Any] = {"seeds": told.seeds, "share": told.share}
        tell(f"comparisons, {comparison}", {**figures, "scores": scores})
    page = told.kept.with_suffix(".md")
    if page.exists():
        page.write_text(filled(page.read_text(encoding="utf-8"), runs), "utf-8")


def kept(path: Path) -> dict[str, Any]:
    """Read the runs that are done."""
    runs: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return runs


def filled(page: str, runs: dict[str, Any]) -> str:
    """Put the tables of what is known between their marks in a page."""
    for comparison in COMPARISONS:
        start, end = f"<!-- {comparison} -->", f"<!-- end of {comparison} -->"
        if start not in page:
            continue
        before, rest = page.split(start)
        after = rest.split(end)[1]
        page = f"{before}{start}\n\n{laid_out(comparison, runs)}\n{end}{after}"
    return page


def laid_out(comparison: str, runs: dict[str, Any]) -> str:
    """Lay out what is known of a comparison, of the largest budget all sides had."""
    sides = COMPARISONS[comparison]
    for share in sorted({run["share"] for run in runs.values()}, reverse=True):
        seeds = [
            seed
            for seed in range(100)
            if all(side.digest(seed, share) in runs for side in sides.values())
        ]
        if seeds:
            break
    else:
        return "Not run for all sides yet.\n"
    rows = {
        name: [runs[side.digest(seed, share)] for seed in seeds]
        for name, side in sides.items()
    }
    every = [run for each in rows.values() for run in each]
    # Those of a run that was paused are not kept.
    seconds = [run["seconds"] for run in every if run["seconds"] is not None]
    precisions = " or ".join(sorted({run["precision"] for run in every}))
    threads = " or ".join(sorted({str(run["machine"]["threads"]) for run in every}))
    budget = (
        f"{len(seeds)} seeds, {share:.0%} of the budget: {min(seconds):.0f} to "
        f"{max(seconds):.0f} s of training a run, in {precisions}, threads: {threads}."
        "\n"
    )
    scores = {name: [r["scores"] for r in each] for name, each in rows.items()}
    told = _curve(scores) if comparison == "few" else _side_by_side(scores)
    return f"{budget}\n{told}"


def _side_by_side(scores: dict[str, list[Scores]]) -> str:
    first, *others = scores
    table = [["", *MEASURES.values()]]
    for name, runs in scores.items():
        table.append([name, *(_spread([r[m] for r in runs]) for m in MEASURES)])
    for name in others:
        # Seed by seed: what both sides share does not blur the difference.
        pairs = list(zip(scores[first], scores[name], strict=True))
        apart = [[a[m] - b[m] for a, b in pairs] for m in MEASURES]
        table.append([f"{first} − {name}", *(_spread(d, signed=True) for d in apart)])
    return _table(table)


def _curve(scores: dict[str, list[Scores]]) -> str:
    sizes = [f"{size or 'all'} images" for size in SIZES]
    systems = list(dict.fromkeys(name.split(", ")[0] for name in scores))
    told = []
    for measure in ("dice", "ap"):
        table = [[MEASURES[measure], "1 image", *sizes[1:]]]
        for system in systems:
            row = [[r[measure] for r in scores[f"{system}, {n}"]] for n in sizes]
            table.append([system, *map(_spread, row)])
        told.append(_table(table))
    return "\n".join(told)


def _spread(values: list[float], digits: int = 3, *, signed: bool = False) -> str:
    sign = "+" if signed else ""
    told = f"{np.mean(values):{sign}.{digits}f} ± {np.std(values):.{digits}f}"
    return told.replace("-", "−")


def _table(rows: list[list[str]]) -> str:
    lines = [rows[0], ["---"] * len(rows[0]), *rows[1:]]
    return "".join("|" + "".join(f" {c} |" for c in line) + "\n" for line in lines)


def one(
    side: Side, known: dict[Any, list[Sample]], folder: Path, *, seed: int, share: float
) -> dict[str, Any]:
    """Train one side with a seed and score it."""
    model = fresh_model(
        side.recipe,
        config=json.dumps(side.config) if side.config else None,
        labelling=LABELLING,
        seed=seed,
    )
    key = (len(model.outputs), model.depths is not None)
    if key not in known:
        known[key] = read_folder(
            folder / "images",
            folder / "labels",
            channels=3,
            outputs=len(model.outputs),
            depths=model.depths,
        )
    samples = known[key]
    if side.images is not None:
        chosen = np.random.default_rng(seed).permutation(len(samples))[: side.images]
        samples = [samples[i] for i in sorted(chosen)]
    precision = str(fast_precision(torch.device("cpu"))).removeprefix("torch.")
    began = time.perf_counter()
    trained = complete(
        train_on(
            model,
            samples,
            [],
            recipe=side.trained(share),
            seed=seed,
            device="cpu",
            precision=precision,
        )
    )
    seconds = time.perf_counter() - began
    val = DATA / "nuclei" / "val"
    pairs = pair_files(val / "images", val / "labels")[::EVERY]
    summary = complete(evaluate(trained, pairs, diameter="labels")).summary()
    scores = {name: summary[name]["mean"] for name in MEASURES}
    return {"scores": scores, "seconds": round(seconds, 1), "precision": precision}


if __name__ == "__main__":
    main()
