"""The statistics of a study, compared with loops over runs and cases, and with scikit-learn."""

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import sklearn.metrics

from selfvox.studies import class_scores, statistics, table
from selfvox.studies.random_effects import error_of_mean
from selfvox.studies.results import MEAN, MEAN_OF_REGIONS, Cost, Result


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
        # two pre-trainings share the twin of a seed
        by_twin = [differences[number] + differences[number + 1] for number in (0, 2, 4)]
        assert row["wins"] == sum(item > 0 for item in by_twin)
        assert row["twins"] == 3
        low, high = row["low_simultaneous"], row["high_simultaneous"]
        assert low < row["low"] < row["difference"] < row["high"] < high
        assert row["over"] == "pre-training draw subject"


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


def test_the_interval_is_that_of_the_differences_by_subject():
    results = random_study(np.random.default_rng(3), labels=(2,))
    row = next(row for row in table.summarise(results) if row["twin"] and row["name"] == "b")
    twins = {run.seed: run.of_case("b") for run in results if run.method == "scratch"}
    differences = np.zeros((2, 3, 3))
    for run in results:
        if run.method == "method":
            of_case = run.of_case("b")
            differences[run.pretrain_seed, run.seed] = [
                of_case[case] - twins[run.seed][case] for case in "xyz"
            ]
    error = error_of_mean(differences)
    assert row["error"] == pytest.approx(error.error)
    assert (row["low"], row["high"]) == pytest.approx(error.interval(differences.mean()))


def test_a_subject_contributes_what_the_score_loses_without_all_of_its_scans():
    scores = {
        case: [score, 0.5] for case, score in zip("xyzuv", (0.1, 0.4, 0.9, 0.3, 0.5), strict=True)
    }
    subjects = {"x": "p", "y": "p", "z": "q", "u": "q", "v": "q"}
    run = dataclasses.replace(result("m", 2, 0, scores), subjects=subjects | {"v": "r"})
    contributions = statistics.contributions(run, "a", set("xyzuv"))
    assert contributions.score == pytest.approx(0.44)
    assert contributions.by_subject == pytest.approx(
        {
            "p": 3 * 0.44 - 2 * (0.9 + 0.3 + 0.5) / 3,
            "q": 3 * 0.44 - 2 * (0.1 + 0.4 + 0.5) / 3,
            "r": 3 * 0.44 - 2 * (0.1 + 0.4 + 0.9 + 0.3) / 4,
        }
    )
    cases = {"x", "z", "v"}  # one of each
    of_cases = statistics.contributions(run, "a", cases).by_subject
    assert of_cases == pytest.approx({"p": 0.1, "q": 0.9, "r": 0.5})


def test_of_one_draw_the_difference_has_no_interval():
    results = random_study(np.random.default_rng(3), seeds=(0,))
    rows = [row for row in table.summarise(results) if row["twin"]]
    assert {(row["pairs"], row["twins"], row["low"], row["high"]) for row in rows} == {
        (2, 1, None, None)
    }
    assert all(math.isfinite(row["difference"]) for row in rows)


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
            high - low < b - a for (low, high), (a, b) in zip(of_cases, of_subjects, strict=True)
        )


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
    by_twin = np.reshape(by_run, (-1, 2)).mean(0)
    assert (row["wins"], row["twins"]) == ((by_twin > 0).sum(), 2)
    count = len(cases)
    values = np.zeros((len(pretrain_seeds), 2, count))
    for number, seeds in enumerate(runs):
        without = [difference(*seeds, [c for c in cases if c != case]) for case in cases]
        values[divmod(number, 2)] = count * by_run[number] - (count - 1) * np.array(without)
    error = error_of_mean(values)
    assert row["error"] == pytest.approx(error.error)


def test_the_pseudo_values_of_kappa_have_its_standard_error():
    rng = np.random.default_rng(3)
    run = graded("m", 0, random_answers(rng, 0.3))
    answers = run.answers()
    cases = list(answers)
    values = [*statistics.contributions(run, "all classes", cases).by_subject.values()]
    means = []
    for _ in range(300):
        drawn = [answers[case] for case in rng.choice(cases, len(cases))]
        means.append(class_scores.score(run.key, drawn))
    error = np.std(values, ddof=1) / math.sqrt(len(cases))
    assert error == pytest.approx(np.std(means), rel=0.15)


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


def test_familywise_intervals_are_right_for_all_methods_at_all_numbers_of_labels():
    rng = np.random.default_rng(7)
    results = random_study(rng, pretrain_seeds=(None,))
    others = [
        result("other", run.labels, run.seed, {case: rng.random(2) for case in "xyz"}, "scratch")
        for run in results
        if run.method == "method"
    ]
    results += others
    pairs = [("method", "scratch"), ("other", "scratch")]
    rows = [
        *(row for row in table.summarise(results) if row["twin"]),
        *table.compare_methods(results, pairs),
    ]
    assert len(rows) == 2 * 2 * 2 * 3  # tables, methods, numbers of labels, classes and mean
    groups = table.group_results(results)
    for row in rows:
        of_row = [groups[method, row["labels"]] for method in (row["method"], "scratch")]
        compared = statistics.compare(statistics.pair_runs(*of_row), row["name"])
        for suffix, count in (("simultaneous", 2), ("familywise", 4)):
            expected = compared.error.interval(row["difference"], 0.95 ** (1 / count))
            assert (row[f"low_{suffix}"], row[f"high_{suffix}"]) == pytest.approx(expected)


def test_a_comparison_has_the_ratio_of_all_compute_pre_training_included():
    def costing(run):
        seconds = {"scratch": 20.0, "method": 5.0}[run.method]
        encoder = {"encoder": 10.0} if run.method == "method" else {}
        return dataclasses.replace(run, cost=Cost("cpu", seconds, encoder, 100.0))

    rng = np.random.default_rng(7)
    results = [costing(run) for run in random_study(rng, pretrain_seeds=(None,))]
    rows = table.compare_methods(results, [("method", "scratch"), ("scratch", "method")])
    ratios = {(row["method"], row["cost_ratio"]) for row in rows}
    assert ratios == {("method", 15 / 20), ("scratch", 20 / 15)}
    unknown = [dataclasses.replace(run, cost=None) for run in results if run.labels == 2]
    rows = table.compare_methods(unknown, [("method", "scratch")])
    assert {row["cost_ratio"] for row in rows} == {None}


def test_all_methods_are_compared_with_a_pre_trained_one():
    results = random_study(np.random.default_rng(7), labels=(2,))
    ours = {
        (row["name"], row["pairs"]): row
        for row in table.compare_methods(results, [("method", "scratch")])
    }
    against = table.compare_methods(results, [("scratch", "method")])
    assert {(row["name"], row["pairs"]) for row in against} == ours.keys()
    for row in against:
        other = ours[row["name"], row["pairs"]]
        assert row["difference"] == pytest.approx(-other["difference"])
        assert row["low"] == pytest.approx(-other["high"])
        assert row["twins"] == 6  # each pre-training in each draw


def test_runs_of_two_pre_trained_methods_are_paired_by_pre_training_too():
    results = random_study(np.random.default_rng(7))
    twin_run = [
        dataclasses.replace(run, method="other") for run in results if run.method == "method"
    ]
    rows = table.compare_methods([*results, *twin_run], [("method", "other")])
    assert {(row["difference"], row["pairs"]) for row in rows} == {(0, 6)}
