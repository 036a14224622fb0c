"""Is it learning? Measures the encoder during pre-training, and warns once of each problem."""

from __future__ import annotations

import itertools
import math
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from selfvox.data.preparation.store import Store
from selfvox.data.preparation.stored_case import StoredCase
from selfvox.data.sampling.crop_size import volume_edges
from selfvox.errors import DataError
from selfvox.models.encoder import Encoder
from selfvox.ops.losses import alignment, uniformity
from selfvox.ops.outcome import Outcome
from selfvox.runs.device import Fabric
from selfvox.runs.progress import echo
from selfvox.runs.run_folder import Run
from selfvox.training import embedding_health
from selfvox.training.embedding_health import Score
from selfvox.training.loop import LOG_EVERY
from selfvox.training.probe import frozen_encoder

# two views of each crop are embedded at each measurement: ten times in 1000 steps of eight crops,
# which is 0.6 % of a rotation run's CPU time
CROPS = 12
MOST_DAMAGED_VIEWS = CROPS  # that are replaced
SHIFT = 8  # the second view is an edge over this further along every axis
MEASUREMENTS = 8  # per run
PROBES = 5  # per run
MIN_INTERVAL = 50  # steps: a short run is measured less often

# in runs of all seven tasks on hippocampus, 60 to 100 steps, the spread stayed within .10 and .19,
# and above .8 of the untrained encoder's
COLLAPSED_SPREAD = 0.01
COLLAPSED_SHARE = 0.1
# the same runs were at most half-way from chance to all right even after 100 steps
SOLVED_STEP = 20
SOLVED = 0.95
# share of the way from chance to all right, mean over RECENT steps
AT_CHANCE_STEP = 200
AT_CHANCE = 0.02
# with more than about ten classes that is more than a guess varies: there the limit is two standard
# errors of a guess's accuracy, NOISE standard deviations of one prediction at eight images a step
NOISE = 0.07
# all seven tasks reach every weight of the U-Nets; of other networks, the last layers may be
# unused, and they may well be a few per cent
REACHED_STEP = 3
REACHED = 0.95
RECENT = 100  # steps


class Finding(NamedTuple):
    """Something that looks wrong."""

    key: str  # each key is reported once per run
    text: str


class TrainingMonitor:
    """Measures and warns; its methods are hooks of the training loop.

    Args:
        run: remembers what it was warned of before it was resumed.
        fabric: precision and device.
        encoder: on the device, not yet trained.
        views: two of each of a few crops, as `overlapping_views` makes them.
        steps: of the run.
        probe: scores of the encoder in its present state, and `chance`.
    """

    def __init__(
        self,
        run: Run,
        fabric: Fabric,
        encoder: Encoder,
        views: tuple[Tensor, Tensor],
        steps: int,
        probe: Callable[[], dict[str, float]] | None = None,
    ):
        self.run = run
        self.fabric = fabric
        self.encoder = encoder
        self.views = views
        # crops of a single small scan are all the same, and so are their embeddings
        self.is_one_crop = bool((views[0] == views[0][:1]).all())
        self.steps = steps
        interval = math.ceil(steps / MEASUREMENTS)
        # where a line is logged anyway
        interval -= interval % LOG_EVERY
        self.every = max(MIN_INTERVAL, interval)
        self.probe = probe
        self.probe_every = math.ceil(steps / PROBES)
        self.recent: defaultdict[str, deque[Score]] = defaultdict(lambda: deque(maxlen=RECENT))
        self.spreads: defaultdict[str, deque[float]] = defaultdict(lambda: deque(maxlen=RECENT))
        # share of the parameters with a gradient, at the steps where that is measured
        self.reached: list[float] = []
        self.untrained_spread = self._health().get("health/spread", 0.0)
        self.untrained_probe = self._probe()

    def learned(self, outcome: Outcome) -> None:
        """Record the scores of a step."""
        scores = embedding_health.chance_scores(outcome.metrics)
        for name, score in scores.items():
            self.recent[name].append(score)
        for name, value in outcome.metrics.items():
            if name.endswith("embedding_std"):
                self.spreads[name].append(float(value))

    def before_update(self, step: int, outcome: Outcome) -> None:
        """At some steps, record how much of the encoder has a gradient."""
        if step != REACHED_STEP and not self._is_measured(step):
            return
        # a loss of 0, as of triplets beyond their margin, has no gradient
        if bool(outcome.loss.isfinite() & (outcome.loss != 0)):
            share = embedding_health.share_with_gradient(self.encoder.parameters())
            self.reached.append(share)

    def after_step(self, step: int) -> dict[str, float]:
        """Measure when it is time, and warn; return the measurements."""
        metrics: dict[str, float] = {}
        if self._is_measured(step):
            metrics |= {**self._health(), "health/reached": self._max_reached}
        if self.probe and (step % self.probe_every == 0 or step == self.steps):
            metrics |= self._probe_metrics(step)
        for finding in self._findings(step, metrics.get("health/spread")):
            self._warn_once(step, finding)
        return metrics

    def _is_measured(self, step: int) -> bool:
        return step == LOG_EVERY or step % self.every == 0 or step == self.steps

    @property
    def _max_reached(self) -> float:
        """The largest share of any step: a batch of empty air leaves out what others reach."""
        return max(self.reached, default=1.0)

    def _health(self) -> dict[str, float]:
        with frozen_encoder(self.encoder), self.fabric.autocast():
            first, second = (
                self.encoder.embed(view.to(self.fabric.device)).float().cpu() for view in self.views
            )
        # the loss is not finite either then, and the loop counts that
        if not bool(first.isfinite().all() and second.isfinite().all()):
            return {}
        return {
            "health/spread": embedding_health.spread(first),
            "health/rank": embedding_health.effective_rank(first),
            "health/alignment": float(alignment(first, second)),
            "health/uniformity": float(uniformity(first)),
        }

    def _probe(self) -> dict[str, float]:
        if self.probe is None:
            return {}
        with self.fabric.autocast():
            return self.probe()

    def _probe_metrics(self, step: int) -> dict[str, float]:
        """Probe the encoder and print the scores; those of the untrained encoder are included."""
        scores = self._probe()
        echo(f"probe at step {step}: {probe_caption(scores, self.untrained_probe)}")
        metrics = {f"probe/{name}": value for name, value in scores.items()}
        for name in scores:
            if name != "chance":
                metrics[f"probe/untrained_{name}"] = self.untrained_probe[name]
        return metrics

    def _findings(self, step: int, spread: float | None) -> Iterable[Finding]:
        """Everything that looks wrong after this step; `spread` where it was just measured."""
        if not self.is_one_crop:
            if spread is not None:
                yield from self._collapsed_features(spread)
            if step % LOG_EVERY == 0:
                yield from self._collapsed_vectors()
        if step >= REACHED_STEP and self._max_reached < REACHED:
            yield Finding(
                "unreached",
                f"{1 - self._max_reached:.0%} of the encoder's parameters get no gradient and stay "
                "random: the task does not use the maps they make; choose another --task or "
                "--network",
            )
        for name, recent in self.recent.items():
            yield from self._solved(step, name, recent)
            yield from self._at_chance(step, name, recent)

    def _collapsed_features(self, spread: float) -> Iterable[Finding]:
        if spread < max(COLLAPSED_SPREAD, COLLAPSED_SHARE * self.untrained_spread):
            yield Finding(
                "collapsed",
                "features have collapsed: embeddings of different crops are nearly the same "
                f"(spread {spread:.4f}, untrained {self.untrained_spread:.4f}); lower "
                "--learning-rate, or choose another --task",
            )

    def _collapsed_vectors(self) -> Iterable[Finding]:
        for name, spreads in self.spreads.items():
            mean = np.mean(spreads)
            if len(spreads) == RECENT and mean < COLLAPSED_SPREAD:
                yield Finding(
                    f"collapsed {name}",
                    f"the vectors that the task compares have collapsed: {name} was {mean:.4f} in "
                    f"the last {RECENT} steps, so different images get the same one; lower "
                    "--learning-rate, or enlarge --batch",
                )

    def _solved(self, step: int, name: str, recent: deque[Score]) -> Iterable[Finding]:
        if step != SOLVED_STEP or len(recent) < LOG_EVERY:
            return
        last = list(itertools.islice(reversed(recent), LOG_EVERY))
        if _mean_above_chance(last) >= SOLVED:
            yield Finding(
                f"solved {name}",
                f"{name} is {_mean_value(last):.2f} already, solved within {step} steps: likely a "
                "shortcut that has nothing to do with the anatomy, such as a border; look with "
                "`selfvox preview`, make the task harder by its options",
            )

    def _at_chance(self, step: int, name: str, recent: deque[Score]) -> Iterable[Finding]:
        is_late = step >= max(AT_CHANCE_STEP, self.steps // 2)
        if not is_late or step % LOG_EVERY or len(recent) < RECENT:
            return
        if _is_at_chance(recent):
            yield Finding(
                f"chance {name}",
                f"{name} is {_mean_value(recent):.3f}, still at chance after {step} steps; if it "
                "stays there, try other values of --learning-rate, more steps, larger crops by "
                "--crop, or an easier task",
            )

    def _warn_once(self, step: int, finding: Finding) -> None:
        """Print a warning, unless this run was warned before, however often it was resumed."""
        warned = self.run.record.get("warned", [])
        if finding.key not in warned:
            text = f"step {step}: {finding.text}"
            echo(text)
            texts = self.run.record.get("warnings", {})
            self.run.note(warned=[*warned, finding.key], warnings={**texts, finding.key: text})


def overlapping_views(
    store: Store,
    cases: Sequence[StoredCase],
    size: Sequence[int],
    seed: int,
    slice_axis: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Two overlapping crops of each of a few scans, (CROPS, channel, *size) each.

    The second is an eighth of the edge further along every axis, towards the side where the scan
    has more room, so 7/8 of every edge are in both. `health/alignment` compares this pair, whatever
    the task. The same seed gives the same crops.

    Args:
        store: of the cases.
        cases: to draw from.
        size: edges of the crops.
        seed: of the order of the cases and the places.
        slice_axis: of slices along this axis, the second view is of the next slice.
    """
    edges = volume_edges(size, slice_axis)
    rng = np.random.default_rng((seed, 3))
    order = rng.permutation(len(cases))
    first: list[Tensor] = []
    second: list[Tensor] = []
    for number in range(CROPS + MOST_DAMAGED_VIEWS):
        case = cases[order[number % len(cases)]]
        start, shifted = _overlapping_corners(case.shape, edges, rng)
        try:
            pair = [torch.from_numpy(store.crop(case, at, edges)) for at in (start, shifted)]
        except DataError:
            # reported as soon as the training meets this scan
            if number - len(first) >= MOST_DAMAGED_VIEWS:
                raise
            continue
        first.append(pair[0])
        second.append(pair[1])
        if len(first) == CROPS:
            break
    views = torch.stack(first), torch.stack(second)
    if slice_axis is None:
        return views
    return views[0].squeeze(2 + slice_axis), views[1].squeeze(2 + slice_axis)


def _overlapping_corners(
    shape: Sequence[int], edges: Sequence[int], rng: np.random.Generator
) -> tuple[list[int], list[int]]:
    """The first corners of two overlapping crops of a scan."""
    start: list[int] = []
    shifted: list[int] = []
    for length, edge in zip(shape, edges, strict=True):
        room = length - edge
        low = int(rng.integers(room + 1)) if room > 0 else room // 2
        direction = 1 if room - low >= low else -1
        start.append(low)
        shifted.append(low + direction * max(1, edge // SHIFT))
    return start, shifted


def probe_caption(scores: Mapping[str, float], untrained: Mapping[str, float]) -> str:
    """`linear 0.71 (untrained 0.55), knn 0.66 (untrained 0.51), chance 0.33`."""
    parts = [
        f"{name} {value:.2f} (untrained {untrained[name]:.2f})"
        for name, value in scores.items()
        if name != "chance"
    ]
    return ", ".join([*parts, f"chance {scores['chance']:.2f}"])


def _mean_value(scores: Iterable[Score]) -> float:
    values = [score.value for score in scores]
    return sum(values) / len(values)


def _mean_above_chance(scores: Sequence[Score]) -> float:
    return sum(score.above_chance for score in scores) / len(scores)


def _is_at_chance(recent: deque[Score]) -> bool:
    chance = sum(score.chance for score in recent) / len(recent)
    limit = AT_CHANCE * (1 - chance)
    # a share of variance has a chance of 0; it is no count of right answers and has no such noise
    if chance:
        limit = min(limit, NOISE * math.sqrt(chance * (1 - chance)))
    return _mean_value(recent) - chance <= limit
