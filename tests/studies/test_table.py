"""The statistics of a study, compared with loops over runs and cases, and with scikit-learn."""

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import sklearn.metrics

from selfvox.studies import statistics, table
from selfvox.studies.results import MEAN, MEAN_OF_REGIONS, Result


def result(method, labels, seed, scores, twin=None, pretrain_seed=None):
    """A cell with the Dice of classes a and b of each case."""
    rows = tuple(
        {"case": case, "class": str(number), "name": name, "dice": str(value)}
        for case, values in scores.items()
        for number, (name, value) in enumerate(zip("ab", values, strict=True), start=1)
    )
    return Result(
        paths=(Path(),),
        method=method,
        twin=twin,
        labels=labels,
        fraction=labels / 10,
        seed=seed,
        pretrain_seed=pretrain_seed,
        transductive=False,
        slices=None,
        key="dice",
        rows=rows,
    )


def random_study(rng, seeds=(0, 1, 2), labels=(2, 4), cases=("x", "y", "z"), pretrain_seeds=(0, 1)):
    results = []
    for n in labels:
        for seed in seeds:
            results.append(result("scratch", n, seed, {case: rng.random(2) for case in cases}))
            results += [
                result("method", n, seed, {case: rng.random(2) for case in cases}, "scratch", twice)
                for twice in pretrain_seeds
            ]
    return results


def test_the_summary_is_what_loops_over_the_rows_give():
    results = random_study(np.random.default_rng(3))
    for row in table.summarise(results):
        runs_of_row = [
            run for run in results if (run.method, run.labels) == (row["method"], row["labels"])
        ]
        means = []
        for run in runs_of_row:
            values = [
                float(item["dice"]) for item in run.rows if row["name"] in (item["name"], MEAN)
            ]
            means.append(sum(values) / len(values))
        mean = sum(means) / len(means)
        assert row["mean"] == pytest.approx(mean)
        assert row["sd"] == pytest.approx(
            math.sqrt(sum((m - mean) ** 2 for m in means) / (len(means) - 1))
        )
        if row["method"] == "scratch":
            assert row["twin"] is None
            continue
        differences = []
        for run, score_of_run in zip(runs_of_row, means, strict=True):
            twin_run = next(
                o
                for o in results
                if (o.method, o.labels, o.seed) == ("scratch", run.labels, run.seed)
            )
            values = [
                float(item["dice"]) for item in twin_run.rows if row["name"] in (item["name"], MEAN)
            ]
            differences.append(score_of_run - sum(values) / len(values))
        assert row["pairs"] == 6
        assert row["difference"] == pytest.approx(sum(differences) / 6)
        assert row["difference_median"] == pytest.approx(
            sorted(differences)[2] / 2 + sorted(differences)[3] / 2
        )
        assert row["wins"] == sum(item > 0 for item in differences)
        assert row["low"] <= row["difference"] <= row["high"]


def test_the_interval_of_a_constant_difference_is_that_difference():
    rng = np.random.default_rng(0)
    results = random_study(rng, pretrain_seeds=())
    for run in list(results):
        better = {
            case: [float(row["dice"]) + 0.25 for row in run.rows if row["case"] == case]
            for case in run.of_case("a")
        }
        results.append(result("method", run.labels, run.seed, better, "scratch"))
    rows = [row for row in table.summarise(results) if row["method"] == "method"]
    assert rows
    for row in rows:
        assert (row["low"], row["high"], row["difference"]) == pytest.approx((0.25, 0.25, 0.25))
        assert row["wins"] == row["pairs"] == 3


def test_the_bootstrap_is_that_of_loops():
    differences = np.random.default_rng(2).normal(0.1, 1.0, (2, 4, 5))
    differences[1, 2] = np.nan
    rng, means = np.random.default_rng(0), []
    for _ in range(2000):
        drawn = [rng.integers(size, size=size) for size in differences.shape]
        total = [differences[p, s, c] for p in drawn[0] for s in drawn[1] for c in drawn[2]]
        total = [value for value in total if not math.isnan(value)]
        if total:
            means.append(sum(total) / len(total))
    assert statistics.bootstrap(differences) == pytest.approx(
        tuple(np.percentile(means, (2.5, 97.5))), abs=0.06
    )


def test_the_interval_draws_subjects_with_all_of_their_cases():
    subjects, rng, means = ["p", "p", "q", "r", "r", "r"], np.random.default_rng(0), []
    differences = np.random.default_rng(2).normal(0.1, 1.0, (2, 3, 6))
    for _ in range(2000):
        seeds = [rng.integers(size, size=size) for size in (2, 3)]
        cases = [
            c for who in rng.choice(["p", "q", "r"], 3) for c in range(6) if subjects[c] == who
        ]
        means.append(
            np.mean([differences[p, s, c] for p in seeds[0] for s in seeds[1] for c in cases])
        )
    expected = tuple(np.percentile(means, (2.5, 97.5)))
    assert statistics.bootstrap(differences, subjects) == pytest.approx(expected, abs=0.06)
    assert statistics.bootstrap(differences) == statistics.bootstrap(differences, list("abcdef"))


def test_a_second_scan_of_every_subject_that_is_like_the_first_leaves_the_interval():
    def twice(run, with_subjects):
        rows = [row | {"case": row["case"] + suffix} for row in run.rows for suffix in "12"]
        subjects = {row["case"]: row["case"][:-1] for row in rows}
        return dataclasses.replace(
            run, rows=tuple(rows), subjects=subjects if with_subjects else {}
        )

    rng = np.random.default_rng(3)
    answers = [
        item
        for seed in (0, 1)
        for item in (
            graded("m", seed, random_answers(rng, 0.3), "s"),
            graded("s", seed, random_answers(rng, 0.6)),
        )
    ]
    for results in (random_study(np.random.default_rng(3)), answers):
        once, of_subjects, of_cases = (
            [(row["low"], row["high"]) for row in table.summarise(item) if row["twin"]]
            for item in (
                results,
                [twice(run, True) for run in results],
                [twice(run, False) for run in results],
            )
        )
        assert np.array(of_subjects) == pytest.approx(np.array(once))
        assert all(
            high - low < 0.95 * (b - a)
            for (low, high), (a, b) in zip(of_cases, of_subjects, strict=True)
        )


def test_the_interval_of_many_cases_is_the_normal_one():
    differences = np.random.default_rng(1).normal(0.1, 1.0, (1, 1, 400))
    low, high = statistics.bootstrap(differences)
    error = differences.std() / math.sqrt(400)
    assert low == pytest.approx(differences.mean() - 1.96 * error, abs=0.15 * error)
    assert high == pytest.approx(differences.mean() + 1.96 * error, abs=0.15 * error)


def test_the_spread_between_seeds_widens_the_interval():
    between = np.array([-0.2, 0.0, 0.2])[None, :, None] + np.zeros((1, 3, 50))
    low, high = statistics.bootstrap(between)
    assert (low, high) == pytest.approx((-0.2, 0.2), abs=0.03)


def test_missing_runs_are_left_out_of_the_pairs():
    complete = random_study(np.random.default_rng(5), labels=(2,))
    results = [
        run for run in complete if (run.method, run.seed, run.pretrain_seed) != ("method", 1, 1)
    ]
    results = [run for run in results if (run.method, run.seed) != ("scratch", 2)]
    row = next(
        row for row in table.summarise(results) if row["method"] == "method" and row["name"] == MEAN
    )
    assert (row["runs"], row["pairs"]) == (5, 3)
    pairs = [("0", 0), ("0", 1), ("1", 0)]
    assert row["difference"] == pytest.approx(
        np.mean(
            [
                run.mean(MEAN)
                - next(o for o in complete if o.method == "scratch" and o.seed == run.seed).mean(
                    MEAN
                )
                for run in complete
                if run.method == "method" and (str(run.seed), run.pretrain_seed) in pairs
            ]
        )
    )


@pytest.mark.parametrize(
    ("score", "labels"),
    [(0.5, 10), (0.6, 15), (0.7, 20), (0.75, 30), (0.8, 40), (0.49, None), (0.81, None)],
)
def test_labels_at_a_score_are_on_the_line_between_two_points(score, labels):
    curve = {20: 0.7, 10: 0.5, 40: 0.8}
    assert statistics.labels_at(score, curve) == (None if labels is None else pytest.approx(labels))


def test_where_a_curve_sinks_the_first_labels_that_reach_the_score_count():
    assert statistics.labels_at(0.6, {10: 0.5, 20: 0.7, 40: 0.6, 80: 0.9}) == pytest.approx(15)
    assert statistics.labels_at(0.65, {10: 0.6, 20: 0.5, 40: 0.7}) == pytest.approx(35)
    assert statistics.labels_at(0.5, {10: 0.5}) == 10
    assert statistics.labels_at(0.5, {}) is None


def test_labels_saved_are_those_the_twin_needs_beyond_the_method_s():
    scores = {"x": [0.6, 0.6]}
    results = [result("scratch", n, 0, {"x": [s, s]}) for n, s in ((10, 0.5), (20, 0.7))]
    results += [
        result("method", 10, 0, scores, "scratch"),
        result("method", 20, 0, {"x": [0.9, 0.9]}, "scratch"),
    ]
    saved = {
        row["labels"]: row["labels_saved"]
        for row in table.summarise(results)
        if row["method"] == "method"
    }
    assert saved == {10: pytest.approx(5), 20: "unknown"}


def test_where_there_are_regions_the_mean_is_theirs():
    run = result("scratch", 2, 0, {"x": [0.1, 0.3], "y": [0.5, 0.7]})
    regions = [
        {"case": case, "class": of, "name": name, "dice": str(dice)}
        for case, scores in (("x", (0.2, 0.6)), ("y", (0.4, 1.0)))
        for of, name, dice in zip(("1+2", "2"), ("both", "B"), scores, strict=True)
    ]
    rows = [row for case in "xy" for row in [*run.rows, *regions] if row["case"] == case]
    complete = dataclasses.replace(run, rows=tuple(rows))
    assert complete.names() == ["a", "b", "both", "B", MEAN_OF_REGIONS]
    assert complete.of_case(MEAN_OF_REGIONS) == pytest.approx({"x": 0.4, "y": 0.7})
    assert complete.mean("b") == pytest.approx(0.5)
    assert run.of_case(MEAN) == pytest.approx({"x": 0.2, "y": 0.6})


def graded(method, seed, answers, twin=None, pretrain_seed=None):
    """A cell with the true and the predicted class of each case."""
    run = result(method, 5, seed, {}, twin, pretrain_seed)
    rows = tuple(
        {
            "case": case,
            "class": "",
            "name": "all classes",
            "true": str(true),
            "predicted": str(predicted),
        }
        for case, (true, predicted) in answers.items()
    )
    return dataclasses.replace(run, key="quadratic_kappa", rows=rows)


def random_answers(rng, wrong):
    truth = np.arange(60) % 4
    predicted = np.where(rng.random(60) < wrong, rng.integers(0, 4, 60), truth)
    return {
        f"c{number:02}": pair
        for number, pair in enumerate(zip(truth.tolist(), predicted.tolist(), strict=True))
    }


def test_kappa_of_the_answers_is_that_of_scikit_learn():
    answers = random_answers(np.random.default_rng(0), 0.5)
    truth, predicted = zip(*answers.values(), strict=True)
    assert graded("a", 0, answers).mean("all classes") == pytest.approx(
        sklearn.metrics.cohen_kappa_score(truth, predicted, weights="quadratic")
    )
    unordered = dataclasses.replace(graded("a", 0, answers), key="balanced_accuracy")
    assert unordered.mean("all classes") == pytest.approx(
        sklearn.metrics.balanced_accuracy_score(truth, predicted)
    )


@pytest.mark.parametrize("pretrain_seeds", [(None,), (0, 1, 2)])
def test_the_difference_in_kappa_and_its_interval_are_those_of_loops(pretrain_seeds):
    rng = np.random.default_rng(3)
    twins = {seed: graded("s", seed, random_answers(rng, 0.6)) for seed in (0, 1)}
    # pre-trainings that differ much, so that the interval is wider where they are resampled
    errors = dict(zip(pretrain_seeds, (0.3, 0.1, 0.7), strict=False))
    runs = {
        (pretrain_seed, seed): graded("m", seed, random_answers(rng, wrong), "s", pretrain_seed)
        for pretrain_seed, wrong in errors.items()
        for seed in (0, 1)
    }
    rows = table.summarise([*runs.values(), *twins.values()])
    row = next(row for row in rows if row["method"] == "m")

    def kappa(answers):
        error = sum((true - predicted) ** 2 for true, predicted in answers)
        by_chance = sum((true - predicted) ** 2 for true, _ in answers for _, predicted in answers)
        return 1 - error / (by_chance / len(answers))

    def difference(pretrain_seed, seed, cases):
        method, twin = runs[pretrain_seed, seed].answers(), twins[seed].answers()
        return kappa([method[case] for case in cases]) - kappa([twin[case] for case in cases])

    cases = twins[0].cases()
    by_run = [difference(*seeds, cases) for seeds in runs]
    assert row["difference"] == pytest.approx(np.mean(by_run))
    assert row["wins"] == sum(value > 0 for value in by_run)
    means = []
    for _ in range(300):
        drawn = rng.choice(cases, len(cases))
        drawn_pretrain_seeds = rng.integers(len(pretrain_seeds), size=len(pretrain_seeds))
        drawn_seeds = rng.integers(2, size=2)
        values = [
            difference(pretrain_seeds[p], seed, drawn)
            for p in drawn_pretrain_seeds
            for seed in drawn_seeds
        ]
        means.append(np.mean(values))
    expected = tuple(np.percentile(means, (2.5, 97.5)))
    assert (row["low"], row["high"]) == pytest.approx(expected, abs=0.06)


def test_a_comparison_with_another_method_is_computed_like_that_with_the_twin():
    results = random_study(np.random.default_rng(7))
    twins = {
        (row["labels"], row["name"]): row
        for row in table.summarise(results)
        if row["method"] == "method"
    }
    rows = table.compare_methods(results, [("method", "scratch"), ("method", "nobody")])
    assert len(rows) == len(twins)
    for row in rows:
        assert row == {
            name: twins[row["labels"], row["name"]][name] for name in table.AGAINST_COLUMNS
        }
    ours = table.compare_methods(results, [("scratch", "scratch")])
    assert {(row["difference"], row["low"], row["high"]) for row in ours} == {(0, 0, 0)}
    assert {row["wins"] for row in ours} == {0}  # equal is not better


def test_runs_of_two_pre_trained_methods_are_paired_by_pre_training_too():
    results = random_study(np.random.default_rng(7))
    twin_run = [
        dataclasses.replace(run, method="other") for run in results if run.method == "method"
    ]
    rows = table.compare_methods([*results, *twin_run], [("method", "other")])
    assert {(row["difference"], row["pairs"]) for row in rows} == {(0, 6)}
