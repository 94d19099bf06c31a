"""What tests of projects and journals share: small pieces of work."""

from __future__ import annotations

import errno
import os
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from napari_fovea.models import DEFAULT, Model
from napari_fovea.project import (
    ImageId,
    Project,
    Step,
    Strokes,
)

if TYPE_CHECKING:
    from pathlib import Path

DATE = "2024-05-06T07:08:09"
IMAGE = ImageId("cells", (8, 9), "uint8", "0" * 64)


def painted(value: int = 1, shape: tuple[int, ...] = (8, 9)) -> np.ndarray:
    labels = np.zeros(shape, np.int32)
    labels[..., 2:4, 3:5] = value
    return labels


def strokes(value: int = 1) -> Strokes:
    return Strokes(IMAGE, "strokes", painted(value))


def step(number: int, *, file: bool = True) -> Step:
    name = f"models/{number:03}.safetensors" if file else None
    return Step(f"step {number}", "instant", 0.5, 0.75, DATE, name)


def work(value: int = 1) -> Project:
    return Project(
        base=DEFAULT,
        strokes=(strokes(value), replace(strokes(2), layer="more")),
        classes={1: "background", 2: "nucleus"},
        settings={"mode": "instant", "seconds": 60, "deep": {"list": [1, None]}},
        steps=(Step("start", "start", None, None, DATE), step(1)),
        current=1,
    )


def equal(a: Project, b: Project) -> bool:
    for one, other in zip(a.strokes, b.strokes, strict=True):
        assert (one.image, one.layer) == (other.image, other.layer)
        assert one.labels.dtype == other.labels.dtype
        np.testing.assert_array_equal(one.labels, other.labels)
    return replace(a, strokes=()) == replace(b, strokes=())


def content(folder: Path) -> set[str]:
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}


def weights(model: Model) -> np.ndarray:
    return np.concatenate([v.numpy().ravel() for v in model.network.parameters()])


def full(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
