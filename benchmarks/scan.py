"""The scan engine against the bare network and against a literal loop.

Each line of JSON is measured in one process: the engine, the network alone on the
very crops the engine looked at, and the paper's loop one crop and one cell at a
time. The last line is the peak memory of a scan of 8192×8192 pixels.
"""

from __future__ import annotations

import argparse
import math
import resource
import subprocess
import sys
import time
from typing import Any

import numpy as np
import torch

from machine import tell
from napari_fovea import Model
from napari_fovea.inference.retina import default_budget, inference_network, scanning
from napari_fovea.retina import FUSIONS, POLICIES, CropLook
from napari_fovea.sample_data import make_nuclei

BATCH = 32


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="retina-nuclei")
    parser.add_argument("--side", type=int, default=1024)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--memory-of", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    model = Model.load(arguments.model)
    if arguments.memory_of:
        memory(model, arguments.memory_of)
        return
    # 1024² nuclei by tiling: drawing them all at once would take minutes.
    tile, _ = make_nuclei((256, 256))
    times = math.ceil(arguments.side / 256)
    picture = np.tile(tile, (times, times))[: arguments.side, : arguments.side]
    bright = float(np.percentile(picture, 99.8))
    image = torch.from_numpy(picture.astype(np.float32) / bright)
    image = image.expand(3, -1, -1)
    for policy in ("raster", "seek"):
        measure(model, image, policy, arguments.repeats)
    command = [sys.executable, __file__, "--model", arguments.model]
    subprocess.run([*command, "--memory-of", "8192"], check=True)


def measure(model: Model, image: torch.Tensor, policy: str, repeats: int) -> None:
    """Time one policy against the bare network and the literal loop."""
    shape = (image.shape[1], image.shape[2])
    budget = default_budget(shape, d=model.config.d) if policy == "seek" else None
    fusion = FUSIONS["precision" if policy == "seek" else "mean"]

    network = inference_network(model, image.device)

    def engine() -> tuple[float, list[torch.Tensor]]:
        started, batches = time.perf_counter(), []
        run = scanning(
            network,
            image,
            config=model.config,
            policy=POLICIES[policy],
            fusion=fusion,
            budget=budget,
            batch_size=BATCH,
        )
        for event in run:
            batches.append(event.corners)
        return time.perf_counter() - started, batches

    grid = model.config.grid
    margin = POLICIES[policy].margin(grid)
    look = CropLook(network, image, grid=grid, margin=margin)
    _, batches = engine()  # warm up, and learn which crops
    crops = [
        look.crops(b).contiguous(memory_format=torch.channels_last) for b in batches
    ]

    def bare() -> float:
        started = time.perf_counter()
        with torch.inference_mode():
            for batch in crops:
                network(batch)
        return time.perf_counter() - started

    bare()
    engines, bares = [], []
    for _ in range(repeats):  # turn by turn, so that both see the same machine
        engines.append(engine()[0])
        bares.append(bare())
    fixations = sum(map(len, batches))
    figures: dict[str, Any] = {
        "policy": policy,
        "shape": shape,
        "fixations": fixations,
        "engine_over_bare_network": round(min(engines) / min(bares), 3),
        "engine_seconds": round(min(engines), 3),
        "bare_seconds": round(min(bares), 3),
    }
    if policy == "raster":
        loop = literal(network, image, model)
        figures["literal_loop_over_engine"] = round(loop / min(engines), 2)
    tell("scan", figures)


def literal(network: Any, image: torch.Tensor, model: Model) -> float:
    """Time the paper's scan as it is written: one crop, then one cell, at a time."""
    started = time.perf_counter()
    grid = model.config.grid
    d, (_, height, width) = grid.d, image.shape
    total = np.zeros((model.config.classes, height, width), np.float32)
    rows = [*range(0, height - d, 10), height - d]
    for y in rows:
        x = 0
        while True:
            with torch.inference_mode():
                crop = image[None, :, y : y + d, x : x + d]
                pmfs = network(crop)[0].softmax(-1).numpy()
            for (top, left, bottom, right), pmf in zip(grid.cells, pmfs, strict=True):
                total[:, y + top : y + bottom, x + left : x + right] += pmf[
                    :, None, None
                ]
            if x == width - d:
                break
            h = float(-(pmfs * np.log(np.maximum(pmfs, 1e-30))).sum(-1).mean())
            x = min(x + max(1, round(d * math.exp(-(h**2) / 0.32))), width - d)
    total /= total.sum(0)
    return time.perf_counter() - started


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
