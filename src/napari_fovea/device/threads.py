"""How much of the CPU a computation takes, and whether it repeats to the bit."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator


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
