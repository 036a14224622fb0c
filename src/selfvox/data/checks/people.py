"""Checks of people: a scan under several subjects, a person under several names, the split."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import TypeVar

from selfvox.data.checks.findings import Finding, Severity
from selfvox.data.checks.scan_facts import ScanFacts
from selfvox.data.naming import count_of, first_of, natural_key, numbered_name, printable
from selfvox.data.preparation.likeness import CoarsePictures
from selfvox.data.preparation.split import default_validation, make_split

_USES = ("train", "validation")
_BLOCK = 64  # scans
_NUMBER = re.compile(r"\d+")
_SIGNS = re.compile(r"[\W_]+")
# a number, then a letter or a short word: `P01a`, `017-pre`
_SAME_START = re.compile(r"(.*\d)[-_. ]?([a-z]{1,8}\d{0,2})", re.IGNORECASE)

Key = TypeVar("Key", bound=Hashable)


def check_people(facts: Sequence[ScanFacts]) -> list[Finding]:
    """Findings on duplicates and on subjects."""
    return [
        *_check_duplicates(facts),
        *_check_names(facts, _plain_name, "differ in signs, zeros or case alone"),
        *_check_names(facts, _start_of_name, "begin with the same number"),
        *_count_scans(facts),
    ]


def describe_split(facts: Sequence[ScanFacts]) -> list[Finding]:
    """What a split by subject would do, and which label values a part would lack."""
    labelled = [scan for scan in facts if scan.has_label]
    scans = labelled or list(facts)
    subjects = {scan.subject for scan in scans}
    if len(subjects) < 2:
        text = (
            f"all scans are of one subject, {printable(scans[0].subject)}: nobody is left to "
            "validate or test on; name subjects in a table, if they are several people"
        )
        return [Finding("warning", "split", text)]
    split = make_split(subjects, 0, default_validation(len(subjects)), seed=0)
    kind = "labelled scan" if labelled else "scan"
    parts = {use: [scan for scan in scans if scan.subject in getattr(split, use)] for use in _USES}
    texts = [
        f"{count_of(len(parts[use]), kind)} of {count_of(len(getattr(split, use)), 'subject')} "
        f"for {use}"
        for use in _USES
    ]
    findings = [
        Finding("note", "split", f"{'; '.join(texts)}; `prepare --test N` sets test subjects aside")
    ]
    every = {value for scan in labelled for value in scan.label_values}
    for use, members in parts.items():
        present = {value for scan in members for value in scan.label_values}
        missing = ", ".join(map(str, sorted(every - present)[:10]))
        # with few subjects there is no validation
        if labelled and members and missing:
            text = f"no {use} scan has the label values {missing}; name them in a split of your own"
            findings.append(Finding("warning", "split", text))
    return findings


def _check_duplicates(facts: Sequence[ScanFacts]) -> list[Finding]:
    """Scans with the same files, or the same prepared voxels."""
    findings = []
    reported: set[tuple[str, ...]] = set()
    contents: tuple[Callable[[ScanFacts], str], ...] = (
        lambda scan: scan.file_hash,
        lambda scan: scan.voxel_hash,
    )
    for content in contents:
        for group in _groups(facts, content).values():
            ids = tuple(scan.id for scan in group)
            if len(group) < 2 or ids in reported:
                continue
            reported.add(ids)
            subjects = {scan.subject for scan in group}
            severity: Severity = "error" if len(subjects) > 1 else "warning"
            whose = "under several subjects: training and test may share it"
            text = f"the same scan {whose if len(subjects) > 1 else 'twice'}; remove all but one"
            findings.append(Finding(severity, "duplicates", text, ids))
    return findings + _check_copies(facts)


def _check_copies(facts: Sequence[ScanFacts]) -> list[Finding]:
    """Scans that are nearly the same, such as one that was resampled, under several subjects."""
    findings = []
    pictures = [scan.coarse_picture for scan in facts]
    for start in range(0, len(facts), _BLOCK):
        # once for many scans: reading all pictures takes time
        earlier = CoarsePictures(pictures[:start])
        for index in range(start, min(start + _BLOCK, len(facts))):
            scan = facts[index]
            near = CoarsePictures(pictures[start:index]).find(scan.coarse_picture)
            place = earlier.find(scan.coarse_picture) if near is None else start + near
            if place is None:
                continue
            other = facts[place]
            if other.subject == scan.subject or other.voxel_hash == scan.voxel_hash:
                continue
            text = (
                "nearly the same scan under two subjects: a resampled copy, or one person? "
                "Training and test may share it"
            )
            findings.append(Finding("warning", "duplicates", text, (other.id, scan.id)))
    return findings


def _check_names(
    facts: Sequence[ScanFacts], key: Callable[[str], str | None], alike: str
) -> list[Finding]:
    """Subjects that may be one person, since their names are alike."""
    subjects = sorted({scan.subject for scan in facts}, key=natural_key)
    groups = _groups(subjects, key)
    several = [group for name, group in groups.items() if name is not None and len(group) > 1]
    if not several:
        return []
    text = (
        f"subjects with names that {alike}, such as {first_of(several[0])}; if they are one "
        "person, training and test may share it: give each person one name in a table"
    )
    members = {subject for group in several for subject in group}
    return [
        Finding(
            "warning", "people", text, tuple(scan.id for scan in facts if scan.subject in members)
        )
    ]


def _plain_name(subject: str) -> str:
    """`sub-01`, `Sub_1` and `sub1` are one."""
    without_zeros = _NUMBER.sub(lambda number: number[0].lstrip("0") or "0", subject)
    return _SIGNS.sub("", without_zeros).casefold()


def _start_of_name(subject: str) -> str | None:
    """`P01` of `P01a` and `P01-pre`; None of a name that does not go on after its number.

    None also of `P01_echo2`: about numbers after a name, `subjects` asks.
    """
    match = None if numbered_name(subject) else _SAME_START.fullmatch(subject)
    return match[1].casefold() if match else None


def _count_scans(facts: Sequence[ScanFacts]) -> list[Finding]:
    groups = _groups(facts, lambda scan: scan.subject)
    several = [group for group in groups.values() if len(group) > 1]
    text = f"{count_of(len(facts), 'scan')} of {count_of(len(groups), 'subject')}"
    if several:
        largest = max(several, key=len)
        names = first_of([scan.id for scan in largest])
        text += (
            f"; {len(several)} subjects have several, such as {printable(largest[0].subject)} "
            f"({names}): is each one person?"
        )
    return [Finding("note", "people", text)]


Item = TypeVar("Item")


def _groups(items: Sequence[Item], key: Callable[[Item], Key]) -> Mapping[Key, list[Item]]:
    groups: dict[Key, list[Item]] = defaultdict(list)
    for item in items:
        groups[key(item)].append(item)
    return groups
