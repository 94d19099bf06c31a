"""Where and how networks compute: which accelerator, what precision, what memory."""

from napari_fovea.device.backend import (
    PRECISIONS,
    Backend,
    as_backend,
    fast_precision,
    memory_of,
)
from napari_fovea.device.choosing import available, describe, pick, skipped
from napari_fovea.device.memory import free_memory, give_back, ran_out
from napari_fovea.device.threads import exact_training, leaving_a_core

__all__ = [
    "PRECISIONS",
    "Backend",
    "as_backend",
    "available",
    "describe",
    "exact_training",
    "fast_precision",
    "free_memory",
    "give_back",
    "leaving_a_core",
    "memory_of",
    "pick",
    "ran_out",
    "skipped",
]
