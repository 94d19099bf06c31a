"""S4's network: Mask R-CNN upon a feature pyramid with residual attention."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional

from napari_fovea.losses import box_loss, class_loss, mask_loss
from napari_fovea.networks.mask_rcnn import boxes as box
from napari_fovea.networks.mask_rcnn.config import CONFIGS, MaskRCNNConfig
from napari_fovea.networks.mask_rcnn.fpn import AttentionFPN, TopDownBlock
from napari_fovea.networks.mask_rcnn.heads import (
    BOX_SIZE,
    BoxHead,
    MaskHead,
    ProposalHead,
)
from napari_fovea.networks.mask_rcnn.proposals import (
    STRIDES,
    THINNEST,
    anchors_of,
    countable,
    proposal_losses,
    propose,
)
from napari_fovea.networks.mask_rcnn.resnet import ResNet
from napari_fovea.networks.mask_rcnn.roi import crop_masks, grouped_nms, pool
from napari_fovea.networks.mask_rcnn.targets import Detections, Target
from napari_fovea.networks.registry import register

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_COARSEST = 32  # stride of C5: sides are padded to a multiple
_SMALLEST = 64  # at 1 × 1 cells of C5, batch normalisation has no statistics
_WEIGHTS = (10.0, 10.0, 5.0, 5.0)
_MASKS = 128  # regions whose masks are computed at once, which bounds the memory


@register("mask-rcnn", MaskRCNNConfig, system="S4", configs=CONFIGS)
class MaskRCNN(nn.Module):
    """ResNet, attention FPN, proposals, boxes with classes, and masks.

    Images may have any size and should lie within about [0, 1].

    Parameters
    ----------
    config : MaskRCNNConfig
        Settings.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, config: MaskRCNNConfig) -> None:
        super().__init__()
        self.config = config
        # What the backbone's weights expect; `load_backbone` sets ImageNet's.
        self.register_buffer("mean", torch.full((config.channels, 1, 1), 0.5))
        self.register_buffer("std", torch.full((config.channels, 1, 1), 0.25))
        self.backbone = ResNet(
            config.backbone,
            channels=config.channels,
            width=config.width,
            norm=config.norm,
        )
        self.pyramid = AttentionFPN(
            self.backbone.channels, out=config.pyramid, attention=config.attention
        )
        self.proposals = ProposalHead(
            config.pyramid, anchors=config.octaves * len(config.ratios)
        )
        self.boxes = BoxHead(
            config.pyramid, width=config.head_width, classes=config.classes
        )
        self.masks = MaskHead(
            config.pyramid,
            width=config.mask_width,
            layers=config.mask_layers,
            classes=config.classes,
        )

    def gammas(self) -> dict[str, float]:
        """Learned γ by the name of its attention; empty where γ is not learned."""
        return {
            block.label: block.gamma.item()
            for block in self.pyramid.blocks
            if isinstance(block, TopDownBlock) and block.gamma is not None
        }

    def forward(
        self, images: torch.Tensor, targets: Iterable[Target] | None = None
    ) -> dict[str, torch.Tensor] | list[Detections]:
        """Losses where there are targets, detections where there are none.

        Parameters
        ----------
        images : Tensor of float, shape (B, C, H, W)
            Intensities within about [0, 1]; any H and W of at least 1.
        targets : iterable of Target, optional
            Objects of each image, on any device.

        Returns
        -------
        dict of Tensor or list of Detections
            With targets the losses ``objectness``, ``rpn_box``, ``class``, ``box``
            and ``mask``, scalars of float32 to be added up; without, what is found
            in each image.
        """
        size = (images.shape[-2], images.shape[-1])
        levels = self.features(images)
        if targets is None:
            return self.detect(levels, size)
        logits, offsets = self.proposals(levels)  # (B, H·W·A), (B, H·W·A, 4) of each
        anchors = anchors_of(levels, self.config)  # (H·W·A, 4) of each
        proposed = self._propose(logits, offsets, anchors, size)  # B × (R, 4)
        targets = [target.to(images.device) for target in targets]
        return {
            **proposal_losses(
                torch.cat(logits, 1),
                torch.cat(offsets, 1),
                torch.cat(anchors),
                targets,
                size=size,
                config=self.config,
            ),
            **self._region_losses(levels, proposed, targets),
        }

    def features(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Levels (B, N, H/4 …, ·) of the pyramid of images (B, C, H, W)."""
        return self.pyramid(self.backbone(self._prepare(images)))  # type: ignore[no-any-return]

    @torch.no_grad()
    def detect(
        self, levels: Sequence[torch.Tensor], size: tuple[int, int]
    ) -> list[Detections]:
        """Find the objects of images of a size (H, W), of which `levels` are known."""
        logits, offsets = self.proposals(levels)  # (B, H·W·A), (B, H·W·A, 4) of each
        anchors = anchors_of(levels, self.config)  # (H·W·A, 4) of each
        proposed = self._propose(logits, offsets, anchors, size)
        return self._detect(levels, proposed, size)

    def box_logits(
        self, levels: Sequence[torch.Tensor], boxes: Sequence[torch.Tensor]
    ) -> torch.Tensor:
        """Logits (ΣR, K) of the classes at boxes B × (R, 4), in pixels."""
        logits: torch.Tensor = self.boxes(self._pool(levels, boxes, BOX_SIZE))[0]
        return logits

    def _propose(
        self,
        logits: Sequence[torch.Tensor],
        offsets: Sequence[torch.Tensor],
        anchors: Sequence[torch.Tensor],
        size: tuple[int, int],
    ) -> list[torch.Tensor]:
        return propose(
            logits,
            offsets,
            anchors,
            size=size,
            config=self.config,
            training=self.training,
        )

    def _prepare(self, images: torch.Tensor) -> torch.Tensor:
        """Scale and pad images to (B, C, H', W') with sides divisible by 32."""
        height, width = images.shape[-2:]
        down = max(-(-height // _COARSEST) * _COARSEST, _SMALLEST) - height
        right = max(-(-width // _COARSEST) * _COARSEST, _SMALLEST) - width
        x = (images - self.mean) / self.std
        if not down and not right:
            return x
        # The border's colour, since an edge to black or white would look like one.
        return functional.pad(x, (0, right, 0, down), mode="replicate")

    def _region_losses(
        self,
        levels: Sequence[torch.Tensor],
        proposed: Sequence[torch.Tensor],
        targets: Sequence[Target],
    ) -> dict[str, torch.Tensor]:
        """Losses of the heads at regions drawn from proposals and true boxes."""
        drawn, positives, classes, objects, masks = [], [], [], [], []
        for proposal, target in zip(proposed, targets, strict=True):
            # With the true boxes there are positives from the first step on.
            rois = torch.cat((target.boxes, proposal))
            matches = box.match(rois, target.boxes, low=0.5, high=0.5)
            positive, negative = box.draw(
                matches >= 0,
                (matches == box.BACKGROUND) & countable(rois, target),
                count=self.config.rois_per_image,
                fraction=self.config.positive_fraction,
            )
            match = matches[positive]
            background = target.labels.new_zeros(len(negative))
            classes.append(torch.cat((target.labels[match], background)))
            drawn.append(rois[torch.cat((positive, negative))])
            positives.append(rois[positive])
            objects.append(target.boxes[match])
            masks.append(
                crop_masks(
                    target.instances,
                    target.ids[match],
                    rois[positive],
                    size=self.config.mask_side,
                )
            )
        labels = torch.cat(classes)  # (R,)
        logits, offsets = self.boxes(self._pool(levels, drawn, BOX_SIZE))
        rows = labels.nonzero().squeeze(1)  # (P,) where the positives are
        own = offsets[rows, labels[rows]]  # (P, 4)
        wanted = box.encode(torch.cat(objects), torch.cat(positives), _WEIGHTS)
        seen = self.masks(self._pool(levels, positives, self.config.mask_side // 2))
        return {
            "class": class_loss(logits, labels),
            "box": box_loss(own, wanted, normaliser=len(labels)),
            "mask": mask_loss(seen.float(), labels[rows], torch.cat(masks)),
        }

    @torch.no_grad()
    def _detect(
        self,
        levels: Sequence[torch.Tensor],
        proposed: Sequence[torch.Tensor],
        size: tuple[int, int],
    ) -> list[Detections]:
        """Find the objects of each image at its proposals (R, 4)."""
        logits, offsets = self.boxes(self._pool(levels, proposed, BOX_SIZE))
        counts = [len(some) for some in proposed]
        detections = []
        pmfs = torch.split(logits.softmax(1)[:, 1:], counts)
        for i, (rois, pmf, offset) in enumerate(
            zip(proposed, pmfs, torch.split(offsets, counts), strict=True)
        ):
            boxes = box.decode(offset[:, 1:], rois[:, None], _WEIGHTS)
            boxes = box.clip(boxes, *size)  # (R, K−1, 4), pmf (R, K−1)
            thin = (boxes[..., 2:] - boxes[..., :2]).amin(-1) < THINNEST
            row, column = ((pmf > self.config.score) & ~thin).nonzero(as_tuple=True)
            boxes, scores, labels = boxes[row, column], pmf[row, column], column + 1
            kept = grouped_nms(boxes, scores, labels, overlap=self.config.overlap)
            kept = kept[: self.config.detections]
            detections.append(
                Detections(
                    boxes=boxes[kept],
                    scores=scores[kept],
                    labels=labels[kept],
                    masks=self._masks(
                        [x[i : i + 1] for x in levels], boxes[kept], labels[kept]
                    ),
                    classes=self.config.classes,
                )
            )
        return detections

    def _masks(
        self, levels: Sequence[torch.Tensor], boxes: torch.Tensor, labels: torch.Tensor
    ) -> torch.Tensor:
        """Mask probabilities (N, m, m) at boxes (N, 4) of one image."""
        side = self.config.mask_side
        parts = [boxes.new_zeros(0, side, side)]
        for start in range(0, len(boxes), _MASKS):
            some = boxes[start : start + _MASKS]
            logits = self.masks(self._pool(levels, [some], side // 2))  # (n, K, m, m)
            rows = torch.arange(len(some), device=some.device)
            own = logits[rows, labels[start : start + _MASKS]]  # (n, m, m)
            parts.append(own.float().sigmoid())
        return torch.cat(parts)

    def _pool(
        self, levels: Sequence[torch.Tensor], boxes: Sequence[torch.Tensor], size: int
    ) -> torch.Tensor:
        """Features (ΣR, N, size, size) of boxes B × (R, 4)."""
        return pool(
            levels,
            boxes,
            strides=STRIDES,
            size=size,
            canonical=self.config.canonical,
        )
