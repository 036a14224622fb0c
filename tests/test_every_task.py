"""Every pretext task, in 2D and 3D: a new file in tasks/ is tested by being there."""

import pytest
import torch

from selfvox import tasks, testing
from selfvox.errors import UsageError
from selfvox.settings.options import options
from selfvox.testing.task_checks import RecordedDraws

every_task = pytest.mark.parametrize("name", tasks.task_names())


@every_task
@pytest.mark.parametrize("spatial_dims", [2, 3], ids=["2D", "3D"])
@pytest.mark.parametrize("check", testing.TASK_CHECKS, ids=lambda check: check.__name__)
def test_the_contract_of_a_task_is_satisfied(name, spatial_dims, check):
    check(tasks.task_from_setting(name), spatial_dims)


@every_task
def test_a_negative_number_is_refused_by_name(name):
    for option in options(tasks.find_task(name)):
        if isinstance(option.default, int | float):
            with pytest.raises(UsageError, match=rf"task\.{option.name}"):
                tasks.task_from_setting({"name": name, option.name: -1})


@every_task
def test_a_misspelt_task_is_refused_with_the_right_one(name):
    with pytest.raises(UsageError, match=f"did you mean '{name}'"):
        tasks.find_task(name[:-1])


def test_a_draw_from_any_other_generator_would_be_seen():
    rng = torch.Generator().manual_seed(0)
    with RecordedDraws(rng) as draws:
        torch.rand(2, generator=rng)
        torch.rand(2)
        torch.empty(2).uniform_(generator=torch.Generator().manual_seed(0))
        torch.nn.functional.dropout(torch.ones(2))
    assert draws.from_rng == [True, False, False, False]
