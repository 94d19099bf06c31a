"""A folder of small images: read ahead and written behind, over one by one."""

from __future__ import annotations

import argparse
import resource
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import imageio.v3 as imageio

from machine import tell
from napari_fovea.files import read_image
from napari_fovea.inference import complete, find_images, segment, segment_files
from napari_fovea.inference.folders import write_results
from napari_fovea.models import Model
from napari_fovea.sample_data import make_nuclei


def main() -> None:
    """Measure turn by turn and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=200)
    parser.add_argument("--side", type=int, default=128)
    parser.add_argument("--turns", type=int, default=10)
    parser.add_argument("--model", default="retina-nuclei")
    options = parser.parse_args()
    model = Model.load(options.model)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        paths = []
        for i in range(options.files):
            image, _ = make_nuclei((options.side, options.side), count=8, seed=i)
            paths.append(folder / f"{i:04}.png")
            imageio.imwrite(paths[-1], image)
        # Turns are short, so that what else the machine does falls on both.
        parts = [paths[i :: options.turns] for i in range(options.turns)]
        plain(parts[0], model, folder / "warm")
        memory = peak()
        ratios, seconds = [], [0.0, 0.0]
        for part in parts:
            took = [
                timed(run, part, model, folder / run.__name__) for run in (plain, ahead)
            ]
            ratios.append(took[0] / took[1])
            seconds = [total + one for total, one in zip(seconds, took, strict=True)]
        tell(
            "folders",
            {
                "model": options.model,
                "files": options.files,
                "side": options.side,
                "images_per_second": round(options.files / seconds[1], 2),
                "one_by_one_per_second": round(options.files / seconds[0], 2),
                "faster": round(seconds[0] / seconds[1], 3),
                "faster_median_of_turns": round(statistics.median(ratios), 3),
                "more_memory_mib": peak() - memory,
            },
        )


def plain(paths: list[Path], model: Model, output: Path) -> None:
    """Do one thing after the other."""
    for image in find_images(paths, output):
        result = complete(segment(read_image(image.path), model))
        write_results(result, image, probabilities=True)


def ahead(paths: list[Path], model: Model, output: Path) -> None:
    """Read ahead and write behind."""
    batch = complete(segment_files(paths, model, output, probabilities=True))
    if len(batch.written) != len(paths):
        raise RuntimeError(f"{len(batch.failed)} images failed")


def timed(run: Any, *arguments: Any) -> float:
    """Seconds that a call takes."""
    begun = time.perf_counter()
    run(*arguments)
    return time.perf_counter() - begun


def peak() -> int:
    """Most memory that was in use so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10


if __name__ == "__main__":
    main()
