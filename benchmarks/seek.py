"""Seeking against the paper's raster: fixations and seconds to the same Dice.

Validation images, with nuclei as large as the model wants to see them, are scanned by
raster with the plain average, and by seeking, whose map is scored on the way. Prints
one JSON line: what raster reaches with how many fixations (per 256×256 pixels as the
model sees them) and seconds, and when seeking has reached as much.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import numpy as np
import torch

from machine import DATA, tell
from napari_fovea import Model
from napari_fovea.files import read_image, read_labels
from napari_fovea.images import axes_beside, read_planes, resize, to_tensor
from napari_fovea.inference.scanning import inference_network, scanning
from napari_fovea.inference.sizes import enlarge, resized, resizing, typical_diameter
from napari_fovea.metrics import dice
from napari_fovea.retina import FUSIONS, POLICIES
from napari_fovea.training.samples import pair_files

PLACES = (4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 400)
"""Fixations per 256×256 pixels at which the map is scored."""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="retina-nuclei")
    parser.add_argument("--every", type=int, default=3, help="take every n-th image")
    arguments = parser.parse_args()
    model = Model.load(arguments.model)
    network = inference_network(model, torch.device("cpu"))
    folder = DATA / "nuclei" / "val"
    pairs = pair_files(folder / "images", folder / "labels")[:: arguments.every]
    raster, seek = [], []
    for path, beside in pairs:
        pixels, labels = read_image(path), read_labels(beside)
        axes = axes_beside(pixels.shape, labels.shape)
        planes = read_planes(pixels, axes=axes).for_network(model.channels)
        limits = model.normalisation.limits(planes)
        size = typical_diameter(labels)
        factor = resizing(model, labels.shape, diameter=size, pixel_size=None)
        shape = resized(labels.shape, factor)
        image = to_tensor(planes.data[0], limits=limits, channels=model.channels)
        image, truth = resize(image, shape), enlarge(labels > 0, shape)
        raster.append(follow(model, network, image, truth, "raster", "mean")[-1])
        seek.append(follow(model, network, image, truth, "seek", "precision"))
    reached = np.mean(raster, axis=0)
    course = np.mean(seek, axis=0)  # (places, 3): fixations, seconds, Dice
    # Between two places Dice is taken to grow evenly.
    same = [float(np.interp(reached[2], course[:, 2], course[:, i])) for i in (0, 1)]
    tell(
        "seek",
        {
            "model": model.name,
            "images": len(pairs),
            "raster_dice": round(float(reached[2]), 3),
            "raster_fixations": round(float(reached[0]), 1),
            "seek_fixations_to_the_same": round(same[0], 1),
            "raster_over_seek_fixations": round(float(reached[0]) / same[0], 1),
            "raster_over_seek_seconds": round(float(reached[1]) / same[1], 1),
            "seek_course": [[round(float(x), 3) for x in row] for row in course],
        },
    )


def follow(
    model: Model,
    network: Any,
    image: torch.Tensor,
    truth: np.ndarray,
    policy: str,
    fusion: str,
) -> list[tuple[float, float, float]]:
    """Scan an image: fixations per 256×256, seconds and Dice, at places and the end."""
    area = truth.size / 256**2
    places = [max(1, round(p * area)) for p in PLACES] if policy == "seek" else []
    found: list[tuple[float, float, float]] = []
    fused, grid = FUSIONS[fusion], model.config.grid
    seconds, started = 0.0, time.perf_counter()
    run = scanning(
        network,
        image,
        config=model.config,
        policy=POLICIES[policy],
        fusion=fused,
        budget=places[-1] if places else None,
        batch_size=max(1, round(4 * area)),
    )
    votes, done = torch.zeros(0), 0
    for event in run:
        seconds += time.perf_counter() - started
        votes, done = event.votes, event.done
        while len(found) < len(places) and done >= places[len(found)]:
            score = scored(model, fused.read_out(votes, grid), truth)
            found.append((done / area, seconds, score))
        started = time.perf_counter()
    last = (done / area, seconds, scored(model, fused.read_out(votes, grid), truth))
    # A search may find nothing uncertain any more before the last place.
    return found + [last] * (len(places) - len(found)) if places else [last]


def scored(model: Model, outputs: torch.Tensor, truth: np.ndarray) -> float:
    """Dice of the foreground."""
    return dice(model.class_probabilities(outputs).argmax(0).numpy() > 0, truth)


if __name__ == "__main__":
    main()
