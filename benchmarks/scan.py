"""The scan engine against the bare network, a literal loop and what is possible.

Each line of JSON is measured in one process: the engine; the network alone on the very
crops the engine looked at; the paper's loop, one crop and one cell at a time; and the
floor: the longer of the time that the network's arithmetic takes at the speed of a
large product or convolution, and the time that crops, weights and map take at the
speed of a large copy. The networks are the paper's, untrained but sure of itself, so
that its steps are as long as those of a trained one, and the model that ships. The last
line is the peak memory of a scan of 8192×8192 pixels.
"""

from __future__ import annotations

import argparse
import math
import resource
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from fresh import paper
from machine import ceilings, picture, tell
from napari_fovea import Model
from napari_fovea.inference.scanning import default_budget, inference_network, scanning
from napari_fovea.retina import FUSIONS, POLICIES, CropLook

if TYPE_CHECKING:
    from collections.abc import Callable

BATCH = 32


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="retina-nuclei")
    parser.add_argument("--networks", nargs="+", default=["small", "paper"])
    parser.add_argument("--sizes", nargs="+", default=["1024x1024", "1200x1600"])
    parser.add_argument("--policies", nargs="+", default=["raster", "seek"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--memory-of", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.memory_of:
        memory(Model.load(arguments.model), arguments.memory_of)
        return
    most = ceilings(arguments.device)
    for name in arguments.networks:
        model = Model.load(arguments.model) if name == "small" else paper("retina-vgg")
        for size in arguments.sizes:
            height, width = map(int, size.split("x"))
            image = torch.from_numpy(picture((height, width))).expand(3, -1, -1)
            image = image.to(arguments.device)
            for policy in arguments.policies:
                # The paper's network seeks as well, but that is not the paper's.
                if name == "small" or policy == "raster":
                    measure(name, model, image, policy, arguments.repeats, most)
    command = [sys.executable, __file__, "--model", arguments.model]
    subprocess.run([*command, "--memory-of", "8192"], check=True)


def measure(
    name: str,
    model: Model,
    image: torch.Tensor,
    policy: str,
    repeats: int,
    most: dict[str, float],
) -> None:
    """Time one policy against the bare network and the literal loop."""
    shape = (image.shape[1], image.shape[2])
    budget = default_budget(shape, d=model.config.d) if policy == "seek" else None
    fusion = FUSIONS["precision" if policy == "seek" else "mean"]
    network = inference_network(model, image.device)

    def engine() -> list[torch.Tensor]:
        run = scanning(
            network,
            image,
            config=model.config,
            policy=POLICIES[policy],
            fusion=fusion,
            budget=budget,
            batch_size=BATCH,
        )
        return [event.corners for event in run]

    grid = model.config.grid
    margin = POLICIES[policy].margin(grid)
    look = CropLook(network, image, grid=grid, margin=margin)
    batches = engine()  # warm up, and learn which crops
    kept = [
        look.crops(b).contiguous(memory_format=torch.channels_last) for b in batches
    ]

    def bare() -> None:
        with torch.inference_mode():
            for batch in kept:
                network(batch)

    bare()
    engines, bares = [], []
    for _ in range(repeats):  # turn by turn, so that both see the same machine
        engines.append(timed(engine, image.device))
        bares.append(timed(bare, image.device))
    fixations = sum(map(len, batches))
    floor = least(network, model, fixations, len(batches), image, most)
    figures: dict[str, Any] = {
        "network": name,
        "policy": policy,
        "shape": shape,
        "device": str(image.device),
        "fixations": fixations,
        "engine_over_bare_network": round(min(engines) / min(bares), 3),
        "engine_over_floor": round(min(engines) / floor["floor_seconds"], 2),
        "engine_seconds": round(min(engines), 3),
        "bare_seconds": round(min(bares), 3),
        **{key: round(value, 4) for key, value in floor.items()},
        **{key: round(value, 1) for key, value in most.items()},
    }
    if policy == "raster":
        loop = timed(lambda: literal(network, image, model), image.device)
        figures["literal_loop_over_engine"] = round(loop / min(engines), 2)
    tell("scan", figures)


def timed(work: Callable[[], Any], device: torch.device) -> float:
    """Seconds that some work takes on a device."""
    started = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started


def least(
    network: Any,
    model: Model,
    fixations: int,
    batches: int,
    image: torch.Tensor,
    most: dict[str, float],
) -> dict[str, float]:
    """Tell the least time that arithmetic and bytes take at the machine's ceilings."""
    d, classes = model.config.d, model.config.classes
    crop = image.new_zeros(1, 3, d, d)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(crop)
    gflop = counter.get_total_flops() * fixations / 1e9
    weights = 4 * sum(p.numel() for p in model.network.parameters()) * batches
    # Every crop is read once, and every tile of the map is read and written.
    moved = 4 * d**2 * (3 + 2 * (classes + 2)) * fixations + weights
    arithmetic = gflop / most["peak_gflop_per_s"]
    copying = moved / 1e9 / most["peak_gb_per_s"]
    return {
        "floor_seconds": max(arithmetic, copying),
        "arithmetic_seconds": arithmetic,
        "bytes_seconds": copying,
        "gflop": gflop,
    }


def literal(network: Any, image: torch.Tensor, model: Model) -> None:
    """Run the paper's scan as it is written: one crop, then one cell, at a time."""
    grid = model.config.grid
    d, (_, height, width) = grid.d, image.shape
    total = np.zeros((model.config.classes, height, width), np.float32)
    rows = [*range(0, height - d, 10), height - d]
    for y in rows:
        x = 0
        while True:
            with torch.inference_mode():
                crop = image[None, :, y : y + d, x : x + d]
                pmfs = network(crop)[0].softmax(-1).cpu().numpy()
            for (top, left, bottom, right), pmf in zip(grid.cells, pmfs, strict=True):
                total[:, y + top : y + bottom, x + left : x + right] += pmf[
                    :, None, None
                ]
            if x == width - d:
                break
            h = float(-(pmfs * np.log(np.maximum(pmfs, 1e-30))).sum(-1).mean())
            x = min(x + max(1, round(d * math.exp(-(h**2) / 0.32))), width - d)
    total /= total.sum(0)


def memory(model: Model, side: int) -> None:
    """Scan a large image and tell the peak of resident memory."""
    image = torch.zeros(1, side, side)
    y = torch.arange(side)
    image[0] = ((y[:, None] // 16 + y // 16) % 5 == 0).float()
    given = image.element_size() * image.numel()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    run = scanning(
        inference_network(model, image.device),
        image.expand(3, -1, -1),
        config=model.config,
        policy=POLICIES["seek"],
        budget=20_000,
        batch_size=BATCH,
    )
    for _ in run:
        pass
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    tell(
        "scan memory",
        {
            "shape": (side, side),
            "fixations": 20_000,
            "peak_resident_gib": round(peak / 2**30, 2),
            "scan_over_image": round((peak - before) / given, 2),
        },
    )


if __name__ == "__main__":
    main()
