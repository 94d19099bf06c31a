"""Images of any kind, opened without being read."""

from __future__ import annotations

import pickle
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import dask.array as da
import imageio.v3 as imageio
import numpy as np
import pytest
import tifffile
import zarr

from large import dense, finder, stored
from napari_fovea.errors import FoveaError, ImageError
from napari_fovea.images import read_planes
from napari_fovea.scale import Source, open_source
from napari_fovea.scale.intensities import limits_of, marks_of
from napari_fovea.scale.prepare import choose_level

if TYPE_CHECKING:
    from pathlib import Path

PICTURE = np.random.default_rng(0).integers(0, 4000, (3, 100, 130)).astype(np.uint16)


def ome(
    path: Path,
    levels: list[np.ndarray],
    axes: str,
    *,
    version: str = "0.5",
    unit: str = "micrometer",
    size: float = 0.5,
) -> Path:
    """An OME-Zarr image whose levels halve height and width."""
    new = version == "0.5"
    group = zarr.create_group(path, zarr_format=3 if new else 2)
    datasets = []
    for i, level in enumerate(levels):
        chunks = tuple(min(n, 64) for n in level.shape)
        made = group.create_array(
            str(i), shape=level.shape, dtype=level.dtype, chunks=chunks
        )
        made[...] = level
        scale = [size * 2**i if a in "YX" else 1.0 for a in axes]
        shift = [size * (2**i - 1) / 2 if a in "YX" else 0.0 for a in axes]
        steps: list[dict[str, Any]] = [{"type": "scale", "scale": scale}]
        steps.append({"type": "translation", "translation": shift})
        datasets.append({"path": str(i), "coordinateTransformations": steps})
    kinds = {"T": "time", "C": "channel"}
    told = [{"name": a.lower(), "type": kinds.get(a, "space")} for a in axes]
    for axis in told:
        if axis["type"] == "space":
            axis["unit"] = unit
    images = [{"version": version, "axes": told, "datasets": datasets}]
    if new:
        group.attrs["ome"] = {"version": version, "multiscales": images}
    else:
        group.attrs["multiscales"] = images
    return path


def whole(source: Source, level: int = 0) -> np.ndarray:
    """Read a source plane by plane, and in two pieces each."""
    seen = source.levels[level]
    middle = seen.plane[1] // 2
    planes = []
    for plane in range(seen.planes):
        parts = [
            seen.read(plane, slice(None), slice(*s))
            for s in ((0, middle), (middle, None))
        ]
        planes.append(np.concatenate(parts, axis=1))
    return np.stack(planes)


@pytest.mark.parametrize(
    ("shape", "axes"),
    [
        ((100, 130), "YX"),
        ((100, 130, 3), "YXC"),
        ((3, 100, 130), "CYX"),
        ((2, 100, 130), "ZYX"),
        ((2, 3, 2, 40, 50), "TCZYX"),
        ((40, 2, 50), "YZX"),
    ],
)
@pytest.mark.parametrize("kind", ["numpy", "dask", "zarr2", "zarr3", "ome4", "ome5"])
def test_every_kind_is_read_as_an_array_is(
    tmp_path: Path, shape: tuple[int, ...], axes: str, kind: str
) -> None:
    image = np.random.default_rng(0).integers(0, 99, shape).astype(np.uint8)
    opened: Any = image
    if kind == "dask":
        opened = da.from_array(image, chunks=37)
    elif kind[:4] == "zarr":
        opened = stored(tmp_path / "x.zarr", image, zarr_format=int(kind[4]))
    elif kind[:3] == "ome":
        small = image[tuple(slice(None, None, 2 if a in "YX" else 1) for a in axes)]
        version = f"0.{kind[3]}"
        opened = ome(tmp_path / "x.zarr", [image, small], axes, version=version)
    told = None if kind[:3] == "ome" else axes
    with open_source(opened, axes=told) as source:
        expected = read_planes(image, axes=axes)
        np.testing.assert_array_equal(whole(source), expected.data)
        assert source.levels[0].lead == expected.lead
        assert source.levels[0].channels == expected.channels
        if kind[:3] == "ome":
            assert source.pixel_size == 0.5
            assert source.levels[1].translate["Y"] == 0.25
        if source.path is not None:
            with pickle.loads(pickle.dumps(source)) as again:
                np.testing.assert_array_equal(whole(again), expected.data)


@pytest.mark.parametrize("chunks", [(1, 130), (7, 33), (100, 130), (99, 1)])
def test_chunks_of_any_shape_will_do(tmp_path: Path, chunks: tuple[int, int]) -> None:
    path = stored(tmp_path / "x.zarr", PICTURE[0], chunks=chunks)
    with open_source(path) as source:
        np.testing.assert_array_equal(whole(source)[0, ..., 0], PICTURE[0])
        found = limits_of(source, 0, dense())
        expected = dense().normalisation.limits(read_planes(PICTURE[0]))
        np.testing.assert_allclose(found, expected, atol=20)


def test_tiff_is_mapped_where_it_can_be_and_read_by_pieces_elsewhere(
    tmp_path: Path,
) -> None:
    plain, packed, pages = (tmp_path / f"{n}.tif" for n in ("plain", "packed", "pages"))
    tifffile.imwrite(plain, PICTURE[0])
    how: dict[str, Any] = {"photometric": "minisblack"}
    tifffile.imwrite(packed, PICTURE[0], compression="zlib", tile=(32, 48), **how)
    tifffile.imwrite(pages, PICTURE, compression="zlib", rowsperstrip=8, **how)
    with open_source(plain) as source:
        assert isinstance(source.levels[0].array, np.memmap)
        np.testing.assert_array_equal(whole(source)[0, ..., 0], PICTURE[0])
    with open_source(packed) as source:
        assert source.levels[0].chunks == (32, 48)
        np.testing.assert_array_equal(whole(source)[0, ..., 0], PICTURE[0])
    with open_source(pages) as source:
        assert source.levels[0].axes == "ZYX"
        np.testing.assert_array_equal(whole(source)[..., 0], PICTURE)
    colour = tmp_path / "colour.png"
    imageio.imwrite(colour, PICTURE.astype(np.uint8).transpose(1, 2, 0))
    with open_source(colour) as source:
        assert source.levels[0].channels == 3


def test_a_pyramid_of_ome_tiff_knows_levels_channels_and_pixels(tmp_path: Path) -> None:
    path = tmp_path / "slide.ome.tif"
    told: dict[str, Any] = {"PhysicalSizeX": 500, "PhysicalSizeXUnit": "nm"}
    told |= {"PhysicalSizeY": 500, "PhysicalSizeYUnit": "nm"}
    how: dict[str, Any] = {"tile": (32, 32), "photometric": "minisblack"}
    told |= {"axes": "CYX"}
    with tifffile.TiffWriter(path) as file:
        file.write(PICTURE, subifds=1, compression="zlib", metadata=told, **how)
        file.write(PICTURE[:, ::2, ::2], subfiletype=1, compression="zlib", **how)
    with open_source(path) as source:
        assert [level.plane for level in source.levels] == [(100, 130), (50, 65)]
        assert source.pixel_size == pytest.approx(0.5)
        assert source.levels[1].scale["X"] == pytest.approx(1)
        small = PICTURE[:, ::2, ::2].transpose(1, 2, 0)
        np.testing.assert_array_equal(whole(source, 1)[0], small)
        with pickle.loads(pickle.dumps(source)) as again:
            np.testing.assert_array_equal(whole(again, 1)[0], small)


@pytest.mark.parametrize(
    ("unit", "resolution", "expected"),
    [
        ("um", (4, 2), {"Y": 0.5, "X": 0.25}),
        ("micron", (2, 2), {"Y": 0.5, "X": 0.5}),
        ("inch", (300, 300), {"Y": 1, "X": 1}),
        ("um", None, {"Y": 1, "X": 1}),
    ],
)
def test_what_imagej_writes_in_micrometres_is_the_size_of_pixels(
    tmp_path: Path,
    unit: str,
    resolution: tuple[int, int] | None,
    expected: dict[str, float],
) -> None:
    path = tmp_path / "stack.tif"
    tifffile.imwrite(
        path, PICTURE[0], imagej=True, resolution=resolution, metadata={"unit": unit}
    )
    with open_source(path) as source:
        scale = source.levels[0].scale
        assert {a: scale.get(a, 1) for a in "YX"} == pytest.approx(expected)


def test_a_list_of_arrays_is_a_pyramid() -> None:
    image = PICTURE[0]
    with open_source([image, da.from_array(image[::2, ::2])]) as source:
        assert source.shrunk(1) == 2
        assert source.levels[1].scale == {"Y": 2, "X": 2}
        assert source.levels[1].translate == {"Y": 0.5, "X": 0.5}
        assert source.in_memory
    with pytest.raises(ImageError, match="smaller from level to level"):
        open_source([image[::2, ::2], image])


def test_the_level_is_the_coarsest_that_shows_what_the_model_wants() -> None:
    image = PICTURE[0]
    levels = [image[:: 2**i, :: 2**i] for i in range(3)]
    model = replace(dense(), object_diameter=12.0)  # 130/33 is a little less than 4
    with open_source(levels) as source:

        def level(**how: Any) -> int:
            return choose_level(source, model, **how)

        assert level() == 0
        assert level(diameter=12) == 0
        assert level(diameter=23) == 1, "objects may be a little too small"
        assert level(diameter=20) == 0
        assert level(diameter=48) == level(diameter=500) == 2
        assert level(level=1, diameter=500) == 1
        assert level(pixel_size=0.25) == 0, "the model knows no pixel size"
        known = replace(model, pixel_size=1.0)
        assert choose_level(source, known, pixel_size=0.5) == 1
        for odd in (3, -1, "coarse"):
            with pytest.raises(ImageError, match="expected 'auto' or 0 to 2"):
                level(level=odd)


# -- intensities -----------------------------------------------------------------------


@pytest.mark.parametrize("axes", ["CYX", "ZYX"])
def test_limits_of_an_array_are_those_in_memory(axes: str) -> None:
    model = dense()
    for image in (PICTURE, PICTURE.astype(np.float32) / 7):
        with open_source(image, axes=axes) as source:
            expected = model.normalisation.limits(read_planes(image, axes=axes))
            assert limits_of(source, 0, model) == expected


def test_limits_of_what_is_too_large_come_from_a_sample() -> None:
    y, x = np.mgrid[:2500, :2600].astype(np.float32)
    image = np.hypot(y - 1200, x - 1300)
    exact = np.percentile(image, [1, 99.8])
    read: list[tuple[int, ...]] = []

    def piece(block_info: Any = None) -> np.ndarray:
        read.append(block_info[None]["chunk-location"])
        (top, down), (left, right) = block_info[None]["array-location"]
        if block_info[None]["chunk-location"] == (0, 0):
            raise OSError("a bad sector")
        part = image[top:down, left:right].copy()
        part[0, 0] = np.nan
        return part

    chunks = ((50,) * 50, (52,) * 50)
    lazy = da.map_blocks(piece, chunks=chunks, dtype=image.dtype, meta=np.zeros((0, 0)))
    for levels in ([lazy], [lazy, da.from_array(image[::2, ::2])]):
        with open_source(levels) as source:
            found = limits_of(source, 0, dense())
            np.testing.assert_allclose(found, exact, rtol=0.03)
            assert found == limits_of(source, 0, dense())
    assert len(read) <= 2 * 256, "a few hundred chunks, for each of two looks"
    marks = marks_of(source.levels[0])
    assert 8 <= len(marks) <= 16
    with open_source(da.full((5000, 60), np.nan, chunks=100)) as source:
        assert set(marks_of(source.levels[0])) == {None}
        with pytest.raises(ImageError, match="cannot be read at any"):
            limits_of(source, 0, dense())


# -- what cannot be opened -------------------------------------------------------------


def _half_written(folder: Path) -> Path:
    path = stored(folder / "half.zarr", PICTURE[0])
    (path / "zarr.json").unlink()
    return path


def _bare(folder: Path) -> Path:
    zarr.create_group(folder / "bare.zarr")
    return folder / "bare.zarr"


def _arrays_only(folder: Path) -> Path:
    zarr.create_group(folder / "g.zarr").create_array("raw", shape=(9, 9), dtype="u1")
    return folder / "g.zarr"


def _lost_level(folder: Path) -> Path:
    path = ome(folder / "lost.zarr", [PICTURE, PICTURE[:, ::2, ::2]], "CYX")
    (path / "1" / "zarr.json").unlink()
    return path


def _odd_metadata(folder: Path) -> Path:
    path = ome(folder / "odd.zarr", [PICTURE], "CYX")
    group = zarr.open_group(path)
    told = group.attrs.asdict()["ome"]
    told["multiscales"][0]["datasets"][0]["coordinateTransformations"] = [
        {"type": "scale", "scale": [1.0]}
    ]
    group.attrs["ome"] = told
    return path


def _odd_axes(folder: Path) -> Path:
    return ome(folder / "axes.zarr", [PICTURE], "QYX")


def _text(folder: Path) -> Path:
    (folder / "notes.zarr").mkdir()
    (folder / "notes.zarr" / "notes.txt").write_text("none")
    return folder / "notes.zarr"


def _broken_tiff(folder: Path) -> Path:
    tifffile.imwrite(folder / "x.tif", PICTURE[0])
    (folder / "x.tif").write_bytes((folder / "x.tif").read_bytes()[:60])
    return folder / "x.tif"


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (_half_written, "cannot be opened as zarr"),
        (_text, "cannot be opened as zarr"),
        (_bare, "it is empty"),
        (_arrays_only, "give one of raw in it"),
        (_lost_level, "'1' that is not there"),
        (_odd_metadata, "metadata that make no sense"),
        (_odd_axes, "Axes 'QYX'"),
        (_broken_tiff, "cannot be read as TIFF"),
        (lambda folder: folder / "missing.zarr", "is not there"),
        (lambda folder: folder / "missing.tif", "is not there"),
        (lambda _: np.array(["a"]), "expected numbers"),
        (lambda _: da.zeros((0, 4)), "is empty"),
        (lambda _: [], "is empty"),
    ],
)
def test_what_is_no_image_gets_one_sentence(
    tmp_path: Path, make: Any, says: str
) -> None:
    with pytest.raises(FoveaError, match=says) as caught:
        open_source(make(tmp_path))
    assert "\n" not in str(caught.value)


def test_axes_are_checked_and_channels_must_fit(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="do not describe"):
        open_source(stored(tmp_path / "x.zarr", PICTURE), axes="QQ")
    source = open_source(np.zeros((5, 40, 50)), axes="CYX")
    with pytest.raises(ImageError, match="5 channels"):
        source.levels[0].as_planes().for_network(finder().channels, blank=True)
