"""Images larger than memory: seconds, memory, and what blocks cost beside the whole.

Each line of JSON is one run in a process of its own, so that peak memory is that run's
alone, on a synthetic image on disk: a tile of nuclei of 1024² pixels again and again,
with every fourth place of the lattice left empty. The first line is the same model on
an image in memory; speeds of the others are given as ratios to it. Which precision was
chosen is told; give one, or they may differ in it.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from machine import tell
from napari_fovea import Model, complete, segment
from napari_fovea.device import Backend
from napari_fovea.sample_data import make_nuclei
from napari_fovea.scale import segment_large

_TILE = 1024
_PRECISIONS = ("float32", "bfloat16", "float16")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="mask-rcnn-nuclei")
    parser.add_argument("--sides", type=int, nargs="+", default=[1024, 4096, 20_000])
    parser.add_argument("--memory-side", type=int, default=4096)
    parser.add_argument("--workers", type=int, default=0, help="also with as many")
    parser.add_argument("--chunk", type=int)
    parser.add_argument("--precision", default="auto", choices=["auto", *_PRECISIONS])
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(child(**json.loads(arguments.child))))
        return
    with tempfile.TemporaryDirectory() as folder:
        compare(arguments, Path(folder))


def compare(arguments: argparse.Namespace, folder: Path) -> None:
    """Run every case in a process of its own, and tell."""
    names = ("model", "chunk", "precision")
    given = {name: getattr(arguments, name) for name in names}
    side = arguments.memory_side
    whole = apart(source=str(synthetic(folder, side)), whole=True, **given)
    speed = side**2 / whole["seconds"]
    tell("large, in memory", {"shape": (side, side), **whole})
    for side in arguments.sides:
        source = str(synthetic(folder, side))
        one = apart(source=source, output=str(folder / f"{side}.out.zarr"), **given)
        ratio = side**2 / one["seconds"] / speed
        figures = {"shape": (side, side), **one, "speed_over_memory": round(ratio, 3)}
        tell("large", figures)
        if arguments.workers:
            many_output = str(folder / f"{side}.workers.zarr")
            many = apart(
                source=source, output=many_output, workers=arguments.workers, **given
            )
            threads = max(1, (os.cpu_count() or 1) // arguments.workers)
            output = str(folder / f"{side}.worker.zarr")
            alone = apart(
                source=source, output=output, workers=1, threads=threads, **given
            )
            figures = {"shape": (side, side), "workers": arguments.workers, **many}
            seconds = many["seconds"]
            times = {
                "speed_over_one_process": round(one["seconds"] / seconds, 3),
                "speed_over_one_worker": round(alone["seconds"] / seconds, 3),
                "threads_of_a_worker": threads,
                "same_output": same(output, many_output),
            }
            tell("large, workers", figures | times)


def same(one: str, other: str) -> bool:
    """Tell whether two runs have found the same objects, pixel by pixel."""
    a, b = (zarr.open_array(f"{path}/labels/instances/0") for path in (one, other))
    rows = range(0, a.shape[0], _TILE)
    return all(np.array_equal(a[y : y + _TILE], b[y : y + _TILE]) for y in rows)


def synthetic(folder: Path, side: int) -> Path:
    """Write an image of nuclei; drawing them all anew would take hours."""
    path = folder / f"{side}.zarr"
    if path.exists():
        return path
    tile, _ = make_nuclei((_TILE, _TILE), count=400)
    tile = (tile / tile.max() * 255).astype(np.uint8)
    array = zarr.create_array(
        path, shape=(side, side), chunks=(_TILE, _TILE), dtype="uint8"
    )
    for i, top in enumerate(range(0, side, _TILE)):
        for j, left in enumerate(range(0, side, _TILE)):
            if i % 2 and j % 2:
                continue
            part = tile[: side - top, : side - left]
            array[top : top + _TILE, left : left + _TILE] = part
    return path


def apart(**case: Any) -> dict[str, Any]:
    """Run a case in a process of its own."""
    command = [sys.executable, __file__, "--child", json.dumps(case)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return figures


def child(
    source: str,
    model: str,
    *,
    chunk: int | None,
    precision: str,
    output: str | None = None,
    workers: int | None = None,
    threads: int | None = None,
    whole: bool = False,
) -> dict[str, Any]:
    """Segment, and tell seconds and the peak of resident memory."""
    if threads:
        import torch

        torch.set_num_threads(threads)
    loaded = Model.load(model)
    complete(segment(make_nuclei((256, 256))[0], loaded))  # warm up
    backend = Backend(precision=precision)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    image = zarr.open_array(source, mode="r")[...] if whole else None
    started = time.perf_counter()
    figures: dict[str, Any] = {}
    if whole:
        result = complete(segment(image, loaded, device=backend))
        figures["objects"] = int(result.instances.max())
    else:
        result = complete(
            segment_large(
                source, loaded, output, chunk=chunk, workers=workers, device=backend
            )
        )
        figures |= {"objects": result.objects, "blocks": result.provenance["blocks"]}
    figures["precision"] = result.provenance["precision"]
    figures["seconds"] = round(time.perf_counter() - started, 2)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    figures["peak_resident_gib"] = round(peak / 2**20, 2)
    figures["of_it_before_gib"] = round(before / 2**20, 2)
    if workers:
        most = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
        figures["peak_of_a_worker_gib"] = round(most / 2**20, 2)
    return figures


if __name__ == "__main__":
    main()
