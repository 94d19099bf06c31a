"""The processes that train together, on lightning-fabric."""

from __future__ import annotations

import inspect
import logging
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from napari_fovea.device import pick
from napari_fovea.errors import DeviceError, TrainingError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lightning_fabric import Fabric
    from lightning_fabric.strategies.ddp import DDPStrategy

PRECISIONS = {"float32": "32-true", "bfloat16": "bf16-mixed", "float16": "16-mixed"}
"""Precisions to train in; the 16-bit ones are mixed with float32."""

ACCELERATORS = ("auto", "cpu", "cuda", "mps")
"""Kinds of devices to train on."""


def single(device: str = "auto", precision: str = "float32") -> Fabric:
    """One process on one device."""
    where = pick(device)
    if where.type == "xpu":
        raise TrainingError(
            "Training on XPU is not supported; expected cpu, cuda or mps: choose "
            "another device."
        )
    return launch(
        accelerator=where.type, devices=[where.index or 0], precision=precision
    )


def check_precision(name: str) -> None:
    """Raise TrainingError unless it is a name of `PRECISIONS`."""
    if name not in PRECISIONS:
        raise TrainingError(
            f"There is no precision {name!r}; expected one of {', '.join(PRECISIONS)}."
        )


def launch(
    *,
    accelerator: str = "auto",
    devices: int | list[int] = 1,
    nodes: int = 1,
    precision: str = "float32",
) -> Fabric:
    """Start the processes that train together.

    With more than one, the program is started again for each of the others, as
    by ``torchrun``, and goes on from here in all of them.

    Parameters
    ----------
    accelerator : str
        ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"mps"``.
    devices : int or list of int
        Processes of this machine, or the numbers of its devices.
    nodes : int
        Machines. On each, the environment tells ``MASTER_ADDR``, ``MASTER_PORT``
        and ``NODE_RANK``.
    precision : str
        A name of `PRECISIONS`.

    Raises
    ------
    TrainingError
        If there is no such precision.
    DeviceError
        If there are not so many devices of this kind.
    """
    check_precision(precision)
    count = devices if isinstance(devices, int) else len(devices)
    wanted = f"Training cannot start on {count} × {accelerator!r}"
    if accelerator not in ACCELERATORS:
        raise DeviceError(f"{wanted}; expected one of {', '.join(ACCELERATORS)}.")
    from lightning_fabric import Fabric
    from lightning_fabric.utilities.exceptions import MisconfigurationException

    if accelerator == "cpu" or accelerator == "mps":
        devices = count  # these are not numbered
    with _quiet():
        try:
            fabric = Fabric(
                accelerator=accelerator,
                devices=devices,
                num_nodes=nodes,
                strategy=_together() if count * nodes > 1 else "auto",
                precision=PRECISIONS[precision],  # type: ignore[arg-type]
            )
        except (ValueError, RuntimeError, MisconfigurationException) as error:
            raise DeviceError(
                f"{wanted}; expected devices that this machine has: "
                f"{' '.join(str(error).split())}"
            ) from error
        fabric.launch()
    return fabric


def _together() -> DDPStrategy:
    """Share gradients among processes, and of statistics what `statistics` says."""
    from lightning_fabric.strategies.ddp import DDPStrategy
    from torch.nn.parallel import DistributedDataParallel

    known = inspect.signature(DistributedDataParallel.__init__).parameters
    names = ("forward_sync_buffers", "broadcast_buffers")  # of torch now, and before
    settings: dict[str, Any] = {next(n for n in names if n in known): False}
    return DDPStrategy(**settings)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep Fabric from telling that it starts; it still tells what fails."""
    chatter = logging.getLogger("lightning_fabric.utilities")
    before = chatter.level
    chatter.setLevel(logging.WARNING)
    try:
        yield
    finally:
        chatter.setLevel(before)


def mean(fabric: Fabric, value: float) -> float:
    """Mean over processes."""
    if fabric.world_size == 1:
        return value
    mean = fabric.all_reduce(torch.tensor(value), reduce_op="mean")
    assert isinstance(mean, torch.Tensor)
    return float(mean)
