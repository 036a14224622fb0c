"""The plan of a pre-training follows from its settings and the scans alone."""

import math

import pytest

import selfvox
from selfvox.data.preparation.store import open_store
from selfvox.errors import UsageError
from selfvox.training.pretrain_plan import pretrain_plan


@pytest.fixture
def plan(shapes_store, tmp_path):
    def make(devices=1, **settings):
        defaults = {"scans": shapes_store, "out": tmp_path / "run", "task": "rotation"}
        resolved = selfvox.pretrain.settings(**defaults | settings)
        return pretrain_plan(resolved, open_store(shapes_store), devices)

    return make


@pytest.mark.parametrize(("batch", "accumulate", "devices"), [(1, 1, 1), (2, 1, 1), (2, 2, 3)])
def test_epochs_are_passes_of_all_devices_over_the_scans_that_are_not_for_testing(
    plan, batch, accumulate, devices
):
    planned = plan(devices, epochs=8, batch=batch, accumulate=accumulate)
    assert planned.training.steps == math.ceil(8 * 6 / (batch * accumulate * devices))


def test_steps_are_taken_as_they_are(plan):
    assert plan(3, steps=7, batch=4, accumulate=2).training.steps == 7


def test_test_subjects_are_in_no_plan(plan, shapes_store):
    store = open_store(shapes_store)
    test = set(store.split().test)
    assert {case.subject for case in plan().cases} == {case.subject for case in store.cases} - test


def test_slices_are_planned_in_2d(plan):
    planned = plan(slices="coronal", crop=(16,))
    assert planned.slice_axis == 1
    assert planned.crop == (16, 16)
    assert len(planned.spacing_mm) == 2
    assert all(len(stride) == 2 for stride in planned.network["strides"])


def test_the_same_settings_give_the_same_plan_whatever_the_seed_of_the_process(plan):
    assert plan(seed=1) == plan(seed=1)


def test_a_crop_of_wrong_dimensions_is_refused(plan):
    with pytest.raises(UsageError, match="names 2 edges and the scans have 3 axes"):
        plan(crop=(16, 16))
