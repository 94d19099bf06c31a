"""S4: Mask R-CNN upon a feature pyramid with residual attention."""

from napari_fovea.networks.mask_rcnn.config import CONFIGS, MaskRCNNConfig
from napari_fovea.networks.mask_rcnn.network import MaskRCNN
from napari_fovea.networks.mask_rcnn.paste import paste
from napari_fovea.networks.mask_rcnn.targets import Detections, Target
from napari_fovea.networks.mask_rcnn.weights import load_backbone

__all__ = [
    "CONFIGS",
    "Detections",
    "MaskRCNN",
    "MaskRCNNConfig",
    "Target",
    "load_backbone",
    "paste",
]
