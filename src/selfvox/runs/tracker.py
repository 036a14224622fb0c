"""Metrics of a run for Weights & Biases or MLflow, without a path, host or user."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import logging
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selfvox.errors import UsageError
from selfvox.runs.progress import echo
from selfvox.runs.run_folder import Run, read_metrics
from selfvox.settings.options import as_dict, without_paths

PROJECT = "selfvox"  # project or experiment, unless the environment names another
_MLFLOW_REFUSES = re.compile(r"[^\w\-. :/]", re.ASCII)  # in the name of a metric


@dataclass
class Tracker:
    """One run at a service; made by `tracked`.

    A service that fails must not end a training: it is reported once, and `metrics.jsonl` goes on.
    """

    run_id: str
    _log: Callable[[int, dict[str, float]], object]
    _end: Callable[[bool], object]
    sent_until: int = 0
    _is_broken: bool = False

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Send one step's metrics, unless the run had sent them before it was resumed."""
        if step > self.sent_until:
            self._try(lambda: self._log(step, dict(metrics)))

    def end(self, is_finished: bool) -> None:
        """Say that the run has finished, or that it was stopped or failed."""
        self._try(lambda: self._end(is_finished))

    def _try(self, send: Callable[[], object]) -> None:
        if self._is_broken:
            return
        try:
            send()
        except Exception as error:  # the services have no common class of errors
            self._is_broken = True
            echo(f"log_to: stopped sending metrics, which metrics.jsonl has too: {_line(error)}")


def check_tracker(name: str | None) -> None:
    """Refuse a service that is not installed.

    Raises:
        UsageError: says how to install it.
    """
    if name is not None and importlib.util.find_spec(name) is None:
        raise UsageError(
            f"log_to: {name} is not installed; install it with `pip install selfvox[{name}]`"
        )


@contextlib.contextmanager
def tracked(run: Run, name: str | None, settings: Any) -> Iterator[None]:
    """Send the metrics of a run to a service too; a run that is resumed goes on as the same one.

    Args:
        run: only the first of several processes sends.
        name: `wandb` or `mlflow`; None sends nothing.
        settings: of the verb; sent without paths.

    Raises:
        UsageError: the service refuses, or does not answer.
    """
    if name is None or not run.is_main:
        yield
        return
    run_ids = run.record.get("tracked", {})
    start = {"wandb": _start_wandb, "mlflow": _start_mlflow}[name]
    try:
        tracker = start(run.path, sent_settings(settings), run_ids.get(name))
    except Exception as error:  # as above
        raise UsageError(
            f"log_to: {name} does not start: {_line(error)}; go on without --log-to, and "
            "metrics.jsonl has the same numbers"
        ) from error
    if name in run_ids:
        tracker.sent_until = max((line["step"] for line in read_metrics(run.path)), default=0)
    run.note(tracked={**run_ids, name: tracker.run_id})
    run.on_metrics.append(tracker.log)
    is_finished = False
    try:
        yield
        is_finished = True
    finally:
        tracker.end(is_finished)


def sent_settings(settings: Any) -> dict[str, Any]:
    """The settings without paths and addresses; of a run, such as the encoder, its name."""
    values = without_paths(type(settings), as_dict(settings))
    return {name: value for name, value in values.items() if name not in {"resume", "log_to"}}


def _start_wandb(folder: Path, settings: dict[str, Any], run_id: str | None) -> Tracker:
    wandb = importlib.import_module("wandb")
    run = wandb.init(
        id=run_id,
        resume="allow" if run_id else None,
        project=os.environ.get("WANDB_PROJECT", PROJECT),
        name=_name(folder),
        dir=folder,
        config=settings,
        # nothing leaves the machine unless its user said so
        mode=None if "WANDB_MODE" in os.environ else "offline",
        settings=wandb.Settings(
            silent=True,
            # printed lines name scans
            console="off",
            disable_git=True,
            disable_code=True,
            host=PROJECT,
            # host, user, program and paths
            x_disable_meta=True,
            x_disable_machine_info=True,
        ),
    )
    if run.offline:
        echo(f"wandb: offline; send it with wandb sync {Path(run.dir).parent}")
    else:
        echo(f"wandb: {run.url}")
    return Tracker(
        run.id,
        lambda step, metrics: run.log(metrics, step=step),
        lambda is_finished: run.finish(exit_code=0 if is_finished else 1),
    )


def _start_mlflow(folder: Path, settings: dict[str, Any], run_id: str | None) -> Tracker:
    mlflow = importlib.import_module("mlflow")
    # it reports each table of a new database
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    # the client alone: mlflow.start_run adds the user and the program
    client = mlflow.tracking.MlflowClient()
    if run_id is None:
        experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        entry = client.get_experiment_by_name(experiment)
        experiment_id = entry.experiment_id if entry else client.create_experiment(experiment)
        run_id = str(client.create_run(experiment_id, run_name=_name(folder)).info.run_id)
        for name, value in settings.items():
            client.log_param(run_id, name, value)
    else:
        client.update_run(run_id, status="RUNNING")
    echo(f"mlflow: run {run_id} at {mlflow.get_tracking_uri()}")
    metric = mlflow.entities.Metric

    def log(step: int, metrics: dict[str, float]) -> None:
        now_ms = int(1000 * time.time())
        named = [
            metric(_MLFLOW_REFUSES.sub("_", name), value, now_ms, step)
            for name, value in metrics.items()
        ]
        client.log_batch(run_id, metrics=named)

    def end(is_finished: bool) -> None:
        client.set_terminated(run_id, "FINISHED" if is_finished else "FAILED")

    return Tracker(run_id, log, end)


def _name(folder: Path) -> str:
    """The name of the run's folder; of a fold, with that of the folder of folds."""
    folder = folder.resolve()
    is_fold = re.fullmatch(r"fold_\d+", folder.name)
    return f"{folder.parent.name}/{folder.name}" if is_fold else folder.name


def _line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]
