"""What memory there is, when it has run out, and how it is given back."""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path

import psutil
import torch

_SIGNS = (
    "out of memory",  # CUDA, MPS, XPU
    "not enough memory",  # the CPU's allocator on Windows
    "can't allocate memory",  # and elsewhere
    "could not create a memory",  # oneDNN, of its workspace
)


def free_memory(device: torch.device) -> int:
    """Bytes of a device's memory that nobody uses at the moment.

    Of the CPU it is what the system could give without swapping, or what the limit
    of the control group leaves, where that is less. Memory that torch holds for
    what comes next is free.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(free + kept)
    if device.type == "xpu":
        properties = torch.xpu.get_device_properties(device)
        used = torch.xpu.memory_allocated(device)
        return max(0, int(properties.total_memory) - int(used))
    free = int(psutil.virtual_memory().available)
    if device.type == "mps":
        # It shares the CPU's memory, but may not have all of it.
        most = getattr(torch.mps, "recommended_max_memory", lambda: 2 * free)()
        return max(0, min(free, int(most) - torch.mps.driver_allocated_memory()))
    return min(free, group_memory())


def group_memory(
    *, root: Path = Path("/sys/fs/cgroup"), mine: Path = Path("/proc/self/cgroup")
) -> int:
    """Bytes that the limits of this process's control groups leave.

    Parameters
    ----------
    root : Path
        Where the groups are mounted.
    mine : Path
        The file that tells which group this process is in.

    Returns
    -------
    int
        ``sys.maxsize`` where there is no limit.
    """
    try:
        lines = mine.read_text().splitlines()
    except OSError:
        return sys.maxsize
    left = sys.maxsize
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            base, most, used = root, "memory.max", "memory.current"
        elif "memory" in controllers.split(","):
            base, most = root / "memory", "memory.limit_in_bytes"
            used = "memory.usage_in_bytes"
        else:
            continue
        # In a container the path may be the host's: then the root is its group.
        group = base / path.lstrip("/")
        for folder in (group, *group.parents):
            limit, now = _number(folder / most), _number(folder / used)
            if limit is not None and now is not None:
                left = min(left, max(0, limit - now + _droppable(folder)))
            if folder == base:
                break
    return left


def _number(file: Path) -> int | None:
    try:
        return int(file.read_text())
    except (OSError, ValueError):  # no such file, or "max"
        return None


def _droppable(folder: Path) -> int:
    """Bytes of files that are cached and would make room."""
    try:
        lines = (folder / "memory.stat").read_text().splitlines()
    except OSError:
        return 0
    told = dict(line.split() for line in lines)
    return int(told.get("total_inactive_file", told.get("inactive_file", 0)))


def ran_out(error: BaseException) -> bool:
    """Tell whether an error says that memory ran out, of whatever device."""
    if isinstance(error, MemoryError | torch.cuda.OutOfMemoryError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(sign in text for sign in _SIGNS)


def give_back() -> None:
    """Return memory that is no longer used to accelerator and system.

    Torch keeps it for what comes next, and so does the C library on Linux.
    """
    for backend in (torch.cuda, torch.xpu, torch.mps):
        if backend.is_available():
            backend.empty_cache()
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc has it
        if trim is not None:
            trim(0)
