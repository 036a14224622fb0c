"""Plain networks from scratch: whose baseline they are, and when they have cells of their own."""

import csv
import json

import pytest

import selfvox
from selfvox.errors import UsageError
from selfvox.studies import results
from selfvox.studies.design import list_arms
from selfvox.studies.facts import load_facts
from selfvox.studies.read_plan import read_plan
from selfvox.studies.saved_plan import load_plan

from .conftest import FACTS, rotation

LONGER = {"pretrain": None, "finetune": {"steps": 6}}
FROZEN = {"freeze": "always"}


def arm_names(path):
    plan = read_plan(str(path))
    facts = {method.name: FACTS for method in plan.trained_methods}
    return [arm.name for arm in list_arms(plan, facts)]


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"methods": {"base": "scratch", "longer": LONGER}}, ["base", "longer"]),
        ({"methods": {"base": "scratch", **rotation()}}, ["base", "rotation"]),
        # the baseline of frozen features is frozen, so that nothing else trains `base`
        (
            {"methods": {"base": "scratch", **rotation(finetune=FROZEN)}},
            ["base", "base frozen", "rotation"],
        ),
        # the same cells under another name
        (
            {"methods": {"base": "scratch", **rotation()}, "finetune": FROZEN},
            ["base frozen", "rotation"],
        ),
    ],
)
def test_a_plain_network_is_trained_once(changes, names, write_plan):
    assert arm_names(write_plan(**changes)) == names


def test_all_methods_can_be_compared_with_a_plain_network(write_plan, pretended, tmp_path):
    plan = write_plan(methods={"base": "scratch", "longer": LONGER}, against=["base"])
    selfvox.study(str(plan), out=tmp_path / "out")
    assert "base 1-labels-seed-0" in pretended
    with (tmp_path / "out" / "comparisons.csv").open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    assert {(row["comparison"], row["method"], row["twin"]) for row in rows} == {
        ("minus base", "longer", "base")
    }


def test_a_comparison_with_a_network_that_only_names_the_baselines_is_refused(write_plan):
    plan = write_plan(methods={"base": "scratch", **rotation()}, finetune=FROZEN, against=["base"])
    with pytest.raises(UsageError, match=r"against: base has no cells; .* called base frozen"):
        read_plan(str(plan))


def test_a_method_that_is_added_may_bring_another_baseline_for_those_that_are_done(
    write_plan, pretended, tmp_path
):
    out = tmp_path / "out"
    methods = {"longer": LONGER, "there": {"predictions": "there/{labels}"}}
    for labels in (1, 3):
        (tmp_path / "there" / str(labels)).mkdir(parents=True)
        for label in (tmp_path / "scans" / "labels").iterdir():
            (tmp_path / "there" / str(labels) / label.name).symlink_to(label)
    selfvox.study(str(write_plan(methods=methods)), out=out)
    assert twins(out)["there"] == "longer"
    selfvox.study(str(write_plan(methods={**methods, **rotation()})), out=out)
    plan = load_plan(out / "plan.yaml")
    arms = {arm.name: arm.twin for arm in list_arms(plan, load_facts(out))}
    assert arms["there"] == "scratch"
    assert twins(out) == arms
    for done in out.glob("cells/*/*/done.json"):
        assert "twin" not in json.loads(done.read_text())


def twins(out):
    """The baseline of each method, by its results."""
    return {run.method: run.twin for run in results.read_results(load_plan(out / "plan.yaml"), out)}
