"""What the pages of runs share: how a run ended, its settings, and its curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from selfvox.errors import UsageError
from selfvox.reports.charts import Chart, Series, draw_chart
from selfvox.runs.run_folder import read_metrics, read_run_record
from selfvox.settings import safe_yaml
from selfvox.settings.options import without_paths
from selfvox.settings.verbs import VERBS

Lines = Sequence[Mapping[str, Any]]
_PACKAGES = ("selfvox", "torch", "python")


class Finding(NamedTuple):
    """A sentence about a run."""

    text: str
    is_warning: bool = False


class RunFiles(NamedTuple):
    """What a run wrote, read."""

    record: Mapping[str, Any]  # run.json
    settings: Mapping[str, Any]  # settings.yaml
    lines: Lines  # metrics.jsonl


def read_run(folder: Path) -> RunFiles:
    """Read the files of a run.

    Raises:
        UsageError: it has no metrics yet.
    """
    lines = read_metrics(folder)
    if not lines:
        raise UsageError(f"{folder}: has no metrics yet; make the report after ten steps")
    settings_file = folder / "settings.yaml"
    settings = safe_yaml.read_yaml(settings_file) if settings_file.exists() else {}
    return RunFiles(read_run_record(folder), settings, lines)


def is_running(folder: Path) -> bool:
    """Whether the record of a run says that it trains; a killed run says so, too."""
    return bool(read_run_record(folder).get("status") == "running")


def status_finding(run: RunFiles) -> Finding:
    """How far the run is, or how it ended."""
    status = run.record.get("status")
    step = int(run.lines[-1]["step"])
    steps = run.record.get("steps", step)
    if status == "finished":
        return Finding(f"Finished after {steps} steps.")
    if status == "running":
        return Finding(f"At step {step} of {steps}, or killed there.")
    reason = run.record.get("reason") or "no reason is recorded"
    return Finding(f"{str(status).capitalize()} at step {step} of {steps}: {reason}", True)


def skipped_finding(run: RunFiles) -> list[Finding]:
    """Steps that were left out, since the loss or a gradient was not finite."""
    skipped = int(run.lines[-1].get("skipped", 0))
    if not skipped:
        return []
    return [Finding(f"{skipped} steps had no finite loss or gradient and were left out.", True)]


def facts(run: RunFiles) -> dict[str, str]:
    """What was trained on what, in words."""
    record = run.record
    data = record.get("data") or {}
    versions = record.get("versions", {})
    last = run.lines[-1]
    network = dict(record.get("network") or {})
    entries = {
        "task": _named(record.get("task") or {}),
        "network": ", ".join(
            f"{name} {_in_words(network[name])}" for name in ("name", "channels") if name in network
        ).removeprefix("name "),
        "crop": " x ".join(map(str, record.get("crop") or ())),
        "subjects": str(len(data.get("subjects", ()))) if data else "",
        "started": _time(record.get("started")),
        "ended": _time(record.get("ended")),
        "images per second": f"{last['images_per_s']:.3g}" if "images_per_s" in last else "",
        "waiting for data": f"{last['waiting']:.0%}" if "waiting" in last else "",
        "peak memory": f"{last['peak_memory_gb']:.1f} GB" if "peak_memory_gb" in last else "",
        "peak memory of the GPU": (
            f"{last['peak_gpu_memory_gb']:.1f} GB" if "peak_gpu_memory_gb" in last else ""
        ),
        "device": str(record.get("cuda") or record.get("cpu") or ""),
        "versions": ", ".join(f"{name} {versions[name]}" for name in _PACKAGES if name in versions),
    }
    return {name: text for name, text in entries.items() if text}


def shown_settings(run: RunFiles) -> dict[str, str]:
    """The settings without paths: a report is for others, and paths say where a person's files are.

    Empty where the verb is unknown.
    """
    verb = VERBS.get(str(run.record.get("verb")))
    if verb is None:
        return {}
    values = without_paths(verb, run.settings)
    return {name: _in_words(value) for name, value in values.items() if value is not None}


def metric_chart(
    identity: str,
    title: str,
    lines: Lines,
    names: Mapping[str, str],
    y_label: str,
    y_range: tuple[float, float] | None = None,
    dashed: Mapping[str, str] | None = None,
) -> list[Chart]:
    """A chart of metrics by step; none where no line has one of them.

    Args:
        identity: of the chart, in one page.
        title: of the chart.
        lines: of `metrics.jsonl`.
        names: what each metric is called, by its name in the lines.
        y_label: of the vertical axis.
        y_range: its ends.
        dashed: levels to compare with, likewise.
    """
    series = [*_series(lines, names, False), *_series(lines, dashed or {}, True)]
    if not any(not curve.dashed for curve in series):
        return []
    return [draw_chart(identity, title, series, "step", y_label, y_range)]


def _series(lines: Lines, names: Mapping[str, str], dashed: bool) -> list[Series]:
    curves = []
    for name, title in names.items():
        measured = [line for line in lines if name in line]
        if measured:
            steps = [line["step"] for line in measured]
            curves.append(Series(title, steps, [line[name] for line in measured], dashed=dashed))
    return curves


def _named(task: Mapping[str, Any]) -> str:
    """A task with its options: `rotation (versions 1, planes all)`."""
    options = [f"{name} {_in_words(value)}" for name, value in task.items() if name != "name"]
    listed = f" ({', '.join(options)})" if options else ""
    return f"{task.get('name', '')}{listed}"


def _time(text: str | None) -> str:
    """A moment of a record to the minute."""
    return datetime.fromisoformat(text).strftime("%Y-%m-%d %H:%M %Z") if text else ""


def _in_words(value: Any) -> str:
    """A setting in one line, as YAML writes it."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    text: str = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=10_000)
    return text.removesuffix("...\n").strip()
