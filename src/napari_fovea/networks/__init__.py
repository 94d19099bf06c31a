"""The papers' networks, buildable by name."""

from napari_fovea.networks.registry import (
    NetworkConfig,
    build,
    name_of,
    network_names,
    register,
    system_of,
    validate,
)
from napari_fovea.networks.vgg_retina import RetinaConfig, RetinaVGG

__all__ = [
    "NetworkConfig",
    "RetinaConfig",
    "RetinaVGG",
    "build",
    "name_of",
    "network_names",
    "register",
    "system_of",
    "validate",
]
