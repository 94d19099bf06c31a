"""Segmenting into OME-Zarr from the command line."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import numpy as np
import pytest
import zarr
from typer.testing import CliRunner

from large import dense, discs, stored
from napari_fovea.cli import app
from napari_fovea.errors import FoveaError

if TYPE_CHECKING:
    from pathlib import Path

    from click.testing import Result


def call(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["segment", *map(str, arguments)])


@pytest.fixture
def model(tmp_path: Path) -> Path:
    dense().save(tmp_path / "dense.safetensors")
    return tmp_path / "dense.safetensors"


def test_a_large_image_is_segmented_resumed_and_replaced(
    tmp_path: Path, model: Path
) -> None:
    source = stored(tmp_path / "in.zarr", discs((160, 220))[0])
    out = tmp_path / "out.zarr"
    chunk = source / "c" / "2" / "3"
    whole = chunk.read_bytes()
    chunk.write_bytes(b"no zstd")
    options = ["--model", model, "--output", out, "--chunk", 64]
    failed = call(source, *options)
    assert failed.exit_code == 1
    assert "of 12 blocks segmented into" in failed.stdout
    assert "run this again" in failed.stdout
    assert "rows" in failed.stderr
    assert "Zstd" in failed.stderr
    chunk.write_bytes(whole)
    done = call(source, *options)
    assert done.exit_code == 0, done.output
    assert "blocks of an earlier run: going on" in done.stdout
    assert "in 12 of 12 blocks" in done.stdout
    group = zarr.open_group(out, mode="r")
    assert group["labels/classes/0"].shape == (160, 220)
    assert "probabilities" not in group
    other = call(source, *options, "--probabilities")
    assert isinstance(other.exception, FoveaError)
    replaced = call(source, *options, "--probabilities", "--overwrite", "--level", 0)
    assert replaced.exit_code == 0, replaced.output
    assert "probabilities" in zarr.open_group(out, mode="r")


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL")
@pytest.mark.parametrize("way", ["SIGKILL", "SIGINT"])
def test_a_command_that_is_killed_goes_on(
    tmp_path: Path, model: Path, way: str
) -> None:
    source = stored(tmp_path / "in.zarr", discs((160, 220))[0])
    killed, whole = tmp_path / "killed.zarr", tmp_path / "whole.zarr"
    options = [source, "--model", model, "--chunk", 32, "--output"]
    # What runs in the background of a shell may have been told to ignore interrupts.
    code = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler);"
        "from napari_fovea.cli import main; main()"
    )
    command = [sys.executable, "-c", code, "segment"]
    process = subprocess.Popen(
        [*command, *map(str, [*options, killed])], stderr=subprocess.PIPE, text=True
    )
    while process.poll() is None:
        if len(list(killed.glob(".work/blocks/[0-9]*"))) > 2:
            process.send_signal(getattr(signal, way))
            process.wait()
        time.sleep(0.01)
    _, told = process.communicate()
    if way == "SIGKILL":
        assert process.returncode == -signal.SIGKILL
    else:
        assert process.returncode == 130
        assert "keeps what is finished" in " ".join(told.split())
    done = call(*options, killed)
    assert done.exit_code == 0, done.output
    assert "of an earlier run: going on" in done.stdout
    assert call(*options, whole).exit_code == 0
    for name in ("labels/classes/0", "labels/instances/0", "uncertainty/0"):
        a, b = (zarr.open_group(p, mode="r")[name][...] for p in (killed, whole))
        np.testing.assert_array_equal(a, b)
    assert not any(killed.rglob("*.partial"))
    assert not (killed / ".work").exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["a.tif", "b.tif", "--output", "o.zarr"], "results of 2 images"),
        (["a.tif", "--output", "o.zarr", "--attention", "all"], "Attention maps"),
        (["a.tif", "--output", "o.zarr", "--level", "x"], "is not there"),
        (["a.tif", "--output", "o", "--chunk", 64], "--chunk is for results"),
        (["a.tif", "--output", "o", "--overwrite"], "--overwrite is for results"),
        (["a.tif", "--output", "o", "--workers", 2], "--workers is for results"),
        (["a.zarr", "--output", "o"], "a.zarr is a zarr image, and o a folder"),
        (["a.tif", "--output", "o.zarr", "--recursive"], "--recursive is for many"),
    ],
)
def test_bad_requests_end_in_a_sentence(
    model: Path, arguments: list[object], says: str
) -> None:
    done = call(*arguments, "--model", model)
    assert isinstance(done.exception, FoveaError)
    assert says in str(done.exception)
