"""Models as single safetensors files that rebuild themselves."""

from __future__ import annotations

import json
import re
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from napari_fovea.errors import CheckpointError, FoveaError
from napari_fovea.files import replacing
from napari_fovea.images import Normalisation
from napari_fovea.models.model import Model
from napari_fovea.networks import build, name_of, validate

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping, Sequence

FORMAT = 2
"""Version of the header that this program writes; it reads this and older ones."""

_KEY = "napari_fovea"
_PART = re.compile(r"[\w-]+\.safetensors", re.ASCII)
_PICKLES = (b"\x80", b"PK\x03\x04")


class _NormalisationHeader(BaseModel):
    low: float = Field(ge=0, le=100)
    high: float = Field(ge=0, le=100)


class ScanHeader(BaseModel):
    """How a model likes to look; see `Model`."""

    policy: Literal["seek", "raster"] | None = None
    tile: int | None = Field(None, ge=32, le=8192)
    diameter: Literal["auto"] | None = None
    score: float | None = Field(None, ge=0, le=1)


class Header(BaseModel):
    """What a model file says about itself, as JSON in its safetensors header."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)

    format: int
    name: str
    network: str
    config: dict[str, Any]
    classes: tuple[str, ...] = Field(min_length=2)
    outputs: tuple[int, ...]
    depths: tuple[float, ...] | None = None
    normalisation: _NormalisationHeader
    object_diameter: float | None = Field(None, gt=0)
    pixel_size: float | None = Field(None, gt=0)
    scan: ScanHeader = ScanHeader()
    provenance: dict[str, Any] = {}
    parts: tuple[str, ...] = ()
    """Files beside this one that hold the weights of an ensemble's members."""


def save(
    model: Model,
    path: str | os.PathLike[str],
    *,
    half: bool = False,
    parts: Sequence[str] = (),
) -> None:
    """Write a model; see `Model.save`.

    Of an ensemble whose members lie in files beside it, ``parts`` names these, in
    the order of the members; then nothing but the header is written.
    """
    tensors = {
        key: (value.half() if half and _halves(value) else value)
        .detach()
        .cpu()
        .contiguous()
        for key, value in model.network.state_dict().items()
        if not parts
    }
    header = header_of(model, parts=parts)
    with replacing(path) as temporary:
        save_file(tensors, temporary, metadata={_KEY: header.model_dump_json()})


def header_of(model: Model, *, parts: Sequence[str] = ()) -> Header:
    """Say of a model what its file will say."""
    return Header(
        format=FORMAT,
        name=model.name,
        network=name_of(model.network),
        config=model.config.model_dump(),
        classes=model.classes,
        outputs=model.outputs,
        depths=model.depths,
        normalisation=_NormalisationHeader(**asdict(model.normalisation)),
        object_diameter=model.object_diameter,
        pixel_size=model.pixel_size,
        scan=ScanHeader(**model.scan),
        provenance=dict(model.provenance),
        parts=tuple(parts),
    )


def _halves(value: torch.Tensor) -> bool:
    """Tell whether 16 bits hold a tensor.

    Statistics of normalisations are few, and may be larger than 16 bits tell.
    """
    kernel = value.is_floating_point() and value.ndim > 1
    return kernel and float(value.abs().max()) < torch.finfo(torch.float16).max


def read_header(path: str | os.PathLike[str]) -> Header:
    """Read what a model file says about itself, without its weights.

    Raises
    ------
    CheckpointError
        If the file is damaged or not a napari-fovea model.
    """
    with _opened(path) as file:
        return _header(file.metadata(), Path(path))


def load(path: str | os.PathLike[str]) -> Model:
    """Load a model from a file; see `Model.load`.

    The network's shape is checked against the tensors in the file before any
    memory is taken for it, so a hostile header cannot ask for the moon.
    """
    path = Path(path)
    with ExitStack() as files:
        file = files.enter_context(_opened(path))
        header = _header(file.metadata(), path)
        with torch.device("meta"):
            network = build(header.network, header.config)
        meant = network.state_dict()
        expected = {k: tuple(v.shape) for k, v in meant.items()}
        where = {k: (file, k) for k in file.keys()}  # noqa: SIM118
        for index, name in enumerate(header.parts):
            part = files.enter_context(_opened(path.parent / name))
            where |= {f"members.{index}.{k}": (part, k) for k in part.keys()}  # noqa: SIM118
        found = {
            k: tuple(f.get_slice(own).get_shape()) for k, (f, own) in where.items()
        }
        if expected != found:
            odd = sorted(
                k for k in expected | found if expected.get(k) != found.get(k)
            )[0]
            raise CheckpointError(
                f"{path}: tensor {odd!r} has shape {found.get(odd)}, its network "
                f"{header.network!r} expects {expected.get(odd)}; the file does not "
                "fit its own header: get it again."
            )
        tensors = {key: f.get_tensor(own) for key, (f, own) in where.items()}
    for key, value in tensors.items():
        if value.is_floating_point() != meant[key].is_floating_point():
            raise CheckpointError(
                f"{path}: tensor {key!r} holds {value.dtype}; expected "
                f"{meant[key].dtype}: get the file again."
            )
        if value.is_floating_point():
            tensors[key] = value.float()
            if not tensors[key].isfinite().all():
                raise CheckpointError(
                    f"{path}: tensor {key!r} holds NaN or infinity; expected finite "
                    "weights: get the file again or go back to an earlier one."
                )
    network.load_state_dict(tensors, assign=True)
    network.eval().requires_grad_(False)
    try:
        return Model(
            name=header.name,
            network=network,
            classes=header.classes,
            outputs=header.outputs,
            depths=header.depths,
            normalisation=Normalisation(**header.normalisation.model_dump()),
            object_diameter=header.object_diameter,
            pixel_size=header.pixel_size,
            scan=header.scan.model_dump(exclude_none=True),
            provenance=header.provenance,
        )
    except FoveaError as error:
        raise CheckpointError(f"{path}: {error}") from error


def _opened(path: str | os.PathLike[str]) -> Any:
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path} is no file: check the name of the model file.")
    try:
        with path.open("rb") as stream:
            start = stream.read(9)
        # A safetensors file may begin with these bytes too; its ninth is a brace.
        if start.startswith(_PICKLES) and start[8:] != b"{":
            raise CheckpointError(
                f"{path} is a pickle, which can run code when it is opened; expected "
                "a napari-fovea model (.safetensors): convert it, or train the model "
                "here."
            )
        return safe_open(path, framework="pt")
    except SafetensorError as error:
        raise CheckpointError(
            f"{path} is truncated or no safetensors file; expected a napari-fovea "
            "model: get the file again."
        ) from error
    except OSError as error:
        raise CheckpointError(
            f"{path} cannot be opened ({error.strerror or error}); expected a "
            "napari-fovea model: check its permissions, or get the file again."
        ) from error


def _header(metadata: Mapping[str, str] | None, path: Path) -> Header:
    text = (metadata or {}).get(_KEY)
    if text is None:
        raise CheckpointError(
            f"{path} was written by another program; expected a napari-fovea model: "
            "train one with 'napari-fovea train', or take one from "
            "'napari-fovea models'."
        )
    try:
        raw = json.loads(text)
        version = raw["format"]
        newer = version > FORMAT
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(
            f"{path} has a damaged header; expected JSON with a format number: get "
            "the file again."
        ) from error
    if newer:
        raise CheckpointError(
            f"{path} has format {version}, this napari-fovea reads up to {FORMAT}: "
            "update napari-fovea to open it."
        )
    border, outputs = raw.get("border"), raw.get("outputs")
    if version == 1 and border is not None and isinstance(outputs, list):
        # Interior and border were the only depths; a pixel is at the core or not.
        raw["depths"] = [float(0 < i != border) for i in range(len(outputs))]
    try:
        header = Header.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        raise CheckpointError(
            f"{path} has a damaged header ({'.'.join(map(str, first['loc']))}: "
            f"{first['msg']}): get the file again."
        ) from error
    if any(not _PART.fullmatch(name) for name in header.parts):
        raise CheckpointError(
            f"{path} takes weights from {', '.join(header.parts)}; expected names of "
            "files beside it: get the file again."
        )
    try:
        config = validate(header.network, header.config)
    except (FoveaError, RecursionError) as error:
        raise CheckpointError(f"{path}: {error}") from error
    return header.model_copy(update={"config": config.model_dump()})
