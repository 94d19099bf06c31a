"""A small convolution that a device must get right before it is trusted."""

from __future__ import annotations

import threading

import torch
from torch.nn import functional

_TOLERANCE = 0.01  # of the largest output; products may be rounded to 10 bits (TF32)

_faults: dict[str, str | None] = {}
_lock = threading.Lock()


def convolve(device: torch.device, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Convolve fixed numbers with fixed weights on a device; outputs on the CPU."""
    image = torch.arange(2 * 8 * 24 * 24, dtype=torch.float64).mul(0.7).sin()
    weight = torch.arange(16 * 8 * 3 * 3, dtype=torch.float64).mul(1.3).cos()
    x = image.view(2, 8, 24, 24).to(device, dtype)
    w = weight.view(16, 8, 3, 3).to(device, dtype)
    x = x.contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        return functional.conv2d(x, w, padding=1).relu().cpu()


def fault(name: str) -> str | None:
    """Try a device, once per process; tell what is wrong with it, if anything.

    The same numbers are convolved on it in float32 and on the CPU in float64.
    """
    with _lock:
        if name not in _faults:
            _faults[name] = _try(name)
        return _faults[name]


def known(name: str) -> str | None:
    """Tell what is known to be wrong with a device, without trying it."""
    return _faults.get(name)


def _try(name: str) -> str | None:
    expected = convolve(torch.device("cpu"), torch.float64)
    try:
        told = convolve(torch.device(name)).double()
    except Exception as error:  # drivers raise what they like
        first = str(error).strip().split("\n")[0].rstrip(".")
        return f"cannot compute ({type(error).__name__}: {first})"
    wrong = (told - expected).abs().max() / expected.abs().max()
    # Written so that NaN is wrong too.
    if not bool(wrong <= _TOLERANCE):
        return f"computes wrong numbers (a convolution is off by {float(wrong):.2g})"
    return None
