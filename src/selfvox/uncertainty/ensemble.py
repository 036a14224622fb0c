"""Networks and passes that vote together: what they must have in common, and what is said of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from selfvox.errors import UsageError, did_you_mean
from selfvox.runs.progress import echo
from selfvox.settings.verbs import Predict
from selfvox.uncertainty.mc_dropout import Dropout

CLASS_ONLY_VOTES = ("weighted", "borda")  # votes that regions, each found or not, have no rule for


def has_many_votes(settings: Predict) -> bool:
    """Whether each scan is asked about more than once."""
    return settings.passes > 1 or bool(settings.ensemble)


def check_same_kind(settings: Predict, classify: Sequence[bool]) -> None:
    """Refuse to let networks of whole scans and of voxels vote together; `classify`: of each, whether it does so."""
    for run, does in zip(settings.ensemble, classify[1:], strict=True):
        if does != classify[0]:
            what, other = (
                ("classifies whole scans", "segments")
                if does
                else ("segments", "classifies whole scans")
            )
            raise UsageError(
                f"{run}: {what}, where {settings.run} {other}; leave it out of --ensemble"
            )


def check_compatible(settings: Predict, runs: Sequence[Mapping[str, Any]]) -> None:
    """Refuse runs that cannot vote together; `runs`: of each, what must be the same, by what it is called."""
    for run, has in zip(settings.ensemble, runs[1:], strict=True):
        for what, value in has.items():
            if value != runs[0][what]:
                raise UsageError(
                    f"{run}: its {what} differs from that of {settings.run}; leave it out, or train both on one store"
                )


def check_vote(settings: Predict, names: Sequence[str], of_regions: bool = False) -> None:
    """Refuse a vote that the classes, or the regions that a network was trained on, do not allow."""
    what = "region" if of_regions else "class"
    if of_regions and settings.vote in CLASS_ONLY_VOTES:
        raise UsageError(
            f"vote: the network was trained on regions, of which there is no {settings.vote} vote; "
            "take majority, union or mean"
        )
    if settings.vote_weights is not None and len(settings.vote_weights) != len(names):
        raise UsageError(
            f"vote_weights: {len(settings.vote_weights)} of them for {len(names)} classes ({', '.join(names)}); "
            "give one for each"
        )
    if settings.union_class is not None and settings.union_class not in names:
        raise UsageError(
            f"union_class: no {what} is called '{settings.union_class}'{did_you_mean(settings.union_class, names)}"
        )


def dropout_from_settings(settings: Predict) -> Dropout:
    """What is dropped in each pass."""
    return Dropout(
        settings.encoder_dropout, settings.decoder_dropout, settings.dropout_kind, settings.seed
    )


def vote_settings(settings: Predict, sha256s: Sequence[str]) -> dict[str, Any]:
    """What `predictions.json` says of the passes: all that their bytes depend on; `sha256s`: of the networks.

    Nothing where a scan is asked about once.
    """
    if not has_many_votes(settings):
        return {}
    found: dict[str, Any] = {"passes": settings.passes, "ensemble_sha256": list(sha256s[1:])}
    if settings.passes > 1:
        found |= {
            "encoder_dropout": settings.encoder_dropout,
            "decoder_dropout": settings.decoder_dropout,
            "dropout_kind": settings.dropout_kind,
            "seed": settings.seed,
        }
        rates = f"{settings.encoder_dropout:g} of the encoder's and {settings.decoder_dropout:g} of the decoder's"
        echo(
            f"{settings.passes} passes: dropout of {rates} {settings.dropout_kind}s, behind each activation"
        )
        echo("the network was trained without dropout")
    weights = None if settings.vote_weights is None else list(settings.vote_weights)
    return {
        **found,
        "vote": settings.vote,
        "vote_weights": weights,
        "union_class": settings.union_class,
    }
