"""How a network is to be computed: where, how precisely, in how much memory."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from napari_fovea.device.memory import free_memory
from napari_fovea.errors import DeviceError

if TYPE_CHECKING:
    from collections.abc import Callable

PRECISIONS = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
"""Precisions that can be asked for beside ``"auto"``."""

_GIB = 2**30
_MOST = {"cpu": 4 * _GIB}
"""Memory taken by default at most: a tile of the hungriest network that ships has
1600 pixels a side in it, of which what neighbours share is a tenth, so that more
would gain little and be missed by the viewer and its images."""

_TENSOR_CORES = (7, 0)  # older GPUs are no faster in 16 bits, many far slower
_UNITS = {"": _GIB, "g": 10**9, "gi": _GIB, "m": 10**6, "mi": 2**20}


@dataclass(frozen=True, slots=True)
class Backend:
    """Where and how networks compute.

    Attributes
    ----------
    device : str
        ``"auto"`` for the best device that computes as it should, or its name.
    precision : str
        ``"float32"``, ``"bfloat16"`` or ``"float16"``; ``"auto"`` for 16 bits where
        the device is fast at them and the network gives nearly the same.
    memory : int or None
        Bytes that the features of a network may take; by default half of what is
        free, on the CPU at most 4 GiB.
    compiled : bool
        Whether networks are compiled, which takes up to minutes before the first
        result and makes the next ones faster.

    Raises
    ------
    DeviceError
        If there is no such precision, or no memory to compute in.
    """

    device: str = "auto"
    precision: str = "auto"
    memory: int | None = None
    compiled: bool = False

    def __post_init__(self) -> None:
        if self.precision not in ("auto", *PRECISIONS):
            raise DeviceError(
                f"There is no precision {self.precision!r}; expected auto, "
                f"{', '.join(PRECISIONS)}: choose one of these."
            )
        if self.memory is not None and self.memory < 1:
            raise DeviceError(
                f"The memory is {self.memory} bytes; expected more than 0: leave it "
                "out for half of what is free."
            )

    def allowance(self, device: torch.device) -> int:
        """Bytes that features may take on a device at the moment."""
        if self.memory is not None:
            return self.memory
        half = free_memory(device) // 2
        return min(half, _MOST.get(device.type, half))


def as_backend(device: str | torch.device | Backend) -> Backend:
    """Take a device for what is meant.

    A name means the best way to compute there; a torch device, which training and
    scoring use, a place and no more: numbers are exact to float32.
    """
    if isinstance(device, Backend):
        return device
    if isinstance(device, torch.device):
        return Backend(str(device), precision="float32")
    return Backend(device)


def memory_of(text: str) -> int | None:
    """Read an amount of memory.

    Parameters
    ----------
    text : str
        Such as ``"2GiB"``, ``"500 MB"`` or ``"1.5"``, which is GiB; ``"auto"`` or
        nothing for the default.

    Returns
    -------
    int or None
        Bytes.

    Raises
    ------
    DeviceError
        If it cannot be read.
    """
    if text.strip().lower() in ("", "auto"):
        return None
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(gi|mi|g|m|)b?\s*", text.lower())
    amount = int(float(found[1]) * _UNITS[found[2]]) if found else 0
    if amount < 1:
        raise DeviceError(
            f"{text!r} is no amount of memory; expected one such as 2GiB or 500MB: "
            "leave it out for half of what is free."
        )
    return amount


def fast_precision(device: torch.device) -> torch.dtype:
    """Tell the precision in which a device's hardware is fastest."""
    if device.type == "cuda":
        if torch.cuda.get_device_capability(device) < _TENSOR_CORES:
            return torch.float32
        with torch.cuda.device(device):
            native = torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if native else torch.float16
    if device.type == "mps":
        return torch.float16
    if device.type == "xpu":
        return torch.bfloat16
    # Without such instructions the same library computes in float32 between casts.
    if _cpu_has("_is_avx512_bf16_supported") or _cpu_has("_is_amx_tile_supported"):
        return torch.bfloat16
    return torch.float32


def _cpu_has(name: str) -> bool:
    """Ask torch about the processor, where it can tell."""
    ask: Callable[[], bool] | None = getattr(torch.cpu, name, None)
    return ask is not None and bool(ask())
