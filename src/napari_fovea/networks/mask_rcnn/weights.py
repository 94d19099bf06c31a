"""Backbone weights from torchvision-format state dicts."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from napari_fovea.errors import CheckpointError

if TYPE_CHECKING:
    import os

    from napari_fovea.networks.mask_rcnn.network import MaskRCNN

_MEAN = (0.485, 0.456, 0.406)  # of ImageNet, which the weights were trained on
_STD = (0.229, 0.224, 0.225)
_STEM = "conv1.weight"
_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


def load_backbone(network: MaskRCNN, path: str | os.PathLike[str]) -> None:
    """Put a ResNet's weights into a network's backbone.

    The classifier (``fc``) is left out. Kernels of the first convolution, which were
    trained on RGB, are averaged and scaled for other numbers of channels, so that
    a grey image looks to them like the same image in RGB. The network scales its
    images by ImageNet's mean and standard deviation from then on.

    Parameters
    ----------
    network : MaskRCNN
        The network, changed in place, and only if everything fits.
    path : path-like
        A ``.safetensors`` file, or one that `torch.load` reads without running code.

    Raises
    ------
    CheckpointError
        If the file cannot be read, or a tensor is missing, too many or has another
        shape.
    """
    path = Path(path)
    state = {k: v for k, v in _read(path).items() if not k.startswith("fc.")}
    config = network.config
    own = network.backbone.state_dict()
    stem = state.get(_STEM)
    if stem is not None and stem.ndim == 4 and stem.shape[1] == 3 != config.channels:
        mean = stem.float().mean(1, keepdim=True) * (3 / config.channels)
        state[_STEM] = mean.expand(-1, config.channels, -1, -1)
    for name, tensor in own.items():
        if name not in state:
            # Group normalisation has no statistics; old files do not count batches.
            if name.endswith("num_batches_tracked"):
                state[name] = tensor
                continue
            raise CheckpointError(
                f"{path} holds no tensor {name!r}; expected shape "
                f"{tuple(tensor.shape)}: is it a {config.backbone}'s state dict?"
            )
        if state[name].shape != tensor.shape:
            raise CheckpointError(
                f"{path}: tensor {name!r} has shape {tuple(state[name].shape)}, "
                f"expected {tuple(tensor.shape)} of a {config.backbone} with width "
                f"{config.width} and {config.channels} channels."
            )
    unknown = [
        name
        for name in state
        if name not in own and name.rpartition(".")[2] not in _STATISTICS
    ]
    if unknown:
        raise CheckpointError(
            f"{path} holds a tensor {unknown[0]!r} of shape "
            f"{tuple(state[unknown[0]].shape)}, expected none of that name in a "
            f"{config.backbone}: set the backbone that the file was made for."
        )
    network.backbone.load_state_dict({name: state[name] for name in own})
    mean, std = torch.tensor(_MEAN), torch.tensor(_STD)
    if config.channels != 3:
        mean = mean.mean().expand(config.channels)
        std = std.mean().expand(config.channels)
    network.mean.copy_(mean[:, None, None])
    network.std.copy_(std[:, None, None])


def _read(path: Path) -> dict[str, torch.Tensor]:
    if not path.is_file():
        raise CheckpointError(f"{path} is no file: check the name.")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (
        SafetensorError,
        pickle.UnpicklingError,
        RuntimeError,
        EOFError,
        OSError,
        ValueError,
        KeyError,
    ) as error:
        raise CheckpointError(
            f"{path} cannot be read as a state dict ({type(error).__name__}); "
            f"expected tensors by name, such as {_STEM!r}: download it again or save "
            f"it with torch.save(network.state_dict())."
        ) from error
    if not isinstance(state, dict) or not all(
        isinstance(k, str) and isinstance(v, torch.Tensor) for k, v in state.items()
    ):
        raise CheckpointError(
            f"{path} holds no state dict; expected tensors by name, such as {_STEM!r}: "
            f"save network.state_dict() rather than the network."
        )
    return state
