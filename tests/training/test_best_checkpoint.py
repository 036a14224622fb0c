"""When a fine-tuning validates."""

import pytest

from selfvox.training.best_checkpoint import validation_steps


@pytest.mark.parametrize(
    ("validate_every", "steps", "expected"),
    [
        # of 400 epochs, three of the first 20
        (None, 400, [5, 10, 20, 40, 80, 160, 240, 320, 400]),
        (None, 23, [1, 2, 4, 8, 12, 16, 20, 23]),
        (None, 3, [1, 2, 3]),
        (7, 30, [7, 14, 21, 28, 30]),
        (50, 30, [30]),
    ],
)
def test_validations_follow_early_steps_regular_ones_and_the_last(validate_every, steps, expected):
    assert validation_steps(validate_every, steps) == expected
