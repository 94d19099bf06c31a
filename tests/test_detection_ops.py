"""Boxes, anchors, RoIAlign, NMS and pasting, against slow literal versions."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from napari_fovea.networks.mask_rcnn import Detections, Target, paste
from napari_fovea.networks.mask_rcnn import boxes as box
from napari_fovea.networks.mask_rcnn.roi import (
    crop_masks,
    grouped_nms,
    levels_of,
    nms,
    pool,
    roi_align,
)

quick = settings(max_examples=40, deadline=None)
coordinate = st.one_of(
    st.floats(-30, 70, width=32), st.sampled_from([0.0, 2.0, 16.0, 31.0, 32.0, 40.0])
)


@st.composite
def box_lists(draw: st.DrawFn, most: int = 6) -> torch.Tensor:
    rows = draw(
        st.lists(st.tuples(*[coordinate] * 4), min_size=0, max_size=most), label="boxes"
    )
    corners = np.array(rows, dtype=np.float32).reshape(-1, 2, 2)
    corners.sort(axis=1)
    return torch.from_numpy(corners.reshape(-1, 4))


def slow_bilinear(plane: np.ndarray, y: float, x: float) -> float:
    height, width = plane.shape
    if y < -1 or y > height or x < -1 or x > width:
        return 0.0
    y, x = max(y, 0.0), max(x, 0.0)
    y0, x0 = int(y), int(x)
    if y0 >= height - 1:
        y0 = y1 = height - 1
        y = float(y0)
    else:
        y1 = y0 + 1
    if x0 >= width - 1:
        x0 = x1 = width - 1
        x = float(x0)
    else:
        x1 = x0 + 1
    v, u = y - y0, x - x0
    return (
        (1 - v) * (1 - u) * plane[y0, x0]
        + (1 - v) * u * plane[y0, x1]
        + v * (1 - u) * plane[y1, x0]
        + v * u * plane[y1, x1]
    )


def slow_roi_align(
    features: np.ndarray, boxes: np.ndarray, size: int, scale: float
) -> np.ndarray:
    out = np.zeros((len(boxes), len(features), size, size))
    for r, (x0, y0, x1, y1) in enumerate(boxes * scale - 0.5):
        high, wide = (y1 - y0) / size, (x1 - x0) / size
        for c, plane in enumerate(features):
            for i in range(size):
                for j in range(size):
                    for a in (0.25, 0.75):
                        for b in (0.25, 0.75):
                            y, x = y0 + (i + a) * high, x0 + (j + b) * wide
                            out[r, c, i, j] += slow_bilinear(plane, y, x) / 4
    return out


def near_the_cut(boxes: torch.Tensor, size: int, scale: float, shape: tuple) -> bool:
    """Whether a sampling point lies where rounding decides if it counts."""
    steps = (np.arange(2 * size) + 0.5) / (2 * size)
    b = boxes.double().numpy() * scale - 0.5
    for axis, length in ((0, shape[1]), (1, shape[0])):
        side = b[:, axis + 2] - b[:, axis]
        where = b[:, axis, None] + side[:, None] * steps
        if min(abs(where + 1).min(initial=1), abs(where - length).min(initial=1)) < (
            1e-4
        ):
            return True
    return False


class TestRoIAlign:
    @quick
    @given(
        boxes=box_lists(),
        scale=st.sampled_from([1.0, 0.25]),
        shape=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    )
    def test_agrees_with_the_literal_loops(
        self, boxes: torch.Tensor, scale: float, shape: tuple[int, int]
    ) -> None:
        if near_the_cut(boxes, 3, scale, shape):
            return
        generator = torch.Generator().manual_seed(len(boxes) + 10 * shape[0])
        features = torch.randn(2, *shape, generator=generator)
        ours = roi_align(features, boxes, size=3, scale=scale)
        theirs = slow_roi_align(features.numpy(), boxes.numpy(), 3, scale)
        np.testing.assert_allclose(ours.numpy(), theirs, atol=2e-4)

    def test_points_one_pixel_out_still_count(self) -> None:
        # All points lie at exactly −1, the last place that takes the border's value.
        features = torch.full((1, 4, 4), 5.0)
        at = torch.tensor([[-0.5, -0.5, -0.5, -0.5]])
        assert roi_align(features, at, size=2, scale=1).eq(5).all()
        beyond = at - 0.01
        assert roi_align(features, beyond, size=2, scale=1).eq(0).all()

    def test_a_linear_ramp_is_reproduced(self) -> None:
        ramp = torch.arange(16.0).expand(1, 16, 16) + 0.5  # value = x of the centre
        boxes = torch.tensor([[2.0, 3.0, 10.0, 7.0]])
        out = roi_align(ramp, boxes, size=4, scale=1)
        assert torch.allclose(out[0, 0], torch.tensor([3.0, 5, 7, 9]).expand(4, 4))

    def test_gradients_are_right(self) -> None:
        torch.manual_seed(0)
        features = torch.randn(1, 5, 6, requires_grad=True)
        boxes = torch.tensor([[-2.0, 0.3, 4.1, 7.7], [1.2, 1.1, 3.3, 2.9]])
        weight = torch.randn(2, 1, 2, 2)
        (roi_align(features, boxes, size=2, scale=1) * weight).sum().backward()
        assert features.grad is not None
        for at in ((0, 0, 0), (0, 2, 3), (0, 4, 5)):
            step = torch.zeros_like(features)
            step[at] = 0.5
            with torch.no_grad():
                high = roi_align(features + step, boxes, size=2, scale=1)
                low = roi_align(features - step, boxes, size=2, scale=1)
            expected = ((high - low) * weight).sum()
            assert features.grad[at].item() == pytest.approx(expected.item(), abs=1e-4)

    def test_no_boxes_keep_the_graph(self) -> None:
        features = torch.randn(3, 4, 4, requires_grad=True)
        out = roi_align(features, torch.zeros(0, 4), size=7, scale=0.25)
        assert out.shape == (0, 3, 7, 7)
        out.sum().backward()
        assert features.grad is not None
        assert features.grad.eq(0).all()

    def test_half_precision_features_are_sampled_in_full(self) -> None:
        features = torch.randn(3, 8, 8)
        boxes = torch.tensor([[1.0, 1.0, 6.0, 6.0]])
        with torch.autocast("cpu", torch.bfloat16):
            out = roi_align(features.bfloat16(), boxes, size=2, scale=1)
        assert out.dtype == torch.float32
        exact = roi_align(features.bfloat16().float(), boxes, size=2, scale=1)
        assert torch.equal(out, exact)

    def test_pool_keeps_the_order_of_boxes(self) -> None:
        pyramid = [torch.full((2, 1, 64 >> i, 64 >> i), 10.0 * i) for i in range(3)]
        for level in pyramid:
            level[1] += 1  # the second image
        sides = (200.0, 10.0, 60.0, 20.0)
        boxes = torch.tensor([[0.0, 0.0, s, s] for s in sides])
        out = pool(
            pyramid, [boxes, boxes[:2]], strides=(4, 8, 16), size=2, canonical=28
        )
        expected = [20, 0, 10, 0, 21, 1]
        assert out.mean((1, 2, 3)).tolist() == expected

    def test_levels_change_at_multiples_of_the_canonical_side(self) -> None:
        sides = torch.tensor([0.0, 1, 55.9, 56, 111.9, 112, 1000])
        boxes = torch.stack((sides * 0, sides * 0, sides, sides), dim=1)
        levels = levels_of(boxes, canonical=28, levels=3)
        assert levels.tolist() == [0, 0, 0, 1, 1, 2, 2]


def slow_iou(a: list[float], b: list[float]) -> float:
    w = min(a[2], b[2]) - max(a[0], b[0])
    h = min(a[3], b[3]) - max(a[1], b[1])
    shared = max(w, 0) * max(h, 0)
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared
    return shared / union if union > 0 else 0.0


def slow_nms(boxes: list, scores: list, overlap: float) -> list[int]:
    kept: list[int] = []
    for i in sorted(range(len(boxes)), key=lambda i: -scores[i]):
        if all(slow_iou(boxes[i], boxes[j]) <= overlap for j in kept):
            kept.append(i)
    return kept


class TestNMS:
    # Whole coordinates make ties and identical boxes likely, and the IoU exact enough.
    @quick
    @given(
        rows=st.lists(
            st.tuples(*[st.integers(0, 6)] * 4, st.integers(0, 3), st.integers(0, 2)),
            max_size=30,
        ),
        overlap=st.sampled_from([0.137, 0.31, 0.613, 0.999]),
    )
    def test_agrees_with_the_greedy_loop(
        self, rows: list[tuple[int, ...]], overlap: float
    ) -> None:
        boxes = [
            [min(a, c), min(b, d), max(a, c), max(b, d)] for a, b, c, d, _, _ in rows
        ]
        scores = [row[4] for row in rows]
        tensors = (
            torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
            torch.tensor(scores, dtype=torch.float32),
        )
        kept = nms(*tensors, overlap=overlap)
        assert kept.tolist() == slow_nms(boxes, scores, overlap)

        groups = torch.tensor([row[5] for row in rows], dtype=torch.int64)
        expected = []
        for group in range(3):
            members = [i for i, row in enumerate(rows) if row[5] == group]
            some = slow_nms(
                [boxes[i] for i in members], [scores[i] for i in members], overlap
            )
            expected += [members[i] for i in some]
        expected.sort(key=lambda i: (-scores[i], i))
        assert grouped_nms(*tensors, groups, overlap=overlap).tolist() == expected

    def test_none(self) -> None:
        assert nms(torch.zeros(0, 4), torch.zeros(0), overlap=0.5).tolist() == []

    def test_of_identical_boxes_the_first_stays(self) -> None:
        boxes = torch.tensor([[1.0, 1, 5, 5]]).repeat(4, 1)
        assert nms(boxes, torch.ones(4), overlap=0.5).tolist() == [0]

    def test_boxes_without_area_suppress_nothing(self) -> None:
        boxes = torch.tensor([[2.0, 2, 2, 2], [2, 2, 2, 2], [0, 0, 4, 4]])
        kept = nms(boxes, torch.tensor([3.0, 2, 1]), overlap=0.0)
        assert kept.tolist() == [0, 1, 2]

    def test_blocks_change_nothing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        corners = torch.rand(300, 2) * 50
        boxes = torch.cat((corners, corners + 1 + torch.rand(300, 2) * 15), dim=1)
        scores = torch.rand(300)
        whole = nms(boxes, scores, overlap=0.3)
        monkeypatch.setattr("napari_fovea.networks.mask_rcnn.roi._ROWS", 7)
        assert torch.equal(nms(boxes, scores, overlap=0.3), whole)
        assert 20 < len(whole) < 280


class TestBoxes:
    @quick
    @given(boxes=box_lists(), references=box_lists(), weight=st.floats(0.5, 10))
    def test_encoding_can_be_undone(
        self, boxes: torch.Tensor, references: torch.Tensor, weight: float
    ) -> None:
        n = min(len(boxes), len(references))
        boxes, references = boxes[:n], references[:n]
        # The largest growth is bounded, and no side may vanish.
        boxes = torch.cat((boxes[:, :2], boxes[:, 2:] + 2), dim=1)
        references = torch.cat((references[:, :2], references[:, 2:] + 2), dim=1)
        weights = (weight, weight, weight / 2, weight / 2)
        offsets = box.encode(boxes, references, weights)
        assert torch.allclose(
            box.decode(offsets, references, weights), boxes, atol=1e-3
        )

    def test_offsets_by_hand(self) -> None:
        reference = torch.tensor([[0.0, 0, 10, 20]])
        wanted = torch.tensor([[5.0, 10, 25, 20]])  # centre (15, 15), 20 × 10
        offsets = box.encode(wanted, reference, (1, 1, 1, 1))
        expected = torch.tensor([[1.0, 0.25, math.log(2), -math.log(2)]])
        assert torch.allclose(offsets, expected)

    def test_huge_offsets_stay_finite(self) -> None:
        out = box.decode(torch.full((1, 4), 1e4), torch.ones(1, 4), (1, 1, 1, 1))
        assert out.isfinite().all()

    def test_anchors_stand_on_the_centres_of_cells(self) -> None:
        shapes = box.anchor_shapes(16, octaves=2, ratios=(0.5, 1, 2))
        assert shapes.shape == (6, 4)
        assert torch.allclose(
            box.areas(shapes), torch.tensor([256.0] * 3 + [512.0] * 3)
        )
        sides = shapes[:, 2:] - shapes[:, :2]
        assert torch.allclose(
            sides[:, 1] / sides[:, 0], torch.tensor([0.5, 1, 2, 0.5, 1, 2])
        )
        anchors = box.grid_anchors(shapes, height=2, width=3, stride=8)
        centres = (anchors[:, :2] + anchors[:, 2:]).view(2, 3, 6, 2) / 2
        for i in range(2):
            for j in range(3):
                assert centres[i, j].tolist() == [[8 * j + 4, 8 * i + 4]] * 6

    def test_matching(self) -> None:
        objects = torch.tensor([[0.0, 0, 10, 10], [100, 100, 104, 104]])
        some = torch.tensor(
            [
                [0.0, 0, 10, 10],  # the first object
                [0, 0, 10, 20],  # half of it
                [50, 50, 60, 60],  # nothing
                [98, 98, 108, 108],  # the best that the small object gets
            ]
        )
        plain = box.match(some, objects, low=0.3, high=0.7)
        assert plain.tolist() == [0, box.BETWEEN, box.BACKGROUND, box.BACKGROUND]
        rescued = box.match(some, objects, low=0.3, high=0.7, rescue=True)
        assert rescued.tolist() == [0, box.BETWEEN, box.BACKGROUND, 1]
        none = box.match(some, objects[:0], low=0.3, high=0.7, rescue=True)
        assert none.tolist() == [box.BACKGROUND] * 4

    def test_matching_in_blocks_changes_nothing(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        corners = torch.rand(200, 2) * 60
        some = torch.cat((corners, corners + 10), dim=1)
        objects = some[::20] + 1.5
        whole = box.match(some, objects, low=0.3, high=0.7, rescue=True)
        monkeypatch.setattr("napari_fovea.networks.mask_rcnn.boxes._BLOCK", 13)
        blocks = box.match(some, objects, low=0.3, high=0.7, rescue=True)
        assert torch.equal(blocks, whole)
        assert {box.BETWEEN, box.BACKGROUND} < set(whole.tolist())

    def test_drawing(self) -> None:
        positive = torch.arange(100) < 30
        negative = torch.arange(100) >= 60
        first = box.draw(positive, negative, count=30, fraction=1 / 3)
        assert [len(x) for x in first] == [10, 20]
        assert positive[first[0]].all()
        assert negative[first[1]].all()
        few = box.draw(positive, negative, count=200, fraction=0.5)
        assert [len(x) for x in few] == [30, 40]
        assert len(few[0].unique()) == 30
        torch.manual_seed(5)
        one = box.draw(positive, negative, count=30, fraction=0.5)
        torch.manual_seed(5)
        two = box.draw(positive, negative, count=30, fraction=0.5)
        assert torch.equal(one[0], two[0])
        assert torch.equal(one[1], two[1])

    def test_covered(self) -> None:
        mask = torch.zeros(10, 10, dtype=torch.bool)
        mask[:, 5:] = True
        boxes = torch.tensor(
            [[0.0, 0, 10, 10], [5, 2, 9, 9], [0, 0, 5, 5], [3, 3, 3, 3]]
        )
        assert torch.allclose(
            box.covered(boxes, mask), torch.tensor([0.5, 1.0, 0.0, 0.0])
        )


class TestTarget:
    def test_boxes_labels_and_gaps_in_ids(self) -> None:
        instances = torch.zeros(8, 9, dtype=torch.int32)
        instances[1:3, 2:7] = 4
        instances[5:8, 0:2] = 9
        target = Target.from_instances(instances)
        assert target.boxes.tolist() == [[2, 1, 7, 3], [0, 5, 2, 8]]
        assert target.ids.tolist() == [4, 9]
        assert target.labels.tolist() == [1, 1]
        assert target.void is None

    def test_the_most_frequent_class_counts(self) -> None:
        instances = torch.zeros(4, 6, dtype=torch.int32)
        instances[:2, :3] = 1
        instances[2:, 3:] = 2
        classes = torch.zeros(4, 6, dtype=torch.uint8)
        classes[0, :3], classes[1, 0] = 2, 1  # three of class 2, one of class 1
        target = Target.from_instances(instances, classes)
        assert target.labels.tolist() == [2]
        assert target.ids.tolist() == [1]
        assert target.void is not None
        assert torch.equal(target.void, instances == 2)  # it has no class

    def test_void_is_no_object(self) -> None:
        instances = torch.ones(4, 4, dtype=torch.int32)
        void = torch.zeros(4, 4, dtype=torch.bool)
        void[:, :2] = True
        classes = torch.full((4, 4), 255)
        classes[:, 2:] = 2
        target = Target.from_instances(instances, classes, void=void)
        assert target.boxes.tolist() == [[2, 0, 4, 4]]
        assert target.labels.tolist() == [2]

    def test_no_objects(self) -> None:
        target = Target.from_instances(torch.zeros(3, 3, dtype=torch.int32))
        assert target.boxes.shape == (0, 4)
        assert target.to("cpu").ids.shape == (0,)

    def test_crops_of_masks(self) -> None:
        instances = torch.zeros(16, 16, dtype=torch.int32)
        instances[4:12, 4:8] = 3
        instances[4:12, 8:12] = 5
        boxes = torch.tensor([[4.0, 4, 12, 12], [4, 4, 12, 12], [-4, -4, 4, 4]])
        masks = crop_masks(instances, torch.tensor([3, 5, 3]), boxes, size=8)
        assert masks[0, :, :4].eq(1).all()
        assert masks[0, :, 4:].eq(0).all()
        assert torch.equal(masks[0] + masks[1], torch.ones(8, 8))
        assert masks[2].eq(0).all()


def found(boxes: list, scores: list, labels: list, masks: torch.Tensor) -> Detections:
    return Detections(
        boxes=torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        scores=torch.tensor(scores, dtype=torch.float32),
        labels=torch.tensor(labels, dtype=torch.int64),
        masks=masks,
        classes=3,
    )


class TestPaste:
    def test_the_higher_score_is_seen(self) -> None:
        detections = found(
            [[0, 0, 4, 4], [3, 0, 9, 4]], [0.6, 0.9], [1, 2], torch.ones(2, 28, 28)
        )
        instances, probabilities = paste(detections, (5, 10))
        assert (instances[:4, :3] == 1).all()
        assert (instances[:4, 3:9] == 2).all()
        assert (instances[4] == 0).all()
        assert instances.dtype == np.int32
        assert probabilities.shape == (3, 5, 10)
        np.testing.assert_allclose(probabilities.sum(0), 1, atol=1e-6)
        np.testing.assert_allclose(probabilities[:, 0, 0], [0.4, 0.6, 0], atol=1e-6)
        expected = np.array([0.1, 0.6, 0.9]) / 1.6
        np.testing.assert_allclose(probabilities[:, 0, 3], expected, atol=1e-6)
        assert probabilities[0, 4].tolist() == [1] * 10

    def test_a_rim_is_left_out(self) -> None:
        detections = found(
            [[0, 0, 8, 8], [0, 0, 9, 8]], [0.9, 0.5], [1, 1], torch.ones(2, 28, 28)
        )
        assert np.unique(paste(detections, (10, 10))[0]).tolist() == [0, 1]

    def test_masks_are_interpolated_to_the_box(self) -> None:
        truth = np.hypot(*(np.mgrid[:40, :40] - 19.5)) < 15
        instances = torch.from_numpy(truth.astype(np.int32))
        target = Target.from_instances(instances)
        masks = crop_masks(instances, target.ids, target.boxes, size=28)
        detections = found(target.boxes.tolist(), [1.0], [1], masks)
        shown = paste(detections, (40, 40))[0] > 0
        assert (shown & truth).sum() / (shown | truth).sum() > 0.97

    def test_nothing_found(self) -> None:
        instances, probabilities = paste(
            found([], [], [], torch.zeros(0, 28, 28)), (3, 4)
        )
        assert not instances.any()
        assert (probabilities[0] == 1).all()

    def test_boxes_thinner_than_a_pixel_and_beyond(self) -> None:
        boxes = [[1.6, 1.6, 1.9, 1.9], [-3, -3, 2, 2], [9, 9, 20, 20]]
        detections = found(boxes, [0.9, 0.8, 0.7], [1, 1, 1], torch.ones(3, 28, 28))
        instances, _ = paste(detections, (10, 10))
        assert np.unique(instances).tolist() == [0, 2, 3]
