"""What a benchmark ran on, and how it tells its figures."""

from __future__ import annotations

import datetime
import json
import os
import platform
from pathlib import Path
from typing import Any

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


def tell(name: str, figures: dict[str, Any]) -> None:
    """Print one line of JSON."""
    print(json.dumps({"benchmark": name, **figures, "machine": machine()}), flush=True)
