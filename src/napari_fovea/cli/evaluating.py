"""The commands that tell how good models are."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from napari_fovea.cli.common import (
    Budget,
    Device,
    LabelKind,
    Policy,
    app,
    diameter_of,
    duration,
    epoch_line,
    labelling_of,
    out,
    progress_bar,
)
from napari_fovea.errors import FoveaError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_CHANGED = 33
"""Images that are changed in each way: enough to tell, in a bearable time."""


@app.command()
def evaluate(
    model: Annotated[str, typer.Option(help="Name of a model, or its file.")],
    images: Annotated[Path, typer.Option(help="Folder of images.")],
    labels: Annotated[Path, typer.Option(help="Folder of labels, same stems.")],
    json_file: Annotated[
        Path | None, typer.Option("--json", help="File for all scores, per image.")
    ] = None,
    labels_are: Annotated[
        LabelKind, typer.Option(help="What the numbers in the labels mean.")
    ] = LabelKind.instances,
    ignore: Annotated[
        int | None, typer.Option(help="Label that counts for nothing.")
    ] = None,
    groups: Annotated[
        Path | None,
        typer.Option(help="CSV file with columns id (stem) and kind of image."),
    ] = None,
    policy: Policy = None,
    budget: Budget = None,
    diameter: Annotated[
        str | None,
        typer.Option(
            help="Typical diameter of the objects in pixels; labels takes that of each "
            "image's labels, auto estimates it, as many models do by default."
        ),
    ] = None,
    robustness: Annotated[
        bool,
        typer.Option(
            "--robustness",
            help="Also with the diameter of the labels, and so with images changed in "
            f"size, contrast, noise and blur ({_CHANGED} of them at most).",
        ),
    ] = False,
    device: Device = "auto",
) -> None:
    """Segment labelled images and tell how well they agree.

    Means and standard deviations are over images.
    """
    from napari_fovea.evaluation import CHANGES, Evaluation
    from napari_fovea.evaluation import evaluate as run
    from napari_fovea.files import replacing
    from napari_fovea.models import Model
    from napari_fovea.training.labelling import Labelling
    from napari_fovea.training.samples import pair_files

    loaded = Model.load(model)
    pairs = pair_files(images, labels)
    kinds = _kinds(groups, pairs) if groups is not None else {}
    instances = labels_are is LabelKind.instances
    labelling = Labelling(
        ("background", "object") if instances else loaded.classes,
        from_instances=instances,
        ignore=ignore,
    )
    if robustness and not (instances and loaded.object_diameter):
        raise FoveaError(
            "What a model withstands is told with the diameter of the objects given; "
            "expected labels that number objects, and a model that knows the size of "
            "its own: leave --robustness out."
        )

    def score(title: str, some: list[Any], size: Any, **how: Any) -> Evaluation:
        events = run(
            loaded,
            some,
            labelling=labelling,
            groups=kinds,
            policy=policy.value if policy else None,
            budget=budget,
            diameter=size,
            device=device,
            **how,
        )
        with progress_bar() as progress:
            bar = progress.add_task(title, total=len(some))
            try:
                while True:
                    progress.update(bar, completed=next(events).done)
            except StopIteration as end:
                scored: Evaluation = end.value
        return scored

    of_labels = diameter == "labels"
    size = diameter if of_labels else diameter_of(diameter)
    evaluation = score("images", pairs, size)
    columns = {"all": evaluation.summary()}
    columns |= {g: evaluation.summary(g) for g in evaluation.groups}
    out.print(_table(columns))
    told = {"model": loaded.name, **evaluation.as_json()}
    if robustness:
        given = evaluation if of_labels else score("diameter given", pairs, "labels")
        kinds_given = {g: given.summary(g) for g in given.groups}
        told["given"] = {"summary": given.summary(), "groups": kinds_given}
        every = -(-len(pairs) // _CHANGED)
        same = Evaluation(given.images[::every])
        rows = {"as they are": same.summary()} | {
            name: score(c.note, pairs[::every], "labels", change=c).summary()
            for name, c in CHANGES.items()
        }
        out.print(f"\n{len(same.images)} images changed, diameter given:")
        out.print(_robust(rows))
        notes = {name: c.note for name, c in CHANGES.items()}
        told["robustness"] = {
            name: {"note": notes.get(name, name), "summary": summary}
            for name, summary in rows.items()
        }
    if json_file is not None:
        with replacing(json_file) as temporary:
            temporary.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
        out.print(f"wrote {json_file}")


@app.command()
def crossval(
    recipe: Annotated[str, typer.Option(help="How to train; see 'recipes'.")],
    images: Annotated[Path, typer.Option(help="Folder of images.")],
    labels: Annotated[Path, typer.Option(help="Folder of labels, same stems.")],
    folds: Annotated[int, typer.Option(min=2, help="How many.")] = 5,
    few: Annotated[
        bool,
        typer.Option("--few", help="Train on one fold, evaluate on all the others."),
    ] = False,
    output: Annotated[
        Path | None,
        typer.Option(help="Folder to keep folds in; what is there is not done again."),
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="File for all scores.")
    ] = None,
    config: Annotated[
        str | None,
        typer.Option(help="Network settings: a name, or JSON over the recipe's."),
    ] = None,
    classes: Annotated[
        str, typer.Option(help="Names of the classes but background, with commas.")
    ] = "object",
    labels_are: Annotated[
        LabelKind, typer.Option(help="What the numbers in the labels mean.")
    ] = LabelKind.instances,
    depth: Annotated[
        bool | None,
        typer.Option(
            help="Learn depths inside objects (instances), which tell touching ones "
            "apart; by default as the recipe has it."
        ),
    ] = None,
    ignore: Annotated[
        int | None, typer.Option(help="Label that counts for nothing.")
    ] = None,
    channels: Annotated[int, typer.Option(min=1, max=4)] = 3,
    epochs: Annotated[int | None, typer.Option(min=1)] = None,
    views: Annotated[
        int | None, typer.Option(min=1, help="Crops shown per epoch.")
    ] = None,
    policy: Policy = None,
    seed: Annotated[int, typer.Option()] = 0,
    device: Device = "auto",
    precision: Annotated[
        str, typer.Option(help="float32, bfloat16 or float16.")
    ] = "float32",
) -> None:
    """Train and evaluate by k-fold cross-validation.

    Means and standard deviations are over folds.
    """
    from napari_fovea.evaluation import ImageScored, cross_validate
    from napari_fovea.files import replacing

    changes = {"epochs": epochs, "views": views}
    events = cross_validate(
        images,
        labels,
        recipe=recipe,
        folds=folds,
        few=few,
        config=config,
        labelling=labelling_of(classes, labels_are, depth=depth, ignore=ignore),
        channels=channels,
        changes={k: v for k, v in changes.items() if v is not None},
        seed=seed,
        device=device,
        precision=precision,
        output=output,
        policy=policy.value if policy else None,
    )
    try:
        while True:
            told = next(events)
            event, where = told.event, f"fold {told.fold}/{told.folds}"
            left = f"{duration(told.seconds_left)} left in all"
            if not isinstance(event, ImageScored):
                typer.echo(f"{where}, {epoch_line(event)}, {left}")
            elif event.done % -(-event.total // 5) == 0 or event.done == event.total:
                done = f"{event.done} of {event.total} images evaluated"
                typer.echo(f"{where}: {done}, {left}")
    except StopIteration as end:
        result = end.value
    out.print(_table({f"{folds} folds": result.summary()}))
    if json_file is not None:
        with replacing(json_file) as temporary:
            text = json.dumps({"recipe": recipe, **result.as_json()}, indent=1)
            temporary.write_text(text + "\n", encoding="utf-8")
        out.print(f"wrote {json_file}")


def _kinds(path: Path, pairs: Sequence[tuple[Path, Path]]) -> Mapping[str, str]:
    try:
        # Spreadsheets put a mark before the first column.
        with path.open(newline="", encoding="utf-8-sig") as file:
            kinds = {row["id"]: row["kind"] for row in csv.DictReader(file)}
    except (OSError, KeyError, UnicodeDecodeError, csv.Error) as error:
        raise FoveaError(
            f"{path} does not tell kinds of images; expected a CSV file with columns "
            "id and kind: check its name and its first line."
        ) from error
    if not any(image.stem in kinds for image, _ in pairs):
        raise FoveaError(
            f"{path} tells the kind of no image; expected names without ending in its "
            f"column id, such as {pairs[0][0].stem}: check that column."
        )
    return kinds


def _robust(rows: dict[str, dict[str, Any]]) -> Table:
    """Lay out what changes of the images do to the scores."""
    measures = [m for m in ("dice", "ap") if m in next(iter(rows.values()))]
    table = Table("", *measures, *(f"{m}, change" for m in measures), box=None)
    first = next(iter(rows.values()))
    for name, row in rows.items():
        means = [row[m]["mean"] for m in measures]
        start = [first[m]["mean"] for m in measures]
        moved = [f"{a - b:+.4f}" for a, b in zip(means, start, strict=True)]
        table.add_row(name, *(f"{m:.4f}" for m in means), *moved)
    return table


def _table(columns: dict[str, dict[str, Any]]) -> Table:
    """Lay measures out in rows, and sets of images in columns."""
    counted = {name: s.get("images", s.get("folds")) for name, s in columns.items()}
    table = Table("", *(f"{n} ({c})" for n, c in counted.items()), box=None)
    measures = [m for m in next(iter(columns.values())) if m not in ("images", "folds")]
    for measure in measures:
        cells = []
        for summary in columns.values():
            mean, std = summary[measure]["mean"], summary[measure]["std"]
            cells.append("–" if mean is None else f"{mean:.4f} ± {std:.4f}")
        table.add_row(measure, *cells)
    return table
