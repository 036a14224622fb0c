"""Distances, map and probes of embeddings, against slower or other ways to compute them."""

import numpy as np
import pytest
from sklearn.decomposition import PCA

from selfvox.evaluation.embeddings import distances, plane, probe_property, standardise


@pytest.fixture
def vectors():
    return np.random.default_rng(0).normal(size=(24, 5)) * [1, 10, 100, 1, 1] + 3


def test_distances_are_those_of_every_pair(vectors):
    scaled = (vectors - vectors.mean(0)) / vectors.std(0)
    expected = [[np.sqrt(((a - b) ** 2).mean()) for b in scaled] for a in scaled]
    np.testing.assert_allclose(distances(vectors), expected, atol=1e-7)


def test_a_feature_that_is_the_same_everywhere_says_nothing(vectors):
    constant = np.hstack([vectors, np.full((24, 1), 7.0)])
    assert (standardise(constant)[:, -1] == 0).all()


def test_the_map_is_that_of_principal_components(vectors):
    points, shares = plane(vectors)
    reference = PCA(2).fit(standardise(vectors))
    expected = reference.transform(standardise(vectors))
    np.testing.assert_allclose(np.abs(points), np.abs(expected), atol=1e-8)
    np.testing.assert_allclose(shares, reference.explained_variance_ratio_, atol=1e-8)


def test_one_scan_has_a_map():
    points, _ = plane(np.ones((1, 4)))
    assert points.tolist() == [[0, 0]]


def subjects(count, scans_each=1):
    return [f"s{number // scans_each}" for number in range(count)]


def test_a_probe_reads_what_is_there_and_nothing_else():
    rng = np.random.default_rng(1)
    values = ["a", "b", "c"] * 30
    signal = np.array([[value == name for name in "abc"] for value in values], float)
    noise = rng.normal(size=(90, 20))
    there = probe_property(np.hstack([signal, noise]), values, subjects(90))
    assert there.score > 0.95
    assert there.groups.keys() == {"a", "b", "c"}
    assert there.largest_gap == max(there.groups.values()) - min(there.groups.values())
    absent = probe_property(noise, values, subjects(90))
    # 90 guesses at one in three: four standard errors
    assert abs(absent.score - absent.chance) < 4 * np.sqrt(2 / 9 / 90)


def test_scans_of_a_person_are_in_one_fold():
    rng = np.random.default_rng(2)
    # each person is unlike the others, and the property is drawn: to know the person would tell it
    people = np.repeat(rng.normal(size=(40, 30)), 4, axis=0)
    values = np.repeat(rng.permutation(["a", "b"] * 20), 4).tolist()
    vectors = people + 0.01 * rng.normal(size=people.shape)
    by_person = probe_property(vectors, values, subjects(160, scans_each=4))
    leaked = probe_property(vectors, values, subjects(160))
    assert leaked.score > 0.9
    assert by_person.score < 0.7


def test_a_probe_is_scored_in_groups_of_another_property():
    rng = np.random.default_rng(5)
    values = np.array(["ill", "well"] * 60)
    sexes = rng.permutation(["f", "m"] * 60)
    # in men the vectors say nothing
    signal = np.where(sexes == "f", (values == "ill") * 6.0, rng.normal(size=120))
    vectors = np.column_stack([signal, rng.normal(size=(120, 3))])
    probe = probe_property(vectors, values.tolist(), subjects(120))
    by_sex = probe.by(["" if number == 0 else sex for number, sex in enumerate(sexes)])
    for sex in "fm":
        right = {"ill": [], "well": []}
        for number in range(1, 120):
            if sexes[number] == sex:
                right[values[number]].append(probe.predicted[number] == values[number])
        assert by_sex.groups[sex] == pytest.approx(np.mean([np.mean(r) for r in right.values()]))
    assert by_sex.score == probe.score
    assert by_sex.largest_gap > 0.3


def test_the_error_of_a_number_is_scored_in_groups():
    rng = np.random.default_rng(6)
    ages = rng.uniform(20, 80, 60)
    vectors = np.column_stack([ages, rng.normal(size=(60, 2))])
    probe = probe_property(vectors, [f"{age:.3f}" for age in ages], subjects(60))
    sites = ["a", "b", "b"] * 20
    errors = {"a": [], "b": []}
    for site, age, predicted in zip(sites, ages, probe.predicted, strict=True):
        errors[site].append(abs(predicted - age))
    means = {site: np.mean(values) for site, values in errors.items()}
    assert probe.by(sites).groups == pytest.approx(means, abs=1e-3)


def test_a_class_of_one_person_cannot_be_probed():
    assert probe_property(np.ones((4, 2)), ["a", "a", "a", "b"], subjects(4)) is None


def test_many_numbers_are_regressed():
    rng = np.random.default_rng(3)
    ages = rng.uniform(20, 80, 60)
    vectors = np.column_stack([ages, rng.normal(size=(60, 4))])
    probe = probe_property(vectors, [f"{age:.2f}" for age in ages], subjects(60))
    assert probe.measure == "mean absolute error"
    assert probe.score < 2
    # of a uniform number around its median: a quarter of its range
    assert abs(probe.chance - 15) < 3
