"""What keeping attention costs: a run with all maps over the same run without.

Prints one line of JSON. Runs with and without take turns, and the medians are
compared; a second run without is the noise of the machine.
"""

from __future__ import annotations

import argparse
import time
from typing import TYPE_CHECKING

import numpy as np
from skimage import data

from machine import tell
from napari_fovea import Model, complete, segment
from napari_fovea.inference import attends

if TYPE_CHECKING:
    from collections.abc import Sequence

MODELS = (
    "focusnet-nuclei",
    "r2-attention-unet-nuclei",
    "focusnet-plus-nuclei",
    "mask-rcnn-nuclei",
    "retina-nuclei",
)


def seconds(image: np.ndarray, model: Model, names: Sequence[str]) -> float:
    """Time one run."""
    begun = time.perf_counter()
    complete(segment(image, model, attention=names))
    return time.perf_counter() - begun


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--side", type=int, default=1024)
    parser.add_argument("--repeats", type=int, default=7)
    given = parser.parse_args()
    tiles = -(-given.side // 512)
    image = np.tile(data.immunohistochemistry(), (tiles, tiles, 1))
    image = image[: given.side, : given.side]
    figures: dict[str, object] = {"side": given.side}
    for name in MODELS:
        model = Model.load(name)
        names = [a.name for a in attends(model)]
        spent: dict[str, list[float]] = {"off": [], "on": [], "off again": []}
        seconds(image, model, names)
        for _ in range(given.repeats):
            for key, times in spent.items():
                times.append(seconds(image, model, names if key == "on" else ()))
        off, on, again = (float(np.median(t)) for t in spent.values())
        figures[name] = {
            "maps": len(names),
            "seconds_off": round(off, 3),
            "on_over_off": round(on / off, 3),
            "off_over_off": round(again / off, 3),
        }
    tell("attention", figures)


if __name__ == "__main__":
    main()
