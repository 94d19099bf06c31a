"""The papers' networks, buildable by name."""

from napari_fovea.networks.adapted import (
    Adapted,
    AdaptedConfig,
    AdaptedRetina,
    AdaptedRetinaConfig,
)
from napari_fovea.networks.blocks import DenseConfig, probabilities
from napari_fovea.networks.ensemble import Ensemble, EnsembleConfig
from napari_fovea.networks.focusnet import FocusNet, FocusNetConfig
from napari_fovea.networks.focusnet_plus import FocusNetPlus, FocusNetPlusConfig
from napari_fovea.networks.gates import attention_names, capture_attention
from napari_fovea.networks.mask_rcnn import MaskRCNN, MaskRCNNConfig
from napari_fovea.networks.mixed import MOST, Member, MixedEnsemble, MixedEnsembleConfig
from napari_fovea.networks.r2_attention_unet import (
    R2AttentionUNet,
    R2AttentionUNetConfig,
)
from napari_fovea.networks.registry import (
    NetworkConfig,
    build,
    config_of,
    name_of,
    named_configs,
    network_names,
    register,
    system_of,
    validate,
)
from napari_fovea.networks.shared_retina import SharedRetina, SharedRetinaConfig
from napari_fovea.networks.unet import UNet, UNetConfig
from napari_fovea.networks.vgg_retina import (
    PatchCenter,
    PatchCenterConfig,
    RetinaConfig,
    RetinaVGG,
)

__all__ = [
    "MOST",
    "Adapted",
    "AdaptedConfig",
    "AdaptedRetina",
    "AdaptedRetinaConfig",
    "DenseConfig",
    "Ensemble",
    "EnsembleConfig",
    "FocusNet",
    "FocusNetConfig",
    "FocusNetPlus",
    "FocusNetPlusConfig",
    "MaskRCNN",
    "MaskRCNNConfig",
    "Member",
    "MixedEnsemble",
    "MixedEnsembleConfig",
    "NetworkConfig",
    "PatchCenter",
    "PatchCenterConfig",
    "R2AttentionUNet",
    "R2AttentionUNetConfig",
    "RetinaConfig",
    "RetinaVGG",
    "SharedRetina",
    "SharedRetinaConfig",
    "UNet",
    "UNetConfig",
    "attention_names",
    "build",
    "capture_attention",
    "config_of",
    "name_of",
    "named_configs",
    "network_names",
    "probabilities",
    "register",
    "system_of",
    "validate",
]
