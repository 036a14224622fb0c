"""The estimates of an ensemble are means of its networks', and hold for the ensemble: simulated."""

import dataclasses

import numpy as np
import pytest

from selfvox.uncertainty.calibration import Measure, make_calibration
from selfvox.uncertainty.ensemble import PassSettings
from selfvox.uncertainty.ensemble_calibration import EnsembleCalibration
from selfvox.uncertainty.mc_dropout import Dropout

SETTINGS = PassSettings(passes=20, dropout=Dropout(0.3, 0.0, "element", 0))
NETWORKS = 4


def draw(rng):
    """One scan: its measure by each network, and the same of their common vote.

    Errors of the networks have a common part and one of their own, which the vote averages.
    """
    true = rng.uniform(5, 50)
    difficulty = rng.uniform(0.02, 0.2)
    errors = difficulty * (rng.normal() + rng.normal(size=NETWORKS))
    volumes = true * np.exp(errors - 0.1)
    spreads = true * difficulty * rng.uniform(0.3, 0.6, NETWORKS)
    agreements = 1 - difficulty * rng.uniform(0.3, 0.6, NETWORKS)
    dice = 0.9 - difficulty * (1 + 0.3 * np.abs(rng.normal(size=NETWORKS)))
    networks = [
        {"volume": float(v), "spread": float(s), "agreement": float(a)}
        for v, s, a in zip(volumes, spreads, agreements, strict=True)
    ]
    part = {"class": 1, "volume": float(np.mean(volumes)), "networks": networks}
    return part, dice, true, float(np.mean(dice) + 0.01)


def cross_fit(rng, count):
    """Each scan measured by one network alone, and one calibration of all of them."""
    measures = []
    for number in range(count):
        part, dice, true, _ = draw(rng)
        of_network = number % NETWORKS
        measures.append(
            Measure(
                case=f"case_{number}",
                subject=f"subject_{number}",
                dice=float(dice[of_network]),
                true_volume=true,
                **part["networks"][of_network],
            )
        )
    made = make_calibration(SETTINGS, "abc", 0.5, "validation", {"1": measures}, {}, "ml", NETWORKS)
    return EnsembleCalibration((made,) * NETWORKS)


@pytest.mark.parametrize("subjects", [8, 20])
def test_a_cross_fitted_calibration_covers_the_ensemble_at_least_as_often_as_it_promises(subjects):
    rng = np.random.default_rng(0)
    volumes = []
    dice = []
    errors = []
    for _ in range(150):
        calibration = cross_fit(rng, subjects)
        for _ in range(20):
            part, _, true, true_dice = draw(rng)
            estimate = calibration.estimate(part)
            volumes.append(estimate.volume_low <= true <= estimate.volume_high)
            dice.append(estimate.dice_low <= true_dice <= estimate.dice_high)
            errors.append(estimate.dice - true_dice)
    # 150 calibrations are the independent draws: three standard errors of their mean
    slack = 3 * (0.09 / 150) ** 0.5
    assert np.mean(volumes) > calibration.level - slack
    assert np.mean(dice) > calibration.level - slack
    assert calibration.level == (0.9 if subjects == 20 else 8 / 9)
    # rather too low than too high
    assert -0.03 < np.mean(errors) < 0.005


def test_an_estimate_is_the_mean_of_what_each_network_says_of_itself():
    rng = np.random.default_rng(1)
    first, second = (cross_fit(rng, 12).networks[0] for _ in range(2))
    part, *_ = draw(rng)
    part["networks"] = part["networks"][:2]
    estimate = EnsembleCalibration((first, second)).estimate(part)
    alone = [
        network.estimate({"class": 1, **measure})
        for network, measure in zip((first, second), part["networks"], strict=True)
    ]
    expected = np.mean(alone, axis=0)
    assert estimate[:3] == pytest.approx(expected[:3])
    assert estimate.volume_low == pytest.approx(min(expected[3], part["volume"]))
    assert estimate.volume_high == pytest.approx(max(expected[4], part["volume"]))
    # a vote that none of the networks has alone is written, and so is in its interval
    far = EnsembleCalibration((first, second)).estimate({**part, "volume": 1000.0})
    assert far.volume_high == 1000
    of_one = EnsembleCalibration((first,)).estimate({"class": 1, **part["networks"][0]})
    assert of_one == alone[0]
    # of another number of networks, as in a record of an earlier version, nothing is known
    assert EnsembleCalibration((first,) * 3).estimate(part) is None
    del part["networks"]
    assert EnsembleCalibration((first, second)).estimate(part) is None


def test_the_lowest_level_of_all_networks_is_promised_and_each_origin_named_once():
    rng = np.random.default_rng(2)
    few = dataclasses.replace(cross_fit(rng, 4).networks[0], networks=1, scans="site A")
    many = cross_fit(rng, 12).networks[0]
    calibration = EnsembleCalibration((many, few, few))
    assert calibration.level == 0.8
    assert calibration.percent == "80 %"
    assert calibration.origin == (
        "12 subjects, each by one of 4 networks that was not trained on it: validation; "
        "4 subjects: site A"
    )
