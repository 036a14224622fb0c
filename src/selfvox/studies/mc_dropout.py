"""What Monte-Carlo dropout does to a study's runs (paper B 3.3): before and after, by place, by rate and by vote.

Nothing is trained: the networks that are there predict the test subjects again, in `dropout/` of each run. The
tables and figures follow from what lies there.
"""

from __future__ import annotations

import csv
import dataclasses
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.style
import numpy as np
from matplotlib.figure import Figure

from selfvox.commands.evaluate import evaluate
from selfvox.commands.predict import predict
from selfvox.errors import UsageError
from selfvox.evaluation.calibration import SCORE_NAMES
from selfvox.runs.atomic_files import atomic_write, write_csv
from selfvox.runs.progress import echo
from selfvox.runs.weights import load_part
from selfvox.settings.options import resolve
from selfvox.settings.verbs import Evaluate, Predict, parse_shard
from selfvox.studies import figures, plan, results, statistics
from selfvox.studies.plan import Plan
from selfvox.studies.results import Result
from selfvox.studies.run_once import is_done, run_once
from selfvox.uncertainty.ensemble import region_votes
from selfvox.uncertainty.vote_rules import VOTE_RULES

FOREGROUND_WEIGHT = 2.0  # of a weighted vote: paper B takes 1, 2, 2
HOLLOW: dict[str, Any] = {"linestyle": ":", "markerfacecolor": "white"}
CALIBRATION = SCORE_NAMES  # of `evaluate`


@dataclass(frozen=True)
class Way:
    """One way to ask a network by many passes; without dropout, by one."""

    encoder: float = 0.0
    decoder: float = 0.0
    vote: str = "majority"
    maps: bool = False

    @property
    def folder(self) -> str:
        """Where its scores lie, within a run."""
        if self == WITHOUT:
            return "dropout/without"
        of_maps = "-maps" if self.maps else ""
        return f"dropout/encoder-{self.encoder:g}-decoder-{self.decoder:g}-{self.vote}{of_maps}"


WITHOUT = Way()
ENCODER = Way(encoder=0.3)  # the best of paper B
MAPS = dataclasses.replace(ENCODER, maps=True)
PLACES = {
    "without": WITHOUT,
    "encoder": ENCODER,
    "decoder": Way(decoder=0.3),
    "both": Way(0.3, 0.3),
}
RATES = {f"{rate:g}": Way(encoder=rate) for rate in (0.0, 0.1, 0.2, 0.3, 0.4, 0.5)}
VOTES = {vote: Way(encoder=0.3, vote=vote) for vote in VOTE_RULES}


def predict_with_passes(
    out: Path, asked: Plan, passes: int, shard: str = "0/1", dry_run: bool = False
) -> None:
    """Let every run that is there predict the test subjects in all ways; from scratch, before and after alone.

    Args:
        out: the study.
        asked: its plan.
        passes: of every way but `without`.
        shard: "i/n": only every n-th way and run from the i-th on.
        dry_run: only say how many there are.

    Raises:
        UsageError: no run can be asked, or they were asked by another number of passes.
    """
    found = [result for result in results.read_results(asked, out) if result.key == "dice"]
    if not found:
        raise UsageError(f"passes: {out} holds no run that segments; leave --passes out")
    todo = [(path, way) for result in found for path in result.paths for way in _ways(result)]
    todo += [(result.paths[0], MAPS) for result in _telling(found)]
    first, of = parse_shard(shard)
    todo = todo[first::of]
    if dry_run:
        left = sum(not is_done(path / way.folder) for path, way in todo)
        echo(
            f"{left} of {len(todo)} times the test subjects are still to be predicted, by {passes} passes each"
        )
        return
    for number, (path, way) in enumerate(todo):
        echo(
            f"{number}/{len(todo)} done  now {path.parent.name} {path.name}, {way.folder.removeprefix('dropout/')}"
        )
        _ask(out, asked, path, way, passes)


def _card(run: Path) -> dict[str, Any]:
    """What is written beside a run's weights."""
    return load_part(run / "network", "network")[1]


def _ways(result: Result) -> list[Way]:
    """In which it can be asked."""
    if result.from_scratch:
        return [WITHOUT, ENCODER]
    ways = dict.fromkeys([*PLACES.values(), *RATES.values(), *VOTES.values()])
    card = _card(result.paths[0])
    of_regions, is_linear = card.get("trained_on") == "regions", card.get("head") == "linear"
    # a linear head has no units of its own to drop
    return [
        way
        for way in ways
        if not ((of_regions and way.vote not in region_votes()) or (is_linear and way.decoder))
    ]


def _telling(found: Sequence[Result]) -> list[Result]:
    """The run of each method whose maps are drawn: with most labels, of the first seeds."""
    return [
        max((result for result in found if result.method == method), key=lambda one: one.labels)
        for method in dict.fromkeys(result.method for result in found)
    ]


def _ask(out: Path, asked: Plan, run: Path, way: Way, passes: int) -> None:
    given: dict[str, Any] = {"subset": "test", "source": asked.source, "probabilities": True}
    given |= {
        name: asked.finetune[name] for name in ("device", "precision") if name in asked.finetune
    }
    if way != WITHOUT:
        given |= {
            "passes": passes,
            "encoder_dropout": way.encoder,
            "decoder_dropout": way.decoder,
            "vote": way.vote,
        }
    card = _card(run)
    classes = card["classes"]
    names = [classes[value] for value in sorted(classes, key=int)]
    if card.get("trained_on") == "regions":
        names = list(card["regions"])
    setting = VOTE_RULES[way.vote].setting
    if setting == "vote_weights":
        given["vote_weights"] = (1.0, *[FOREGROUND_WEIGHT] * (len(names) - 1))
    if setting == "union_class":
        given["union_class"] = names[-1]
    if way.maps:
        given["maps"] = ("percentiles", "entropy")
    folder = run / way.folder

    def make() -> dict[str, Any]:
        predictions = folder / "predictions"
        predict(resolve(Predict, {**given, "run": run, "scans": asked.data, "out": predictions}))
        scores_file = folder / "scores.csv"
        evaluate(
            Evaluate(
                predictions=predictions, truth=asked.data, out=scores_file, source=given["source"]
            )
        )
        for kept in (*predictions.glob("review.csv"), *predictions.glob("maps/*.png")):
            kept.replace(folder / kept.name)
        shutil.rmtree(predictions)  # with the probabilities it is many times as large as all else
        return {"passes": passes}

    run_once(out, folder.relative_to(out), given, make, wait=True)


# what they say


def summarise_passes(out: Path, asked: Plan) -> None:
    """Write `dropout.csv`, draw the figures and print what dropout changes; nothing where nobody was asked."""
    found = [
        result
        for result in results.read_results(asked, out)
        if _of(result, WITHOUT) and _of(result, ENCODER)
    ]
    if not found:
        return
    rows = list(_summarise(found))
    columns = [name for name in rows[0] if name != "way"]
    write_csv(out / "dropout.csv", columns, ([row[name] for name in columns] for row in rows))
    overall = found[0].overall
    for row in rows:
        if row["name"] == overall and row["way"] == ENCODER:
            low, high = f"{row['low']:+.3f}", f"{row['high']:+.3f}"
            change = f"{row['difference']:+.3f} by Monte-Carlo dropout, 95 % {low} ... {high}"
            echo(f"{row['method']}, {row['labels']} labels, Dice of {overall}: {change}")
    drawn = draw(found, [row for row in rows if row["name"] == overall], out / "figures")
    echo(f"dropout: {out / 'dropout.csv'}   figures: {'  '.join(map(str, drawn))}")


def _of(result: Result, way: Way) -> Result | None:
    """What a cell scored when it was asked in this way; None unless all its folds were."""
    folders = [path / way.folder for path in result.paths]
    if not all(is_done(folder) for folder in folders):
        return None
    rows = tuple(row for folder in folders for row in results.rows_of(folder, None))
    return dataclasses.replace(result, paths=tuple(folders), rows=rows)


def _summarise(found: Sequence[Result]) -> Iterator[dict[str, Any]]:
    """One row for each method, number of labels, way and class: means over runs, and the difference to `without`."""
    groups: dict[tuple[str, int], list[Result]] = {}
    for result in found:
        groups.setdefault((result.method, result.labels), []).append(result)
    for (method, labels), group in groups.items():
        for way in _ways(group[0]):
            pairs = [
                (one, before)
                for each in group
                if (one := _of(each, way)) and (before := _of(each, WITHOUT))
            ]
            after = [one for one, _ in pairs]
            for name in after[0].names() if after else []:
                means = [each.mean(name) for each in after]
                row: dict[str, Any] = {
                    "method": method,
                    "labels": labels,
                    "fraction": group[0].fraction,
                    "way": way,
                    "encoder_dropout": way.encoder,
                    "decoder_dropout": way.decoder,
                    "vote": "" if way == WITHOUT else way.vote,
                    "name": name,
                    "runs": len(after),
                    "mean": float(np.mean(means)),
                    "sd": float(np.std(means, ddof=1)) if len(means) > 1 else None,
                }
                yield (
                    row
                    | _change(after, [before for _, before in pairs], name)
                    | _calibration(after)
                )


def _change(after: Sequence[Result], before: Sequence[Result], name: str) -> dict[str, Any]:
    """The difference that dropout makes to the same networks and scans, with its interval."""
    differences, subjects = statistics.by_case(statistics.paired(after, before), name)
    low, high = statistics.bootstrap(differences, subjects)
    return {"difference": float(np.nanmean(differences)), "low": low, "high": high}


def _calibration(found: Sequence[Result]) -> dict[str, float | None]:
    """Mean over runs and scans of each measure of calibration."""
    values: dict[str, list[float]] = {name: [] for name in CALIBRATION}
    for path in (path for result in found for path in result.paths):
        file = path / "scores_calibration.csv"
        if not file.exists():
            continue  # no scan could be measured, which `evaluate` has said
        with file.open(encoding="utf-8", newline="") as lines:
            for row in csv.DictReader(lines):
                for name in CALIBRATION:
                    values[name] += [float(row[name])] if row[name] else []
    return {name: float(np.mean(each)) if each else None for name, each in values.items()}


# figures


def draw(found: Sequence[Result], rows: Sequence[Mapping[str, Any]], folder: Path) -> list[Path]:
    """Draw paper B's Fig. 3 to 7 of our runs, and calibration before and after."""
    folder.mkdir(exist_ok=True)
    made = []
    with mpl.style.context(figures.STYLE):
        looks = figures.looks_of(found)
        for name, figure in (
            ("dropout", _before_after(rows, looks, ("mean",))),
            ("dropout-places", _by_way(rows, PLACES, "dropout of 0.3, where")),
            ("dropout-rates", _by_way(rows, RATES, "rate in the encoder")),
            ("dropout-votes", _by_way(rows, VOTES, "vote")),
            ("dropout-calibration", _before_after(rows, looks, ("ece", "brier"))),
        ):
            if figure is not None:
                made.append(folder / f"{name}.png")
                with atomic_write(made[-1]) as temporary:
                    figure.savefig(temporary, metadata={"Software": None})
    for result in _telling(found):
        for picture in sorted((result.paths[0] / MAPS.folder).glob("*_maps.png"))[:1]:
            made.append(folder / f"percentiles-{plan.folder_name(result.method)}.png")
            with atomic_write(made[-1]) as temporary:
                shutil.copyfile(picture, temporary)
    return made


def _before_after(
    rows: Sequence[Mapping[str, Any]], looks: Mapping[str, dict[str, Any]], scores: Sequence[str]
) -> Figure:
    """Each method without dropout, dashed, and with; beside the score, the difference with its 95 % interval."""
    both = scores == ("mean",)
    figure, panels = figures.make_panels(
        len(scores) + both, "Dice" if both else "Mean over the scans"
    )
    for axes, score in zip(panels, scores, strict=False):
        for method, look in looks.items():
            for way, style in ((WITHOUT, HOLLOW), (ENCODER, {"linestyle": "-"})):
                label = f"{look['label']}, {'without' if way == WITHOUT else 'with'} dropout"
                points = _points(rows, method, way, score)
                axes.plot(*points, **{**look, **style, "label": label})
        axes.set_title(
            rows[0]["name"] if both else score.upper() if score == "ece" else score.capitalize()
        )
        _labels_axis(axes, rows)
    if both:
        axes = panels[-1]
        axes.axhline(0, color="black", linewidth=1)
        for number, (method, look) in enumerate(looks.items()):
            x, mean = _points(rows, method, ENCODER, "difference")
            reach = [
                mean - _points(rows, method, ENCODER, "low")[1],
                _points(rows, method, ENCODER, "high")[1] - mean,
            ]
            axes.errorbar(
                x * 1.03**number,
                mean,
                np.maximum(reach, 0),
                fmt=look["marker"],
                color=look["color"],
                capsize=3,
            )
        axes.set_title("with minus without, 95 %")
        _labels_axis(axes, rows)
    figures.draw_legend(figure, panels)
    return figure


def _by_way(
    rows: Sequence[Mapping[str, Any]], ways: Mapping[str, Way], title: str
) -> Figure | None:
    """Score by labels in each way, one panel for each pre-trained method."""
    methods = list(dict.fromkeys(row["method"] for row in rows if row["way"] == Way(decoder=0.3)))
    if not methods:
        return None
    figure, panels = figures.make_panels(len(methods), f"Dice, {rows[0]['name']}")
    for axes, method in zip(panels, methods, strict=True):
        for name, way in ways.items():
            style = {"color": figures.GREY, **HOLLOW} if way == WITHOUT else {}
            axes.plot(*_points(rows, method, way, "mean"), marker="o", label=name, **style)
        axes.set_title(f"{method}: {title}")
        _labels_axis(axes, rows)
    figures.draw_legend(figure, panels)
    return figure


def _points(
    rows: Sequence[Mapping[str, Any]], method: str, way: Way, score: str
) -> tuple[np.ndarray, np.ndarray]:
    """Share of the labels and a score, by share."""
    found = sorted(
        (row["fraction"], row[score])
        for row in rows
        if row["method"] == method and row["way"] == way and row[score] is not None
    )
    x, y = zip(*found, strict=True) if found else ((), ())
    return np.array(x), np.array(y)


def _labels_axis(axes: Any, rows: Sequence[Mapping[str, Any]]) -> None:
    axes.set_xlabel("share of the labels, and their number")
    figures.share_axis(
        axes, dict(sorted((float(row["fraction"]), int(row["labels"])) for row in rows))
    )
