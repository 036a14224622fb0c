"""Weights & Biases and MLflow get the metrics of a run, each step once, and nothing private."""

import importlib.machinery
import socket
import sys
from types import ModuleType

import pytest

import selfvox
from selfvox.errors import UsageError
from selfvox.runs.run_folder import open_run, read_metrics
from selfvox.runs.tracker import tracked
from selfvox.settings.verbs import Finetune


def settings(tmp_path, **changed):
    return Finetune(
        labelled=tmp_path / "anna" / "scans",
        out=tmp_path / "anna" / "run",
        encoder=str(tmp_path / "anna" / "rotation"),
        scheduler="tcp://anna:8786",
        **changed,
    )


def log(settings, steps, *, resume=False, service="wandb", drop_after=None):
    """Log a line for each of the steps, in a run that is opened for it."""
    with (
        open_run(settings.out, settings, resume=resume) as run,
        tracked(run, service, settings),
    ):
        if drop_after is not None:
            run.forget_metrics_after(drop_after)
        for step in steps:
            run.log(step, {"loss": 1 / step, "dice_a (left)": 0.5})
        if resume is None:
            raise OSError("no space")
    return run


class FakeRun:
    """What `wandb.init` returns."""

    def __init__(self, **given):
        self.given = given
        self.id = given["id"] or "new"
        self.offline = given["mode"] == "offline"
        self.dir = "wandb/offline-run/files"
        self.url = "https://wandb.ai/run"
        self.sent = []
        self.exit_code = None

    def log(self, metrics, step):
        self.sent.append((step, metrics["loss"]))

    def finish(self, exit_code):
        self.exit_code = exit_code


@pytest.fixture
def wandb(monkeypatch):
    """A module in place of wandb; `runs` are those that were started."""
    module = ModuleType("wandb")
    module.__spec__ = importlib.machinery.ModuleSpec("wandb", None)
    module.runs = []
    module.Settings = lambda **settings: settings

    def init(**given):
        module.runs.append(FakeRun(**given))
        return module.runs[-1]

    module.init = init
    monkeypatch.setitem(sys.modules, "wandb", module)
    for name in ("WANDB_MODE", "WANDB_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    return module


def test_a_service_gets_the_lines_of_metrics_jsonl(shapes_store, tmp_path, wandb):
    run = selfvox.pretrain(
        shapes_store, out=tmp_path / "run", task="rotation", steps=11, batch=2, crop=(16, 16, 16),
        network={"name": "plain", "channels": [4, 8]}, device="cpu", log_to="wandb",
    )  # fmt: skip
    assert wandb.runs[0].sent == [(line["step"], line["loss"]) for line in read_metrics(run)]
    assert wandb.runs[0].exit_code == 0
    assert wandb.runs[0].given["config"]["steps"] == 11


def test_a_resumed_run_goes_on_as_the_same_one_and_sends_no_step_twice(tmp_path, wandb):
    log(settings(tmp_path), [10, 20, 30])
    log(settings(tmp_path), [30, 40], resume=True, drop_after=20)
    first, second = wandb.runs
    assert [run.given["id"] for run in wandb.runs] == [None, first.id]
    assert [step for step, _ in first.sent + second.sent] == [10, 20, 30, 40]
    assert (first.exit_code, second.exit_code) == (0, 0)


def test_a_run_that_fails_ends_as_failed(tmp_path, wandb):
    with pytest.raises(OSError, match="no space"):
        log(settings(tmp_path), [10], resume=None)
    assert wandb.runs[0].exit_code == 1


def test_nothing_is_sent_online_unless_the_environment_says_so(tmp_path, wandb, monkeypatch):
    log(settings(tmp_path), [10])
    monkeypatch.setenv("WANDB_MODE", "online")
    log(settings(tmp_path), [20], resume=True)
    assert [run.given["mode"] for run in wandb.runs] == ["offline", None]


def test_settings_are_sent_without_paths_and_addresses(tmp_path, wandb):
    log(settings(tmp_path, augment="light"), [10])
    given = wandb.runs[0].given
    assert given["config"]["augment"] == "light"
    assert given["config"]["encoder"] == "rotation"
    assert {"labelled", "out", "unlabelled", "scheduler"}.isdisjoint(given["config"])
    assert "anna" not in str(given["config"]) + given["name"]


def test_a_service_that_fails_is_reported_once_and_the_run_goes_on(
    tmp_path, wandb, monkeypatch, capsys
):
    def fail(self, metrics, step):
        raise ConnectionError("server\nis gone")

    monkeypatch.setattr(FakeRun, "log", fail)
    run = log(settings(tmp_path), [10, 20])
    assert [line["step"] for line in read_metrics(run.path)] == [10, 20]
    assert capsys.readouterr().err.count("ConnectionError: server is gone") == 1


def test_a_service_that_does_not_start_is_refused_in_one_line(tmp_path, wandb, monkeypatch):
    def refuse(**given):
        raise RuntimeError("api key\nnot configured")

    monkeypatch.setattr(wandb, "init", refuse)
    with pytest.raises(UsageError, match=r"^log_to: wandb .*api key not configured; .*$"):
        log(settings(tmp_path), [10])


@pytest.mark.parametrize("service", ["wandb", "mlflow"])
def test_a_service_that_is_not_installed_is_refused_before_anything_is_written(
    shapes_store, tmp_path, monkeypatch, service
):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for train in (selfvox.pretrain, selfvox.finetune):
        encoder = {} if train is selfvox.pretrain else {"encoder": "none"}
        with pytest.raises(UsageError, match=rf"pip install selfvox\[{service}\]"):
            train(shapes_store, out=tmp_path / "run", log_to=service, **encoder)
    assert not (tmp_path / "run").exists()


@pytest.fixture
def anna(monkeypatch):
    """The user is Anna, at her machine; the folders of `settings` have her name too."""
    monkeypatch.setenv("LOGNAME", "anna")
    monkeypatch.setenv("USER", "anna")
    monkeypatch.setattr(socket, "gethostname", lambda: "annas-machine")
    for name in ("WANDB_MODE", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)


def kept(folder):
    """What all files of a folder contain."""
    return b"".join(file.read_bytes() for file in folder.rglob("*") if file.is_file())


@pytest.mark.filterwarnings("ignore")  # of mlflow's own libraries
def test_the_real_mlflow_has_each_step_once_and_nothing_private(tmp_path, monkeypatch, anna):
    mlflow = pytest.importorskip("mlflow", reason="mlflow is not installed")
    pytest.importorskip("sqlalchemy", reason="mlflow-skinny has no local store")
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "atrophy")
    (tmp_path / "kept").mkdir()
    monkeypatch.chdir(tmp_path / "kept")
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path / 'kept' / 'mlflow.db'}")
    log(settings(tmp_path), [10, 20, 30], service="mlflow")
    run = log(settings(tmp_path), [30, 40], service="mlflow", resume=True, drop_after=20)
    client = mlflow.tracking.MlflowClient()
    experiment = client.get_experiment_by_name("atrophy")
    (found,) = client.search_runs([experiment.experiment_id])
    assert found.info.run_id == run.record["tracked"]["mlflow"]
    assert (found.info.run_name, found.info.status) == ("run", "FINISHED")
    losses = client.get_metric_history(found.info.run_id, "loss")
    assert [(entry.step, entry.value) for entry in losses] == [
        (step, pytest.approx(1 / step)) for step in (10, 20, 30, 40)
    ]
    assert found.data.metrics["dice_a _left_"] == 0.5
    assert found.data.params["encoder"] == "rotation"
    assert b"rotation" in kept(tmp_path / "kept")
    assert b"anna" not in kept(tmp_path / "kept")


@pytest.mark.filterwarnings("ignore")
def test_the_real_wandb_keeps_a_run_offline_and_nothing_private(tmp_path, anna):
    pytest.importorskip("wandb", reason="wandb is not installed")
    run = log(settings(tmp_path), [10, 20])
    (record,) = (run.path / "wandb").glob(
        f"offline-run-*/run-{run.record['tracked']['wandb']}.wandb"
    )
    assert b"dice_a (left)" in record.read_bytes()
    assert b"anna" not in record.read_bytes() + kept(record.parent / "files")
