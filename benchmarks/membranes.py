"""Few training images: the retina against patch classifier and U-Nets, on EM.

The first paper's comparison, by cross-validation on membranes of 512×512 sections:
each fold trains on a few sections and is evaluated on others. Every way gets about
the same training time. Prints one JSON line at the end; what is done is kept in the
output folder, and a second start goes on from there.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from machine import DATA, tell
from napari_fovea import complete
from napari_fovea.evaluation import evaluate, mean_and_std, split
from napari_fovea.files import read_image, read_labels, replacing
from napari_fovea.training.labelling import Labelling
from napari_fovea.training.recipes import RECIPES
from napari_fovea.training.run import fresh_model, train_on
from napari_fovea.training.samples import make_sample, pair_files

if TYPE_CHECKING:
    from napari_fovea.training.recipe import Recipe

LABELLING = Labelling(("membrane", "cell"), from_instances=False)
MEASURES = ("jaccard", "dice", "recall", "specificity", "accuracy", "seconds")
RASTER = {"policy": "raster", "fusion": "mean"}
SEEK = {"policy": "seek", "fusion": "precision"}
_VGG = {"d": 64, "width": 16, "units": 256, "norm": True}
_QUICK = {"schedule": "cosine", "learning_rate": 1e-3, "epochs": 1}

# name → recipe, network settings, and the ways in which it segments
WAYS: dict[str, tuple[Recipe, dict[str, Any], dict[str, dict[str, Any]]]] = {
    **{
        f"S0 r={r}": (
            # The paper's augmentation is none; as everywhere here, turns and mirrors.
            replace(RECIPES["retina-paper"], views=10_240, **_QUICK),
            {**_VGG, "r": r},
            {"raster, mean": RASTER, "seek, precision": SEEK},
        )
        for r in (1, 2, 3, 4)
    },
    "patch-center": (
        replace(RECIPES["patch-center-paper"], views=10_240, **_QUICK),
        {**_VGG, "step": 8},
        {"": {}},
    ),
    "UNet-patch": (
        replace(RECIPES["unet-patch-paper"], views=6_144, side=64, **_QUICK),
        {"width": 16, "depth": 4, "norm": True},
        {"": {}},
    ),
    "UNet-image": (
        # One image a step: with the paper's 16, few steps would fit into the time.
        replace(RECIPES["unet-image-paper"], views=110, batch_size=1, **_QUICK),
        {"width": 16, "norm": True},
        {"": {}},
    ),
}


def main() -> None:
    """Cross-validate and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("membranes"))
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--test", type=int, default=8, help="sections per fold")
    parser.add_argument("--only", nargs="+", choices=list(WAYS), default=list(WAYS))
    arguments = parser.parse_args()
    folder = DATA / "membranes"
    pairs = pair_files(folder / "images", folder / "labels")
    parts = split(len(pairs), arguments.folds)
    table: dict[str, Any] = {}
    for fold, part in enumerate(parts):
        rest = [i for i in range(len(pairs)) if i not in part][: arguments.test]
        for name in arguments.only:
            kept = arguments.output / f"{name} fold {fold + 1}.json"
            if not kept.exists():
                train, test = ([pairs[i] for i in ids] for ids in (part, rest))
                done = one(name, train, test, seed=fold)
                with replacing(kept) as temporary:
                    temporary.write_text(json.dumps(done))
                print(kept.stem, json.dumps(done), flush=True)
            for way, means in json.loads(kept.read_text()).items():
                rows = table.setdefault(f"{name} {way}".strip(), {})
                for measure, value in means.items():
                    rows.setdefault(measure, []).append(value)
    summary = {
        way: {measure: mean_and_std(values) for measure, values in rows.items()}
        for way, rows in table.items()
    }
    figures = {"folds": len(parts), "training_sections": len(parts[0])}
    tell("membranes", {**figures, "test_sections": arguments.test, "scores": summary})


def one(
    name: str, train: list[Any], test: list[Any], *, seed: int
) -> dict[str, dict[str, float]]:
    """Train on some sections and evaluate on others."""
    recipe, settings, ways = WAYS[name]
    model = fresh_model(
        recipe,
        config=json.dumps(settings),
        name=name,
        labelling=LABELLING,
        channels=1,
        seed=seed,
    )
    samples = [
        make_sample(
            read_image(image),
            read_labels(labels),
            name=image.name,
            channels=1,
            outputs=2,
            from_instances=False,
        )
        for image, labels in train
    ]
    started = time.perf_counter()
    run = train_on(
        model, samples, [], recipe=recipe, seed=seed, device="cpu", precision="bfloat16"
    )
    model = complete(run)
    spent = time.perf_counter() - started
    told = {}
    for way, how in ways.items():
        scored = complete(evaluate(model, test, labelling=LABELLING, **how)).summary()
        told[way] = {m: scored[m]["mean"] for m in MEASURES} | {"training": spent}
    return told


if __name__ == "__main__":
    main()
