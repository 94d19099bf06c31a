"""A scan whose fixations share one trunk against a scan that shows every crop.

Prints one JSON line: seconds of both at the same number of fixations, in one process
and turn by turn; of the shared trunk also those of a second scan of the same image,
which reads the features of the first. How well both do on the validation images is what
``benchmarks/nuclei.py`` tells.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import torch

from fresh import paper
from machine import picture, tell
from napari_fovea import Model
from napari_fovea.inference import trunk
from napari_fovea.inference.scanning import default_budget, inference_network, scanning
from napari_fovea.retina import FUSIONS, POLICIES


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shared", default="retina-shared-nuclei")
    parser.add_argument("--crops", default="retina-nuclei")
    parser.add_argument("--side", type=int, default=1024)
    parser.add_argument("--policy", default="seek", choices=list(POLICIES))
    parser.add_argument(
        "--paper", action="store_true", help="networks of the paper's size, untrained"
    )
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    image = torch.from_numpy(picture((arguments.side, arguments.side)))
    image = image.expand(3, -1, -1)
    if arguments.paper:
        models = {"crops": paper("retina-vgg"), "shared": paper("retina-shared")}
    else:
        models = {
            "crops": Model.load(arguments.crops),
            "shared": Model.load(arguments.shared),
        }
    networks = {k: inference_network(m, image.device) for k, m in models.items()}
    sizes = {"crops": 32, "shared": 256}
    # Each scans an image that is new to it; "again" is the one it has seen.
    models["again"], networks["again"] = models["shared"], networks["shared"]
    sizes["again"] = sizes["shared"]
    seconds: dict[str, list[float]] = {k: [] for k in models}
    fixations: dict[str, int] = {}
    for turn in range(arguments.repeats + 1):
        for key, model in models.items():
            shape = (arguments.side, arguments.side)
            seek = arguments.policy == "seek"
            run = scanning(
                networks[key],
                image,
                config=model.config,
                policy=POLICIES[arguments.policy],
                fusion=FUSIONS["precision" if seek else "mean"],
                budget=default_budget(shape, d=model.config.d) if seek else None,
                batch_size=sizes[key],
            )
            if key == "shared":
                trunk._kept.clear()
            started = time.perf_counter()
            for event in run:
                fixations[key] = event.done
            if turn:  # the first one warms up
                seconds[key].append(time.perf_counter() - started)
    best = {key: min(times) for key, times in seconds.items()}
    figures: dict[str, Any] = {
        "networks": [models[key].name for key in ("crops", "shared")],
        "side": arguments.side,
        "policy": arguments.policy,
        "fixations": fixations,
        "crops_over_shared": round(best["crops"] / best["shared"], 2),
        "crops_seconds": round(best["crops"], 3),
        "shared_seconds": round(best["shared"], 3),
        "shared_again_seconds": round(best["again"], 3),
    }
    tell("shared", figures)


if __name__ == "__main__":
    main()
