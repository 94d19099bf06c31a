"""Which accelerator there is, and how it is used."""

from __future__ import annotations

import ctypes
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from napari_fovea.errors import DeviceError

if TYPE_CHECKING:
    from collections.abc import Iterator


def available() -> tuple[str, ...]:
    """Devices that can be asked for, the best first; ``"cpu"`` is always last."""
    found = [f"cuda:{i}" for i in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        found.append("mps")
    if torch.xpu.is_available():
        found.append("xpu")
    return (*found, "cpu")


def pick(name: str = "auto") -> torch.device:
    """Choose a device.

    Parameters
    ----------
    name : str
        ``"auto"`` for the best there is, or a device such as ``"cuda"``,
        ``"cuda:1"``, ``"mps"`` or ``"cpu"``.

    Raises
    ------
    DeviceError
        If it is unknown or not on this machine.
    """
    devices = available()
    if name == "auto":
        return torch.device(devices[0])
    # "cuda" stands for the first of its kind.
    for device in devices:
        if name in (device, device.split(":")[0]):
            return torch.device(device)
    raise DeviceError(
        f"There is no device {name!r} on this machine; expected 'auto' or one of "
        f"{', '.join(devices)}."
    )


def describe(device: torch.device) -> str:
    """Name of a device for people, such as ``"cpu (2 threads)"``."""
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    if device.type == "cpu":
        threads = torch.get_num_threads()
        return f"cpu ({threads} thread{'s' if threads != 1 else ''})"
    return str(device)


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


@contextmanager
def leaving_a_core() -> Iterator[None]:
    """Compute with one thread less than there are, so that a window can repaint.

    Holds for the calling thread.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(max(1, before - 1))
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def exact_training() -> Iterator[None]:
    """Ask torch for algorithms that give the same bits every time, where it can."""
    before = torch.are_deterministic_algorithms_enabled()
    warn = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warn)
