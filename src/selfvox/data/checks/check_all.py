"""All checks together: those of prepared cases, and those of inspected scans, which know more."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from selfvox.data.checks.findings import Finding, sort_findings
from selfvox.data.checks.grids import check_grids
from selfvox.data.checks.inspect_scan import Inspection
from selfvox.data.checks.kinds import check_kinds
from selfvox.data.checks.labels import check_labels
from selfvox.data.checks.people import check_people, describe_split
from selfvox.data.checks.scan_facts import ScanFacts, facts_of_case
from selfvox.data.checks.values import check_values
from selfvox.data.naming import printable
from selfvox.data.preparation.prepare_case import Rejected
from selfvox.data.preparation.store import Store
from selfvox.data.sources import Case, Dataset
from selfvox.data.subjects import personally_named, subject_questions

_NUMBERS = re.compile(r"\d+(?:\.\d+)?(?:e-?\d+)?")


def check_store(store: Store) -> list[Finding]:
    """The findings on the cases of a store, from what their preparation measured; the worst first.

    Costs no reading of scans.
    """
    facts = [fact for fact in map(facts_of_case, store.cases) if fact is not None]
    if not facts:
        return []
    return sort_findings(_check_facts(facts, store.recipe.channel_names, store.classes))


def check_inspections(
    dataset: Dataset,
    inspections: Sequence[Inspection],
    rejected: Sequence[Rejected],
    channel_names: Sequence[str],
) -> list[Finding]:
    """The findings on inspected scans, the worst first.

    Args:
        dataset: the scans are of.
        inspections: of those that can be read.
        rejected: those that cannot.
        channel_names: of the recipe that they were inspected with.
    """
    facts = [inspection.facts for inspection in inspections]
    findings = [
        *_check_rejected(rejected),
        *_layout_notes(dataset),
        *(Finding("warning", "people", text) for text in subject_questions(dataset)),
        *_check_label_files(inspections),
        *_check_identity(dataset.cases, inspections),
    ]
    if facts:
        findings += _check_facts(facts, channel_names, dataset.classes)
        findings += [*_group_notes(facts), *describe_split(facts)]
    return sort_findings(findings)


def _check_facts(
    facts: Sequence[ScanFacts], channel_names: Sequence[str], classes: Mapping[int, str] | None
) -> list[Finding]:
    """The checks that need nothing but the facts of a preparation."""
    return [
        *check_people(facts),
        *check_values(facts, channel_names),
        *check_kinds(facts, channel_names),
        *check_grids(facts),
        *check_labels(facts, classes),
    ]


def _layout_notes(dataset: Dataset) -> list[Finding]:
    return [
        Finding("warning" if note in dataset.warnings else "note", "layout", note)
        for note in dataset.notes
    ]


def _check_rejected(rejected: Sequence[Rejected]) -> list[Finding]:
    """Scans that cannot be used, those of one reason together."""
    return [
        Finding("error", "unusable", reason, tuple(ids))
        for reason, ids in _group((scan.reason, scan.id) for scan in rejected)
    ]


def _check_label_files(inspections: Sequence[Inspection]) -> list[Finding]:
    """Labels that cannot be used, those of one reason together."""
    problems = [
        (inspection.label_error, inspection.facts.id)
        for inspection in inspections
        if inspection.label_error is not None
    ]
    return [Finding("error", "labels", text, tuple(ids)) for text, ids in _group(problems)]


def _check_identity(cases: Sequence[Case], inspections: Sequence[Inspection]) -> list[Finding]:
    findings = []
    named = [
        (", ".join(inspection.personal), inspection.facts.id)
        for inspection in inspections
        if inspection.personal
    ]
    for fields, ids in _group(named, by_pattern=False):
        text = (
            f"fields of the header that may name a person are filled: {printable(fields)}; "
            "selfvox stores none of them, but remove them before you pass the files on"
        )
        findings.append(Finding("warning", "identity", text, tuple(ids)))
    dated = tuple(case.id for case in personally_named(cases))
    if dated:
        text = "the file's name has a date or a person's name, and results are named after it"
        findings.append(Finding("warning", "identity", text, dated))
    return findings


def _group_notes(facts: Sequence[ScanFacts]) -> list[Finding]:
    """What the readers repaired or assumed, scans with like notes together."""
    notes = [(note, scan.id) for scan in facts for note in scan.notes]
    return [Finding("note", "reading", text, tuple(ids)) for text, ids in _group(notes)]


def _group(
    pairs: Iterable[tuple[str, str]], by_pattern: bool = True
) -> list[tuple[str, list[str]]]:
    """Ids by text; texts that differ in numbers, or in the file's name, are shown as the first."""
    texts: dict[str, str] = {}
    groups: dict[str, list[str]] = defaultdict(list)
    for text, scan in pairs:
        key = _NUMBERS.sub("#", text) if by_pattern else text
        texts.setdefault(key, text)
        groups[key].append(scan)
    return [(texts[key], ids) for key, ids in groups.items()]
