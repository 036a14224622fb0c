"""Checks of label values: written in two ways, in few scans only, too many, or none at all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from selfvox.data.checks.findings import Finding, Severity
from selfvox.data.checks.scan_facts import ScanFacts
from selfvox.data.formats.label_values import two_numbers_of_one_class

_RARE = 0.1  # share of the labels below which a value is mentioned
_MOST_VALUES = 200  # of one label: more are grey values
_LISTED = 10


def check_labels(facts: Sequence[ScanFacts], classes: Mapping[int, str] | None) -> list[Finding]:
    """Findings on the values of labels.

    Args:
        facts: of the scans.
        classes: that the data set declares, by value.
    """
    labelled = [scan for scan in facts if scan.has_label]
    if not labelled:
        return []
    findings = []
    without = tuple(scan.id for scan in facts if not scan.has_label)
    if without:
        text = "no label; pre-training uses them, fine-tuning does not"
        findings.append(Finding("note", "labels", text, without))
    empty = tuple(scan.id for scan in labelled if not _classes_of(scan))
    if empty:
        severity: Severity = "error" if len(empty) == len(labelled) else "warning"
        text = "the label is background only; is there really nothing to see?"
        findings.append(Finding(severity, "labels", text, empty))
    findings += _check_many_values(labelled)
    findings += _check_two_ways(labelled, classes) or _check_rare(labelled, classes)
    return findings


def _classes_of(scan: ScanFacts) -> frozenset[int]:
    return frozenset(scan.label_values) - {0}


def _check_many_values(labelled: Sequence[ScanFacts]) -> list[Finding]:
    scans = [scan for scan in labelled if len(scan.label_values) > _MOST_VALUES]
    if not scans:
        return []
    text = (
        f"{len(scans[0].label_values)} values in one label; grey values of a picture, or a label "
        "that was interpolated? Save class numbers"
    )
    return [Finding("error", "labels", text, tuple(scan.id for scan in scans))]


def _check_two_ways(
    labelled: Sequence[ScanFacts], classes: Mapping[int, str] | None
) -> list[Finding]:
    """One structure that some labels number in another way, such as 1 and 255."""
    groups = Counter(_classes_of(scan) for scan in labelled if _classes_of(scan))
    single = [values for values, _ in groups.most_common() if len(values) == 1]
    if len(groups) < 2 or len(single) < len(groups):
        return []
    usual = single[0]
    others = tuple(scan.id for scan in labelled if _classes_of(scan) and _classes_of(scan) != usual)
    refused = two_numbers_of_one_class([scan.label_values for scan in labelled])
    if refused and classes is None:
        return [Finding("error", "labels", refused, others)]
    listed = ", ".join(f"{min(values)} in {groups[values]}" for values in single[:_LISTED])
    text = (
        f"every label has a single value, but not the same one ({listed}); one structure written "
        "in several ways? Then give it one number"
    )
    return [Finding("warning", "labels", text, others)]


def _check_rare(labelled: Sequence[ScanFacts], classes: Mapping[int, str] | None) -> list[Finding]:
    """Values in few labels, and classes in none."""
    counts = Counter(value for scan in labelled for value in _classes_of(scan))
    findings = []
    rare = sorted(value for value, count in counts.items() if count < _RARE * len(labelled))
    if rare:
        listed = ", ".join(f"{value} in {counts[value]}" for value in rare[:_LISTED])
        more = f" and {len(rare) - _LISTED} more values" if len(rare) > _LISTED else ""
        scans = tuple(scan.id for scan in labelled if _classes_of(scan) & set(rare))
        text = f"values in few of {len(labelled)} labels ({listed}{more}); are they classes?"
        findings.append(Finding("warning", "labels", text, scans))
    absent = sorted(set(classes or ()) - set(counts) - {0})
    if classes and absent:
        names = ", ".join(f"{value} ({classes[value]})" for value in absent[:_LISTED])
        text = f"declared classes that are in no label: {names}"
        findings.append(Finding("warning", "labels", text))
    return findings
