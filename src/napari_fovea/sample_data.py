"""Images under File > Open Sample."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import ndimage

from napari_fovea.errors import ImageError

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

LayerData = tuple[Any, dict[str, Any], str]
"""Data, settings and type of a layer."""


def ihc() -> list[LayerData]:
    """Immunohistochemistry of colonic glands, (512, 512, 3), from scikit-image.

    A second, hidden layer holds what colour deconvolution finds of haematoxylin,
    the stain of the nuclei, without the brown of the marked tissue.
    """
    from skimage import color, data

    image = data.immunohistochemistry()
    nuclei = color.rgb2hed(image)[..., 0].astype(np.float32)
    stain = {"name": "ihc haematoxylin", "visible": False}
    return [
        (image, {"name": "ihc", "rgb": True}, "image"),
        (nuclei, stain, "image"),
    ]


def cell() -> list[LayerData]:
    """Single cell in phase contrast, (660, 550), from scikit-image."""
    from skimage import data

    return [(data.cell(), {"name": "cell"}, "image")]


def synthetic_nuclei() -> list[LayerData]:
    """Made-up fluorescent nuclei and the truth about them."""
    image, truth = make_nuclei()
    hidden = {"name": "nuclei truth", "visible": False}
    return [(image, {"name": "nuclei"}, "image"), (truth, hidden, "labels")]


def human_mitosis() -> list[LayerData]:
    """Fluorescent nuclei of a human cell culture, (512, 512), downloaded."""
    return [(_download("human_mitosis"), {"name": "mitosis"}, "image")]


def cells3d() -> list[LayerData]:
    """Nuclei in 3D, (60, 256, 256), voxels of 0.29×0.26×0.26 µm, downloaded."""
    stack = _download("cells3d")[:, 1]
    return [(stack, {"name": "nuclei 3D", "scale": (0.29, 0.26, 0.26)}, "image")]


def make_nuclei(
    shape: tuple[int, int] = (256, 256), *, count: int = 40, seed: int = 0
) -> tuple[NDArray[np.uint16], NDArray[np.int32]]:
    """Draw fluorescent nuclei, some of them touching, and what is true of them.

    Parameters
    ----------
    shape : tuple of int
        Height and width in pixels.
    count : int
        Nuclei to try to place; where there is no room there are fewer.
    seed : int
        Same seed, same image.

    Returns
    -------
    image : ndarray of uint16, shape ``shape``
        Blurred, with photon and read-out noise.
    truth : ndarray of int32, shape ``shape``
        0 is background, every other value one nucleus.
    """
    rng = np.random.default_rng(seed)
    truth = np.zeros(shape, dtype=np.int32)
    light = np.zeros(shape)
    y, x = np.mgrid[: shape[0], : shape[1]]
    texture = ndimage.gaussian_filter(rng.standard_normal(shape), 2.5)
    for _ in range(count):
        cy, cx = rng.uniform(0, shape)
        a, b = rng.uniform(6, 11), rng.uniform(6, 11)
        angle = rng.uniform(0, np.pi)
        dy, dx = y - cy, x - cx
        u = (dx * np.cos(angle) + dy * np.sin(angle)) / a
        v = (dy * np.cos(angle) - dx * np.sin(angle)) / b
        inside = u**2 + v**2 <= 1
        # Nuclei may touch; where they would overlap, this one is left out.
        if not inside.any() or (truth[inside] > 0).mean() > 0.05:
            continue
        inside &= truth == 0
        truth[inside] = truth.max() + 1
        light[inside] = rng.uniform(0.35, 1.0)
    light *= 1 + 1.5 * texture
    light = ndimage.gaussian_filter(light, 1.2) + 0.05
    photons = rng.poisson(np.clip(light, 0, None) * 400)
    noisy = photons * 8 + rng.normal(100, 12, shape)
    return np.clip(noisy, 0, 65535).astype(np.uint16), truth


def _download(name: str) -> NDArray[Any]:
    from skimage import data

    fetch: Callable[[], NDArray[Any]] = getattr(data, name)
    try:
        return fetch()
    except Exception as error:  # offline shows itself in many ways
        raise ImageError(
            f"The sample {name!r} could not be downloaded ({type(error).__name__}); "
            "it is fetched once and kept: connect to the internet and try again."
        ) from error
