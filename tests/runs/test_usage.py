"""What work costs: the peak of this work alone, and the sum of its parts."""

import mmap

from selfvox.runs.usage import Meter, joined


def filled(mib):
    """Memory of the operating system's own: that of an array may be a part that was free before."""
    memory = mmap.mmap(-1, mib * 2**20)
    memory.write(bytes(len(memory)))
    return memory


def test_the_peak_is_that_of_the_work_alone():
    with filled(240):
        pass  # free before the work begins
    small = Meter().read()["peak_memory_mib"]
    meter = Meter()
    with filled(240):
        usage = meter.read()
    assert 200 < usage["peak_memory_mib"] - small < 280
    assert set(usage) == {"seconds", "cpu_s", "peak_memory_mib"}


def test_seconds_of_parts_are_added_and_the_higher_peak_counts():
    first = {"seconds": 1.5, "cpu_s": 2.0, "peak_memory_mib": 300}
    second = {"seconds": 2.0, "cpu_s": 4.5, "peak_memory_mib": 200, "gpu_s": 2.0}
    expected = {"seconds": 3.5, "cpu_s": 6.5, "peak_memory_mib": 300, "gpu_s": 2.0}
    assert joined(first, second) == expected
    assert joined({}, first) == first
