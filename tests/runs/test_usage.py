"""What work costs: the peak of this work alone, and the sum of its parts."""

import json
import subprocess
import sys

from selfvox.runs.usage import joined

# A process of its own: threads of other tests have memory too. An array may lie in memory that
# was free before, so the memory is the operating system's.
_PEAKS = """
import json, mmap
from selfvox.runs.usage import Meter

def filled(mib):
    memory = mmap.mmap(-1, mib * 2**20)
    for _ in range(mib):
        memory.write(bytes(2**20))
    return memory

with filled(240):
    pass  # free before the work begins
small = Meter().read()
meter = Meter()
with filled(240):
    print(json.dumps([small, meter.read()]))
"""


def test_the_peak_is_that_of_the_work_alone():
    run = subprocess.run([sys.executable, "-c", _PEAKS], check=True, capture_output=True, text=True)
    small, usage = json.loads(run.stdout)
    assert 230 < usage["peak_memory_mib"] - small["peak_memory_mib"] < 260
    assert set(usage) == {"seconds", "cpu_s", "peak_memory_mib"}


def test_seconds_of_parts_are_added_and_the_higher_peak_counts():
    first = {"seconds": 1.5, "cpu_s": 2.0, "peak_memory_mib": 300}
    second = {"seconds": 2.0, "cpu_s": 4.5, "peak_memory_mib": 200, "gpu_s": 2.0}
    expected = {"seconds": 3.5, "cpu_s": 6.5, "peak_memory_mib": 300, "gpu_s": 2.0}
    assert joined(first, second) == expected
    assert joined({}, first) == first
