"""Several predictions of one scan: their settings, and which networks may vote together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selfvox.errors import UsageError, did_you_mean
from selfvox.runs.card import DropoutRates
from selfvox.runs.progress import echo
from selfvox.settings.verbs import Predict
from selfvox.uncertainty.mc_dropout import Dropout
from selfvox.uncertainty.vote_rules import VOTE_RULES, VoteOptions

# of passes by networks that were trained without dropout (paper B, 3.3: its best place and rate)
UNTRAINED = DropoutRates(encoder=0.3, decoder=0.0, kind="element")
NO_DROPOUT = Dropout(encoder=0.0, decoder=0.0, kind="element", seed=0)


@dataclass(frozen=True, kw_only=True)
class PassSettings:
    """How often each network predicts a scan, and how the predictions vote."""

    passes: int = 1  # per network; 1 is a plain prediction, without dropout
    dropout: Dropout = NO_DROPOUT
    vote: str = "majority"  # of vote_rules.VOTE_RULES
    vote_weights: tuple[float, ...] | None = None
    union_class: str | None = None
    maps: tuple[str, ...] = ()  # of maps.MAPS
    mirror: bool = False  # mirror images are predicted too, or in turns by several passes

    @classmethod
    def from_verb(cls, settings: Predict, trained: DropoutRates | None) -> PassSettings:
        """The same settings, from those of `predict`.

        Args:
            settings: of the verb.
            trained: what the leading network was trained with, the default of the rates.
        """
        default = trained or UNTRAINED
        encoder = settings.encoder_dropout
        decoder = settings.decoder_dropout
        dropout = Dropout(
            encoder=default.encoder if encoder is None else encoder,
            decoder=default.decoder if decoder is None else decoder,
            kind=settings.dropout_kind or default.kind,
            seed=settings.seed,
        )
        return cls(
            passes=settings.passes,
            dropout=dropout,
            vote=settings.vote,
            vote_weights=settings.vote_weights,
            union_class=settings.union_class,
            maps=settings.maps,
            mirror=settings.mirror,
        )

    def options(self, names: Sequence[str]) -> VoteOptions:
        """The options of the vote, for classes or regions of these names."""
        union_index = 0 if self.union_class is None else list(names).index(self.union_class)
        return VoteOptions(self.vote_weights or (), union_index)

    def has_several(self, networks: int) -> bool:
        """Whether several predictions are made of each scan."""
        return self.passes > 1 or networks > 1


def check_several(settings: Predict, networks: int) -> None:
    """Refuse options of several predictions where each scan is predicted once.

    Args:
        settings: of the verb.
        networks: that predict, those of all folds included.

    Raises:
        UsageError: a vote or a map is requested.
    """
    if settings.passes > 1 or networks > 1:
        return
    for name in ("vote", "maps"):
        # a class attribute of a dataclass is the default
        if getattr(settings, name) != getattr(Predict, name):
            raise UsageError(
                f"{name}: needs several predictions; give --passes 20, or --ensemble RUN"
            )


def region_votes() -> list[str]:
    """Names of the votes that a network trained on regions can take."""
    return [name for name, rule in VOTE_RULES.items() if rule.score_regions is not None]


def check_compatible(runs: Sequence[Path], facts: Sequence[Mapping[str, Any]]) -> None:
    """Refuse networks that cannot vote together.

    Args:
        runs: their folders, the first one leading.
        facts: what must be the same, for each run, by a name for the message.
    """
    for run, own_facts in zip(runs[1:], facts[1:], strict=True):
        for name, value in own_facts.items():
            if value != facts[0][name]:
                raise UsageError(
                    f"{run}: its {name} differs from that of {runs[0]}; "
                    "leave it out, or train both on one store"
                )


def check_mirror(settings: PassSettings, mirror_axes: Mapping[Path, Sequence[int]]) -> None:
    """Refuse to mirror scans for a network that was trained without such.

    Args:
        settings: of the passes.
        mirror_axes: of the training of each run.
    """
    for run, axes in mirror_axes.items():
        if settings.mirror and not axes:
            raise UsageError(
                f"mirror: {run} was trained without mirrored scans; leave --mirror out, or train "
                "it with `finetune --mirror` if mirrored scans look real"
            )


def describe_mirror(settings: PassSettings, axes: Sequence[int]) -> None:
    """Print how many mirror images are predicted, if they are.

    Args:
        settings: of the passes.
        axes: of the training of the leading network.
    """
    if not settings.mirror:
        return
    count = 2 ** len(axes)
    if settings.passes == 1:
        echo(f"mirrored: each network predicts {count} images of a scan, {count} times as long")
        return
    more = f"; at least --passes {count} shows all of them" if settings.passes < count else ""
    echo(f"mirrored: passes take turns with {count} images of a scan, at no cost{more}")


def check_vote(settings: PassSettings, names: Sequence[str], of_regions: bool = False) -> None:
    """Refuse a vote that the classes, or the regions of the training, do not allow."""
    if settings.passes > 1 and settings.dropout.encoder == settings.dropout.decoder == 0:
        raise UsageError("passes: without dropout all passes would be the same; give a rate")
    needed = VOTE_RULES[settings.vote].setting
    if needed is not None and getattr(settings, needed) is None:
        raise UsageError(f"{needed}: the {settings.vote} vote needs it; give it")
    allowed = region_votes()
    if of_regions and settings.vote not in allowed:
        raise UsageError(
            f"vote: the network was trained on regions, which have no {settings.vote} vote; "
            f"take {', '.join(allowed[:-1])} or {allowed[-1]}"
        )
    weights = settings.vote_weights
    if weights is not None and len(weights) != len(names):
        raise UsageError(
            f"vote_weights: {len(weights)} weights for {len(names)} classes ({', '.join(names)}); "
            "give one for each"
        )
    if settings.union_class is not None and settings.union_class not in names:
        kind = "region" if of_regions else "class"
        raise UsageError(
            f"union_class: no {kind} is called '{settings.union_class}'"
            f"{did_you_mean(settings.union_class, names)}"
        )


def passes_card(settings: PassSettings, sha256s: Sequence[str]) -> dict[str, Any]:
    """What `predictions.json` records of passes and mirror images; nothing for a plain prediction.

    All that the bytes of the predictions depend on.

    Args:
        settings: of the passes.
        sha256s: of the networks' weights, the leading network first.
    """
    mirror = {"mirror": True} if settings.mirror else {}
    if not settings.has_several(len(sha256s)):
        return mirror
    card: dict[str, Any] = {
        **mirror,
        "passes": settings.passes,
        "ensemble_sha256": list(sha256s[1:]),
    }
    if settings.passes > 1:
        card["encoder_dropout"] = settings.dropout.encoder
        card["decoder_dropout"] = settings.dropout.decoder
        card["dropout_kind"] = settings.dropout.kind
        card["seed"] = settings.dropout.seed
    card["vote"] = settings.vote
    card["vote_weights"] = None if settings.vote_weights is None else list(settings.vote_weights)
    card["union_class"] = settings.union_class
    return card


def describe_passes(settings: PassSettings, trained: Sequence[DropoutRates | None]) -> None:
    """Print where units are dropped, if they are, and whether the networks have learnt with that.

    Args:
        settings: of the passes.
        trained: what each network was trained with.
    """
    if settings.passes == 1:
        return
    dropout = settings.dropout
    rates = DropoutRates(dropout.encoder, dropout.decoder, dropout.kind)
    echo(f"{settings.passes} passes: dropout of {rates}, after each activation")
    for learnt in dict.fromkeys(trained):
        if learnt is None:
            echo(
                "dropout was never trained with: the passes show where the network is unsure, "
                "but not how often it is right; `selfvox finetune --encoder-dropout 0.3` trains it"
            )
        elif learnt == rates:
            echo("the network was trained with the same dropout")
        else:
            echo(f"the network was trained with another dropout: {learnt}")
