"""Write the card of a model that ships, of the JSON of its evaluation alone.

What is in a card comes from the model's file, from what ``napari-fovea evaluate``
wrote, and from the few sentences below, which hold no figures.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import imageio.v3 as imageio
import numpy as np
from skimage.segmentation import find_boundaries

from napari_fovea import Model, complete, segment
from napari_fovea.files import read_image, read_labels
from napari_fovea.images import axes_beside
from napari_fovea.inference.sizes import enlarge
from napari_fovea.models import Entry, shipped
from napari_fovea.training.recipes import RECIPES
from zoo import recipes

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

PAGES = {
    "S0": "[Retina scan](../retina.md)",
    "S1": "[FocusNet](../focusnet.md)",
    "S2": "[R2 attention U-Net](../r2-attention-unet.md)",
    "S3": "[FocusNet++](../focusnet-plus.md)",
    "S4": "[Attention Mask R-CNN](../mask-rcnn.md)",
    "ensemble": "[several systems](../systems.md)",
}
MEASURES = {
    "dice": "Dice",
    "jaccard": "Jaccard",
    "precision": "precision",
    "recall": "recall (TPR)",
    "specificity": "specificity (TNR)",
    "accuracy": "accuracy",
    "cohen_kappa": "Cohen's κ",
    "roc_auc": "ROC-AUC",
    "ap": "AP (0.50–0.95)",
    "ap50": "AP at 0.5",
    "ap75": "AP at 0.75",
}
_WORST = 4
_TABLE = ("<!-- table -->", "<!-- end of table -->")
_SIDE = 256  # of a picture of a failure
_BOTH, _MISSED, _INVENTED = (200, 200, 200), (230, 159, 0), (0, 114, 178)
_GROUND, _EDGE = (24, 24, 24), (255, 255, 255)


def write(name: str, folder: Path, nuclei: Path) -> None:
    """Write the card of a model, and the pictures of its failures.

    Parameters
    ----------
    name : str
        A model that ships.
    folder : Path
        Where its scores are, and the card goes.
    nuclei : Path
        The labelled images, of which the pictures show what was missed.
    """
    worst = [row["name"] for row in _worst_of(_scores(name, folder))]
    imageio.imwrite(folder / f"{name}.png", _failures(name, worst, nuclei))
    (folder / f"{name}.md").write_text(text(name, folder), encoding="utf-8")


def text(name: str, folder: Path) -> str:
    """Tell all that a card says."""
    entry = next(e for e in shipped() if e.name == name)
    scores = _scores(name, folder)
    parts = [
        f"# {name}\n",
        "<!-- Written by `make zoo`; change tools/cards.py instead. -->\n",
        _facts(entry, scores),
        "## How well\n",
        _quality(scores),
        "## What it withstands\n",
        _robustness(scores),
        "## Where it fails\n",
        _worst(_worst_of(scores), f"{name}.png"),
        "## Do it again\n",
        _again(entry),
    ]
    return "\n".join(parts)


def write_tables(folder: Path) -> None:
    """Put the tables of all models into the pages that have one."""
    for page, table in tables(folder).items():
        before, rest = page.read_text(encoding="utf-8").split(_TABLE[0])
        after = rest.split(_TABLE[1])[1]
        told = f"{_TABLE[0]}\n\n{table}\n{_TABLE[1]}"
        page.write_text(before + told + after, encoding="utf-8")


def tables(folder: Path) -> dict[Path, str]:
    """Lay all models out for each page that compares them, the default first."""
    root = folder.parents[1]
    told = [
        (entry, _scores(entry.name, folder))
        for entry in shipped()
        if (folder / f"{entry.name}.json").is_file()
    ]
    return {
        root / "README.md": _in_short(told),
        root / "docs" / "performance.md": _by_measure(told),
        folder / "index.md": _both_ways(told),
    }


def _both_ways(told: list[tuple[Entry, dict[str, Any]]]) -> str:
    rows = []
    for entry, scores in told:
        auto, given = scores["summary"], scores["given"]["summary"]
        rows.append(
            [
                *(f"[{entry.name}]({entry.name}.md)", entry.system),
                f"{entry.megabytes:.1f}",
                *(_cell(way, key) for way in (auto, given) for key in ("dice", "ap")),
                f"{auto['seconds_per_megapixel']['mean']:.1f}",
            ]
        )
    head = ["model", "system", "MB", "Dice", "AP"]
    head += ["Dice, diameter given", "AP, diameter given", "s per megapixel"]
    return _table(head, rows)


def _in_short(told: list[tuple[Entry, dict[str, Any]]]) -> str:
    rows = []
    for entry, scores in told:
        mean = {key: value["mean"] for key, value in _means(scores).items()}
        cells = [f"{mean['dice']:.3f}", f"{mean['ap']:.3f}", f"{mean['seconds']:.2f}"]
        name = f"`{entry.name}` ({entry.system})"
        rows.append([name, *cells, f"{entry.megabytes:.1f}"])
    head = ["", "foreground Dice", "AP (0.50–0.95)", "seconds per image", "MB"]
    return _table(head, rows)


def _by_measure(told: list[tuple[Entry, dict[str, Any]]]) -> str:
    rows = []
    for entry, scores in told:
        means = _means(scores)
        cells = [f"{means[key]['mean']:.3f}" for key in MEASURES]
        cells.append(f"{means['seconds']['mean']:.2f}")
        rows.append([f"`{entry.name}` ({entry.system})", *cells])
    return _table(["model", *MEASURES.values(), "s per image"], rows)


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    told = ["|" + "".join(f" {c} |" if c else " |" for c in cells) for cells in lines]
    return "\n".join(told) + "\n"


def _means(scores: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    return {k: v for k, v in scores["summary"].items() if isinstance(v, dict)}


def parameters(model: Model) -> int:
    """Count the weights of a model."""
    return sum(p.numel() for p in model.network.parameters())


def _scores(name: str, folder: Path) -> dict[str, Any]:
    told: dict[str, Any] = json.loads((folder / f"{name}.json").read_text("utf-8"))
    return told


def _worst_of(scores: Mapping[str, Any]) -> list[dict[str, Any]]:
    return sorted(scores["images"], key=lambda row: row["ap"])[:_WORST]


def _facts(entry: Entry, scores: Mapping[str, Any]) -> str:
    header, made = entry.header, entry.header.provenance
    model = Model.load(entry.name)
    device, computed = (scores["provenance"][k] for k in ("device", "precision"))
    # Of several together, one for each.
    each = {computed} if isinstance(computed, str) else set(computed)
    precision = " and ".join(sorted(each))
    speed = scores["summary"]["seconds_per_megapixel"]
    rows = {
        "System": f"{entry.system}, {PAGES[entry.system]}",
        "Network": f"`{header.network}`, {parameters(model) / 1e6:.2f} million weights",
        "Size": f"{entry.megabytes:.1f} MB, weights as 16-bit floats",
        "Channels": "3; a gray image is repeated",
        "Classes": ", ".join(header.classes),
        "Objects": f"shown to it at a diameter of {header.object_diameter:.0f} px; "
        "where the image's own is not given it is measured first",
    }
    if header.parts:
        rows["Size"] = f"{entry.megabytes:.1f} MB, all in the files of its members"
        rows["Objects"] = (
            "shown to each member at the size it knows; where their diameter is not "
            "given it is measured first"
        )
        rows["Members"] = ", ".join(
            f"[{p.removesuffix('.safetensors')}]({p.removesuffix('.safetensors')}.md)"
            for p in header.parts
        )
    else:
        rows["Trained on"] = (
            f"{made['training_images']} images of the {made['data']}, masks as "
            "corrected by the community"
        )
        rows["Chosen on"] = (
            f"{made['validation_images']} of the {scores['summary']['images']} "
            f"validation images: {_chosen(entry)}"
        )
        rows["Recipe"] = "; then ".join(
            f"`{name}`: {step['recipe']['epochs']} epochs, loss "
            f"{RECIPES[name].told_loss}, {step['recipe']['optimiser']}, computed in "
            f"{step['precision']}, seed {step['seed']}, {step['date']}"
            for name, step in _steps(entry)
        )
    rows["Terms"] = "images and masks CC0, weights as the program"
    rows["Time"] = (
        f"{speed['mean']:.1f} ± {speed['std']:.1f} s per megapixel on {device} in "
        f"{precision}, mean over the validation images, half of which are of 256×256 "
        "pixels"
    )
    table = _table(["", ""], [[k, v] for k, v in rows.items()])
    does = "Finds nuclei in fluorescence, bright-field and stained images."
    return f"{does}\n\n{table}"


def _steps(entry: Entry) -> list[tuple[str, dict[str, Any]]]:
    """Name the recipes that made a model, in order, and what is known of each."""
    told: list[dict[str, Any]] = []
    step = entry.header.provenance
    while step:
        told.insert(0, step)
        step = step["started_from"]
    return list(zip(recipes(entry.name), told, strict=True))


def _chosen(entry: Entry) -> str:
    if not entry.header.provenance["recipe"]["calibrate"] or entry.system == "S0":
        return "the epoch"
    what = "an object" if entry.system == "S4" else "a pixel"
    return f"the epoch, and from which score on {what} counts"


def _quality(scores: Mapping[str, Any]) -> str:
    def table(told: Mapping[str, Any]) -> str:
        columns = {"all": told["summary"], **told["groups"]}
        rows = [
            [name, *(_cell(c, key) for c in columns.values())]
            for key, name in MEASURES.items()
        ]
        return _table(["", *(f"{k} ({c['images']})" for k, c in columns.items())], rows)

    return (
        f"Means and standard deviations over the {scores['summary']['images']} "
        "validation images, by kind of image. As it is used by default, objects "
        f"measured by the model itself:\n\n{table(scores)}\n"
        "With the typical diameter of the objects given:\n\n"
        f"{table(scores['given'])}"
    )


def _robustness(scores: Mapping[str, Any]) -> str:
    start = scores["robustness"]["as they are"]["summary"]
    rows = []
    for told in scores["robustness"].values():
        cells = [told["note"]]
        for key in ("dice", "ap"):
            moved = told["summary"][key]["mean"] - start[key]["mean"]
            cells += [_cell(told["summary"], key), f"{moved:+.3f}"]
        rows.append(cells)
    head = ["", "Dice", "change", "AP", "change"]
    return (
        f"{start['images']} of these images, evenly spread, each changed in one way at "
        f"a time, with the diameter given:\n\n{_table(head, rows)}"
    )


def _worst(worst: list[dict[str, Any]], picture: str) -> str:
    measures = ("dice", "precision", "recall", "ap")
    rows = [[w["name"], w["group"], *(f"{w[m]:.3f}" for m in measures)] for w in worst]
    head = ["image", "kind", "Dice", "precision", "recall", "AP"]
    return (
        "The validation images of least AP, from left to right. Gray: found; orange: "
        "missed; blue: not in the masks; white: outlines of the masks. AP is low, too, "
        "where touching nuclei were taken for one, however well pixels are found.\n\n"
        f"![Where masks and model agree]({picture})\n\n{_table(head, rows)}"
    )


def _again(entry: Entry) -> str:
    evaluate = (
        f"napari-fovea evaluate --model {entry.name} --robustness \\\n"
        "    --images val/images --labels val/labels --groups index.csv \\\n"
        f"    --json {entry.name}.json"
    )
    if entry.header.parts:
        return f"Every figure:\n\n```sh\n{evaluate}\n```\n"
    steps, start = [], ""
    for recipe, made in _steps(entry):
        steps.append(
            f"napari-fovea train --recipe {recipe} --name {entry.name} \\\n"
            "    --images train/images --labels train/labels \\\n"
            "    --val-images val/images --val-labels val/labels \\\n"
            f"    --classes nucleus --precision {made['precision']} \\\n"
            f"    {start}--output {recipe}.safetensors"
        )
        start = f"--start {recipe}.safetensors "
    train = "\n".join(steps)
    return (
        f"Every figure:\n\n```sh\n{evaluate}\n```\n\nThe weights; `make zoo` does "
        f"both:\n\n```sh\n{train}\n```\n"
    )


def _cell(summary: Mapping[str, Any], key: str) -> str:
    told = summary.get(key) or {"mean": None}
    if told["mean"] is None:
        return "–"
    return f"{told['mean']:.3f} ± {told['std']:.3f}"


def _failures(name: str, images: list[str], nuclei: Path) -> NDArray[np.uint8]:
    """Show where masks and model agree, image beside image; none is shown itself."""
    model, panels = Model.load(name), []
    for file in images:
        image = read_image(nuclei / "val" / "images" / file)
        stem = Path(file).stem
        labels = read_labels(next((nuclei / "val" / "labels").glob(f"{stem}.*")))
        axes = axes_beside(image.shape, labels.shape)
        found = complete(segment(image, model, axes=axes, blank=True))
        panel = np.empty((*labels.shape, 3), np.uint8)
        true, told = labels > 0, found.labels > 0
        panel[...] = _GROUND
        panel[true & told] = _BOTH
        panel[true & ~told] = _MISSED
        panel[told & ~true] = _INVENTED
        factor = _SIDE / max(labels.shape)
        size = (round(labels.shape[0] * factor), round(labels.shape[1] * factor))
        panel = np.stack([enlarge(c, size) for c in np.moveaxis(panel, -1, 0)], -1)
        panel[find_boundaries(enlarge(labels, size), mode="inner")] = _EDGE
        whole = np.full((_SIDE, _SIDE, 3), 255, np.uint8)
        whole[: size[0], : size[1]] = panel
        panels.append(whole)
    gap = np.full((_SIDE, 8, 3), 255, np.uint8)
    return np.concatenate([p for panel in panels for p in (panel, gap)][:-1], axis=1)
