"""The same blocks on the workers of a cluster, some of which die."""

from __future__ import annotations

import errno
import os
import signal
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil
import pytest
import torch
from distributed import LocalCluster

from following import followed
from large import dense, discs, segment_large, stored
from napari_fovea import complete
from napari_fovea.errors import ClusterError, StoreError
from napari_fovea.scale import Finished, cluster
from napari_fovea.scale.store import Store

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from napari_fovea.scale import LargeResult


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return stored(tmp_path / "in.zarr", discs((160, 220))[0])


def arrays(result: LargeResult) -> list[np.ndarray]:
    names = ("labels", "instances", "uncertainty", "probabilities")
    return [a[...] for name in names for a in getattr(result, name)]


def processes() -> set[int]:
    """Workers that this process has started, not what serves them."""
    return {
        child.pid
        for child in psutil.Process().children(recursive=True)
        if "--multiprocessing-fork" in child.cmdline()
    }


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL")
@pytest.mark.slow
def test_workers_give_what_one_process_gives_even_if_one_is_killed(
    tmp_path: Path, source: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model = dense()
    how: dict[str, Any] = {"chunk": 64, "probabilities": True}
    before = torch.get_num_threads()
    torch.set_num_threads(max(1, before // 2))  # as each worker has
    expected = complete(segment_large(source, model, tmp_path / "one", **how))
    torch.set_num_threads(before)
    killed: set[int] = set()
    run = segment_large(source, model, tmp_path / "two", workers=2, **how)
    done = []
    try:
        while True:
            event = next(run)
            if isinstance(event, Finished):
                done.append(event.block.index)
                if not killed:
                    killed = {min(processes())}
                    os.kill(*killed, signal.SIGKILL)
    except StopIteration as end:
        result = end.value
    assert killed
    assert sorted(done) == list(range(12))
    assert result.failures == ()
    for a, b in zip(arrays(expected), arrays(result), strict=True):
        np.testing.assert_array_equal(a, b)
    assert result.objects == expected.objects
    assert not processes(), "nothing is left running"
    told = capfd.readouterr()
    assert "distributed" not in told.out + told.err


@pytest.fixture
def there() -> Iterator[LocalCluster]:
    with LocalCluster(
        n_workers=1,
        threads_per_worker=2,
        processes=False,
        protocol="tcp://",
        dashboard_address=":0",
        memory_limit=0,
    ) as started:
        yield started


@pytest.fixture
def address(there: LocalCluster) -> str:
    return str(there.scheduler_address)


def test_a_scheduler_that_runs_is_used(
    tmp_path: Path, source: Path, address: str
) -> None:
    (source / "c" / "2" / "3").write_bytes(b"no zstd")
    model, path = dense(), tmp_path / "out.zarr"
    expected = complete(segment_large(source, model, tmp_path / "one", chunk=64))
    events, result = followed(
        segment_large(source, model, path, chunk=64, scheduler=address)
    )
    assert {f.block for f in result.failures} == {f.block for f in expected.failures}
    assert result.failures[0].reason == expected.failures[0].reason
    assert sum(isinstance(e, Finished) for e in events) == 12
    assert result.provenance["finished"] == expected.provenance["finished"]
    np.testing.assert_array_equal(result.labels[0][...], expected.labels[0][...])


def test_cancelling_and_a_full_disk_stop_workers(
    tmp_path: Path, source: Path, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, path = dense(), tmp_path / "out.zarr"
    how: dict[str, Any] = {"chunk": 64, "scheduler": address}

    def enough() -> bool:
        return any((path / ".work" / "blocks").glob("[0-9]*"))

    stopped = segment_large(source, model, path, cancelled=enough, **how)
    _, result = followed(stopped)
    assert result.cancelled
    assert 0 < result.provenance["finished"] < 12

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(Store, "write", full)
        with pytest.raises(StoreError, match="No space left on device"):
            complete(segment_large(source, model, path, **how))
    _, result = followed(segment_large(source, model, path, **how))
    assert result.provenance["finished"] == 12


def test_a_scheduler_that_is_lost_leaves_what_is_finished(
    tmp_path: Path,
    source: Path,
    there: LocalCluster,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cluster, "_PATIENCE", 2)
    model, path = dense(), tmp_path / "out.zarr"
    how: dict[str, Any] = {"chunk": 64, "scheduler": there.scheduler_address}
    run = segment_large(source, model, path, **how)
    while not isinstance(next(run), Finished):
        pass
    there.close()
    with pytest.raises(ClusterError, match="what was finished is kept"):
        complete(run)
    events, result = followed(segment_large(source, model, path, chunk=64))
    assert events[0].finished > 0
    assert result.provenance["finished"] == 12


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ({"scheduler": "tcp://127.0.0.1:9"}, "no scheduler with workers at tcp"),
        ({"scheduler": "nonsense://x"}, "no scheduler with workers at nonsense"),
        ({"workers": 0}, "Workers are 0"),
        ({"workers": 2, "scheduler": "tcp://127.0.0.1:9"}, "and not both"),
    ],
)
def test_workers_that_are_not_there_get_one_sentence(
    tmp_path: Path,
    source: Path,
    monkeypatch: pytest.MonkeyPatch,
    how: dict[str, Any],
    says: str,
) -> None:
    monkeypatch.setattr(cluster, "_PATIENCE", 1)
    with pytest.raises(ClusterError, match=says) as caught:
        complete(segment_large(source, dense(), tmp_path / "o", chunk=64, **how))
    assert "\n" not in str(caught.value)


def test_an_array_in_memory_stays_in_its_process(tmp_path: Path) -> None:
    image = discs((160, 220))[0]
    with pytest.raises(ClusterError, match="in the memory of this process"):
        complete(segment_large(image, dense(), tmp_path / "o", chunk=64, workers=2))


def test_a_worker_that_does_not_find_the_image_says_so(
    tmp_path: Path, source: Path, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster._unpacked.cache_clear()
    path = tmp_path / "out.zarr"
    run = segment_large(source, dense(), path, chunk=64, scheduler=address)
    next(run)
    source.rename(tmp_path / "elsewhere.zarr")
    with pytest.raises(ClusterError, match="does not find what this process finds"):
        complete(run)
