"""How touching nuclei are best told apart: the watershed's settings, by AP.

The maps of a model are computed once for every validation image, objects brought to the
model's size by their labels. Then objects are told apart in several ways: as connected
regions, by scikit-image's watershed on the distance to the edge, and by the model's
depths with each setting varied while the others stay as they are in the package.
Prints one JSON line.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scipy import ndimage
from skimage.feature import peak_local_max
from skimage.measure import label
from skimage.segmentation import watershed

import napari_fovea.inference.instances as instances
from machine import DATA, tell
from napari_fovea import Model, complete
from napari_fovea.images import resize
from napari_fovea.inference.choosing import reader_for
from napari_fovea.inference.sizes import fitting, resized, typical_diameter
from napari_fovea.metrics import instance_scores
from napari_fovea.models import DEFAULT
from napari_fovea.training.samples import pair_files, read_folder

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

SETTINGS: dict[str, tuple[float, ...]] = {
    "_PROMINENCE": (0.07, 0.1, 0.14, 0.2, 0.28, 0.4),
    "_SMOOTHING": (0.04, 0.06, 0.08, 0.11, 0.15),
    "_LEAST_AREA": (0.03, 0.06, 0.09, 0.13, 0.18),
}
Map = tuple["NDArray[np.uint8]", "NDArray[np.floating]", "NDArray[np.integer]", float]


def main() -> None:
    """Compute maps, tell objects apart, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default=DEFAULT)
    parser.add_argument("--every", type=int, default=1, help="take every n-th image")
    told = parser.parse_args()
    maps = maps_of(Model.load(told.model), every=told.every)
    own = {name: getattr(instances, name) for name in SETTINGS}
    figures: dict[str, Any] = {
        "model": told.model,
        "images": len(maps),
        "chosen": own,
        "ap": {
            "connected regions": ap(maps, lambda mask, *_: label(mask, connectivity=1)),
            "watershed on distance": ap(maps, by_distance),
            "depths": ap(maps, by_depth),
        },
    }
    figures["gain_over_regions"] = round(
        figures["ap"]["depths"] / figures["ap"]["connected regions"], 3
    )
    for name, values in SETTINGS.items():
        for value in values:
            setattr(instances, name, value)
            figures["ap"][f"{name[1:].lower()} {value}"] = ap(maps, by_depth)
        setattr(instances, name, own[name])
    tell("separation", figures)


def maps_of(model: Model, *, every: int) -> list[Map]:
    """Labels and depths of each image at its own size, true objects, and diameters."""
    folder = DATA / "nuclei" / "val"
    names = pair_files(folder / "images", folder / "labels")
    found = []
    samples = read_folder(
        folder / "images", folder / "labels", channels=model.channels, outputs=2
    )
    assert len(samples) == len(names)
    for sample in samples[::every]:
        truth = sample.instances
        assert truth is not None
        diameter = typical_diameter(truth) or model.object_diameter or 1.0
        shape = resized(truth.shape, fitting(model, diameter))  # type: ignore[arg-type]
        reader = reader_for(model, "cpu", shape)
        seen = complete(
            reader.read(
                resize(sample.image, shape), scale=(1, 1), cancelled=lambda: False
            )
        )
        size = (truth.shape[0], truth.shape[1])
        depth = model.depth(seen.outputs)
        assert depth is not None, f"{model.name} tells no depths"
        classes = resize(model.class_probabilities(seen.outputs), size)
        mask = (classes[0] < 0.5).to(torch.uint8).numpy()
        found.append((mask, resize(depth[None], size)[0].numpy(), truth, diameter))
    return found


def by_depth(
    mask: NDArray[np.uint8], depth: NDArray[np.floating], diameter: float
) -> NDArray[np.integer]:
    """Tell objects apart as the package does."""
    return instances.separate(mask, depth=depth, diameter=diameter)


def by_distance(
    mask: NDArray[np.uint8], _: NDArray[np.floating], diameter: float
) -> NDArray[np.integer]:
    """Tell objects apart as a tutorial does: peaks of the distance to the edge."""
    distance = ndimage.distance_transform_edt(mask)
    reach = max(1, round(diameter / 4))
    peaks = peak_local_max(distance, min_distance=reach, labels=label(mask))
    seeds = np.zeros(mask.shape, np.int32)
    seeds[tuple(peaks.T)] = np.arange(1, len(peaks) + 1)
    found: NDArray[np.integer] = watershed(-distance, seeds, mask=mask > 0)
    return found


def ap(maps: list[Map], tell_apart: Callable[..., NDArray[np.integer]]) -> float:
    """Mean AP over images of a way to tell objects apart."""
    each = [
        instance_scores(tell_apart(mask, depth, diameter), truth)["ap"]
        for mask, depth, truth, diameter in maps
    ]
    return round(float(np.mean(each)), 4)


if __name__ == "__main__":
    main()
