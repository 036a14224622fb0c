"""Where the processes of one machine meet: no other machine reaches it."""

import subprocess
import sys
from pathlib import Path

import pytest

# prints the addresses at which this process listens, in hexadecimal, while both train
TRAIN = """
import contextlib
import os
from pathlib import Path

import torch

from selfvox.runs.device import make_fabric
from selfvox.runs.process_watch import ProcessWatch


def addresses():
    sockets = set()
    for number in range(1024):
        with contextlib.suppress(OSError):
            sockets.add(str(os.fstat(number).st_ino))
    for table in ("/proc/self/net/tcp", "/proc/self/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and fields[9] in sockets:
                yield fields[1].split(":")[0]


fabric = make_fabric("cpu", 2, "fp32")
with ProcessWatch(fabric) as watch:
    watch.join()
    network = fabric.setup_module(torch.nn.Linear(2, 2))
    fabric.backward(network(torch.ones(1, 2)).sum())
    for rank in range(2):
        if rank == fabric.global_rank:
            print("rank", rank, *addresses(), flush=True)
        fabric.barrier()
"""


@pytest.mark.fault(
    "X16", "the addresses at which two processes of one machine listen", "loopback alone"
)
@pytest.mark.skipif(not Path("/proc/self/net/tcp").exists(), reason="reads /proc")
def test_two_processes_of_one_machine_listen_at_loopback_alone(tmp_path):
    script = tmp_path / "train.py"
    script.write_text(TRAIN)
    finished = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, timeout=300, check=True
    )
    by_rank = [line.split()[2:] for line in sorted(finished.stdout.splitlines())]
    assert len(by_rank) == 2
    assert all(by_rank)
    assert {address for addresses in by_rank for address in addresses} == {"0100007F"}
