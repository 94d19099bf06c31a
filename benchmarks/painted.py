"""Learning from strokes: instant and thorough, beside a random forest.

Strokes are simulated with fixed seeds: skeletons of three random objects and three
short random lines on the background of each image. All figures are of pixels that
were not painted. Prints one JSON line for each part; `--every` takes every n-th image.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from skimage.feature import multiscale_basic_features
from skimage.measure import label
from skimage.transform import resize
from sklearn.ensemble import RandomForestClassifier

from machine import DATA, tell
from napari_fovea import Model, complete, segment
from napari_fovea.files import read_image, read_labels
from napari_fovea.metrics import dice
from napari_fovea.training.labelling import Labelling
from napari_fovea.training.painted import Annotation, Painted, read_painted
from napari_fovea.training.run import find_recipe, fresh_model, train_on
from napari_fovea.training.samples import make_sample, pair_files
from napari_fovea.training.tuner import Tuner
from strokes import simulated

if TYPE_CHECKING:
    from napari_fovea.training.learned import Tuned

PARTS = ("nuclei", "other", "speed", "enlarged", "membranes", "transfer", "guard")
CPU = "cpu"
LARGER = 11.0
"""A diameter told of objects, so that the model is shown more pixels."""
FOREST = {"n_estimators": 50, "max_depth": 10, "n_jobs": -1, "random_state": 0}
Picture = tuple[np.ndarray, np.ndarray, np.ndarray]  # image, objects, strokes


def main() -> None:
    """Run the parts that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--model", default="focusnet-nuclei", help="a name or file")
    parser.add_argument("--every", type=int, default=3, help="take every n-th image")
    parser.add_argument("--seconds", type=float, default=20, help="of thorough")
    parser.add_argument("--precision", default="bfloat16", help="of thorough")
    parser.add_argument(
        "--other", type=Path, default=Path("other.safetensors"), help="is kept there"
    )
    options = parser.parse_args()
    shipped = Model.load(options.model)
    for part in options.parts:
        if part == "nuclei":
            alone("nuclei", shipped, options)
        elif part == "other":
            alone("nuclei from another kind", other_kind(options.other), options)
        elif part == "speed":
            speed(shipped)
        elif part == "enlarged":
            speed(shipped, part=part, diameter=LARGER)
        elif part == "membranes":
            membranes(shipped, options)
        elif part == "transfer":
            transfer(shipped, options)
        elif part == "guard":
            guard(shipped, options)


def nuclei(every: int) -> list[Picture]:
    """Read validation images, and paint strokes on them."""
    folder = DATA / "nuclei" / "val"
    pairs = pair_files(folder / "images", folder / "labels")[::every]
    return [with_strokes(*pair, seed=i) for i, pair in enumerate(pairs)]


def with_strokes(image: Path, truth: Path, *, seed: int) -> Picture:
    """Read an image, and paint on it."""
    pixels, objects = read_image(image), read_labels(truth)
    if pixels.ndim == 3:
        pixels = pixels[..., :3]
    return pixels, objects, simulated(objects, seed=seed)


def other_kind(path: Path) -> Model:
    """Make a model of membranes: another kind of image altogether."""
    if path.exists():
        return Model.load(path)
    recipe = find_recipe("r2-attention-unet-small", {"epochs": 8, "views": 120})
    labelling = Labelling(("membrane", "cell"), from_instances=False)
    model = fresh_model(recipe, name="membranes", labelling=labelling)
    folder = DATA / "membranes"
    samples = [
        make_sample(
            read_image(a), read_labels(b), channels=3, outputs=2, from_instances=False
        )
        for a, b in pair_files(folder / "images", folder / "labels")
    ]
    run = train_on(model, samples, [], recipe=recipe, precision="bfloat16")
    made: Model = complete(run)
    made.save(path)
    return made


# -- learners --------------------------------------------------------------------


def features(image: np.ndarray) -> np.ndarray:
    """Compute what the forest sees: scikit-image's features at scales 1 to 16."""
    channels = -1 if image.ndim == 3 else None
    return np.asarray(
        multiscale_basic_features(image, sigma_max=16, channel_axis=channels)
    )


def forest(pictures: list[Picture], tests: list[np.ndarray]) -> list[np.ndarray]:
    """Tell objects in tests by a forest that learned from strokes."""
    seen = [(features(image), strokes) for image, _, strokes in pictures]
    x = np.concatenate([f[s > 0] for f, s in seen])
    y = np.concatenate([s[s > 0] for _, s in seen])
    model = RandomForestClassifier(**FOREST).fit(x, y)
    found = []
    for image in tests:
        f = features(image)
        told = model.predict(f.reshape(-1, f.shape[-1])).reshape(f.shape[:2])
        found.append(told == 2)
    return found


def told(
    model: Model, image: np.ndarray, *, diameter: float | None = None
) -> np.ndarray:
    """Objects by a model, as a user gets them from its file."""
    run = segment(image, model, device=CPU, diameter=diameter)
    found: np.ndarray = complete(run).labels > 0
    return found


def painted(
    pictures: list[Picture], model: Model, *, diameter: float | None = None
) -> Painted:
    """Read strokes as a model does."""
    annotations = [
        Annotation(im, s, str(i), diameter=diameter)
        for i, (im, _, s) in enumerate(pictures)
    ]
    return read_painted(annotations, model)


def learn(
    model: Model,
    pictures: list[Picture],
    *,
    mode: str,
    options: Any,
    diameter: float | None = None,
) -> Tuned:
    """Let a model learn from strokes."""
    tuner = Tuner(model, device=CPU)
    strokes = painted(pictures, model, diameter=diameter)
    if mode == "instant":
        run = tuner.instant(strokes)
    else:
        run = tuner.thorough(
            strokes, seconds=options.seconds, precision=options.precision
        )
    tuned: Tuned = complete(run)
    return tuned


# -- parts -----------------------------------------------------------------------


def alone(name: str, model: Model, options: Any) -> None:
    """Learn from the strokes of each image, and segment the rest of it."""
    columns: dict[str, list[float]] = {}
    for image, objects, strokes in nuclei(options.every):
        picture = [(image, objects, strokes)]

        def add(
            key: str, found: np.ndarray, objects: Any = objects, s: Any = strokes
        ) -> None:
            columns.setdefault(key, []).append(dice(found, objects > 0, ignore=s > 0))

        began = time.perf_counter()
        add("forest", forest(picture, [image])[0])
        columns.setdefault("forest seconds", []).append(time.perf_counter() - began)
        before = told(model, image)
        add("before", before)
        for mode in ("instant", "thorough") if options.seconds else ("instant",):
            tuned = learn(model, picture, mode=mode, options=options)
            after = told(tuned.model, image)
            add(mode, after)
            add(f"{mode}, guarded", after if tuned.verdict.better else before)
            columns.setdefault(f"{mode} taken", []).append(tuned.verdict.better)
    figures = summary(columns)
    tell(
        "painted",
        {
            "part": name,
            "model": model.name,
            "images": len(columns["forest"]),
            "seconds_of_thorough": options.seconds,
            "dice": figures,
            "over_forest": {
                mode: round(figures[mode] - figures["forest"], 4)
                for mode in ("instant", "thorough")
                if mode in figures
            },
        },
    )


def summary(columns: dict[str, list[float]]) -> dict[str, float]:
    """Means to four digits."""
    return {k: round(float(np.mean(v)), 4) for k, v in columns.items()}


def speed(model: Model, *, part: str = "speed", diameter: float | None = None) -> None:
    """How long a refit and the view of 512×512 pixels take, beside the forest."""
    image, objects, _ = nuclei(12)[0]
    image = np.asarray(resize(image, (512, 512), preserve_range=True)).astype(np.uint8)
    objects = np.asarray(resize(objects, (512, 512), order=0, preserve_range=True))
    objects = objects.astype(np.int64)
    strokes = simulated(objects, seed=0)
    picture = (image, objects, strokes)
    tuner = Tuner(model, device=CPU)
    began = time.perf_counter()
    complete(tuner.instant(painted([picture], model, diameter=diameter)))
    first = time.perf_counter() - began
    times, views = [], []
    for seed in range(1, 8):
        more = simulated(objects, seed=seed)
        strokes = np.where(more > 0, more, strokes)  # strokes are added to strokes
        read = painted([(image, objects, strokes)], model, diameter=diameter)
        began = time.perf_counter()
        tuned = complete(tuner.instant(read))
        times.append(time.perf_counter() - began)
        began = time.perf_counter()
        tuner.segment(
            image, 0, name="0", rgb=None, model=tuned.model, diameter=diameter
        )
        views.append(time.perf_counter() - began)
    began = time.perf_counter()
    forest([(image, objects, strokes)], [image])
    beside = time.perf_counter() - began
    whole = float(np.median(times) + np.median(views))
    tell(
        "painted",
        {
            "part": part,
            "model": model.name,
            "side_as_shown": read.planes[0].image.shape[-1],
            "first_refit": round(first, 3),
            "refit": round(float(np.median(times)), 3),
            "view": round(float(np.median(views)), 3),
            "refit_and_view": round(whole, 3),
            "longest": round(max(a + b for a, b in zip(times, views, strict=True)), 3),
            "forest": round(beside, 3),
            "over_forest": round(whole / beside, 2),
        },
    )


def membranes(model: Model, options: Any) -> None:
    """Strokes on few sections of a kind of image that no model has seen.

    At their own size: what a model of nuclei measures of them means nothing.
    """
    folder, size = DATA / "membranes", model.object_diameter
    pairs = pair_files(folder / "images", folder / "labels")
    for count in (1, 2, 4):
        columns: dict[str, list[float]] = {}
        for run in range(2):
            chosen = pairs[run * 10 : run * 10 + count]
            pictures = []
            for i, (image, truth) in enumerate(chosen):
                cells = label(read_labels(truth) > 0, connectivity=1)
                strokes = simulated(cells, seed=100 * run + i)
                pictures.append((read_image(image), cells, strokes))
            tests = [p for p in pairs if p not in chosen][:: 25 // 8]
            images = [read_image(image) for image, _ in tests]
            truths = [read_labels(truth) > 0 for _, truth in tests]
            found = {"forest": forest(pictures, images)}
            for mode in ("instant", "thorough") if options.seconds else ("instant",):
                tuned = learn(
                    model, pictures, mode=mode, options=options, diameter=size
                )
                found[mode] = [told(tuned.model, im, diameter=size) for im in images]
            for key, some in found.items():
                scores = [dice(a, b) for a, b in zip(some, truths, strict=True)]
                columns.setdefault(key, []).extend(scores)
        tell(
            "painted",
            {
                "part": "membranes",
                "model": model.name,
                "sections": count,
                "seconds_of_thorough": options.seconds,
                "dice": summary(columns),
            },
        )


def transfer(model: Model, options: Any) -> None:
    """Strokes on three images, tested on twenty others of the same kind."""
    pictures = [p for p in nuclei(1) if p[0].ndim == 2][:23]
    columns: dict[str, list[float]] = {}
    kinds = {"shipped": model, "another kind": other_kind(options.other)}
    tests = [image for image, _, _ in pictures[3:]]
    taken: dict[str, bool] = {}
    found = {"forest": forest(pictures[:3], tests)}
    for name, start in kinds.items():
        found[f"{name}, before"] = [told(start, image) for image in tests]
        for mode in ("instant", "thorough") if options.seconds else ("instant",):
            tuned = learn(start, pictures[:3], mode=mode, options=options)
            found[f"{name}, {mode}"] = [told(tuned.model, image) for image in tests]
            taken[f"{name}, {mode}"] = tuned.verdict.better
    for key, some in found.items():
        truths = [objects > 0 for _, objects, _ in pictures[3:]]
        columns[key] = [dice(a, b) for a, b in zip(some, truths, strict=True)]
    tell(
        "painted",
        {
            "part": "transfer",
            "images": len(tests),
            "seconds_of_thorough": options.seconds,
            "dice": summary(columns),
            "taken": taken,
        },
    )


def guard(model: Model, options: Any) -> None:
    """How often strokes are taken, and how often if half of them are swapped."""
    kinds = {"shipped": model, "another kind": other_kind(options.other)}
    taken: dict[str, list[float]] = {}
    for image, objects, strokes in nuclei(options.every):
        for name, start in kinds.items():
            for how, some in (("right", strokes), ("swapped", swapped(strokes))):
                tuned = learn(
                    start, [(image, objects, some)], mode="instant", options=options
                )
                taken.setdefault(f"{name}, {how}", []).append(tuned.verdict.better)
    tell("painted", {"part": "guard", "taken": summary(taken)})


def swapped(strokes: np.ndarray) -> np.ndarray:
    """Swap the classes of every second stroke."""
    result, every = strokes.copy(), 0
    for c in (1, 2):
        pieces, count = label(strokes == c, connectivity=2, return_num=True)
        for i in range(1, count + 1):
            if every % 2:
                result[pieces == i] = 3 - c
            every += 1
    return result


if __name__ == "__main__":
    main()
