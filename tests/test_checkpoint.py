"""Model files: they rebuild themselves, and bad ones say what is wrong."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from conftest import tiny_model
from napari_fovea import complete, segment
from napari_fovea.errors import CheckpointError, FoveaError, ModelError
from napari_fovea.metrics import dice
from napari_fovea.models import DEFAULT, Model, shipped
from napari_fovea.models.checkpoint import FORMAT, read_header
from napari_fovea.sample_data import make_nuclei


def rewrite(path: Path, change) -> None:
    """Change the header of a model file and leave its tensors."""
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        header = json.loads(file.metadata()["napari_fovea"])
    change(header)
    save_file(load_file(path), path, metadata={"napari_fovea": json.dumps(header)})


def test_a_saved_model_gives_the_same_outputs(tiny: Model, tiny_file: Path) -> None:
    again = Model.load(tiny_file)
    crops = torch.rand(4, 3, 32, 32)
    assert torch.equal(again.network(crops), tiny.network(crops))
    for field in ("name", "classes", "outputs", "depths", "normalisation"):
        assert getattr(again, field) == getattr(tiny, field)
    assert again.object_diameter == tiny.object_diameter
    assert again.provenance == tiny.provenance
    assert not again.network.training


def test_half_precision_halves_the_file(tiny: Model, tmp_path: Path) -> None:
    tiny.save(tmp_path / "full.safetensors")
    tiny.save(tmp_path / "half.safetensors", half=True)
    full, half = (
        (tmp_path / f"{n}.safetensors").stat().st_size for n in ("full", "half")
    )
    assert half < 0.7 * full
    crops = torch.rand(4, 3, 32, 32)
    torch.testing.assert_close(
        Model.load(tmp_path / "half.safetensors").network(crops),
        tiny.network(crops),
        atol=0.02,
        rtol=0.02,
    )


def test_saving_leaves_no_halves_behind(tiny: Model, tmp_path: Path) -> None:
    target = tmp_path / "folder" / "m.safetensors"
    tiny.save(target)
    assert [p.name for p in target.parent.iterdir()] == ["m.safetensors"]


@pytest.mark.parametrize("keep", [0, 5, 100, 0.5, 0.99])
def test_a_truncated_file_is_refused(tiny_file: Path, keep: float) -> None:
    data = tiny_file.read_bytes()
    tiny_file.write_bytes(data[: int(keep * len(data)) if keep < 1 else int(keep)])
    with pytest.raises(CheckpointError, match="truncated"):
        Model.load(tiny_file)


def test_a_pickle_is_refused_unopened(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self):
            return (Path(tmp_path / "sprung").touch, ())

    plain, zipped = tmp_path / "plain.pt", tmp_path / "zipped.pt"
    plain.write_bytes(pickle.dumps(Trap()))
    torch.save({"weights": torch.zeros(3)}, zipped)
    for path in (plain, zipped):
        with pytest.raises(CheckpointError, match="pickle"):
            Model.load(path)
    assert not (tmp_path / "sprung").exists()


def test_another_programs_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    save_file({"x": torch.zeros(2)}, path)
    with pytest.raises(CheckpointError, match="another program"):
        Model.load(path)


def test_a_file_from_the_future_is_refused(tiny_file: Path) -> None:
    rewrite(tiny_file, lambda h: h.update(format=FORMAT + 1))
    with pytest.raises(CheckpointError, match="update napari-fovea"):
        Model.load(tiny_file)


def test_a_file_of_the_first_format_tells_interior_from_border(
    tmp_path: Path,
) -> None:
    model = tiny_model(outputs=3)
    path = tmp_path / "earlier.safetensors"
    model.save(path)

    def earlier(header: dict[str, Any]) -> None:
        del header["depths"]
        header.update(format=1, border=2)

    rewrite(path, earlier)
    assert Model.load(path).depths == (0.0, 1.0, 0.0)
    rewrite(path, lambda h: h.update(format=1, border=None))
    assert Model.load(path).depths is None


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda h: h.pop("classes"), "classes"),
        (lambda h: h.pop("format"), "format"),
        (lambda h: h.update(network="skynet"), "no network 'skynet'"),
        (lambda h: h["config"].update(units=8000), "does not fit"),
        (lambda h: h["config"].update(width=10**9), "width"),
        (lambda h: h.update(outputs=[0, 1]), "one class"),
        (lambda h: h.update(outputs=[1, 0, 1]), "in order"),
        (lambda h: h.update(outputs=[0, 0, 1]), "background once"),
        (lambda h: h.update(format=1, border=2, outputs=7), "outputs"),
        (lambda h: (h.update(format=1, border=2), h.pop("outputs")), "outputs"),
        (lambda h: h.update(depths=[0, 0.5]), "tells depths"),
        (lambda h: h.update(depths=[0, 0.5, 7]), "from 0 to 1"),
        (lambda h: h.update(depths=[0, 0.5, 0.5]), "the others different"),
        (lambda h: h.update(scan={"diameter": "huge"}), "scan.diameter"),
        (lambda h: h.update(object_diameter=-1), "object_diameter"),
        (lambda h: h.update(object_diameter=float("inf")), "object_diameter"),
        (lambda h: h.update(scan={"policy": ["x"]}), "scan.policy"),
    ],
)
def test_a_hostile_header_is_refused(tiny_file: Path, change, says: str) -> None:
    rewrite(tiny_file, change)
    with pytest.raises(CheckpointError, match=says):
        Model.load(tiny_file)


def test_a_bottomless_header_is_refused(tiny_file: Path) -> None:
    save_file(load_file(tiny_file), tiny_file, metadata={"napari_fovea": "[" * 200000})
    with pytest.raises(CheckpointError, match="damaged header"):
        Model.load(tiny_file)


def test_weights_of_another_type_are_refused(tiny: Model, tiny_file: Path) -> None:
    from safetensors import safe_open

    with safe_open(tiny_file, "pt") as file:
        metadata = file.metadata()
    whole = {k: v.to(torch.int32) for k, v in load_file(tiny_file).items()}
    save_file(whole, tiny_file, metadata=metadata)
    with pytest.raises(CheckpointError, match="int32"):
        Model.load(tiny_file)


def test_settings_that_a_header_leaves_out_are_filled_in(tiny_file: Path) -> None:
    rewrite(tiny_file, lambda h: h["config"].pop("channels"))
    assert read_header(tiny_file).config["channels"] == 3


def test_weights_that_are_not_finite_are_refused(tiny: Model, tmp_path: Path) -> None:
    next(iter(tiny.network.state_dict().values())).fill_(float("nan"))
    tiny.save(tmp_path / "nan.safetensors")
    with pytest.raises(CheckpointError, match="NaN"):
        Model.load(tmp_path / "nan.safetensors")


def test_names_and_files_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="retina-nuclei"):
        Model.load("no-such-model")
    with pytest.raises(CheckpointError, match="no file"):
        Model.load(tmp_path / "nothing.safetensors")


def test_every_model_that_ships_loads_and_its_file_is_small() -> None:
    found = shipped()
    assert found[0].name == DEFAULT
    for entry in found:
        assert entry.path.stat().st_size <= 12e6
        model = Model.load(entry.name)
        assert model.channels == 3
        assert model.provenance["data"]
        assert model.system == entry.system
        assert model.provenance["validation"]["all"]["images"] == 99
        image, truth = make_nuclei((128, 128), count=12, seed=0)
        result = complete(segment(image, model, device="cpu"))
        assert dice(result.labels, truth) > 0.7


def test_outputs_are_summed_into_classes(tiny: Model) -> None:
    outputs = torch.rand(3, 4, 5).softmax(0)
    classes = tiny.class_probabilities(outputs)
    assert classes.shape == (2, 4, 5)
    torch.testing.assert_close(classes[1], outputs[1] + outputs[2])


def test_a_model_that_contradicts_itself_is_refused(tiny: Model) -> None:
    from dataclasses import replace

    with pytest.raises(FoveaError, match="one class"):
        replace(tiny, outputs=(0, 1))


def test_halves_hold_what_is_too_large_for_16_bits(tmp_path: Path) -> None:
    model = tiny_model()
    norm = next(m for m in model.network.modules() if isinstance(m, nn.BatchNorm2d))
    norm.running_var.fill_(1e6)
    kernel = model.network.features[0].weight
    with torch.no_grad():
        kernel[0, 0, 0, 0] = 1e5
    path = tmp_path / "half.safetensors"
    model.save(path, half=True)
    loaded = Model.load(path)
    norms = [m for m in loaded.network.modules() if isinstance(m, nn.BatchNorm2d)]
    assert torch.equal(norms[0].running_var, norm.running_var)
    assert loaded.network.features[0].weight[0, 0, 0, 0] == 1e5
