"""Processes that read: what signals, deaths and hanging disks do to them, and to the training."""

import multiprocessing
import os
import resource
import select
import signal
import time
from pathlib import Path

import pytest
import torch

import selfvox
from selfvox.data.sampling.crops import Crops
from selfvox.errors import DataError, ResourceError
from selfvox.runs.stop_signals import STOP_SIGNALS
from selfvox.training import batches, pretext_objective, readers
from selfvox.training.readers import read_batches


class Numbers(torch.utils.data.Dataset):
    """The number of each sample; `disturb` is called with it first."""

    def __init__(self, disturb=lambda sample: None):
        self.disturb = disturb

    def __getitem__(self, sample):
        self.disturb(sample)
        return {"number": torch.tensor(sample)}


def hang_at(place):
    """A function that hangs at one sample, as on a disk that is gone."""
    return lambda sample: time.sleep(1000) if sample == place else None


def one_by_one(count):
    return [[number] for number in range(count)]


@pytest.mark.fault("F3", "a signal to the processes that read", "no batch is lost")
def test_a_signal_to_the_processes_that_read_costs_no_batch():
    samples = [0]
    reading = read_batches(Numbers(), one_by_one(60), workers=1)
    next(reading)
    (reader,) = multiprocessing.active_children()
    for number in STOP_SIGNALS:
        os.kill(reader.pid, number)
        samples += [int(next(reading)["number"]) for _ in range(10)]
    reading.close()
    assert samples == list(range(51))


@pytest.mark.fault("F13", "SIGKILL of a process that reads", "reported with the remedy")
def test_a_process_that_reads_and_dies_is_reported_with_the_remedy():
    dying = Numbers(lambda sample: os.kill(os.getpid(), signal.SIGKILL))
    with pytest.raises(ResourceError, match="a process that reads the scans died"):
        list(read_batches(dying, [[0]], workers=1))


def leak(sample, kept=[]):  # noqa: B006
    """Keep 1 GB for each sample, where 1.5 GB more may be taken."""
    if sample == 0:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + 1_500_000_000
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    # more than earlier tests left free in this process, and never touched
    kept.append(bytearray(1_000_000_000))


@pytest.mark.fault("F16", "a process that reads leaks memory", "reported with the remedy")
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads /proc")
def test_a_process_that_reads_and_leaks_memory_is_reported_with_the_remedy():
    reading = read_batches(Numbers(leak), one_by_one(20), workers=1)
    with pytest.raises(ResourceError, match=r"the memory is full while scans are read; use a"):
        list(reading)


@pytest.mark.fault("F16", "no memory to read a scan in training", "ends with a checkpoint")
def test_a_training_without_memory_to_read_ends_with_a_checkpoint(
    shapes_store, tmp_path, small, monkeypatch
):
    def read(self, sample):
        if sample == 4:
            raise MemoryError
        return getitem(self, sample)

    getitem = Crops.__getitem__
    monkeypatch.setattr(Crops, "__getitem__", read)
    settings = {**small, "task": "rotation", "steps": 8, "batch": 2}
    with pytest.raises(ResourceError, match=r"the memory is full.*saved after step 2"):
        selfvox.pretrain(shapes_store, out=tmp_path / "run", **settings)


@pytest.mark.fault("F15", "a process that reads is silent", "reported once, and waited for")
def test_readers_that_deliver_nothing_for_long_are_reported_once(monkeypatch, capsys):
    monkeypatch.setattr(readers, "SILENT_S", 1)
    slow = Numbers(lambda sample: time.sleep(2.5 if sample == 1 else 0))
    samples = [int(batch["number"]) for batch in read_batches(slow, one_by_one(4), workers=1)]
    assert samples == [0, 1, 2, 3]
    assert capsys.readouterr().err.count("have delivered nothing for 1 s") == 1


@pytest.mark.fault("F15", "a process that reads hangs for good", "ended with the training")
def test_a_training_that_fails_ends_its_readers_although_one_hangs(
    shapes_store, tmp_path, small, monkeypatch
):
    def with_readers(data, numbers, workers, **options):
        return read_batches(data, numbers, 1, **options)

    def read(self, sample):
        hang_at(6)(sample)
        return getitem(self, sample)

    def fail(self, batch, step, rng):
        if step == 1:
            time.sleep(0.5)  # until the reader hangs
            raise DataError("a scan is gone; restore it")
        return forward(self, batch, step, rng)

    getitem = Crops.__getitem__
    forward = pretext_objective.PretextObjective.forward
    monkeypatch.setattr(batches, "read_batches", with_readers)
    monkeypatch.setattr(Crops, "__getitem__", read)
    monkeypatch.setattr(pretext_objective.PretextObjective, "forward", fail)
    settings = {**small, "task": "rotation", "steps": 8, "batch": 2}
    with pytest.raises(DataError, match=r"a scan is gone.*saved after step 1"):
        selfvox.pretrain(shapes_store, out=tmp_path / "run", **settings)
    # Python would wait for it at the end of the command
    assert not multiprocessing.active_children()


@pytest.mark.fault(
    "F15", "SIGKILL of a training while a process that reads hangs", "no process is left"
)
def test_a_reader_that_hangs_ends_with_a_training_that_is_killed():
    end_of_pipe, other_end = os.pipe()

    def hang(sample):
        if sample == 1:
            os.write(other_end, b"hangs")
            time.sleep(1000)

    def train():
        list(read_batches(Numbers(hang), one_by_one(3), workers=1))

    training = multiprocessing.get_context("fork").Process(target=train)
    training.start()
    os.close(other_end)
    assert os.read(end_of_pipe, 5) == b"hangs"
    training.kill()
    training.join()
    # the pipe ends with the last process that has its other end
    ready, _, _ = select.select([end_of_pipe], [], [], 60)
    os.close(end_of_pipe)
    assert ready, "a process is left"
