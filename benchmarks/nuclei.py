"""Dice, AP and fixations of a retina model on the validation nuclei.

Prints one JSON line per way of scanning: mean and standard deviation over images,
and the same per kind of image.
"""

from __future__ import annotations

import argparse
import csv
import time
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from machine import DATA, tell
from napari_fovea import Model, complete, segment
from napari_fovea.files import read_image
from napari_fovea.metrics import average_precision, dice

WAYS = {
    "seek": {"policy": "seek", "fusion": "precision"},
    "raster, mean": {"policy": "raster", "fusion": "mean"},
    "raster, precision": {"policy": "raster", "fusion": "precision"},
}


def main() -> None:
    """Evaluate and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="retina-nuclei")
    parser.add_argument("--every", type=int, default=1, help="take every n-th image")
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=list(WAYS))
    parser.add_argument(
        "--write", type=Path, help="save the model with its scores in its provenance"
    )
    arguments = parser.parse_args()
    with (DATA / "nuclei" / "index.csv").open() as file:
        rows = [r for r in csv.DictReader(file) if r["split"] == "val"]
    model = Model.load(arguments.model)
    for way in arguments.ways:
        scores = evaluate(model, rows[:: arguments.every], way)
        if arguments.write and way == "seek":
            made = {
                **model.provenance,
                "validation_dice": scores["all"]["dice"]["mean"],
                "validation_images": scores["all"]["images"],
                "validation": scores,
            }
            replace(model, provenance=made).save(arguments.write, half=True)


def evaluate(model: Model, rows: list[dict[str, str]], way: str) -> dict[str, Any]:
    """Segment every image one way, print and return the figures."""
    scores = defaultdict(list)
    started = time.perf_counter()
    for row in rows:
        image = read_image(DATA / "nuclei" / "val" / "images" / f"{row['id']}.png")
        truth = read_image(DATA / "nuclei" / "val" / "labels" / f"{row['id']}.png")
        result = complete(segment(image, model, **WAYS[way]))
        area = truth.size / 256**2
        score = (
            dice(result.labels, truth),
            average_precision(result.instances, truth),
            average_precision(result.instances, truth, thresholds=(0.5,)),
            len(result.path) / area,
        )
        scores["all"].append(score)
        scores[row["kind"]].append(score)
    figures = {}
    for kind, values in scores.items():
        columns = np.array(values).T
        names = ("dice", "ap", "ap50", "fixations_per_256x256")
        figures[kind] = {"images": len(values)} | {
            name: {
                "mean": round(float(column.mean()), 4),
                "std": round(float(column.std()), 4),
            }
            for name, column in zip(names, columns, strict=True)
        }
        figures[kind]["most_fixations_per_256x256"] = round(float(columns[3].max()), 1)
    seconds = round(time.perf_counter() - started, 1)
    tell(
        "nuclei",
        {"model": model.name, "way": way, "scores": figures, "seconds": seconds},
    )
    return figures


if __name__ == "__main__":
    main()
