"""Nodes and processes come from torchrun or SLURM; what does not fit is refused in one line."""

import pytest

from selfvox.errors import UsageError
from selfvox.runs.device import make_fabric
from selfvox.runs.launcher import Launch, find_launch

TORCHRUN = {"RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2"}
SLURM = {
    "SLURM_NTASKS": "6",
    "SLURM_NTASKS_PER_NODE": "3",
    "SLURM_NNODES": "2",
    "SLURM_PROCID": "4",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
    "SLURM_STEP_ID": "0",
    "SLURM_JOB_NAME": "train.sh",
}


@pytest.mark.parametrize(
    ("environment", "launch"),
    [
        (TORCHRUN, Launch("torchrun", 2, 2, 3)),
        (SLURM, Launch("SLURM", 2, 3, 4)),
        # torchrun within a job of SLURM
        (SLURM | TORCHRUN, Launch("torchrun", 2, 2, 3)),
        ({}, None),
        # a process that the program started itself
        ({"LOCAL_RANK": "1", "WORLD_SIZE": "2"}, None),
        ({"RANK": "0", "WORLD_SIZE": "1"}, None),
        # as of `srun --ntasks=1`, and in a shell of `salloc`
        (SLURM | {"SLURM_NTASKS": "1"}, None),
        (SLURM | {"SLURM_JOB_NAME": "interactive"}, None),
    ],
)
def test_the_number_of_processes_comes_from_the_launcher(environment, launch):
    assert find_launch(environment) == launch


@pytest.mark.fault("G", "a launcher without address or numbers", "refused in one line")
@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"RANK": "0", "WORLD_SIZE": "2"}, "LOCAL_RANK is not set; start the processes with"),
        (TORCHRUN | {"LOCAL_WORLD_SIZE": "3"}, "start the same number on each node"),
        ({k: v for k, v in SLURM.items() if k != "SLURM_STEP_ID"}, "put srun before selfvox"),
        ({k: v for k, v in SLURM.items() if "PER_NODE" not in k}, "use it instead of --ntasks"),
        (SLURM | {"SLURM_NTASKS": "5"}, "use --nodes and --ntasks-per-node alone"),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, "^mpirun started 2 processes.*with torchrun or srun$"),
    ],
)
def test_processes_that_cannot_find_each_other_are_refused(environment, message):
    with pytest.raises(UsageError, match=message):
        find_launch(environment)


@pytest.mark.fault("G", "`--devices` that differs from the launcher", "refused in one line")
@pytest.mark.parametrize("rank", [0, 1])
def test_another_number_of_devices_is_refused_and_one_process_says_so(rank):
    launch = Launch("torchrun", nodes=2, per_node=2, rank=rank)
    launch.check_devices(2)
    launch.check_devices(None)
    with pytest.raises(UsageError, match=r"^devices: 4 requested, but torchrun started 2") as error:
        make_fabric("cpu", 4, "fp32", launch)
    assert error.value.is_silent == (rank > 0)


def test_processes_of_two_nodes_have_numbers_of_their_own(monkeypatch):
    for name, value in SLURM.items():
        monkeypatch.setenv(name, value)
    fabric = make_fabric("cpu", None, "fp32", find_launch())
    assert (fabric.world_size, fabric.global_rank, fabric.node_rank) == (6, 4, 1)
    assert not fabric.is_global_zero


def test_a_process_that_trains_alone_pays_no_heed_to_the_tasks_of_slurm(monkeypatch):
    for name in ("SLURM_NTASKS", "SLURM_PROCID"):
        monkeypatch.setenv(name, SLURM[name])
    fabric = make_fabric("cpu", 1, "fp32")
    assert (fabric.world_size, fabric.is_global_zero) == (1, True)
