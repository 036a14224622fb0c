"""TensorBoard's own reader sees the metrics that were added, each step once."""

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from selfvox.runs import tensorboard


def read(folder):
    """(step, value) of every metric, read by TensorBoard."""
    events = EventAccumulator(str(folder)).Reload()
    return {
        tag: [(event.step, event.value) for event in events.Scalars(tag)]
        for tag in events.Tags()["scalars"]
    }


def test_tensorboard_reads_what_was_added(tmp_path):
    for step in (10, 20):
        tensorboard.add_scalars(tmp_path / "tensorboard", step, {"loss": step / 4, "dice_a b": 0.5})
    assert read(tmp_path / "tensorboard") == {
        "loss": [(10, 2.5), (20, 5.0)],
        "dice_a b": [(10, 0.5), (20, 0.5)],
    }


def test_steps_that_a_resumed_run_repeats_appear_once(tmp_path):
    tensorboard.drop_scalars_after(tmp_path, 0)
    for step in (10, 20, 30):
        tensorboard.add_scalars(tmp_path, step, {"loss": 1.0})
    tensorboard.drop_scalars_after(tmp_path, 20)
    tensorboard.add_scalars(tmp_path, 30, {"loss": 2.0})
    assert read(tmp_path)["loss"] == [(10, 1.0), (20, 1.0), (30, 2.0)]


def test_a_truncated_last_record_does_not_hide_the_records_before_it(tmp_path):
    for step in (10, 20):
        tensorboard.add_scalars(tmp_path, step, {"loss": 1.0})
    file = tmp_path / tensorboard.EVENT_FILE
    file.write_bytes(file.read_bytes()[:-3])
    assert read(tmp_path)["loss"] == [(10, pytest.approx(1.0))]
