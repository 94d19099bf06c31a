"""What huge pages are worth to a network on large planes.

Torch asks for them or not from its first tensor on, so the bare network runs in
processes of their own, with and without, turn by turn. One line of JSON for each side:
medians of seconds per megapixel, and their ratio.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time

from machine import tell

_SWITCH = "THP_MEM_ALLOC_ENABLE"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="focusnet-nuclei")
    parser.add_argument("--sides", type=int, nargs="+", default=[1024, 2048])
    parser.add_argument("--precision", default="bfloat16")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--child", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(child(arguments.model, arguments.precision, arguments.child)))
        return
    for side in arguments.sides:
        seconds: dict[str, list[float]] = {"0": [], "1": []}
        given = ["--model", arguments.model, "--precision", arguments.precision]
        for _ in range(arguments.repeats):
            for switch, found in seconds.items():
                done = subprocess.run(
                    [sys.executable, __file__, *given, "--child", str(side)],
                    env=os.environ | {_SWITCH: switch},
                    check=True,
                    stdout=subprocess.PIPE,
                    text=True,
                )
                found += json.loads(done.stdout.splitlines()[-1])
        small, huge = (statistics.median(seconds[k]) for k in ("0", "1"))
        figures = {
            "model": arguments.model,
            "precision": arguments.precision,
            "side": side,
            "small_over_huge_pages": round(small / huge, 2),
            "small_pages_seconds_per_megapixel": round(small, 3),
            "huge_pages_seconds_per_megapixel": round(huge, 3),
        }
        tell("pages", figures)


def child(name: str, precision: str, side: int) -> list[float]:
    """Time the bare network on noise."""
    import torch

    from napari_fovea import Model
    from napari_fovea.inference.runner import Runner

    model = Model.load(name)
    runner = Runner(model, torch.device("cpu"))
    image = torch.rand(1, model.channels, side, side)
    seconds = []
    for _ in range(4):
        started = time.perf_counter()
        runner.loaded.run(image, getattr(torch, precision))
        seconds.append((time.perf_counter() - started) / side**2 * 1e6)
    return seconds[1:]  # the first one warms up


if __name__ == "__main__":
    main()
