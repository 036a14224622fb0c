"""Is it learning? Watches a pre-training run: measures its encoder every so often, and says what looks amiss, once."""

from __future__ import annotations

import itertools
import math
from collections import defaultdict, deque
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor

from selfvox.data.preparation.store import Store, StoredCase
from selfvox.data.sampling.crop_size import volume_edges
from selfvox.models.encoder import Encoder
from selfvox.ops.losses import alignment, uniformity
from selfvox.ops.outcome import Outcome
from selfvox.runs.progress import echo
from selfvox.runs.run_folder import Run
from selfvox.training import embedding_health
from selfvox.training.loop import LOG_EVERY
from selfvox.training.probe import frozen_encoder

# two views of each, shown without gradient ten times in 1000 steps of eight crops: 0.6 % of a rotation run's CPU time
CROPS = 12
SHIFT = 8  # the second view lies an edge over this further along every axis
MEASURED, PROBED = 8, 5  # times per run
LEAST_BETWEEN = 50  # steps: a short run is measured less often

# in runs of all seven tasks on hippocampus, 60 to 100 steps, the spread stayed within .10 and .19, and above .8 of that
# of the untrained encoder
COLLAPSED, COLLAPSED_SHARE = 0.01, 0.1
# these runs were at most half-way from chance to all right even after 100 steps
SOLVED_STEP, SOLVED = 20, 0.95
# of the way from chance to all right, mean over 100 steps; of more than about ten answers, two standard errors of a
# guess's accuracy are less: NOISE times the standard deviation of one answer, at eight images a step
AT_CHANCE_STEP, AT_CHANCE, NOISE = 200, 0.02, 0.07
# all seven tasks reach every weight of the U-Nets; a network's unused last layers may well be a few per cent
REACHED_STEP, REACHED = 3, 0.95
RECENT = 100  # steps


class TrainingMonitor:
    """Measures and warns; its methods are called by the loop.

    Args:
        run: knows what was said before it was stopped.
        fabric: precision and device, where the encoder is.
        encoder: not yet trained.
        views: two of each of a few crops, as `views_of` makes them.
        steps: of the run.
        probe: what labels say of the encoder as it is: scores and `chance`.
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
        self.run, self.fabric, self.encoder, self.views, self.steps = (
            run,
            fabric,
            encoder,
            views,
            steps,
        )
        self.every = max(LEAST_BETWEEN, -(-steps // MEASURED) // LOG_EVERY * LOG_EVERY)
        self.probe, self.probe_every = probe, max(1, steps // PROBED)
        self.recent: defaultdict[str, deque[embedding_health.Score]] = defaultdict(
            lambda: deque(maxlen=RECENT)
        )
        self.spreads: defaultdict[str, deque[float]] = defaultdict(lambda: deque(maxlen=RECENT))
        self.reached: list[
            float
        ] = []  # shares of the parameters, at the steps where that was measured
        self.untrained_spread = self._health()["health/spread"]
        self.untrained_probe = self._probe()

    def before_update(self, step: int, outcome: Outcome) -> None:
        """Note the scores, and at some steps how much of the encoder the gradient reaches."""
        for name, score in embedding_health.chance_scores(outcome.metrics).items():  # type: ignore[arg-type]
            self.recent[name].append(score)
        for name, value in outcome.metrics.items():
            if name.endswith("embedding_std"):
                self.spreads[name].append(float(value))
        # where all is answered, as by triplets beyond their margin, no loss is left, and no gradient
        if (step == REACHED_STEP or self._is_measured(step)) and bool(outcome.loss):
            self.reached.append(embedding_health.share_with_gradient(self.encoder.parameters()))

    def after_step(self, step: int) -> dict[str, float]:
        """Measure when it is time, and warn; what was measured."""
        measured = self._measure(step) if self._is_measured(step) else {}
        if self.probe and (step % self.probe_every == 0 or step == self.steps):
            found = self._probe()
            measured |= {f"probe/{name}": value for name, value in found.items()}
            measured |= {
                f"probe/untrained_{name}": self.untrained_probe[name]
                for name in found
                if name != "chance"
            }
            echo(f"probe at step {step}: {told(found, self.untrained_probe)}")
        for about, text in self._amiss(step, measured):
            self._warn(about, f"step {step}: {text}")
        return measured

    def _is_measured(self, step: int) -> bool:
        return step == LOG_EVERY or step % self.every == 0 or step == self.steps

    def _measure(self, step: int) -> dict[str, float]:
        return {**self._health(), "health/reached": self._reached}

    @property
    def _reached(self) -> float:
        """The most at any step: what a batch of empty air leaves out, others may reach."""
        return max(self.reached, default=1.0)

    def _health(self) -> dict[str, float]:
        with frozen_encoder(self.encoder), self.fabric.autocast():
            first, second = (
                self.encoder.embed(each.to(self.fabric.device)).float().cpu() for each in self.views
            )
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

    def _amiss(self, step: int, measured: Mapping[str, float]) -> list[tuple[str, str]]:
        """What to warn of: a word by which it is known, and the text."""
        found = []
        spread = measured.get("health/spread", 1.0)
        if spread < max(COLLAPSED, COLLAPSED_SHARE * self.untrained_spread) and not _same(
            self.views[0]
        ):
            found.append(("collapsed", (
                f"features have collapsed: embeddings of different crops are nearly the same (spread {spread:.4f}, "
                f"untrained {self.untrained_spread:.4f}); lower --learning-rate, or choose another --task"
            )))  # fmt: skip
        for name, spreads in self.spreads.items():
            full = len(spreads) == RECENT and step % LOG_EVERY == 0
            if full and np.mean(spreads) < COLLAPSED and not _same(self.views[0]):
                found.append((f"collapsed {name}", (
                    f"the vectors that the task compares have collapsed: {name} was {np.mean(spreads):.4f} in the last "
                    f"{RECENT} steps, so different images get the same one; lower --learning-rate, or enlarge --batch"
                )))  # fmt: skip
        if step >= REACHED_STEP and self._reached < REACHED:
            found.append(("unreached", (
                f"{1 - self._reached:.0%} of the encoder's parameters get no gradient and stay random: the task does "
                "not use the maps they make; choose another --task or --network"
            )))  # fmt: skip
        for name, recent in self.recent.items():
            last = list(itertools.islice(reversed(recent), LOG_EVERY))
            if step == SOLVED_STEP and len(last) == LOG_EVERY and _above(last) >= SOLVED:
                found.append((f"solved {name}", (
                    f"{name} is {_mean(last):.2f} already, solved within {step} steps: likely a shortcut that tells "
                    "nothing of the anatomy, such as a border; look with `selfvox preview`, make the task harder by "
                    "its options"
                )))  # fmt: skip
            late = step >= max(AT_CHANCE_STEP, self.steps // 2) and step % LOG_EVERY == 0
            if late and len(recent) == RECENT and _at_chance(recent):
                found.append((f"chance {name}", (
                    f"{name} is {_mean(recent):.3f}, still at chance after {step} steps; if it stays there, try other "
                    "values of --learning-rate, more --steps, larger crops by --crop, or an easier task"
                )))  # fmt: skip
        return found

    def _warn(self, about: str, text: str) -> None:
        """Say it, unless it was said before in this run, however often that was resumed."""
        warned = self.run.record.get("warned", [])
        if about not in warned:
            echo(text)
            self.run.note(warned=[*warned, about])


def views_of(
    store: Store,
    cases: Sequence[StoredCase],
    size: Sequence[int],
    seed: int,
    slice_axis: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Two overlapping crops of each of a few scans, the same for one seed: (CROPS, channel, *size) each.

    The second lies an eighth of the edge further along every axis, towards the side where the scan has more room;
    7/8 of every edge are in both. This is the pair that `health/alignment` is about, whatever the task. Of slices along
    `slice_axis`, the second is of the next slice.
    """
    size = volume_edges(size, slice_axis)
    rng = np.random.default_rng((seed, 3))
    order = rng.permutation(len(cases))
    first, second = [], []
    for number in range(CROPS):
        case = cases[order[number % len(cases)]]
        start, moved = [], []
        for have, want in zip(case.shape, size, strict=True):
            room = have - want
            low = int(rng.integers(room + 1)) if room > 0 else room // 2
            start.append(low)
            moved.append(low + (1 if room - low >= low else -1) * max(1, want // SHIFT))
        first.append(torch.from_numpy(store.crop(case, start, size)))
        second.append(torch.from_numpy(store.crop(case, moved, size)))
    one, other = torch.stack(first), torch.stack(second)
    return (
        (one, other)
        if slice_axis is None
        else (one.squeeze(2 + slice_axis), other.squeeze(2 + slice_axis))
    )


def told(found: Mapping[str, float], untrained: Mapping[str, float]) -> str:
    """`linear 0.71 (untrained 0.55), knn 0.66 (untrained 0.51), chance 0.33`."""
    scores = [
        f"{name} {value:.2f} (untrained {untrained[name]:.2f})"
        for name, value in found.items()
        if name != "chance"
    ]
    return ", ".join([*scores, f"chance {found['chance']:.2f}"])


def _above(recent: Sequence[embedding_health.Score]) -> float:
    return sum(score.above_chance for score in recent) / len(recent)


def _at_chance(recent: deque[embedding_health.Score]) -> bool:
    chance = sum(score.chance for score in recent) / len(recent)
    least = AT_CHANCE * (1 - chance)
    if chance:  # a share of variance has none, and is no count of right answers
        least = min(least, NOISE * math.sqrt(chance * (1 - chance)))
    return _mean(recent) - chance <= least


def _mean(recent: Sequence[embedding_health.Score] | deque[embedding_health.Score]) -> float:
    return sum(score.value for score in recent) / len(recent)


def _same(crops: Tensor) -> bool:
    """Whether the crops are one and the same, as of a single small scan."""
    return bool((crops == crops[:1]).all())
