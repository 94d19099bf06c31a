"""Errors that a user can cause, each one sentence saying what to do."""

from __future__ import annotations


class FoveaError(ValueError):
    """Base of every error that napari-fovea raises on bad input."""


class ImageError(FoveaError):
    """The image cannot be used: its shape, type, channels or values."""


class OutputError(FoveaError):
    """Results cannot be written: no such folder, no right to, disk full."""


class CheckpointError(FoveaError):
    """A model file cannot be read: truncated, foreign, too new, or a pickle."""


class ModelError(FoveaError):
    """No such model, or a model that does not fit the request."""


class DeviceError(FoveaError):
    """The computing device that was asked for is not there, or cannot be used so."""


class OutOfMemoryError(FoveaError):
    """There is not enough memory, however small the pieces."""


class TrainingError(FoveaError):
    """Training cannot start, or had to stop."""


class ProjectError(FoveaError):
    """A project cannot be opened or written: missing, damaged, too new, disk full."""


class PathError(FoveaError):
    """A focus path cannot be read, or does not fit the image."""


class AttentionError(FoveaError):
    """There is no such attention map, or the model has none."""


class StoreError(FoveaError):
    """A store of results cannot be written: foreign, of another run, disk full."""


class OtherRunError(StoreError):
    """A store holds the result of another image, model or settings."""


class ClusterError(FoveaError):
    """The workers that were asked for are not there, or cannot be used."""


def sentence(error: Exception) -> str:
    """Say what went wrong in one line."""
    first = str(error).strip().split("\n")[0]
    return (
        first if isinstance(error, FoveaError) else f"{type(error).__name__}: {first}"
    )
