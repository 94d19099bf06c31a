"""What networks count while they learn: the running statistics of normalisations."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from lightning_fabric import Fabric
    from torch import nn


class PartStatistics:
    """Lets all parts of a batch count alike.

    Left alone, accumulated parts would move the statistics one after the other, and
    each process its own. Here every part starts from the statistics of before the
    step, and what the parts make of them is averaged. As they move linearly, the
    processes need not meet before the end of an epoch; see `share`.

    Parameters
    ----------
    network : Module
        Its buffers are the statistics.
    parts : int
        Parts that this process takes in a step.
    """

    def __init__(self, network: nn.Module, parts: int) -> None:
        self._buffers = list(network.buffers()) if parts > 1 else []
        self._before: list[torch.Tensor] = []
        self._parts: list[list[torch.Tensor]] = []

    def begin_step(self) -> None:
        """Remember the statistics as they stand."""
        self._before = [b.clone() for b in self._buffers]
        self._parts = [[] for _ in self._buffers]

    @torch.no_grad()
    def begin_part(self) -> None:
        """Go back to the statistics of before the step."""
        for buffer, before in zip(self._buffers, self._before, strict=True):
            buffer.copy_(before)

    def end_part(self) -> None:
        """Remember what the part made of them."""
        for buffer, told in zip(self._buffers, self._parts, strict=True):
            told.append(buffer.clone())

    @torch.no_grad()
    def end_step(self) -> None:
        """Take the mean over the parts."""
        for buffer, told in zip(self._buffers, self._parts, strict=True):
            if buffer.is_floating_point():
                buffer.copy_(torch.stack(told).mean(0))


@torch.no_grad()
def share(fabric: Fabric, *networks: nn.Module) -> None:
    """Take the mean of the statistics over the processes."""
    if fabric.world_size == 1:
        return
    for network in networks:
        for buffer in network.buffers():
            if buffer.is_floating_point():
                mean = fabric.all_reduce(buffer, reduce_op="mean")
                assert isinstance(mean, torch.Tensor)
                buffer.copy_(mean)
