"""The measures of all papers on the validation nuclei, for models that ship or files.

Prints one JSON line per model and way of looking: means and standard deviations over
images, of all and of each kind, as ``napari-fovea evaluate`` tells them.
"""

from __future__ import annotations

import argparse
import csv
from typing import Any

from machine import DATA, tell
from napari_fovea import Model, complete
from napari_fovea.evaluation import evaluate
from napari_fovea.models import shipped
from napari_fovea.training.samples import pair_files

WAYS: dict[str, dict[str, Any]] = {
    "seek": {"policy": "seek", "fusion": "precision"},
    "raster, mean": {"policy": "raster", "fusion": "mean"},
    "raster, precision": {"policy": "raster", "fusion": "precision"},
}


def main() -> None:
    """Evaluate and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--model", nargs="+", default=[e.name for e in shipped()], help="names or files"
    )
    parser.add_argument("--every", type=int, default=1, help="take every n-th image")
    parser.add_argument(
        "--ways",
        nargs="+",
        choices=list(WAYS),
        default=list(WAYS),
        help="how retina models look",
    )
    arguments = parser.parse_args()
    folder = DATA / "nuclei"
    with (folder / "index.csv").open() as file:
        kinds = {row["id"]: row["kind"] for row in csv.DictReader(file)}
    pairs = pair_files(folder / "val" / "images", folder / "val" / "labels")
    for name in arguments.model:
        model = Model.load(name)
        ways = arguments.ways if model.system == "S0" else ["tiles"]
        for way in ways:
            run = evaluate(
                model, pairs[:: arguments.every], groups=kinds, **WAYS.get(way, {})
            )
            scores = complete(run).as_json()
            told = {"all": scores["summary"], **scores["groups"]}
            tell("nuclei", {"model": model.name, "way": way, "scores": told})


if __name__ == "__main__":
    main()
