"""Batches that travel to a device and back while others are computed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

Label = TypeVar("Label")


def through(
    forward: Callable[[torch.Tensor, Label], torch.Tensor],
    batches: Iterable[tuple[torch.Tensor, Label]],
    device: torch.device,
) -> Iterator[tuple[torch.Tensor, Label]]:
    """Run batches through a network, in order.

    Parameters
    ----------
    forward : callable
        Runs on the device; is given a batch and its label.
    batches : iterable of tuple of Tensor and label
        Cut when they are asked for, all on one device.
    device : torch.device
        Where to run. On CUDA, what lies on the CPU is copied there while the batch
        before is computed, and what comes out is fetched while the next one is.

    Yields
    ------
    tuple of Tensor of float32 and label
        What comes out, on the device of what went in. If a batch fails, those before
        it have been yielded.
    """
    if device.type == "cuda":
        yield from _overlapped(forward, batches, device)
        return
    for batch, label in batches:
        out = forward(batch.to(device), label)
        yield out.to(batch.device).float(), label


def _overlapped(
    forward: Callable[[torch.Tensor, Label], torch.Tensor],
    batches: Iterable[tuple[torch.Tensor, Label]],
    device: torch.device,
) -> Iterator[tuple[torch.Tensor, Label]]:
    copying = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    computing = torch.cuda.current_stream(device)
    rest = iter(batches)

    def send() -> tuple[torch.Tensor, Label, torch.device] | None:
        """Cut the next batch and start to copy it, beside what is computed."""
        batch, label = next(rest, (None, None))
        if batch is None or label is None:
            return None
        if batch.device == device:
            return batch, label, device
        with torch.cuda.stream(copying):
            there = batch.pin_memory().to(device, non_blocking=True)
        return there, label, batch.device

    def waited(one: _Coming[Label]) -> tuple[torch.Tensor, Label]:
        one.there.synchronize()
        return one.out, one.label

    coming: _Coming[Label] | None = None
    failed: Exception | None = None
    there = send()
    while there is not None:
        batch, label, home = there
        computing.wait_stream(copying)
        batch.record_stream(computing)  # it was made on the other stream
        latest: _Coming[Label] | None = None
        try:
            out = _fetch(forward(batch, label).float(), home)
            latest = _Coming(out, label, computing.record_event())
            there = send()
        except Exception as error:
            failed, there = error, None
        if coming is not None:
            yield waited(coming)
        coming = latest
    if coming is not None:
        yield waited(coming)
    if failed is not None:
        raise failed


@dataclass
class _Coming(Generic[Label]):
    """A result on its way home."""

    out: torch.Tensor
    label: Label
    there: torch.cuda.Event


def _fetch(out: torch.Tensor, home: torch.device) -> torch.Tensor:
    """Start to copy a result home; it is there when the stream has got so far."""
    if out.device == home:
        return out
    pinned = torch.empty(out.shape, dtype=out.dtype, pin_memory=True)
    return pinned.copy_(out, non_blocking=True)
