"""The SLURM script of the documentation, with stand-ins for `srun` and `scontrol`."""

import json
import os
import stat
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "cluster.md"
# starts the tasks of one node as srun does; in the first job, SIGUSR1 follows the first checkpoint
SRUN = """
    #!{python}
    import os, signal, subprocess, sys, time
    from pathlib import Path

    tasks = []
    for task in range(2):
        slurm = dict(NTASKS=2, NTASKS_PER_NODE=2, NNODES=1, PROCID=task, LOCALID=task, NODEID=0)
        names = {{f"SLURM_{{name}}": str(value) for name, value in slurm.items()}}
        names |= {{"SLURM_STEP_ID": "0", "SLURM_NODELIST": "localhost", "MASTER_PORT": "{port}"}}
        command = [sys.executable, "-m", *sys.argv[1:]]
        tasks.append(subprocess.Popen(command, env=os.environ | names))
    while "--resume" not in sys.argv and not list(Path("runs").glob("*/checkpoints/*.json")):
        assert all(task.poll() is None for task in tasks)
        time.sleep(0.05)
    for task in tasks if "--resume" not in sys.argv else ():
        task.send_signal(signal.SIGUSR1)
    sys.exit(max(task.wait() for task in tasks))
"""
SCONTROL = """
    #!/bin/sh
    echo "$@" >> requeued
"""


def script_of_the_page():
    """The script that trains on several nodes, with small numbers."""
    (script,) = (
        block
        for block in PAGE.read_text().split("```text\n")[1:]
        if "--ntasks-per-node" in block.partition("```")[0]
    )
    small = "--crop 16,16,16 --network.channels 4,8 --device cpu --precision fp32 --batch 2"
    script = script.partition("```")[0]
    assert "--steps 20000" in script
    return script.replace("--steps 20000", f"--steps 8 --save-every 1 --task rotation {small}")


@pytest.mark.fault("F4", "SIGUSR1 before a time limit, queued again", "goes on where it was")
def test_a_job_is_queued_again_after_its_signal_and_goes_on(shapes_store, tmp_path, free_port):
    for name, text in {"srun": SRUN, "scontrol": SCONTROL}.items():
        text = textwrap.dedent(text).strip().format(python=sys.executable, port=free_port)
        file = tmp_path / "bin" / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(text + "\n")
        file.chmod(file.stat().st_mode | stat.S_IXUSR)
    (tmp_path / "store").symlink_to(shapes_store)
    environment = os.environ | {
        "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
        "SLURM_JOB_ID": "4711",
    }

    def job():
        return subprocess.run(
            ["bash", "-c", script_of_the_page()],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=600,
        )

    def status():
        return json.loads((tmp_path / "runs/pretrained/run.json").read_text())["status"]

    first = job()
    assert first.returncode == 138, first.stderr
    assert (tmp_path / "requeued").read_text() == "requeue 4711\n"
    assert status() == "stopped"
    second = job()
    assert second.returncode == 0, second.stderr
    assert second.stderr.count("resuming from step") == 1
    assert status() == "finished"
