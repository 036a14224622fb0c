"""What Monte-Carlo dropout changes in a study (paper B, 3.3): by place, by rate and by vote.

Nothing is trained: the networks of the study predict the test subjects again, into `dropout/` of
each run. Tables and figures follow from these folders.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selfvox.commands.evaluate import evaluate
from selfvox.commands.predict import predict
from selfvox.errors import UsageError
from selfvox.runs.atomic_files import write_csv
from selfvox.runs.card import SegmenterCard
from selfvox.runs.progress import echo
from selfvox.runs.weights import read_network_card
from selfvox.settings.options import resolve
from selfvox.settings.verbs import Evaluate, Predict, parse_shard
from selfvox.studies import mc_dropout_figures, results
from selfvox.studies.mc_dropout_calibration import calibration_columns
from selfvox.studies.mc_dropout_variants import (
    ENCODER,
    FOREGROUND_WEIGHT,
    MAPS,
    PLACES,
    RATES,
    VOTES,
    WITHOUT,
    Variant,
)
from selfvox.studies.plan import Plan
from selfvox.studies.print_tables import interval_text
from selfvox.studies.results import Result
from selfvox.studies.run_once import is_done, run_once
from selfvox.studies.score_run import hardware
from selfvox.studies.statistics import compare, pair_runs
from selfvox.studies.table import group_results, mean_and_sd
from selfvox.uncertainty.ensemble import region_votes
from selfvox.uncertainty.vote_rules import VOTE_RULES


@dataclass(frozen=True)
class _Prediction:
    """One run to predict in one variant."""

    run: Path
    variant: Variant

    @property
    def folder(self) -> Path:
        return self.run / self.variant.folder


def predict_with_passes(
    out: Path, plan: Plan, passes: int, shard: str = "0/1", dry_run: bool = False
) -> None:
    """Predict the test subjects by every finished run in all variants.

    Runs from scratch are predicted without dropout and with dropout in the encoder only.

    Args:
        out: the study.
        plan: its plan.
        passes: of every variant with dropout.
        shard: "i/n": only every n-th prediction, from the i-th on.
        dry_run: only print how many predictions are missing.

    Raises:
        UsageError: no run segments, or they were predicted by another number of passes.
    """
    segmented = [
        result
        for result in results.read_results(plan, out)
        if result.key == "dice" and result.is_network
    ]
    if not segmented:
        raise UsageError(f"passes: {out} has no run that segments; remove --passes")
    predictions = [
        _Prediction(run, variant)
        for result in segmented
        for run in result.paths
        for variant in _variants(result)
    ]
    # maps of a few runs, for the figures
    predictions += [
        _Prediction(result.paths[0], MAPS)
        for result in mc_dropout_figures.select_for_maps(segmented)
    ]
    first, step = parse_shard(shard)
    predictions = predictions[first::step]
    if dry_run:
        missing = sum(not is_done(prediction.folder) for prediction in predictions)
        echo(
            f"{missing} of {len(predictions)} predictions of the test subjects are missing, "
            f"of {passes} passes each"
        )
        return
    for number, prediction in enumerate(predictions):
        run = prediction.run
        name = prediction.variant.folder.removeprefix("dropout/")
        echo(f"{number}/{len(predictions)} done  now {run.parent.name} {run.name}, {name}")
        _predict(out, plan, prediction, passes)


def _card(run: Path) -> SegmenterCard:
    """The card of a run's network, which segments."""
    card = read_network_card(run)
    assert isinstance(card, SegmenterCard)
    return card


def _variants(result: Result) -> list[Variant]:
    """The variants in which a run can be predicted."""
    if result.from_scratch:
        return [WITHOUT, ENCODER]
    card = _card(result.paths[0])
    variants = list(dict.fromkeys([*PLACES.values(), *RATES.values(), *VOTES.values()]))
    if card.trained_on_regions:
        variants = [variant for variant in variants if variant.vote in region_votes()]
    if card.is_linear:  # which has no units to drop
        variants = [variant for variant in variants if not variant.decoder]
    return variants


def _predict(out: Path, plan: Plan, prediction: _Prediction, passes: int) -> None:
    """Predict and score one run in one variant, unless it is done."""
    settings = _predict_settings(plan, prediction, passes)
    folder = prediction.folder

    def work() -> dict[str, Any]:
        predictions = folder / "predictions"
        paths = {"run": prediction.run, "scans": plan.data, "out": predictions}
        predict(resolve(Predict, {**settings, **paths}))
        evaluate(
            Evaluate(
                predictions=predictions,
                truth=plan.data,
                out=folder / "scores.csv",
                source=settings["source"],
            )
        )
        for file in (*predictions.glob("review.csv"), *predictions.glob("maps/*.png")):
            file.replace(folder / file.name)
        # with the probabilities they are many times as large as everything else
        shutil.rmtree(predictions)
        return {"passes": passes}

    run_once(out, folder.relative_to(out), settings, work, wait=True)


def _predict_settings(plan: Plan, prediction: _Prediction, passes: int) -> dict[str, Any]:
    """Settings of `predict`, except its paths."""
    variant = prediction.variant
    settings: dict[str, Any] = {"subset": "test", "source": plan.source, "probabilities": True}
    settings |= hardware(prediction.run)
    if variant != WITHOUT:
        settings |= {
            "passes": passes,
            "encoder_dropout": variant.encoder,
            "decoder_dropout": variant.decoder,
            "vote": variant.vote,
        }
    names = _card(prediction.run).output_names
    vote_setting = VOTE_RULES[variant.vote].setting
    if vote_setting == "vote_weights":
        settings["vote_weights"] = (1.0, *[FOREGROUND_WEIGHT] * (len(names) - 1))
    if vote_setting == "union_class":
        settings["union_class"] = names[-1]
    if variant.maps:
        settings["maps"] = ("percentiles", "entropy")
    return settings


def summarise_passes(out: Path, plan: Plan) -> None:
    """Write `dropout.csv`, draw the figures and print what dropout changes.

    Nothing happens unless some runs were predicted with and without dropout.
    """
    predicted = [
        result
        for result in results.read_results(plan, out)
        if _scored(result, WITHOUT) and _scored(result, ENCODER)
    ]
    if not predicted:
        return
    rows = list(_summarise(predicted))
    columns = [name for name in rows[0] if name != "variant"]
    write_csv(out / "dropout.csv", columns, ([row[name] for name in columns] for row in rows))
    overall = predicted[0].overall
    shown = [row for row in rows if row["name"] == overall]
    for row in shown:
        if row["variant"] == ENCODER and row["difference"] is not None:
            echo(
                f"{row['method']}, {row['labels']} labels, Dice of {overall}: "
                f"{row['difference']:+.3f} by Monte-Carlo dropout, "
                f"95 % {interval_text(row['low'], row['high'])}{_ece_text(row)}"
            )
    pictures = mc_dropout_figures.draw(predicted, shown, out / "figures")
    echo(f"dropout: {out / 'dropout.csv'}   figures: {'  '.join(map(str, pictures))}")


def _ece_text(row: Mapping[str, Any]) -> str:
    if row["ece_difference"] is None:
        return ""
    interval = interval_text(row["ece_difference_low"], row["ece_difference_high"])
    return f"; ECE {row['ece_difference']:+.3f}, {interval}"


def _scored(result: Result, variant: Variant) -> Result | None:
    """A cell with the scores of a variant; None unless all its folds were predicted."""
    folders = tuple(path / variant.folder for path in result.paths)
    if not all(is_done(folder) for folder in folders):
        return None
    rows = tuple(row for folder in folders for row in results.read_rows(folder, None))
    return dataclasses.replace(result, paths=folders, rows=rows)


def _summarise(predicted: Sequence[Result]) -> Iterator[dict[str, Any]]:
    """One row per method, number of labels, variant and class.

    Means over the runs, and the difference to the same runs without dropout.
    """
    for (method, labels), group in group_results(predicted).items():
        for variant in _variants(group[0]):
            pairs = _with_and_without(group, variant)
            if not pairs:
                continue
            results_with = [result for result, _ in pairs]
            results_without = [result for _, result in pairs]
            # of all classes together
            calibration = calibration_columns(results_with, results_without)
            for name in results_with[0].names():
                yield {
                    "method": method,
                    "labels": labels,
                    "validation_labels": group[0].validation_labels,
                    "fraction": group[0].fraction,
                    "variant": variant,
                    "encoder_dropout": variant.encoder,
                    "decoder_dropout": variant.decoder,
                    "vote": "" if variant == WITHOUT else variant.vote,
                    "name": name,
                    "runs": len(pairs),
                    **mean_and_sd([result.mean(name) for result in results_with]),
                    **_change(results_with, results_without, name),
                    **calibration,
                }


def _with_and_without(group: Sequence[Result], variant: Variant) -> list[tuple[Result, Result]]:
    """The scores of each run in a variant and without dropout, where it has both."""
    pairs = []
    for result in group:
        scored = _scored(result, variant)
        without = _scored(result, WITHOUT)
        if scored and without:
            pairs.append((scored, without))
    return pairs


def _change(
    results_with: Sequence[Result], results_without: Sequence[Result], name: str
) -> dict[str, Any]:
    """The difference that dropout makes to the same networks and scans, with its interval."""
    comparison = compare(pair_runs(results_with, results_without), name)
    return comparison.columns() if comparison else dict.fromkeys(("difference", "low", "high"))
