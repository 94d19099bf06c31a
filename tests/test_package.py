"""The package: light to import, and a plugin however it is installed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def python(executable: object, code: str, **options) -> str:
    done = subprocess.run(
        [str(executable), "-c", code], capture_output=True, text=True, **options
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_brings_in_neither_torch_nor_qt() -> None:
    code = (
        "import sys, napari_fovea;"
        "heavy = {'torch', 'qtpy', 'PyQt6', 'PySide6', 'napari', 'numpy'};"
        "print(sorted(heavy & set(sys.modules)))"
    )
    assert python(sys.executable, code).strip() == "[]"


@pytest.mark.skipif(sys.platform != "linux", reason="huge pages of Linux")
@pytest.mark.parametrize("chosen", [None, "0"])
def test_torch_is_told_to_take_huge_pages_unless_the_user_says_no(
    chosen: str | None,
) -> None:
    code = (
        "import mmap, napari_fovea, torch;"
        "print(torch.empty(2**22).data_ptr() % mmap.PAGESIZE)"
    )
    name = "THP_MEM_ALLOC_ENABLE"
    kept = {k: v for k, v in os.environ.items() if k != name}
    told = python(
        sys.executable, code, env=kept | ({name: chosen} if chosen else {})
    ).strip()
    assert (told == "0") == (chosen is None)


def test_public_names_are_there_and_no_others() -> None:
    import napari_fovea

    for name in napari_fovea.__all__:
        assert getattr(napari_fovea, name) is not None
        assert name in dir(napari_fovea)
    assert napari_fovea.__version__
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = napari_fovea.nothing


def test_the_manifest_at_the_top_is_the_one_in_the_package() -> None:
    top, inside = ROOT / "napari.yaml", ROOT / "src" / "napari_fovea" / "napari.yaml"
    assert top.is_symlink()
    assert top.resolve() == inside


def pip(*arguments: object) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    done = subprocess.run(
        [*command, *map(str, arguments)], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("built")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", folder]
    done = subprocess.run(
        [*map(str, command), str(ROOT)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("way", ["wheel", "sdist", "editable", "directory"])
def test_every_kind_of_install_registers_the_plugin(
    way: str, built: Path, tmp_path: Path
) -> None:
    environment = tmp_path / "env"
    venv.create(environment, with_pip=False)
    inside = Path(
        sysconfig.get_path(
            "purelib", vars={"base": environment, "platbase": environment}
        )
    )
    # What it depends on comes from here; the plugin itself only from there.
    (inside / "zz_outside.pth").write_text(sysconfig.get_path("purelib") + "\n")
    what = {
        "wheel": [*built.glob("*.whl")],
        "sdist": [*built.glob("*.tar.gz")],
        "editable": ["--editable", ROOT],
        "directory": [ROOT],
    }[way]
    pip(
        "--python",
        environment / "bin" / "python",
        "install",
        "--no-deps",
        "--no-build-isolation",
        "--ignore-installed",
        *what,
    )
    code = """
import json, os
from importlib.metadata import distribution
from npe2 import PluginManager
import napari_fovea
manager = PluginManager.instance()
manager.discover()
manifest = manager.get_manifest("napari-fovea")
widgets = [w.display_name for w in manifest.contributions.widgets]
call = manager.get_command("napari-fovea.sample.synthetic").exec
data = call()
from napari_fovea.models import entries
print(json.dumps({
    "widgets": widgets,
    "where": str(distribution("napari-fovea").locate_file("")),
    "package": os.path.dirname(napari_fovea.__file__),
    "layers": len(data),
    "models": [e.name for e in entries()],
}))
"""
    told = json.loads(
        python(environment / "bin" / "python", code, cwd=tmp_path).splitlines()[-1]
    )
    assert {"Model", "Segment"} <= set(told["widgets"])
    assert Path(told["where"]) == inside
    home = ROOT / "src" if way == "editable" else inside
    assert Path(told["package"]) == home / "napari_fovea"
    assert told["layers"] == 2
    assert told["models"][0] == "r2-attention-unet-nuclei"
