"""The processes that torchrun or SLURM started together: how many, where, and which one this is."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from selfvox.errors import UsageError

# launchers that are recognised, only to be refused, by how many processes they started
_OTHER_LAUNCHERS = {"mpirun": "OMPI_COMM_WORLD_SIZE", "mpiexec": "PMI_SIZE"}


@dataclass(frozen=True)
class Launch:
    """The processes that one launcher started.

    Args:
        launcher: torchrun or SLURM.
        nodes: how many machines.
        per_node: processes on each of them.
        rank: of this process among all, from 0 on.
    """

    launcher: str
    nodes: int
    per_node: int
    rank: int

    @property
    def processes(self) -> int:
        """On all machines."""
        return self.nodes * self.per_node

    def check_devices(self, requested: int | None) -> None:
        """Refuse another number of devices than that of the processes on each machine.

        Raises:
            UsageError: `requested` is such a number.
        """
        if requested not in (None, self.per_node):
            error = UsageError(
                f"devices: {requested} requested, but {self.launcher} started {self.per_node} "
                f"processes on each of {self.nodes} nodes; leave --devices out"
            )
            error.is_silent = self.rank > 0
            raise error


def find_launch(environment: Mapping[str, str] = os.environ) -> Launch | None:
    """What torchrun or SLURM started; None if this process was started without them.

    One task of SLURM counts as started without it: it may start processes of its own.

    Raises:
        UsageError: the launcher is another one, or it started the processes in a way in which they
            cannot find each other.
    """
    if "RANK" in environment and "WORLD_SIZE" in environment:
        # images of some clouds set both for any process
        is_alone = environment["WORLD_SIZE"] == "1" and "LOCAL_RANK" not in environment
        return None if is_alone else _torchrun(environment)
    # processes that this program started itself
    if "LOCAL_RANK" in environment:
        return None
    if int(environment.get("SLURM_NTASKS", 1)) > 1 and not _is_interactive(environment):
        return _slurm(environment)
    for launcher, variable in _OTHER_LAUNCHERS.items():
        if int(environment.get(variable, 1)) > 1:
            raise UsageError(
                f"{launcher} started {environment[variable]} processes, which cannot train "
                "together; start them with torchrun or srun"
            )
    return None


def _torchrun(environment: Mapping[str, str]) -> Launch:
    """From the variables of torchrun; other launchers set them too.

    Raises:
        UsageError: they do not say how many processes each node has, or not all have the same.
    """
    processes = int(environment["WORLD_SIZE"])
    if processes > 1 and "LOCAL_RANK" not in environment:
        raise UsageError(
            f"WORLD_SIZE is {processes} and LOCAL_RANK is not set; start the processes with "
            "torchrun or srun"
        )
    per_node = int(environment.get("LOCAL_WORLD_SIZE", 1))
    if processes % per_node:
        raise UsageError(
            f"torchrun started {processes} processes, and {per_node} on this node; start the same "
            "number on each node"
        )
    return Launch("torchrun", processes // per_node, per_node, int(environment["RANK"]))


def _slurm(environment: Mapping[str, str]) -> Launch:
    """From the variables of SLURM.

    Raises:
        UsageError: srun was not used, or the nodes may have different numbers of tasks.
    """
    tasks = int(environment["SLURM_NTASKS"])
    # a batch script has the variables of the job, and only srun starts its tasks
    if "SLURM_STEP_ID" not in environment:
        raise UsageError(
            f"SLURM: the job has {tasks} tasks, and this process is none of them; put srun before "
            "selfvox"
        )
    if "SLURM_NTASKS_PER_NODE" not in environment:
        raise UsageError(
            f"SLURM: {tasks} tasks were started without --ntasks-per-node; use it instead of "
            "--ntasks"
        )
    per_node = int(environment["SLURM_NTASKS_PER_NODE"])
    nodes = int(environment.get("SLURM_NNODES", 1))
    if nodes * per_node != tasks:
        raise UsageError(
            f"SLURM: {tasks} tasks were started, which are not {per_node} on each of {nodes} "
            "nodes; use --nodes and --ntasks-per-node alone"
        )
    return Launch("SLURM", nodes, per_node, int(environment["SLURM_PROCID"]))


def _is_interactive(environment: Mapping[str, str]) -> bool:
    """Whether this is a shell within a job, from which anything may be started."""
    return environment.get("SLURM_JOB_NAME") in ("bash", "interactive")
