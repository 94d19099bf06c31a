"""Large planes in tiles against the bare network on as many pixels.

One line of JSON, measured in one process: the whole of `DenseReader`, and the network
alone on pieces of the plane that do not overlap and are as large as its tiles, so that
what is compared is what tiles waste: what they share, ramps, adding, normalising.
"""

from __future__ import annotations

import argparse
import math
import time
from typing import TYPE_CHECKING

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
    parser.add_argument("--repeats", type=int, default=1)
    arguments = parser.parse_args()
    model = Model.load(arguments.model)
    memory = int(arguments.memory * 2**30) if arguments.memory else None
    backend = Backend(arguments.device, precision=arguments.precision, memory=memory)
    plane = tissue(arguments.side)
    reader = DenseReader(model, backend)
    complete(reader.read(plane[:, :512, :512]))  # settles precision, measures needs

    def tiles() -> float:
        started = time.perf_counter()
        complete(reader.read(plane))
        return time.perf_counter() - started

    seconds = [tiles()]
    runner, tiling = reader.runner, reader.settings["tiling"]
    multiple = int(getattr(model.network, "multiple", 1))
    size = tile_side(arguments.side, reader, multiple=multiple)

    def bare() -> float:
        pieces = arguments.side**2 / size**2
        started = time.perf_counter()
        done = 0
        for y in range(0, arguments.side - size + 1, size):
            for x in range(0, arguments.side - size + 1, size):
                piece = plane[None, :, y : y + size, x : x + size].to(runner.device)
                runner.loaded.run(piece, runner.dtype)
                done += 1
        synchronise(runner)
        # Pieces seldom divide the plane: their rate is what counts.
        return (time.perf_counter() - started) * pieces / done

    bares = [bare()]
    for _ in range(arguments.repeats - 1):  # turn by turn, on the same machine
        seconds.append(tiles())
        bares.append(bare())
    need = needs(model.network, runner.dtype, multiple=multiple)
    tell(
        "tiles",
        {
            "model": model.name,
            "shape": (arguments.side, arguments.side),
            "bare_network_over_tiles": round(min(bares) / min(seconds), 3),
            "tiles_seconds": round(min(seconds), 2),
            "bare_seconds": round(min(bares), 2),
            "tile": size,
            "tiling": tiling,
            "batch_size": reader.settings["batch_size"],
            **runner.told,
            "device": str(runner.device),
            "bytes_per_pixel": round(need.stages[0][1], 1),
            "free_gib": round(free_memory(runner.device) / 2**30, 1),
        },
    )


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
