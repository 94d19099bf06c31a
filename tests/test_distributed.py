"""Parts and processes, and training as a program: kills, and a loss that diverges."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import imageio.v3 as imageio
import numpy as np
import pytest
import tifffile
import torch

from napari_fovea import complete
from napari_fovea.errors import DeviceError, TrainingError
from napari_fovea.models import Model
from napari_fovea.sample_data import make_nuclei
from napari_fovea.training.fit import fit
from napari_fovea.training.processes import launch
from napari_fovea.training.task import Parts
from test_fit import PLAIN, Scripted, same, scripted, small

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.skipif(
    os.name != "posix", reason="signals and process groups are those of Unix"
)

CLI = ("-m", "napari_fovea.cli")
# The command line, but for a model file that keeps every bit, and a process that
# fails in its second epoch if it is told to.
SCRIPT = """
import os
from napari_fovea.cli import main
from napari_fovea.models import Model
from napari_fovea.training.dense import DenseTask

save, batches = Model.save, DenseTask.batches

def failing(self, epoch, parts):
    if epoch == 1 and os.environ.get("FAILS") == str(parts.rank):
        raise RuntimeError("this process fails")
    return batches(self, epoch, parts)

Model.save = lambda self, path, half: save(self, path)
DenseTask.batches = failing
main()
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("nuclei")
    for kind in ("images", "labels"):
        (folder / kind).mkdir()
    for i in range(2):
        image, truth = make_nuclei((96, 96), count=8, seed=i)
        tifffile.imwrite(folder / "images" / f"{i}.tif", image)
        imageio.imwrite(folder / "labels" / f"{i}.png", truth.astype(np.uint16))
    (folder / "train.py").write_text(SCRIPT)
    return folder


def start(
    data: Path, output: Path, *options: object, program=CLI, **settings: str
) -> subprocess.Popen[str]:
    """Start a training of two epochs in a process group of its own."""
    images, labels = data / "images", data / "labels"
    arguments = ["--images", images, "--labels", labels, "--output", output]
    arguments += ["--val-images", images, "--val-labels", labels, "--device", "cpu"]
    arguments += ["--recipe", "unet-small", "--views", 8, "--batch-size", 4]
    arguments += ["--config", '{"width": 2, "depth": 2, "norm": true}', "--epochs", 2]
    about = ("LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    environment = {k: v for k, v in os.environ.items() if k not in about}
    return subprocess.Popen(
        [sys.executable, *program, "train", *map(str, [*arguments, *options])],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment | {"OMP_NUM_THREADS": "1"} | settings,
        start_new_session=True,
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Exit code, output and errors, once no process of the group is left."""
    try:
        out, err = process.communicate(timeout=240)
        for _ in range(300):
            try:
                os.killpg(process.pid, 0)
            except ProcessLookupError:
                break
            time.sleep(0.2)
        else:
            pytest.fail("a process outlived the first one")
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    return process.returncode, out, err


def trained(data: Path, output: Path, *options: object, program=CLI):
    """Weights of a training that succeeds, and the lines it printed."""
    code, out, err = finish(start(data, output, *options, program=program))
    assert code == 0, err
    assert [p.name for p in output.parent.iterdir()] == [output.name]
    return Model.load(output).network.state_dict(), out.splitlines(), err


@pytest.mark.slow
def test_two_processes_learn_what_one_does_in_two_parts(
    data: Path, tmp_path: Path
) -> None:
    output = tmp_path / "both" / "m.safetensors"
    script = (str(data / "train.py"),)
    both, lines, err = trained(data, output, "--devices", 2, program=script)
    # One process tells of it and saves; Fabric keeps quiet.
    assert [line.split(":")[0] for line in lines[:2]] == ["epoch 1/2", "epoch 2/2"]
    assert "".join(lines[2:]).startswith("saved ")
    assert "".join(lines).count("saved") == 1
    assert err == ""
    output = tmp_path / "one" / "m.safetensors"
    one, told, _ = trained(data, output, "--accumulate", 2, program=script)
    torch.testing.assert_close(both, one, rtol=0, atol=1e-6)
    losses = [[x.split(", ")[0] for x in some[:2]] for some in (lines, told)]
    assert losses[0] == losses[1]
    # What the parts show depends on how many there are: undivided, it differs.
    other, _, _ = trained(data, tmp_path / "other" / "m.safetensors", program=script)
    assert max((one[k] - other[k]).abs().max().item() for k in one) > 1e-3


@pytest.mark.slow
def test_two_processes_go_on_after_a_break(data: Path, tmp_path: Path) -> None:
    options = ["--devices", 2, "--epochs", 3, "--precision", "bfloat16"]
    whole, _, err = trained(data, tmp_path / "whole" / "m.safetensors", *options)
    assert err == ""
    output = tmp_path / "broken" / "m.safetensors"
    process = start(data, output, *options)
    first = process.stdout.readline()
    os.killpg(process.pid, signal.SIGKILL)
    assert first.startswith("epoch 1/3"), finish(process)
    finish(process)
    resumed, lines, _ = trained(data, output, *options)
    assert not lines[0].startswith("epoch 1/3")
    torch.testing.assert_close(resumed, whole, rtol=0, atol=0)


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_that_fails_ends_the_other(
    data: Path, tmp_path: Path, rank: int
) -> None:
    output = tmp_path / "m.safetensors"
    script = (str(data / "train.py"),)
    process = start(data, output, "--devices", 2, program=script, FAILS=str(rank))
    code, out, err = finish(process)
    assert code != 0
    assert "this process fails" in err
    assert "epoch 1/2" in out
    assert "epoch 2/2" not in out
    assert not output.exists()


@pytest.mark.slow
def test_a_killed_training_goes_on_to_the_same_bits(data: Path, tmp_path: Path) -> None:
    options = ["--epochs", 3, "--views", 32]
    whole, lines, _ = trained(data, tmp_path / "whole" / "m.safetensors", *options)
    assert lines[3].startswith("saved ")
    output = tmp_path / "broken" / "m.safetensors"
    process = start(data, output, *options)
    assert process.stdout is not None
    line = process.stdout.readline()
    os.killpg(process.pid, signal.SIGKILL)
    code, rest, err = finish(process)
    assert line.startswith("epoch 1/3: loss "), err
    assert " s left" in line
    assert code == -signal.SIGKILL
    assert "epoch 3/3" not in rest
    assert not output.exists()
    assert output.with_name("m.safetensors.checkpoint").is_file()
    # Nobody else may go on from there.
    code, _, err = finish(start(data, output, *options, "--seed", 1))
    assert code == 1
    assert "belongs to a run with other settings" in " ".join(err.split())
    resumed, late, _ = trained(data, output, *options)
    assert late[0].startswith("epoch 2/3" if not rest else "epoch 3/3")
    losses = [x.split(", ")[0] for x in lines]
    late = [line for line in late if line.startswith("epoch")]
    assert [x.split(", ")[0] for x in late] == losses[1 + bool(rest) : 3]
    assert "score" in late[-1]
    assert resumed.keys() == whole.keys()
    assert all(torch.equal(resumed[k], whole[k]) for k in whole)


FAILING = """
import math
from napari_fovea.cli import main
from napari_fovea.training.dense import DenseTask

loss, shown = DenseTask.loss, []

def failing(self, *batch):
    shown.append(batch)
    return loss(self, *batch) * (math.nan if len(shown) > 2 else 1)

DenseTask.loss = failing
main()
"""


@pytest.mark.slow
def test_a_loss_that_is_not_finite_ends_in_a_sentence_and_a_model(
    data: Path, tmp_path: Path
) -> None:
    output = tmp_path / "m.safetensors"
    # Two steps make an epoch: the second one fails.
    script = tmp_path / "failing.py"
    script.write_text(FAILING)
    code, out, err = finish(
        start(data, output, "--recipe", "unet-image-paper", program=(script,))
    )
    assert code == 1
    assert out.count("epoch 1/2") == 1
    sentence = " ".join(err.split())
    assert "in epoch 2; " in sentence
    assert "lower learning rate. The last good weights are kept." in sentence
    assert sentence.count("error:") == 1
    assert "Traceback" not in err
    network = Model.load(output).network  # which refuses NaN
    assert network.config.width == 2
    # As it says, a lower rate starts anew: nothing of the old run is in the way.
    assert sorted(tmp_path.iterdir()) == [script, output]


@pytest.mark.slow
def test_what_never_learned_takes_no_models_place(data: Path, tmp_path: Path) -> None:
    output = tmp_path / "m.safetensors"
    output.write_bytes(b"a model of before")
    code, _, err = finish(start(data, output, "--learning-rate", 1e30))
    assert code == 1
    assert "Nothing is kept." in " ".join(err.split())
    assert output.read_bytes() == b"a model of before"
    output.unlink()
    trained(data, output)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--loss", "soup"], "no loss 'soup'"),
        (["--precision", "int4"], "no precision 'int4'"),
        (["--accumulate", "3"], "cannot be divided into 3 equal parts"),
        (["--device", "cuda", "--devices", "2"], "Training cannot start on 2 × 'cuda'"),
        (["--seed", "-1"], "seed is -1"),
    ],
)
def test_what_cannot_be_is_refused_in_a_sentence(
    data: Path, tmp_path: Path, options: list[str], says: str
) -> None:
    if "cuda" in options and torch.cuda.device_count() > 1:
        pytest.skip("this machine has them")
    code, out, err = finish(start(data, tmp_path / "m.safetensors", *options))
    assert code == 1
    assert says in " ".join(err.split())
    assert "Traceback" not in err
    assert not out
    assert not list(tmp_path.iterdir())


# -- precision and parts ---------------------------------------------------------------


def test_sixteen_bits_train_on_the_cpu_and_keep_quiet(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    events, trained, _ = scripted([], precision="bfloat16")
    assert not caplog.records
    assert events[-1].loss < events[0].loss
    exact = scripted([])[1]
    assert not same(trained.model, exact.model)
    dtypes = {v.dtype for v in trained.model.network.state_dict().values()}
    assert dtypes == {torch.float32}


def test_a_batch_is_divided_evenly_or_not_at_all() -> None:
    for processes, accumulate in ((1, 1), (2, 2), (4, 1), (1, 4)):
        parts = [Parts(accumulate, processes, rank) for rank in range(processes)]
        assert sorted(n for p in parts for n in p.mine) == list(range(parts[0].count))
        assert parts[0].size(8) * parts[0].count == 8
    with pytest.raises(TrainingError, match=r"Batches of 2 .*1 processes × 3"):
        scripted([], accumulate=3)


def test_accumulated_parts_learn_like_the_whole_batch() -> None:
    class Alike(Scripted):
        def batch(self, rng: np.random.Generator, size: int) -> torch.Tensor:
            return torch.linspace(-1, 1, 48).view(1, 3, 4, 4).repeat(size, 1, 1, 1)

    def weights(accumulate: int) -> dict[str, torch.Tensor]:
        model = small()
        task = Alike(model, PLAIN, [])
        training = fit(model, task, PLAIN, device="cpu", accumulate=accumulate)
        return complete(training).model.network.state_dict()

    torch.testing.assert_close(weights(2), weights(1), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "what",
    [{"accelerator": "abacus"}, {"accelerator": "tpu"}, {"accelerator": "cuda:1"}],
)
def test_what_cannot_be_trained_on_is_refused(what: dict[str, Any]) -> None:
    with pytest.raises(DeviceError, match="Training cannot start on"):
        launch(**what)
