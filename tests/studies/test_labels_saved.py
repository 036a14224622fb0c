"""Labels saved, on curves whose answer is known, and in simulated studies without an effect."""

import dataclasses
import math

import numpy as np
import pytest

from selfvox.runs.ledger import write_records
from selfvox.studies.labels_saved import labels_saved
from selfvox.studies.results import Result

COUNTS = (5, 10, 20, 40)


def run_of(method, labels, seed, scores, path):
    rows = tuple(
        {"case": str(case), "class": "1", "name": "a", "dice": str(value)}
        for case, value in enumerate(np.atleast_1d(scores))
    )
    return Result(
        paths=(path,), method=method, twin=None, labels=labels, fraction=labels / 100, seed=seed,
        pretrain_seed=None, transductive=False, slices=None, key="dice", rows=rows,
    )  # fmt: skip


@pytest.fixture(autouse=True)
def level_metrics(tmp_path):
    """The metrics of the runs here, all of which have converged."""
    lines = [{"step": step, "dice_mean": 0.5} for step in (20, 40, 60, 80, 100)]
    write_records(tmp_path / "metrics.jsonl", lines)


@pytest.fixture
def saved_of(tmp_path):
    """Labels saved at a number of labels, from (seed, subject) scores of method and twin."""

    def saved(labels, method, twins):
        group = [run_of("m", labels, seed, scores, tmp_path) for seed, scores in enumerate(method)]
        runs = {
            count: [run_of("s", count, seed, scores, tmp_path) for seed, scores in enumerate(of)]
            for count, of in twins.items()
        }
        return labels_saved(group, runs, "a")

    return saved


def test_the_curve_is_straight_in_the_logarithm_of_the_labels(saved_of):
    # a method that is worth twice the labels, with counts as far apart as 10 and 100
    twins = {count: [[0.5 + 0.1 * math.log(count)]] for count in (5, 10, 100)}
    for labels in (5, 10):
        method = [[0.5 + 0.1 * math.log(2 * labels)]]
        assert saved_of(labels, method, twins).estimate == pytest.approx(labels)


def test_a_method_identical_to_its_twin_saves_none_where_seeds_are_missing(tmp_path):
    rng = np.random.default_rng(0)
    group = {count: [] for count in COUNTS}
    twins = {count: [] for count in COUNTS}
    for count in COUNTS:
        for seed in range(5):
            scores = rng.random(4)
            if count < 20 or seed < 3:  # half done
                twins[count].append(run_of("s", count, seed, scores, tmp_path))
                if (count, seed) != (5, 0):
                    group[count].append(run_of("m", count, seed, scores, tmp_path))
    for count in COUNTS:
        saved = labels_saved(group[count], twins, "a")
        assert saved.estimate == pytest.approx(0, abs=1e-9)


def test_a_seed_that_the_method_has_not_says_nothing_about_it(saved_of):
    twins = {count: [[0.1 * math.log(count)], [0.1 * math.log(count)]] for count in COUNTS}
    odd = {count: [*scores, [9.0]] for count, scores in twins.items()}
    method = [[0.1 * math.log(15)]] * 2
    assert saved_of(10, method, odd) == saved_of(10, method, twins)
    assert saved_of(10, method, odd).estimate == pytest.approx(5)


def test_outside_of_the_curve_the_number_is_censored(saved_of):
    twins = {count: [[0.1 * math.log(count)]] for count in COUNTS}
    assert str(saved_of(10, [[0.9]], twins)) == "more than +30"
    assert str(saved_of(10, [[0.0]], twins)) == "fewer than -5"
    assert str(saved_of(40, [[0.9]], twins)) == "more than +0"
    assert str(saved_of(5, [[0.0]], twins)) == "fewer than +0"


def test_a_curve_that_sinks_is_level_there(saved_of):
    twins = {5: [[0.5]], 10: [[0.7]], 20: [[0.6]], 40: [[0.8]]}  # level at .65 from 10 to 20
    assert saved_of(10, [[0.7]], twins).estimate == pytest.approx(0)
    # .05 above the level: a third of the way to .8 at 40, in logarithms
    assert saved_of(10, [[0.75]], twins).estimate == pytest.approx(20 * 2 ** (1 / 3) - 10)
    assert saved_of(20, [[0.55]], twins).estimate == pytest.approx(5 * 2 ** (2 / 3) - 20)


def test_a_run_that_is_missing_leaves_the_interval_about_as_wide(tmp_path):
    rng = np.random.default_rng(0)
    group = []
    twins = {count: [] for count in COUNTS}
    for seed in range(3):
        for count in COUNTS:
            scores = 0.1 * math.log(count) + rng.normal(0, 0.01, 6)
            twins[count].append(run_of("s", count, seed, scores, tmp_path))
        for pretraining in range(2):
            scores = 0.1 * math.log(15) + rng.normal(0, 0.01, 6)
            run = run_of("m", 10, seed, scores, tmp_path)
            group.append(dataclasses.replace(run, pretrain_seed=pretraining))
    complete = labels_saved(group, twins, "a")
    unfinished = labels_saved(group[1:], twins, "a")
    assert complete.low < complete.estimate < complete.high
    ratio = (unfinished.high - unfinished.low) / (complete.high - complete.low)
    assert 0.5 < ratio < 2
    assert unfinished.low < unfinished.estimate < unfinished.high


def test_of_one_draw_there_is_no_interval_and_of_one_count_no_number(saved_of):
    twins = {count: [[0.1, 0.2]] for count in COUNTS}
    assert not saved_of(10, [[0.3, 0.4]], twins).has_interval
    assert str(saved_of(10, [[0.3]], {10: [[0.1]]})).startswith("unknown: ")


def test_nothing_is_said_before_the_twin_has_converged(tmp_path):
    rising, level = tmp_path / "rising", tmp_path / "level"
    for path, last in ((rising, 0.6), (level, 0.5)):
        path.mkdir()
        scores = {20: 0.3, 40: 0.4, 60: 0.45, 80: 0.5, 100: last}
        lines = [{"step": step, "dice_mean": score} for step, score in scores.items()]
        write_records(path / "metrics.jsonl", lines)
    twins = {n: [run_of("s", n, 0, 0.1 * math.log(n), level)] for n in COUNTS}
    group = [run_of("m", 10, 0, 0.3, level)]
    assert labels_saved(group, twins, "a").estimate == pytest.approx(math.exp(3) - 10)
    twins[20] = [dataclasses.replace(run, paths=(rising,)) for run in twins[20]]
    expected = "unknown: the baseline has not converged at 20 labels"
    assert str(labels_saved(group, twins, "a")) == expected


def test_nothing_is_said_where_the_metrics_of_a_twin_were_not_kept(tmp_path):
    (tmp_path / "lost").mkdir()
    twins = {n: [run_of("s", n, 0, 0.1 * math.log(n), tmp_path)] for n in COUNTS}
    twins[20] = [dataclasses.replace(run, paths=(tmp_path / "lost",)) for run in twins[20]]
    group = [run_of("m", 10, 0, 0.3, tmp_path)]
    expected = "unknown: the baseline has no metrics at 20 labels"
    assert str(labels_saved(group, twins, "a")) == expected


def test_nothing_is_said_where_the_metrics_of_a_twin_are_too_few_to_tell(tmp_path):
    twins = {n: [run_of("s", n, 0, 0.1 * math.log(n), tmp_path)] for n in COUNTS}
    (tmp_path / "once").mkdir()
    write_records(tmp_path / "once" / "metrics.jsonl", [{"step": 100, "dice_mean": 0.5}])
    twins[20] = [dataclasses.replace(run, paths=(tmp_path / "once",)) for run in twins[20]]
    expected = "unknown: the baseline has too few metrics to tell whether it has converged at 20"
    assert expected in str(labels_saved([run_of("m", 10, 0, 0.3, tmp_path)], twins, "a"))


def test_without_an_effect_labels_saved_are_centred_on_zero(saved_of):
    rng = np.random.default_rng(0)
    studies = 40
    signs = {count: [] for count in COUNTS}
    contained = {count: 0 for count in COUNTS}
    for _ in range(studies):
        subjects = 0.05 * rng.normal(size=8)
        scores = {
            count: 0.08 * math.log(count) + subjects + 0.02 * rng.normal(size=(2, 4, 1))
            + 0.03 * rng.normal(size=(2, 4, 8))
            for count in COUNTS
        }  # fmt: skip
        twins = {count: of[0] for count, of in scores.items()}
        for count in COUNTS:
            saved = saved_of(count, scores[count][1], twins)
            signs[count].append(np.sign(saved.estimate))
            low = -math.inf if saved.low is None else saved.low
            high = math.inf if saved.high is None else saved.high
            contained[count] += low <= 1e-9 and high >= -1e-9
    for count in COUNTS:
        # two standard deviations of a fair coin, and three of intervals that are right in 95 %
        assert abs(np.sum(signs[count])) <= 2 * math.sqrt(studies)
        assert contained[count] >= studies * 0.95 - 3 * math.sqrt(studies * 0.95 * 0.05)
