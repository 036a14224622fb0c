import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from selfvox.runs import tensorboard


def read(folder):
    """What TensorBoard itself makes of it."""
    found = EventAccumulator(str(folder)).Reload()
    return {
        tag: [(each.step, each.value) for each in found.Scalars(tag)]
        for tag in found.Tags()["scalars"]
    }


def test_tensorboard_reads_what_was_added(tmp_path):
    for step in (10, 20):
        tensorboard.add_scalars(tmp_path / "tensorboard", step, {"loss": step / 4, "dice_a b": 0.5})
    assert read(tmp_path / "tensorboard") == {
        "loss": [(10, 2.5), (20, 5.0)],
        "dice_a b": [(10, 0.5), (20, 0.5)],
    }


def test_steps_that_are_taken_again_are_seen_once(tmp_path):
    tensorboard.drop_scalars_after(tmp_path, 0)
    for step in (10, 20, 30):
        tensorboard.add_scalars(tmp_path, step, {"loss": 1.0})
    tensorboard.drop_scalars_after(tmp_path, 20)
    tensorboard.add_scalars(tmp_path, 30, {"loss": 2.0})
    assert read(tmp_path)["loss"] == [(10, 1.0), (20, 1.0), (30, 2.0)]


def test_a_record_cut_short_by_a_kill_does_not_hide_the_ones_before(tmp_path):
    for step in (10, 20):
        tensorboard.add_scalars(tmp_path, step, {"loss": 1.0})
    file = tmp_path / tensorboard.EVENT_FILE
    file.write_bytes(file.read_bytes()[:-3])
    assert read(tmp_path)["loss"] == [(10, pytest.approx(1.0))]
