"""What a run reports about its steps: mean loss and scores, speed, time spent waiting, memory."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping

from selfvox.ops.outcome import Outcome
from selfvox.runs.usage import peak_memory_gb
from selfvox.training.embedding_health import chance_scores


class TrainingLog:
    """Collects the outcomes of batches and the time they took; `flush` makes a line of them.

    Args:
        samples_per_batch: of all devices together.
        loss_label: what the loss is called on the progress line.
    """

    def __init__(self, samples_per_batch: int, loss_label: str = "loss"):
        self.samples_per_batch = samples_per_batch
        self.loss_label = loss_label
        self.caption = ""  # of the last line, for the progress bar
        self._outcomes: list[Outcome] = []
        # monotonic: setting the clock of the machine takes no time
        self._restart(time.monotonic())

    def _restart(self, began: float) -> None:
        self._since = began
        self._waited = 0.0
        self._batches = 0

    def add(self, outcomes: Iterable[Outcome]) -> None:
        """Count the batches of one step that changed the weights."""
        self._outcomes += outcomes

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Measure the time that the next batch takes to arrive."""
        began = time.monotonic()
        yield
        self._waited += time.monotonic() - began
        self._batches += 1

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Exclude what is done between steps, such as validation, from the time of the steps."""
        began = time.monotonic()
        yield
        self._since += time.monotonic() - began

    def flush(self, rates: Mapping[str, float], skipped: int) -> dict[str, float]:
        """Return one line of `metrics.jsonl` and start the next one.

        Loss and scores are means over the batches added since the last line, each with the same
        weight. Where there are none, because every step was skipped, the line says only how many
        steps were skipped so far.
        """
        if not self._outcomes:
            return {"skipped": float(skipped)}
        end = time.monotonic()
        elapsed = max(1e-9, end - self._since)
        line = {
            **mean_metrics(self._outcomes),
            **rates,
            "skipped": float(skipped),
            "images_per_s": self._batches * self.samples_per_batch / elapsed,
            "waiting": self._waited / elapsed,
            **peak_memory_gb(),
        }
        self._outcomes = []
        self._restart(end)
        self.caption = caption(line, self.loss_label)
        return line


def mean_metrics(outcomes: Iterable[Outcome]) -> dict[str, float]:
    """The mean loss, as `loss`, and the mean of each metric over the outcomes that have it."""
    values = defaultdict(list)
    for outcome in outcomes:
        values["loss"].append(outcome.loss)
        for name, value in outcome.metrics.items():
            values[name].append(value)
    return {name: statistics.fmean(map(float, numbers)) for name, numbers in values.items()}


def caption(line: Mapping[str, float], loss_label: str = "loss") -> str:
    """`loss 1.23 (chance 2.30)  accuracy 0.45 (chance 0.10)  12.3 images/s  1 % waiting  2.1 GB`.

    `chance` is what random guesses score, where the task defines it. Of several tasks, each score
    is called after its task. The memory is the most until then.
    """
    loss = f"{loss_label} {line['loss']:.3f}"
    if "loss_chance" in line:
        loss += f" (chance {line['loss_chance']:.3f})"
    parts = [loss]
    for name, score in chance_scores(line).items():
        label = name.removesuffix("/accuracy").replace("/", " ")
        parts.append(f"{label} {score.value:z.2f} (chance {score.chance:.2f})")
    parts.append(f"{line['images_per_s']:.1f} images/s")
    parts.append(f"{100 * line['waiting']:.0f} % waiting")
    for name, label in (("peak_gpu_memory_gb", "GB of the GPU"), ("peak_memory_gb", "GB")):
        if name in line:
            parts.append(f"{line[name]:.1f} {label}")
    return "  ".join(parts)
