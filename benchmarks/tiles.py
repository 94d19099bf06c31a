"""Large planes in tiles against the bare network on as many pixels.

One line of JSON, measured in one process: the whole of `DenseReader`, and the network
alone on pieces of the plane that do not overlap and are as large as its tiles, so that
what is compared is what tiles waste: what they share, ramps, adding, normalising.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from typing import TYPE_CHECKING

# First, so that torch takes huge pages, as it does wherever the package is first.
import napari_fovea  # noqa: F401

# isort: split
import torch
from skimage.data import immunohistochemistry

from machine import tell
from napari_fovea import Model, complete
from napari_fovea.device import PRECISIONS, Backend, free_memory
from napari_fovea.inference.dense import DenseReader
from napari_fovea.inference.needs import needs
from napari_fovea.inference.tiles import Tiling, tile_length

if TYPE_CHECKING:
    from napari_fovea.inference.runner import Runner


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="focusnet-nuclei")
    parser.add_argument("--side", type=int, default=4096)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="auto", choices=["auto", *PRECISIONS])
    parser.add_argument("--memory", type=float, help="GiB; by default half of what is")
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    model = Model.load(arguments.model)
    memory = int(arguments.memory * 2**30) if arguments.memory else None
    backend = Backend(arguments.device, precision=arguments.precision, memory=memory)
    plane = tissue(arguments.side)
    reader = DenseReader(model, backend)
    complete(reader.read(plane[:, :512, :512]))  # settles precision, measures needs

    runner = reader.runner
    multiple = int(getattr(model.network, "multiple", 1))
    runs, pieces = [], []
    for _ in range(arguments.repeats):
        seconds, beside = measure(reader, plane, multiple=multiple)
        runs.append(seconds)
        pieces += beside
    # Fresh memory comes at a speed that changes by the second.
    tiled = sum(map(statistics.median, zip(*runs, strict=True)))
    bare = statistics.median(pieces)
    size = tile_side(arguments.side, reader, multiple=multiple)
    need = needs(model.network, runner.dtype, multiple=multiple)
    tell(
        "tiles",
        {
            "model": model.name,
            "shape": (arguments.side, arguments.side),
            "bare_network_over_tiles": round(bare / tiled, 3),
            "tiles_seconds": round(tiled, 2),
            "bare_seconds": round(bare, 2),
            "tile": size,
            "tiling": reader.settings["tiling"],
            "batch_size": reader.settings["batch_size"],
            **runner.told,
            "device": str(runner.device),
            "bytes_per_pixel": round(need.stages[0][1], 1),
            "free_gib": round(free_memory(runner.device) / 2**30, 1),
        },
    )


def measure(
    reader: DenseReader, plane: torch.Tensor, *, multiple: int
) -> tuple[list[float], list[float]]:
    """Read a plane; after each step run the bare network on a piece, and time both.

    Turn by turn, so that both see the same machine. Pieces seldom divide the plane:
    what they take is told for as many pixels as it has.
    """
    runner, side = reader.runner, plane.shape[1]
    run = reader.read(plane)
    tiled: list[float] = []
    bare: list[float] = []
    while True:
        started = time.perf_counter()
        try:
            next(run)
        except StopIteration:
            return [*tiled, time.perf_counter() - started], bare
        tiled.append(time.perf_counter() - started)
        size = tile_side(side, reader, multiple=multiple)
        top, left = (int(x) * (side - size) for x in torch.randint(2, (2,)))
        piece = plane[None, :, top : top + size, left : left + size]
        started = time.perf_counter()
        runner.loaded.run(piece.to(runner.device), runner.dtype)
        synchronise(runner)
        bare.append((time.perf_counter() - started) * side**2 / size**2)


def tissue(side: int) -> torch.Tensor:
    """Stained tissue (3, side, side), mirrored as often as needed."""
    image = torch.from_numpy(immunohistochemistry()).permute(2, 0, 1) / 255
    times = math.ceil(side / image.shape[1])
    row = torch.cat([image.flip(2) if i % 2 else image for i in range(times)], dim=2)
    rows = [row.flip(1) if i % 2 else row for i in range(times)]
    return torch.cat(rows, dim=1)[:, :side, :side].contiguous()


def tile_side(length: int, reader: DenseReader, *, multiple: int) -> int:
    """Side of the tiles that a reader cut a plane into."""
    return tile_length(length, Tiling(**reader.settings["tiling"]), multiple=multiple)


def synchronise(runner: Runner) -> None:
    """Wait for the device."""
    if runner.device.type == "cuda":
        torch.cuda.synchronize(runner.device)


if __name__ == "__main__":
    main()
