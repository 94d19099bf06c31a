"""Which devices there are, and whether they compute as they should."""

from __future__ import annotations

import torch

from napari_fovea.device import trial
from napari_fovea.errors import DeviceError


def available() -> tuple[str, ...]:
    """Devices that can be asked for, the best first; ``"cpu"`` is always last.

    They are listed, not tried: `pick` does that.
    """
    found = [f"cuda:{i}" for i in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        found.append("mps")
    if torch.xpu.is_available():
        found.append("xpu")
    return (*found, "cpu")


def pick(name: str = "auto") -> torch.device:
    """Choose a device that computes as it should.

    A device is tried before its first use: see `trial`. That takes seconds where
    the device must be started, so call it in a job.

    Parameters
    ----------
    name : str
        ``"auto"`` for the best that passes, or a device such as ``"cuda"``,
        ``"cuda:1"``, ``"mps"`` or ``"cpu"``.

    Raises
    ------
    DeviceError
        If it is unknown, not on this machine, or computes wrongly.
    """
    devices = available()
    if name == "auto":
        for device in devices:
            if trial.fault(device) is None:
                return torch.device(device)
        name = devices[-1]
    # "cuda" stands for the first of its kind.
    for device in devices:
        if name in (device, device.split(":")[0]):
            fault = trial.fault(device)
            if fault is not None:
                raise DeviceError(
                    f"Device {device!r} {fault}; expected a device that passes its "
                    "test: choose another, or 'auto', and update its driver."
                )
            return torch.device(device)
    raise DeviceError(
        f"There is no device {name!r} on this machine; expected 'auto' or one of "
        f"{', '.join(devices)}."
    )


def skipped() -> dict[str, str]:
    """Devices that were tried so far and failed, and what was wrong with each."""
    faults = {device: trial.known(device) for device in available()}
    return {device: fault for device, fault in faults.items() if fault is not None}


def describe(device: torch.device) -> str:
    """Name of a device for people, such as ``"cpu (2 threads)"``."""
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    if device.type == "cpu":
        threads = torch.get_num_threads()
        return f"cpu ({threads} thread{'s' if threads != 1 else ''})"
    return str(device)
