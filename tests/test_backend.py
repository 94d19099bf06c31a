"""Precision, memory and what is done where it runs out, through whole runs."""

from __future__ import annotations

import copy
import gc
import json
import subprocess
import sys
import weakref
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import nn

from conftest import tiny_model
from following import followed
from napari_fovea import complete, segment
from napari_fovea.device import Backend
from napari_fovea.errors import DeviceError, FoveaError, OutOfMemoryError
from napari_fovea.inference import Tiling, loaded, runner
from napari_fovea.inference.dense import DenseReader
from napari_fovea.inference.detect import DetectorReader
from napari_fovea.inference.needs import MARGIN, Needs, needs
from napari_fovea.inference.retina import RetinaReader
from napari_fovea.inference.runner import Runner, most_contrasted
from napari_fovea.inference.scanning import inference_network
from napari_fovea.models import Model
from small_networks import tiny

if TYPE_CHECKING:
    from collections.abc import Callable

CPU = torch.device("cpu")
OTHER = torch.device("cpu:0")  # the same, and yet another device than "cpu"
EXACT = Backend("cpu", precision="float32")


def modelled(network: nn.Module) -> Model:
    return Model("one", network, ("background", "nucleus"), (0, 1), object_diameter=12)


@pytest.fixture
def dense() -> Model:
    return modelled(tiny("unet"))


@pytest.fixture
def wide() -> np.ndarray:
    """An image larger than what is read in both precisions, dull but for a corner."""
    rng = np.random.default_rng(0)
    image = rng.integers(90, 110, (300, 620))
    image[200:, 400:] = rng.integers(0, 255, (100, 220))
    return image.astype(np.uint8)


# -- precision -------------------------------------------------------------------------


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let this processor pass for one that is fast at 16 bits."""
    monkeypatch.setattr(runner, "fast_precision", lambda _: torch.bfloat16)


def rough(off: float) -> Model:
    """A model that tells something else where it computes in 16 bits."""

    def hook(_module: object, _given: object, out: torch.Tensor) -> torch.Tensor:
        return out + off if torch.is_autocast_enabled("cpu") else out

    network = tiny("unet")
    network.register_forward_hook(hook)
    return modelled(network)


@pytest.mark.usefixtures("fast")
def test_sixteen_bits_are_taken_where_they_agree(
    dense: Model, wide: np.ndarray
) -> None:
    exact = complete(segment(wide, dense, device=EXACT))
    result = complete(segment(wide, dense, device="cpu"))
    made = json.loads(json.dumps(result.provenance))
    assert exact.provenance["precision"] == "float32"
    assert "precision_difference" not in exact.provenance
    assert made["precision"] == "bfloat16"
    assert 0 < made["precision_difference"] <= runner.TOLERANCE
    difference = np.abs(result.probabilities - exact.probabilities).max()
    assert 0 < difference <= 2 * runner.TOLERANCE
    assert result.probabilities.dtype == result.uncertainty.dtype == np.float32


@pytest.mark.usefixtures("fast")
@pytest.mark.parametrize(("off", "told"), [(2.0, None), (torch.nan, "not finite")])
def test_where_they_do_not_agree_nothing_changes(
    wide: np.ndarray, off: float, told: str | None
) -> None:
    model = rough(off)
    result = complete(segment(wide, model, device="cpu"))
    assert result.provenance["precision"] == "float32"
    difference = result.provenance["precision_difference"]
    assert difference == told if told else difference > runner.TOLERANCE
    exact = complete(segment(wide, model, device=EXACT))
    np.testing.assert_array_equal(result.probabilities, exact.probabilities)


@pytest.mark.usefixtures("fast")
def test_it_is_compared_once_for_a_network(
    dense: Model, wide: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def window(image: torch.Tensor) -> torch.Tensor:
        asked.append(tuple(image.shape[1:]))
        return most_contrasted(image)

    monkeypatch.setattr(runner, "most_contrasted", window)
    for _ in range(2):
        complete(segment(np.stack([wide, wide[::-1]]), dense, device="cpu"))
    assert asked == [wide.shape]
    small = complete(segment(wide[:200, :300], modelled(tiny("unet")), device="cpu"))
    assert small.provenance["precision"] == "float32", (
        "it would cost more than it gains"
    )
    assert len(asked) == 1


@pytest.mark.usefixtures("fast")
def test_a_detector_compares_what_does_not_depend_on_what_it_found(
    wide: np.ndarray,
) -> None:
    model = modelled(tiny("mask-rcnn", norm="group"))
    result = complete(segment(wide, model, device="cpu"))
    assert result.provenance["precision"] == "bfloat16"
    assert result.provenance["precision_difference"] <= runner.TOLERANCE
    assert result.probabilities.dtype == np.float32


@pytest.mark.usefixtures("fast")
def test_a_walk_is_exact_unless_it_is_asked_not_to_be(picture: np.ndarray) -> None:
    model = tiny_model()
    exact = complete(segment(picture, model, budget=30, device="cpu"))
    assert exact.provenance["precision"] == "float32"
    backend = Backend("cpu", precision="bfloat16")
    result = complete(segment(picture, model, policy="raster", device=backend))
    assert result.provenance["precision"] == "bfloat16"
    assert result.probabilities.dtype == np.float32
    assert result.path.entropies.dtype == np.float32


@pytest.mark.parametrize("name", ["focusnet", "r2-attention-unet", "focusnet-plus"])
def test_attention_and_previews_are_float32_whatever_is_computed_in(
    name: str, picture: np.ndarray
) -> None:
    model = modelled(tiny(name))
    label = next(m.label for m in model.network.modules() if hasattr(m, "label"))
    asked = {"attention": [label], "preview_every": 0.0, "tiling": Tiling(64, 8, 8)}
    backend = Backend("cpu", precision="bfloat16")
    events, result = followed(segment(picture, model, device=backend, **asked))
    exact = complete(segment(picture, model, device=EXACT, **asked))
    told, expected = (
        next(a.array for a in r.attention if a.name == label) for r in (result, exact)
    )
    assert told.dtype == np.float32
    # Normalisations of random networks magnify what rounding changes.
    assert np.abs(told - expected).mean() < 0.05
    previews = [e for e in events if hasattr(e, "uncertainty")]
    assert {e.uncertainty.dtype for e in previews} == {np.dtype(np.float32)}


def test_the_window_that_tells_most_is_where_contrast_is() -> None:
    image = torch.full((3, 700, 900), 0.5)
    image[:, 500:620, 600:700] = torch.rand(3, 120, 100)
    window = most_contrasted(image)
    assert window.shape == (3, 256, 256)
    assert window.var() > 0.9 * image[:, 450:706, 550:806].var() * 0.8
    small = torch.rand(3, 40, 600)
    assert most_contrasted(small).shape == (3, 40, 256)


def test_scoring_while_training_is_exact(dense: Model) -> None:
    for reader in (
        DenseReader(dense, CPU),
        DetectorReader(modelled(tiny("mask-rcnn")), CPU),
        RetinaReader(tiny_model(), CPU, (60, 60)),
    ):
        assert reader.runner.dtype == torch.float32
        assert reader.runner.backend.precision == "float32"


# -- kept from one run to the next -----------------------------------------------------


def test_a_network_is_made_ready_once(dense: Model, picture: np.ndarray) -> None:
    complete(segment(picture, dense, device="cpu"))
    first = loaded.load(dense.network, CPU)
    complete(segment(picture, dense, device="cpu"))
    assert loaded.load(dense.network, CPU) is first
    again = replace(dense, name="another")
    assert Runner(again, CPU).loaded is first
    assert Runner(modelled(copy.deepcopy(dense.network)), CPU).loaded is not first


def learn(network: nn.Module) -> None:
    network.requires_grad_(True)
    optimiser = torch.optim.AdamW(network.parameters(), lr=0.1)
    network(torch.rand(1, 3, 32, 32)).square().mean().backward()
    optimiser.step()
    network.requires_grad_(False)


def move_statistics(network: nn.Module) -> None:
    next(b for n, b in network.named_buffers() if "running_mean" in n).add_(1)


def replace_weights(network: nn.Module) -> None:
    network.load_state_dict(
        {
            k: v * 0.5 if v.is_floating_point() else v
            for k, v in network.state_dict().items()
        }
    )


@pytest.mark.parametrize("change", [learn, move_statistics, replace_weights])
def test_weights_that_change_in_place_are_noticed(
    change: Callable[[nn.Module], None], picture: np.ndarray
) -> None:
    model = modelled(tiny("focusnet"))
    before = complete(segment(picture, model, device=EXACT)).probabilities
    change(model.network)
    after = complete(segment(picture, model, device=EXACT)).probabilities
    assert np.abs(after - before).max() > 1e-4
    fresh = modelled(copy.deepcopy(model.network))
    expected = complete(segment(picture, fresh, device=EXACT)).probabilities
    np.testing.assert_array_equal(after, expected)


def test_a_retina_that_learns_is_looked_through_anew(picture: np.ndarray) -> None:
    model = tiny_model()
    crops = torch.rand(2, 3, 32, 32)
    look = inference_network(model, CPU)
    before = look(crops)
    model.network.head[-1].bias.add_(torch.arange(len(model.network.head[-1].bias)))
    with torch.inference_mode():
        torch.testing.assert_close(look(crops), model.network(crops))
    assert (look(crops) - before).abs().max() > 0.5


@pytest.mark.skipif(sys.platform != "linux", reason="other systems keep no heap")
def test_memory_is_given_back_after_a_run() -> None:
    # In a process of its own, whose memory nothing else has taken and left.
    code = """
import gc, psutil
import numpy as np
from napari_fovea import Model, complete, segment

model = Model.load("focusnet-nuclei")
image = np.random.default_rng(0).integers(0, 255, (1024, 1024), np.uint8)
complete(segment(image[:256, :256], model, device="cpu"))
before = psutil.Process().memory_info().rss
for _ in range(2):
    complete(segment(image, model, device="cpu"))
    gc.collect()
print((psutil.Process().memory_info().rss - before) / 2**20)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert float(done.stdout) < 150  # MiB; without giving back 300 to 500


def test_what_nobody_holds_is_not_kept(picture: np.ndarray) -> None:
    model = modelled(tiny("unet"))
    complete(segment(picture, model, device="cpu"))
    gone = weakref.ref(model.network), weakref.ref(loaded.load(model.network, CPU))
    del model
    gc.collect()
    assert [one() for one in gone] == [None, None]


# -- compiling -------------------------------------------------------------------------


def test_without_a_compiler_it_runs_as_it_is(
    dense: Model, picture: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(*_: object, **__: object) -> None:
        raise RuntimeError("no compiler found\nsee above")

    monkeypatch.setattr(torch, "compile", missing)
    backend = replace(EXACT, compiled=True)
    result = complete(segment(picture, dense, device=backend))
    assert result.provenance["compiled"] is False
    assert result.provenance["not_compiled"] == "RuntimeError: no compiler found"
    expected = complete(segment(picture, dense, device=EXACT))
    np.testing.assert_array_equal(result.probabilities, expected.probabilities)
    assert "compiled" not in expected.provenance


def test_detectors_are_not_compiled(picture: np.ndarray) -> None:
    model = modelled(tiny("mask-rcnn"))
    result = complete(segment(picture, model, device=replace(EXACT, compiled=True)))
    assert result.provenance["compiled"] is False
    assert "depends on what it finds" in result.provenance["not_compiled"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own
def test_a_compiled_network_gives_the_same_numbers(picture: np.ndarray) -> None:
    model = modelled(tiny("unet", depth=2))
    result = complete(segment(picture, model, device=replace(EXACT, compiled=True)))
    expected = complete(segment(picture, model, device=EXACT))
    if "not_compiled" in result.provenance:
        pytest.skip(f"nothing is compiled here: {result.provenance['not_compiled']}")
    assert result.provenance["compiled"] is True
    np.testing.assert_allclose(result.probabilities, expected.probabilities, atol=1e-4)


# -- how much memory is needed ---------------------------------------------------------


class Known(nn.Module):
    """Holds three times its image at most, and 1 MiB of its own."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        own = torch.zeros(1 << 18)
        once = image * 2
        twice = once + image
        del once
        thrice = twice.flip(2)
        return thrice[:, :1] + own.sum()


def test_the_memory_of_features_is_counted_to_the_byte(dense: Model) -> None:
    need = needs(Known(dense.config), torch.float32)
    ((own, each),) = need.stages
    # The image, two more of its size, and one channel that comes out.
    assert each == pytest.approx(4 * (3 + 6 + 1), rel=0.01)
    assert own == pytest.approx(1 << 20, rel=0.01)
    assert need.bytes(10**6) == pytest.approx(MARGIN * (own + 10**6 * each), abs=2)


def test_half_the_bits_take_half_the_memory() -> None:
    network = tiny("focusnet")
    full, half = (
        needs(network, d, multiple=16) for d in (torch.float32, torch.float16)
    )
    assert 0.4 < half.bytes(10**6) / full.bytes(10**6) < 0.7


@pytest.mark.parametrize("memory", [10**6, 10**8, 10**9, 10**12])
@pytest.mark.parametrize("multiple", [1, 16, 48])
def test_tiles_are_as_large_as_fits(memory: int, multiple: int) -> None:
    need = Needs(((1e6, 300.0), (5e6, 20.0)))
    side = need.side(memory, multiple=multiple)
    assert side % multiple == 0
    assert 256 - multiple < side <= 4096
    if side >= 256:
        assert side < 256 + multiple or need.bytes(side**2) <= memory
    larger = side + multiple
    assert larger > 4096 or need.bytes(larger**2) > memory or larger <= 256
    batch = need.batch(memory, side**2)
    assert batch == 1 or need.bytes(batch * side**2) <= memory
    assert batch * side**2 <= max(side**2, 2048**2)


def test_little_memory_makes_small_tiles_and_much_none(wide: np.ndarray) -> None:
    model = modelled(tiny("unet"))
    need = needs(model.network, torch.float32, multiple=4)
    small = replace(EXACT, memory=need.bytes(320**2) + 1000)
    result = complete(segment(wide, model, device=small))
    assert result.provenance["settings"]["tiling"]["size"] == 320
    whole = complete(segment(wide, model, device=replace(EXACT, memory=10**10)))
    assert whole.provenance["settings"]["tiling"]["size"] == 4096
    np.testing.assert_allclose(result.probabilities, whole.probabilities, atol=1e-3)


# -- memory that runs out --------------------------------------------------------------


def limited(network: nn.Module, *, images: int, pixels: int = 10**9) -> Model:
    """A model that takes so many images, and pixels of each, at a time."""

    def hook(_module: object, given: tuple[torch.Tensor]) -> None:
        (x,) = given
        if len(x) > images or x.shape[2] * x.shape[3] > pixels:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate")

    network = copy.deepcopy(network)
    network.register_forward_pre_hook(hook)
    return modelled(network)


@pytest.fixture
def no_least(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let small tiles of small tests be large."""
    from napari_fovea.inference import retreat

    monkeypatch.setattr(retreat, "LEAST_TILE", 64)


def test_batches_of_tiles_are_halved(picture: np.ndarray) -> None:
    inner = tiny("unet")
    settings = {"tiling": Tiling(48, 8, 8), "batch_size": 6}
    expected = complete(segment(picture, modelled(inner), device=EXACT, **settings))
    model = limited(inner, images=2)
    stack = np.stack([picture, picture])
    result = complete(segment(stack, model, device=EXACT, **settings))
    assert result.provenance["recovered"] == ["batch 6 → 3", "batch 3 → 1"]
    for plane in range(2):
        np.testing.assert_allclose(
            result.probabilities[:, plane], expected.probabilities, atol=1e-6
        )
    assert expected.provenance["recovered"] == []
    assert result.provenance["settings"]["batch_size"] == 1


@pytest.mark.usefixtures("no_least")
def test_attention_is_whole_after_batches_were_halved(picture: np.ndarray) -> None:
    inner = tiny("focusnet")
    settings = {"tiling": Tiling(64, 8, 8), "attention": ["gate 1/1"]}
    expected = complete(segment(picture, modelled(inner), device=EXACT, **settings))
    model = limited(inner, images=1)
    result = complete(segment(picture, model, device=EXACT, batch_size=3, **settings))
    assert result.provenance["recovered"] == ["batch 3 → 1"]
    np.testing.assert_allclose(
        result.attention[-1].array, expected.attention[-1].array, atol=1e-6
    )


@pytest.mark.usefixtures("no_least")
def test_tiles_are_halved_and_the_plane_is_begun_again(wide: np.ndarray) -> None:
    inner = tiny("unet")
    model = limited(inner, images=1, pixels=200**2)
    stack = np.stack([wide, wide])
    tiling = Tiling(640, 32, 16, even=True)
    result = complete(segment(stack, model, device=EXACT, tiling=tiling))
    assert result.provenance["recovered"] == ["tile 620 → 312", "tile 312 → 156"]
    assert result.provenance["settings"]["tiling"]["size"] == 156
    same = replace(tiling, size=156)
    expected = complete(segment(wide, modelled(inner), device=EXACT, tiling=same))
    for plane in range(2):
        np.testing.assert_allclose(
            result.probabilities[:, plane], expected.probabilities, atol=1e-6
        )


@pytest.mark.usefixtures("no_least")
def test_a_detectors_tiles_are_halved_too(wide: np.ndarray) -> None:
    inner = tiny("mask-rcnn", norm="group", score=0.05)
    model = limited(inner, images=1, pixels=500 * 320)
    tiling = Tiling(640, 32, 0, even=True)
    result = complete(segment(wide, model, device=EXACT, tiling=tiling))
    assert result.provenance["recovered"] == ["tile 620 → 320"]
    same = replace(tiling, size=320)
    expected = complete(segment(wide, modelled(inner), device=EXACT, tiling=same))
    np.testing.assert_array_equal(result.instances, expected.instances)


@pytest.mark.parametrize("policy", ["seek", "raster"])
def test_a_retina_looks_at_fewer_crops_at_once(
    policy: str, picture: np.ndarray
) -> None:
    model = tiny_model(norm=False, outputs=2)
    model = replace(modelled(model.network), classes=model.classes)
    tight = limited(model.network, images=3)
    how = {"policy": policy, "budget": 40, "device": EXACT, "batch_size": 16}
    expected = complete(segment(picture, model, **how))
    result = complete(segment(picture, tight, **how))
    told = result.provenance["recovered"]
    assert told
    assert all(step.startswith("batch ") for step in told)
    np.testing.assert_array_equal(result.path.corners, expected.path.corners)
    np.testing.assert_allclose(result.probabilities, expected.probabilities, atol=1e-5)


@pytest.fixture
def tired(monkeypatch: pytest.MonkeyPatch) -> None:
    """A device beside the CPU on which everything runs out of memory."""
    run = loaded.Loaded.run

    def full(self: loaded.Loaded, batch: torch.Tensor, *rest: Any, **how: Any) -> Any:
        if self.device == OTHER:
            raise RuntimeError("XPU out of memory. Tried to allocate 2.00 GiB")
        return run(self, batch, *rest, **how)

    monkeypatch.setattr(loaded.Loaded, "run", full)
    monkeypatch.setattr(
        "napari_fovea.device.choosing.available", lambda: ("cpu:0", "cpu")
    )


@pytest.mark.usefixtures("tired", "no_least")
@pytest.mark.parametrize("name", ["unet", "mask-rcnn", "retina", "patch-center"])
def test_at_last_the_cpu_does_the_rest(name: str, picture: np.ndarray) -> None:
    model = tiny_model() if name == "retina" else modelled(tiny(name))
    how: dict[str, Any] = {"budget": 20} if name == "retina" else {}
    stack = np.stack([picture, picture])
    result = complete(
        segment(stack, model, device=Backend("cpu:0", precision="float32"), **how)
    )
    expected = complete(segment(stack, model, device=EXACT, **how))
    np.testing.assert_allclose(result.probabilities, expected.probabilities, atol=1e-6)
    assert result.provenance["recovered"][-1] == "cpu:0 → cpu"
    assert result.provenance["recovered"].count("cpu:0 → cpu") == 1


@pytest.mark.parametrize("name", ["unet", "mask-rcnn", "retina"])
def test_where_nothing_helps_one_sentence_says_so(
    name: str, picture: np.ndarray
) -> None:
    network = (
        tiny_model(norm=False, outputs=2).network if name == "retina" else tiny(name)
    )
    model = limited(network, images=0)
    with pytest.raises(OutOfMemoryError, match="close other programs") as caught:
        complete(segment(picture, model, device=EXACT))
    assert isinstance(caught.value, FoveaError)
    assert "\n" not in str(caught.value)


def test_other_errors_are_told_as_they_are(picture: np.ndarray) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    for name in ("unet", "mask-rcnn"):
        network = tiny(name)
        network.register_forward_pre_hook(broken)
        with pytest.raises(RuntimeError, match="mat1"):
            complete(segment(picture, modelled(network), device=EXACT))


def test_a_device_that_is_not_there_fails_before_anything(
    dense: Model, picture: np.ndarray
) -> None:
    run = segment(picture, dense, device=Backend("abacus"))
    with pytest.raises(DeviceError, match="abacus"):
        next(run)


# -- on an accelerator -----------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA here")
@pytest.mark.parametrize("compiled", [False, True])
def test_cuda_gives_what_the_cpu_gives(wide: np.ndarray, compiled: bool) -> None:
    model = modelled(tiny("focusnet"))
    small = {"tiling": Tiling(160, 32, 16, even=True)}
    expected = complete(segment(wide, model, device=EXACT, **small))
    for precision, tolerance in (("float32", 0.01), ("auto", 0.1)):
        backend = Backend("cuda", precision=precision, compiled=compiled)
        result = complete(segment(wide, model, device=backend, **small))
        difference = np.abs(result.probabilities - expected.probabilities).max()
        assert difference < tolerance, result.provenance
        assert result.provenance["settings"]["batch_size"] > 1
        assert result.provenance["recovered"] == []
    held = torch.cuda.memory_reserved()
    del model
    gc.collect()
    torch.cuda.empty_cache()
    assert torch.cuda.memory_reserved() <= held


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA here")
def test_memory_that_really_runs_out_is_recovered_from(wide: np.ndarray) -> None:
    model = modelled(tiny("focusnet"))
    whole = complete(segment(wide, model, device=EXACT))
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((48 << 20) / total)
    try:
        result = complete(
            segment(wide, model, device=Backend("cuda", precision="float32"))
        )
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert result.labels.shape == whole.labels.shape
    json.dumps(result.provenance)
