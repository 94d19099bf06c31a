"""What a benchmark ran on, and how it tells its figures."""

from __future__ import annotations

import datetime
import json
import os
import platform
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from numpy.typing import NDArray

DATA = Path(__file__).parents[2] / "shared" / "data"


def machine() -> dict[str, Any]:
    """Name the processor, the cores and the versions."""
    import torch

    name = platform.processor()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = cpuinfo.read_text().splitlines()
        models = [x.split(":")[1].strip() for x in lines if x.startswith("model name")]
        name = models[0] if models else name
    return {
        "processor": name,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "accelerator": torch.cuda.get_device_name()
        if torch.cuda.is_available()
        else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }


def picture(shape: tuple[int, int]) -> NDArray[np.float32]:
    """Nuclei on a plane of any size, brightest about 1."""
    import numpy as np

    from napari_fovea.sample_data import make_nuclei

    # Side by side: drawing them all at once would take minutes.
    tile, _ = make_nuclei((256, 256))
    times = [-(-n // 256) for n in shape]
    plane = np.tile(tile, times)[: shape[0], : shape[1]].astype(np.float32)
    return plane / float(np.percentile(plane, 99.8))


def ceilings(device: str = "cpu") -> dict[str, float]:
    """Measure what a device can at most: a large product, convolution and copy.

    Of product and convolution the faster one counts: their libraries differ.
    """
    import torch

    def best(work: Callable[[], Any]) -> float:
        seconds = []
        for _ in range(5):
            started = time.perf_counter()
            work()
            if device.startswith("cuda"):
                torch.cuda.synchronize(device)
            seconds.append(time.perf_counter() - started)
        return min(seconds[1:])

    side = 2048 if device == "cpu" else 8192
    a = torch.rand(side, side, device=device)
    product = 2 * side**3 / best(lambda: a @ a)
    wide = 256 if device == "cpu" else 1024
    x = torch.rand(4, wide, 64, 64, device=device)
    x = x.contiguous(memory_format=torch.channels_last)
    layer = torch.nn.Conv2d(wide, wide, 3, padding=1, bias=False, device=device)
    layer = layer.to(memory_format=torch.channels_last).requires_grad_(False)
    convolution = 2 * 9 * wide**2 * x.numel() / wide / best(lambda: layer(x))
    source = torch.rand(1 << 26, device=device)  # 256 MiB: no cache holds it
    target = torch.empty_like(source)
    copy = best(lambda: target.copy_(source))
    return {
        "peak_gflop_per_s": max(product, convolution) / 1e9,
        "peak_gb_per_s": 8 * source.numel() / copy / 1e9,
    }


def tell(name: str, figures: dict[str, Any]) -> None:
    """Print one line of JSON."""
    print(json.dumps({"benchmark": name, **figures, "machine": machine()}), flush=True)
