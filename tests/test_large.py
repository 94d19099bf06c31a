"""Images larger than memory, in small: what comes out, and what may go wrong."""

from __future__ import annotations

import errno
import json
import shutil
import threading
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import dask.array as da
import numpy as np
import pytest
import zarr

from conftest import tiny_model
from following import followed
from large import EXACT, dense, discs, finder, partition, segment_large, stored
from napari_fovea import complete, segment
from napari_fovea.errors import (
    ClusterError,
    FoveaError,
    ImageError,
    ModelError,
    StoreError,
)
from napari_fovea.scale import (
    Finished,
    Joining,
    Opened,
    Segmenting,
    open_source,
)
from napari_fovea.scale.job import Job
from napari_fovea.scale.store import Store
from napari_fovea.scale.work import Work

if TYPE_CHECKING:
    from pathlib import Path

    from napari_fovea.scale import LargeResult

SHAPE = (160, 220)
BLOCKS = 12


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    return discs(SHAPE)[0]


@pytest.fixture
def source(tmp_path: Path, image: np.ndarray) -> Path:
    return stored(tmp_path / "in.zarr", image)


def run(source: Any, model: Any, path: Path, **how: Any) -> LargeResult:
    how = {"device": EXACT} | how
    result: LargeResult = complete(segment_large(source, model, path, chunk=64, **how))
    return result


def arrays(result: LargeResult) -> list[np.ndarray]:
    names = ("labels", "instances", "uncertainty", "probabilities")
    return [a[...] for name in names for a in getattr(result, name)]


def same(a: LargeResult, b: LargeResult) -> None:
    for x, y in zip(arrays(a), arrays(b), strict=True):
        np.testing.assert_array_equal(x, y)
    assert a.objects == b.objects


# -- what comes out --------------------------------------------------------------------


def test_blocks_give_what_the_whole_gives(tmp_path: Path, image: np.ndarray) -> None:
    model = dense()
    expected = complete(segment(image, model, device=EXACT))
    result = run(image, model, tmp_path / "out.zarr", probabilities=True)
    # The network sees no further than the halo, so nothing differs but rounding.
    np.testing.assert_allclose(
        result.probabilities[0][...], expected.probabilities, atol=1e-3
    )
    assert (result.labels[0][...] != expected.labels).mean() < 1e-3
    np.testing.assert_allclose(
        result.uncertainty[0][...], expected.uncertainty, atol=1e-3
    )
    told = json.loads(json.dumps(result.provenance))
    made = expected.provenance
    assert set(made) <= set(told)
    for key in ("model", "system", "classes", "image", "device", "precision"):
        assert told[key] == made[key]
    for key in ("tiling", "diameter", "pixel_size"):
        assert told["settings"][key] == made["settings"][key]
    assert told["limits"] == list(model.normalisation.limits(open_planes(image)))
    assert told["blocks"]["count"] == told["finished"] == BLOCKS


def open_planes(image: np.ndarray) -> Any:
    from napari_fovea.images import read_planes

    return read_planes(image)


@pytest.mark.parametrize("seed", range(3))
def test_objects_are_found_once(tmp_path: Path, seed: int) -> None:
    image, truth = discs(SHAPE, count=60, seed=seed)
    expected = complete(segment(image, finder()))
    assert expected.instances.max() == truth.max()
    result = run(image, finder(), tmp_path / "out.zarr")
    found = result.instances[0][...]
    assert result.objects == found.max() == truth.max()
    assert partition(found) == partition(expected.instances)
    assert partition(result.labels[0][...]) == partition(expected.labels)


def test_a_scan_of_blocks_counts_its_looks(tmp_path: Path, source: Path) -> None:
    model = tiny_model()
    result = run(source, model, tmp_path / "out.zarr", budget=200)
    assert result.shape == SHAPE
    assert result.fixations is not None
    assert BLOCKS <= result.fixations <= 200
    assert result.provenance["settings"]["budget"] == 200
    corner = discs((70, 80))[0]
    raster = run(corner, model, tmp_path / "raster.zarr", policy="raster")
    assert raster.provenance["settings"]["fusion"] == "mean"
    with pytest.raises(ModelError, match="no policy"):
        run(source, dense(), tmp_path / "none.zarr", policy="raster")


def test_stacks_of_channels_first_are_planes_one_by_one(tmp_path: Path) -> None:
    planes = np.stack([discs((100, 90), seed=i)[0] for i in range(4)])
    planes[2] = 7  # an empty field of view
    stack = planes.reshape(2, 1, 2, 100, 90).repeat(3, axis=1)  # TCZYX
    result = run(stack, finder(), tmp_path / "o.zarr", axes="TCZYX", probabilities=True)
    assert result.shape == (2, 2, 100, 90)
    assert result.probabilities[0].shape == (2, 2, 2, 100, 90)
    expected = complete(segment(stack, finder(), axes="TCZYX"))
    found = result.instances[0][...]
    assert partition(found) == partition(expected.instances)
    assert not found[1, 0].any()
    assert result.objects == expected.instances.max()
    # Classes come after time and before depth.
    probabilities = result.probabilities[0][...].transpose(1, 0, 2, 3, 4)
    np.testing.assert_allclose(probabilities, expected.probabilities, atol=1e-3)
    assert (probabilities[0, 1, 0] == 1).all()


def test_the_result_is_an_ome_zarr_image_with_labels(tmp_path: Path) -> None:
    image = discs((600, 450), count=100)[0]
    levels = [image, image[::2, ::2]]
    path = tmp_path / "out.zarr"
    result = complete(segment_large(levels, finder(), path, level=1, chunk=256))
    assert result.shape == (300, 225)
    result = complete(segment_large(levels, finder(), path, chunk=256, overwrite=True))
    assert [a.shape for a in result.instances] == [(600, 450), (300, 225)]
    top = zarr.open_group(path, mode="r")
    assert sorted(top.group_keys()) == ["labels", "uncertainty"]
    told = top.attrs["ome"]
    assert told["version"] == "0.5"
    assert [top[d["path"]].shape for d in told["multiscales"][0]["datasets"]]
    assert top["labels"].attrs["ome"]["labels"] == ["classes", "instances"]
    assert not (path / ".work").exists()
    for name in ("labels/classes", "labels/instances", "uncertainty", "."):
        with open_source(path / name) as opened:
            assert [x.plane for x in opened.levels] == [(600, 450), (300, 225)]
            assert opened.levels[1].scale == {"Y": 2, "X": 2}
            assert opened.levels[1].translate == {"Y": 0.5, "X": 0.5}
    small = result.instances[1][...]
    np.testing.assert_array_equal(small, result.instances[0][1::2, 1::2])
    uncertainty = result.uncertainty[0][...].astype(float)
    mean = uncertainty.reshape(300, 2, 225, 2).mean((1, 3))
    np.testing.assert_allclose(result.uncertainty[1][...], mean, atol=1e-3)


def test_the_result_lies_where_the_image_lies(tmp_path: Path) -> None:
    image = discs((128, 160))[0]
    group = zarr.create_group(tmp_path / "in.zarr")
    group.create_array("a", shape=image.shape, dtype=image.dtype)[...] = image
    axes = [{"name": n, "type": "space", "unit": "micrometer"} for n in "yx"]
    steps = [
        {"type": "scale", "scale": [0.5, 0.25]},
        {"type": "translation", "translation": [7, 9]},
    ]
    datasets = [{"path": "a", "coordinateTransformations": steps}]
    group.attrs["ome"] = {
        "version": "0.5",
        "multiscales": [{"axes": axes, "datasets": datasets}],
    }
    model = replace(finder(), object_diameter=14.0, pixel_size=0.5**1.5 / 2)
    result = run(tmp_path / "in.zarr", model, tmp_path / "out.zarr")
    assert result.provenance["resized_by"] == pytest.approx(2), "by the pixels' size"
    with open_source(result.path / "labels" / "instances") as opened:
        assert opened.levels[0].scale == {"Y": 0.5, "X": 0.25}
        assert opened.levels[0].translate == {"Y": 7, "X": 9}
        assert opened.units == {"Y": "micrometer", "X": "micrometer"}


def test_a_coarse_level_is_chosen_for_large_objects(
    tmp_path: Path, image: np.ndarray
) -> None:
    large = image.repeat(4, 0).repeat(4, 1)
    model = replace(finder(), object_diameter=14.0)
    result = run([large, large[::2, ::2], image], model, tmp_path / "o", diameter=56)
    assert result.shape == SHAPE
    assert result.provenance["resized_by"] == 1
    assert result.provenance["source"]["level"] == 2
    assert result.objects == discs(SHAPE)[1].max()


def test_events_tell_what_happens(tmp_path: Path, source: Path) -> None:
    path = tmp_path / "out.zarr"
    events, result = followed(segment_large(source, finder(), path, chunk=64))
    opened = events[0]
    assert isinstance(opened, Opened)
    assert (opened.shape, opened.blocks, opened.finished) == (SHAPE, BLOCKS, 0)
    finished = [e for e in events if isinstance(e, Finished)]
    assert [e.done for e in finished] == list(range(1, BLOCKS + 1))
    assert [e.block.index for e in finished] == list(range(BLOCKS))
    fractions = [e.fraction for e in events if not isinstance(e, Segmenting)]
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1
    assert isinstance(events[-1], Joining)
    again, other = followed(segment_large(source, finder(), path, chunk=64))
    assert [e.finished for e in again] == [BLOCKS], "there is nothing left to do"
    same(result, other)


def test_blocks_follow_the_eye_and_the_order_does_not_matter(
    tmp_path: Path, source: Path
) -> None:
    places = iter([(0, 0), (159, 219), *([(0, 219)] * BLOCKS)])
    moving = segment_large(
        source, finder(), tmp_path / "a", chunk=64, near=lambda: next(places)
    )
    events, a = followed(moving)
    done = [e.block.index for e in events if isinstance(e, Finished)]
    assert done[:3] == [0, BLOCKS - 1, 3]
    same(a, run(source, finder(), tmp_path / "b"))
    same(a, run(source, finder(), tmp_path / "c", near=(100, 100)))


# -- what is empty, broken, or broken off ----------------------------------------------


def test_empty_blocks_cost_nothing(
    tmp_path: Path, image: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    sparse = np.full((400, 600), 40, np.uint8)
    sparse[:100, :150] = image[:100, :150]
    seen = []
    forward = type(finder().network).forward
    monkeypatch.setattr(
        type(finder().network),
        "forward",
        lambda self, x: seen.append(x.shape) or forward(self, x),
    )
    result = run(sparse, finder(), tmp_path / "out.zarr")
    total = result.provenance["blocks"]["count"]
    assert 4 <= len(seen) < total / 3
    chunks = list((result.path / "labels" / "classes" / "0" / "c").rglob("*"))
    assert len([c for c in chunks if c.is_file()]) < total / 3
    assert result.objects == len(np.unique(result.instances[0][...])) - 1 > 3


class Broken:
    """An array of which a part cannot be read, until it is mended."""

    def __init__(self, image: np.ndarray) -> None:
        self.image, self.shape, self.dtype = image, image.shape, image.dtype
        self.chunks, self.mended = (50, 50), False

    def __getitem__(self, place: tuple[slice, slice]) -> np.ndarray:
        y, x = (s.indices(n) for s, n in zip(place, self.shape, strict=True))
        if not self.mended and y[1] == self.shape[0] and x[1] == self.shape[1]:
            raise OSError("a bad sector")
        return self.image[place]


def test_blocks_that_cannot_be_read_are_told_and_redone(
    tmp_path: Path, image: np.ndarray
) -> None:
    broken, path = Broken(image), tmp_path / "out.zarr"
    events, result = followed(segment_large(broken, finder(), path, chunk=64))
    failed = {f.block.index for f in result.failures}
    assert 1 <= len(failed) < BLOCKS
    assert all(f.reason == "OSError: a bad sector" for f in result.failures)
    assert "rows" in str(result.failures[0].block)
    assert events[-1].fraction == 1
    assert result.objects > 3
    assert len(result.provenance["failures"]) == len(failed)
    assert not result.cancelled
    broken.mended = True
    events, result = followed(segment_large(broken, finder(), path, chunk=64))
    assert {e.block.index for e in events if isinstance(e, Finished)} == failed
    assert result.failures == ()
    same(result, run(image, finder(), tmp_path / "whole.zarr"))


def test_blocks_that_hold_no_numbers_are_left_out(
    tmp_path: Path, image: np.ndarray
) -> None:
    holed = image.astype(np.float32)
    holed[-1, -1] = np.nan
    result = run(holed, finder(), tmp_path / "out.zarr")
    assert 1 <= len(result.failures) < BLOCKS
    assert "1 pixel values that are NaN" in result.failures[0].reason
    assert result.objects > 3


def test_a_damaged_chunk_of_a_file_costs_only_its_blocks(
    tmp_path: Path, source: Path
) -> None:
    (source / "c" / "2" / "3").write_bytes(b"no zstd")
    result = run(source, finder(), tmp_path / "out.zarr")
    assert 1 <= len(result.failures) < BLOCKS
    assert result.provenance["finished"] == BLOCKS - len(result.failures)


@pytest.mark.parametrize("stop", [1, 7, 12, 15, 26])
def test_a_run_that_is_killed_goes_on(tmp_path: Path, source: Path, stop: int) -> None:
    path = tmp_path / "out.zarr"
    first = segment_large(source, finder(), path, chunk=64)
    told = [
        e for e in (next(first) for _ in range(stop * 2)) if isinstance(e, Finished)
    ]
    first.close()
    events, result = followed(segment_large(source, finder(), path, chunk=64))
    assert events[0].finished >= len(told)
    finished = [e for e in events if isinstance(e, Finished)]
    assert len(finished) == BLOCKS - events[0].finished
    same(result, run(source, finder(), tmp_path / "whole.zarr"))


def test_a_run_that_was_killed_before_its_first_block_begins_anew(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "out.zarr"

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Work, "create", killed)
        with pytest.raises(KeyboardInterrupt):
            run(source, finder(), path)
    assert run(source, finder(), path).objects


def test_cancelling_keeps_what_is_finished(tmp_path: Path, source: Path) -> None:
    path, count = tmp_path / "out.zarr", []

    def enough() -> bool:
        return len(count) >= 5

    stopped = segment_large(source, finder(), path, chunk=64, cancelled=enough)
    try:
        while True:
            event = next(stopped)
            count += [event] * isinstance(event, Finished)
    except StopIteration as end:
        result = end.value
    assert result.cancelled
    assert result.objects is None
    assert 5 <= result.provenance["finished"] < BLOCKS
    assert result.labels[0][...].any()
    events, whole = followed(segment_large(source, finder(), path, chunk=64))
    assert events[0].finished == result.provenance["finished"]
    assert not whole.cancelled
    same(whole, run(source, finder(), tmp_path / "whole.zarr"))


def test_cancelling_the_joining_keeps_the_blocks(tmp_path: Path, source: Path) -> None:
    path, seen = tmp_path / "out.zarr", []
    stopped = segment_large(
        source, finder(), path, chunk=64, cancelled=lambda: len(seen) > 3
    )
    try:
        while True:
            seen += [e for e in [next(stopped)] if isinstance(e, Joining)]
    except StopIteration as end:
        result = end.value
    assert result.cancelled
    events, whole = followed(segment_large(source, finder(), path, chunk=64))
    assert events[0].finished == BLOCKS
    same(whole, run(source, finder(), tmp_path / "whole.zarr"))


# -- where results may go --------------------------------------------------------------


def test_another_run_does_not_go_on_in_the_same_place(
    tmp_path: Path, source: Path, image: np.ndarray
) -> None:
    path = tmp_path / "out.zarr"
    before = run(source, finder(), path)
    others = [
        (255 - image, finder(), {}),
        (source, dense(), {}),
        (source, finder(), {"probabilities": True}),
    ]
    for other, model, how in others:
        with pytest.raises(StoreError, match="another image, model or settings"):
            run(other, model, path, **how)
    same(before, run(image, finder(), path))  # the same, from elsewhere
    (path / "notes.txt").write_text("mine")
    after = run(source, finder(), path, overwrite=True, probabilities=True)
    assert after.probabilities
    assert (path / "notes.txt").read_text() == "mine"


def test_what_is_not_ours_is_not_touched(
    tmp_path: Path, source: Path, image: np.ndarray
) -> None:
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "zarr.json").write_text("{}")
    (foreign / "thesis.txt").write_text("years of work")
    other = stored(tmp_path / "other.zarr", image)
    newer = run(source, finder(), tmp_path / "newer.zarr").path
    group = zarr.open_group(newer)
    group.attrs["napari-fovea"] = {**group.attrs["napari-fovea"], "format": 99}
    file = tmp_path / "file.zarr"
    file.write_text("no folder")
    for path, says in [
        (foreign, "was not written by napari-fovea"),
        (other, "was not written by napari-fovea"),
        (file, "was not written by napari-fovea"),
        (newer, "newer napari-fovea"),
        (source, "is the image itself"),
    ]:
        for overwrite in (False, True):
            with pytest.raises(StoreError, match=says) as caught:
                run(source, finder(), path, overwrite=overwrite)
            assert "\n" not in str(caught.value)
    assert (foreign / "thesis.txt").exists()
    own = run(source, finder(), tmp_path / "own.zarr").path
    with pytest.raises(StoreError, match="holds it"):
        run(own / "uncertainty", finder(), own, overwrite=True)
    with pytest.raises(StoreError, match="lies in it"):
        run(source, finder(), source / "result.zarr")
    assert not (source / "result.zarr").exists()


@pytest.mark.parametrize("overwrite", [False, True])
def test_two_runs_do_not_write_the_same(
    tmp_path: Path, source: Path, overwrite: bool
) -> None:
    path = tmp_path / "out.zarr"
    expected = run(source, finder(), tmp_path / "one.zarr")
    for _ in range(2):  # into an empty place, and over the result
        first = segment_large(source, finder(), path, chunk=64, overwrite=True)
        next(first)
        with pytest.raises(StoreError, match="written by another run"):
            run(source, finder(), path, overwrite=overwrite)
        found = complete(first)
        np.testing.assert_array_equal(found.instances[0][...], expected.instances[0])
        assert not (path / ".work").exists()


def test_what_is_refused_leaves_an_earlier_result_as_it_was(
    tmp_path: Path, source: Path
) -> None:
    path = tmp_path / "out.zarr"
    before = run(source, finder(), path)
    how: dict[str, Any]
    for how in (
        {"scheduler": "nonsense://x"},
        {"workers": 0},
        {"near": (1,)},
        {"level": 9},
        {"budget": 0},
    ):
        with pytest.raises(FoveaError):
            run(source, dense(), path, overwrite=True, **how)
    lock, large = threading.Lock(), np.zeros((2**12, 2**11), np.uint8)
    for image in (
        discs((160, 220))[0],
        da.from_array(large, chunks=512),
        da.ones((160, 220)).map_blocks(lambda b: (lock, b)[1]),
    ):
        with pytest.raises(ClusterError, match="workers"):
            run(image, dense(), path, overwrite=True, workers=1)
    after = run(source, finder(), path)
    assert after.provenance == before.provenance
    np.testing.assert_array_equal(after.instances[0], before.instances[0])
    nowhere = tmp_path / "nowhere.zarr"
    with pytest.raises(ClusterError):
        run(source, finder(), nowhere, scheduler="nonsense://x")
    assert not nowhere.exists()


def test_a_store_that_is_removed_while_it_is_written_says_so(
    tmp_path: Path, source: Path
) -> None:
    path = tmp_path / "out.zarr"
    events = segment_large(source, finder(), path, chunk=64)
    next(events)
    shutil.rmtree(path)
    with pytest.raises(StoreError, match="is not there, or is another run's"):
        complete(events)


def test_a_block_of_a_run_that_was_given_up_is_not_written(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A worker may still be at it when another run has begun in the same place.
    path = tmp_path / "out.zarr"
    late = []
    write = Job.write
    with monkeypatch.context() as patched:
        patched.setattr(Job, "write", lambda job, found: late.append((job, found)))
        complete_but_for_writing = segment_large(source, finder(), path, chunk=64)
        while not late:
            next(complete_but_for_writing)
        complete_but_for_writing.close()
    dull = stored(tmp_path / "dull.zarr", np.full((160, 220), 9, np.uint8))
    new = segment_large(dull, finder(), path, chunk=64, overwrite=True)
    next(new)
    for job, found in late:
        with pytest.raises(StoreError, match="another run's by now"):
            write(job, found)
    result = complete(new)
    assert result.objects == 0
    assert not result.labels[0][...].any()


def test_chunks_that_were_never_written_are_told(tmp_path: Path, source: Path) -> None:
    array = zarr.open_array(source)
    last = [max(int(p.name) for p in (source / "c").iterdir())]
    shutil.rmtree(source / "c" / str(*last))
    missing = array.nchunks - array.nchunks_initialized
    opened = next(segment_large(source, finder(), tmp_path / "out.zarr", chunk=64))
    assert opened.note.startswith(f"{missing} of the {array.nchunks} chunks of in.zarr")
    told = run(source, finder(), tmp_path / "two.zarr").provenance["source"]
    assert (told["unwritten_chunks"], told["chunks"]) == (missing, array.nchunks)
    whole = stored(tmp_path / "whole.zarr", discs((160, 220))[0])
    assert next(segment_large(whole, finder(), tmp_path / "three", chunk=64)).note == ""


def test_a_store_that_is_taken_apart_while_it_is_written_says_so(
    source: Path, tmp_path: Path
) -> None:
    path = tmp_path / "out.zarr"
    events = segment_large(source, finder(), path, chunk=64)
    while not (isinstance(event := next(events), Finished) and event.done == BLOCKS):
        pass
    shutil.rmtree(path / "labels" / "instances")
    with pytest.raises(StoreError, match=r"has lost labels/instances/0 .* run this"):
        complete(events)


def test_a_block_whose_notes_are_damaged_is_told(tmp_path: Path, source: Path) -> None:
    path = tmp_path / "out.zarr"
    first = segment_large(source, finder(), path, chunk=64)
    while not isinstance(next(first), Finished):
        pass
    first.close()
    (path / ".work" / "blocks" / "0.npz").write_bytes(b"")
    with pytest.raises(StoreError, match=r"0.npz is damaged .* delete it"):
        run(source, finder(), path)


def test_a_full_disk_stops_at_once_and_says_what_is_kept(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, write = tmp_path / "out.zarr", Store.write

    def full(self: Store, block: Any, found: Any) -> None:
        if block.index == 7:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(self, block, found)

    with monkeypatch.context() as patched:
        patched.setattr(Store, "write", full)
        with pytest.raises(StoreError, match="No space left on device") as caught:
            run(source, finder(), path)
    assert "7 of 12 blocks are kept" in str(caught.value)
    events, result = followed(segment_large(source, finder(), path, chunk=64))
    assert events[0].finished == 7
    same(result, run(source, finder(), tmp_path / "whole.zarr"))


def test_a_folder_that_cannot_be_written_gets_one_sentence(
    tmp_path: Path, source: Path
) -> None:
    # Root may write anywhere, but nobody makes a folder under a file.
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"cannot be written .* nothing is kept"):
        run(source, finder(), tmp_path / "file" / "out.zarr")


@pytest.mark.parametrize(
    ("how", "error", "says"),
    [
        ({"level": 3}, ImageError, "no level 3"),
        ({"axes": "QQ"}, ImageError, "do not describe"),
        ({"budget": 0}, ImageError, "budget is 0"),
        ({"diameter": -1}, ImageError, "diameter is -1"),
        ({"device": "abacus"}, FoveaError, "abacus"),
        ({"near": (1,)}, ImageError, "row and column"),
    ],
)
def test_bad_requests_get_one_sentence_before_anything_is_written(
    tmp_path: Path, source: Path, how: dict[str, Any], error: Any, says: str
) -> None:
    with pytest.raises(error, match=says) as caught:
        run(source, tiny_model(), tmp_path / "out.zarr", **how)
    assert "\n" not in str(caught.value)
    assert "near" in how or not (tmp_path / "out.zarr").exists()
