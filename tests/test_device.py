"""Devices: found, tried before they are trusted, and how much memory they have."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import psutil
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from napari_fovea import device as devices
from napari_fovea.device import Backend, as_backend, choosing, memory, trial
from napari_fovea.errors import DeviceError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

CPU = torch.device("cpu")
HONEST = trial.convolve


@pytest.fixture(autouse=True)
def _untried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "_faults", {})


@pytest.fixture
def two(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Pretend that there is a GPU, and let it convolve as it is told."""

    def pretend(gpu: Callable[[torch.Tensor], torch.Tensor]) -> list[str]:
        asked: list[str] = []

        def convolve(
            device: torch.device, dtype: torch.dtype = torch.float32
        ) -> torch.Tensor:
            asked.append(device.type)
            told = HONEST(CPU, dtype)
            return gpu(told) if device.type == "cuda" else told

        monkeypatch.setattr(trial, "convolve", convolve)
        monkeypatch.setattr(choosing, "available", lambda: ("cuda:0", "cpu"))
        return asked

    return pretend


def broken(_: torch.Tensor) -> torch.Tensor:
    raise RuntimeError("no kernel image is available\nfor execution.")


def test_every_device_that_is_there_passes_its_test() -> None:
    for name in devices.available():
        assert str(devices.pick(name)) in (name, name.split(":")[0])
    assert devices.skipped() == {}


def test_a_good_device_is_tried_once_and_chosen(two: Callable[..., list[str]]) -> None:
    asked = two(lambda told: told * (1 + 1e-3))  # as roughly as TF32
    assert devices.pick() == devices.pick("cuda") == torch.device("cuda:0")
    assert asked.count("cuda") == 1
    assert devices.skipped() == {}


@pytest.mark.parametrize(
    ("gpu", "says"),
    [
        (broken, "no kernel image"),
        (lambda told: told.flip(0), "wrong numbers"),
        (lambda told: told * torch.nan, "wrong numbers"),
        (torch.zeros_like, "wrong numbers"),
    ],
)
def test_a_device_that_fails_is_passed_over_and_said_why(
    two: Callable[..., list[str]], gpu: object, says: str
) -> None:
    asked = two(gpu)
    assert devices.skipped() == {}, "nothing is tried before it is asked for"
    assert not asked
    assert devices.pick() == CPU
    assert list(devices.skipped()) == ["cuda:0"]
    assert says in devices.skipped()["cuda:0"]
    for name in ("cuda", "cuda:0"):
        with pytest.raises(DeviceError, match=says) as caught:
            devices.pick(name)
        assert "\n" not in str(caught.value)
        assert str(caught.value).count(". ") == 0
    assert devices.pick("cpu") == CPU


def test_without_any_good_device_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def convolve(_: torch.device, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return HONEST(CPU, dtype) * (1 if dtype == torch.float64 else 2)

    monkeypatch.setattr(trial, "convolve", convolve)
    with pytest.raises(DeviceError, match="'cpu' computes wrong numbers"):
        devices.pick()


def test_a_device_that_is_not_there_is_refused() -> None:
    with pytest.raises(DeviceError, match="abacus"):
        devices.pick("abacus")


# -- backends --------------------------------------------------------------------


def test_a_name_means_the_best_way_and_a_torch_device_a_place() -> None:
    assert as_backend("cpu") == Backend("cpu")
    assert as_backend("cpu").precision == "auto"
    assert as_backend(CPU) == Backend("cpu", precision="float32")
    own = Backend("cpu", memory=3)
    assert as_backend(own) is own


@pytest.mark.parametrize(
    ("settings", "says"),
    [({"precision": "float8"}, "float8"), ({"memory": 0}, "0 bytes")],
)
def test_backends_that_cannot_be_are_refused(
    settings: dict[str, object], says: str
) -> None:
    with pytest.raises(DeviceError, match=says) as caught:
        Backend(**settings)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "amount"),
    [
        ("2GiB", 2 << 30),
        (" 1.5 ", 3 << 29),
        ("500 MB", 500_000_000),
        ("64mib", 64 << 20),
        ("2g", 2_000_000_000),
        ("auto", None),
        ("", None),
    ],
)
def test_amounts_of_memory_are_read(text: str, amount: int | None) -> None:
    assert devices.memory_of(text) == amount


@pytest.mark.parametrize("text", ["much", "-1", "0", "2TiB", "GiB", "nan"])
def test_what_is_no_amount_is_refused(text: str) -> None:
    with pytest.raises(DeviceError, match="no amount of memory"):
        devices.memory_of(text)


def test_half_of_what_is_free_is_taken_but_no_more_than_helps(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    free = {"bytes": 2 << 30}
    module = sys.modules["napari_fovea.device.backend"]
    monkeypatch.setattr(module, "free_memory", lambda _: free["bytes"])
    assert Backend().allowance(CPU) == 1 << 30
    assert Backend(memory=7).allowance(CPU) == 7
    free["bytes"] = 1 << 40
    assert Backend().allowance(CPU) == 4 << 30
    assert Backend().allowance(torch.device("cuda:0")) == 1 << 39


def test_this_machines_fast_precision_is_one_of_those_known() -> None:
    for name in devices.available():
        fast = devices.fast_precision(torch.device(name))
        assert fast in devices.PRECISIONS.values()


# -- memory ----------------------------------------------------------------------


def test_the_cpus_memory_is_what_the_system_could_give() -> None:
    free = devices.free_memory(CPU)
    assert 0 < free <= psutil.virtual_memory().total


@given(
    limits=st.lists(st.integers(0, 2**40) | st.none(), min_size=3, max_size=3),
    uses=st.lists(st.integers(0, 2**40), min_size=3, max_size=3),
)
def test_the_tightest_limit_of_a_group_and_those_around_it_counts(
    tmp_path_factory: pytest.TempPathFactory, limits: list[int | None], uses: list[int]
) -> None:
    root = tmp_path_factory.mktemp("cgroup")
    folders = [root, root / "outer", root / "outer" / "inner"]
    folders[-1].mkdir(parents=True)
    for folder, limit, use in zip(folders, limits, uses, strict=True):
        (folder / "memory.max").write_text("max\n" if limit is None else f"{limit}\n")
        (folder / "memory.current").write_text(f"{use}\n")
    mine = root / "mine"
    mine.write_text("0::/outer/inner\n")
    left = [max(0, m - u) for m, u in zip(limits, uses, strict=True) if m is not None]
    assert memory.group_memory(root=root, mine=mine) == min(left, default=sys.maxsize)


def test_older_groups_and_files_that_are_only_cached_count_too(tmp_path: Path) -> None:
    group = tmp_path / "memory" / "docker"
    group.mkdir(parents=True)
    (group / "memory.limit_in_bytes").write_text("1000\n")
    (group / "memory.usage_in_bytes").write_text("900\n")
    (group / "memory.stat").write_text("inactive_file 1\ntotal_inactive_file 300\n")
    mine = tmp_path / "mine"
    mine.write_text("7:cpu,cpuacct:/docker\n4:memory:/docker\n0::/elsewhere\n")
    assert memory.group_memory(root=tmp_path, mine=mine) == 400
    assert memory.group_memory(root=tmp_path, mine=tmp_path / "none") == sys.maxsize


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("MPS backend out of memory (MPS allocated: 1 GB)"),
        RuntimeError("XPU out of memory. Tried to allocate"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you"),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried"),
    ],
)
def test_every_way_to_say_that_memory_ran_out_is_known(error: Exception) -> None:
    assert devices.ran_out(error)


def test_the_cpus_own_words_are_known_and_others_are_not() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 50)
    assert devices.ran_out(caught.value)
    assert not devices.ran_out(RuntimeError("mat1 and mat2 shapes"))
    assert not devices.ran_out(ValueError("out of memory"))
