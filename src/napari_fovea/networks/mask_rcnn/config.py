"""Settings of the residual-attention FPN in Mask R-CNN."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from napari_fovea.networks.registry import NetworkConfig

Backbone = Literal["resnet18", "resnet34", "resnet50", "resnet101"]
Attention = Literal["none", "no-gamma", "pixel", "concat", "proposed"]
Norm = Literal["batch", "group", "frozen"]
Size = Annotated[float, Field(gt=0, le=1024)]
Ratio = Annotated[float, Field(ge=0.1, le=10)]


class MaskRCNNConfig(NetworkConfig):
    """Settings of `MaskRCNN`; the defaults are the paper's where it names them.

    ``norm`` says what normalises the ResNet: ``"batch"`` is torchvision's;
    ``"group"`` (eight channels to a group) trains from scratch with any batch and
    is what the small network uses; ``"frozen"`` is batch normalisation that keeps
    the statistics it was loaded with, for weights from a file and batches of two.
    """

    backbone: Backbone = Field("resnet101", title="Backbone")
    width: int = Field(64, ge=8, le=128, multiple_of=8, title="Width of the ResNet")
    norm: Norm = Field("batch", title="Normalisation of the ResNet")
    pyramid: int = Field(256, ge=8, le=512, title="Channels of the pyramid")
    attention: Attention = Field("proposed", title="Attention")

    anchors: tuple[Size, Size, Size] = Field(
        (12.0, 24.0, 48.0), title="Anchor sizes at P2, P3, P4 in pixels"
    )
    octaves: int = Field(2, ge=1, le=4, title="Anchor sizes per octave")
    ratios: tuple[Ratio, ...] = Field(
        (0.5, 1.0, 2.0), min_length=1, max_length=7, title="Anchor height / width"
    )
    anchors_per_image: int = Field(256, ge=2, title="Anchors drawn per image")

    rois_per_image: int = Field(600, ge=1, title="RoIs drawn per image")
    positive_fraction: float = Field(1 / 3, gt=0, lt=1, title="Positive RoIs, at most")
    before_training: int = Field(2000, ge=1, title="Proposals per level, training")
    after_training: int = Field(2000, ge=1, title="Proposals after NMS, training")
    before_inference: int = Field(1000, ge=1, title="Proposals per level, inference")
    after_inference: int = Field(1000, ge=1, title="Proposals after NMS, inference")
    proposal_overlap: float = Field(0.7, gt=0, le=1, title="IoU of NMS on proposals")

    canonical: float = Field(
        28.0, gt=0, title="Side in pixels from which an RoI has 7 cells of P2"
    )
    head_width: int = Field(1024, ge=8, le=4096, title="Units of the box head")
    mask_width: int = Field(256, ge=8, le=1024, title="Channels of the mask head")
    mask_layers: int = Field(4, ge=0, le=8, title="Convolutions of the mask head")
    mask_side: int = Field(28, ge=4, le=112, multiple_of=2, title="Side of a mask")

    score: float = Field(0.05, ge=0, lt=1, title="Lowest score of a detection")
    overlap: float = Field(0.5, gt=0, le=1, title="IoU of NMS on detections")
    detections: int = Field(500, ge=1, title="Detections per image, at most")

    @model_validator(mode="after")
    def _anchors_grow(self) -> MaskRCNNConfig:
        first, second, third = self.anchors
        if not first < second < third:
            raise ValueError("anchors must grow from P2 to P4")
        return self


CONFIGS: dict[str, dict[str, object]] = {
    "paper": {
        "backbone": "resnet101",
        "width": 64,
        "norm": "batch",
        "pyramid": 256,
        "attention": "proposed",
        "rois_per_image": 600,
        "positive_fraction": 1 / 3,
        "head_width": 1024,
        "mask_width": 256,
        "mask_layers": 4,
    },
    "small": {
        "backbone": "resnet18",
        "width": 32,
        "norm": "group",
        "pyramid": 64,
        "attention": "proposed",
        "anchors_per_image": 256,
        "rois_per_image": 96,
        "before_training": 400,
        "after_training": 400,
        "before_inference": 600,
        "after_inference": 600,
        "head_width": 128,
        "mask_width": 64,
        "mask_layers": 2,
    },
}
"""Named settings: ``paper`` is the publication's, ``small`` trains on a laptop."""
