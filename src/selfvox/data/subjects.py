"""The subjects of a data set in words: how many there are, and what their names leave open."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

from selfvox.data import naming
from selfvox.data.formats.header_texts import is_personal_name
from selfvox.data.naming import printable
from selfvox.data.sources import Case, Dataset

_REMEDY = "if not, say so in a table with the columns image, label and subject"


def subject_notes(dataset: Dataset) -> list[str]:
    """How many people the scans are of, with an example; for names of files, what may be wrong."""
    cases_of: dict[str, list[Case]] = defaultdict(list)
    for case in dataset.cases:
        cases_of[case.subject].append(case)
    notes = [_count_note(cases_of, len(dataset.cases))] if cases_of else []
    return notes + subject_questions(dataset)


def personally_named(cases: Sequence[Case]) -> list[Case]:
    """The cases with a date or a person's name in the names of their files or folders."""
    # the id of a DICOM series is no name of its files
    return [
        case
        for case in cases
        if not case.stacked and is_personal_name(case.file or case.images[0].name)
    ]


def identity_notes(cases: Sequence[Case]) -> list[str]:
    """What results would say of the people, since they are named after files; no name is in it."""
    named = len(personally_named(cases))
    if not named:
        return []
    return [
        f"the file names of {naming.count_of(named, 'scan')} have a date or a person's name, and "
        "what is written is named after them: if they say who it is, rename the files first"
    ]


def subject_questions(dataset: Dataset) -> list[str]:
    """What names of files and folders leave open about the people, with the remedy."""
    if not dataset.guesses_subjects:
        return []
    return [
        *_folders_note(dataset.cases),
        *_names_note(dataset.cases),
        *_numbers_note(dataset.cases),
    ]


def _count_note(cases_of: Mapping[str, Sequence[Case]], scan_count: int) -> str:
    # with two scans of one person the rule shows
    example = max(cases_of, key=lambda subject: min(2, len(cases_of[subject])))
    if len(cases_of) == scan_count:
        return f"subjects: {scan_count}, one scan each, such as {printable(example)}"
    ids = [case.id for case in cases_of[example]]
    listed = ", ".join(map(printable, ids[:2])) + (", ..." if len(ids) > 2 else "")
    people = f"{len(cases_of)} with {scan_count} scans"
    return f"subjects: {people}, such as {printable(example)} ({listed})"


def _folders_note(cases: Sequence[Case]) -> list[str]:
    """Folders that may be one person's each, but have scans of several subjects."""
    subjects_in: dict[str, set[str]] = defaultdict(set)
    for case in cases:
        folder = case.images[0].parent
        if naming.names_person(folder.name):
            subjects_in[folder.as_posix()].add(case.subject)
    mixed = [folder for folder, subjects in subjects_in.items() if len(subjects) > 1]
    if len(mixed) < 2:
        return []
    listed = ", ".join(sorted(subjects_in[mixed[0]], key=naming.natural_key)[:2])
    name = printable(mixed[0].rpartition("/")[2])
    return [
        f"{len(mixed)} folders have scans of several subjects, such as {name} ({listed}): "
        f"are these different people? {_REMEDY}"
    ]


def _names_note(cases: Sequence[Case]) -> list[str]:
    """Files of one name in several folders that count as different people."""
    cases_of: dict[str, list[Case]] = defaultdict(list)
    for case in cases:
        cases_of[case.images[0].name.casefold()].append(case)
    repeated = [
        namesakes
        for name, namesakes in cases_of.items()
        if len({case.subject for case in namesakes}) > 1
        and (_is_number(namesakes[0]) or _is_person_in_other_folders(namesakes))
    ]
    if not repeated:
        return []
    # the first of a second subject
    namesakes = repeated[0]
    other = next(case for case in namesakes if case.subject != namesakes[0].subject)
    first, second = [printable(case.file or case.subject) for case in (namesakes[0], other)]
    return [
        f"{len(repeated)} names of files are in several folders and count as different people "
        f"there, such as {first} and {second}: are they? {_REMEDY}"
    ]


def _is_number(case: Case) -> bool:
    """Whether the name of a case's file is part of that of its subject."""
    stem = case.images[0].name.partition(".")[0]
    return any(character.isdecimal() for character in stem) and stem in case.subject


def _is_person_in_other_folders(namesakes: Sequence[Case]) -> bool:
    """Whether the file's name may be a person's, and those of its folders may not: `old/p07`."""
    stem = namesakes[0].images[0].name.partition(".")[0]
    folders = [case.images[0].parent.name for case in namesakes]
    return naming.names_person(stem) and not any(map(naming.names_person, folders))


def _numbers_note(cases: Sequence[Case]) -> list[str]:
    """Subjects with one beginning and a number: slices or visits of a person, or several people."""
    subjects_of: dict[str, set[str]] = defaultdict(set)
    counted = set()
    for case in cases:
        name = naming.numbered_name(case.subject)
        if name is not None:
            start, is_counted = name
            subjects_of[start.casefold()].add(case.subject)
            counted |= {start.casefold()} if is_counted else set()
    repeated = [start for start, subjects in subjects_of.items() if len(subjects) > 1]
    # one beginning of all is the data set's
    if not repeated or (len(subjects_of) == 1 and not counted):
        return []
    count = sum(len(subjects_of[start]) for start in repeated)
    example = sorted(subjects_of[repeated[0]], key=naming.natural_key)[:2]
    listed = ", ".join(map(printable, example))
    beginnings = naming.count_of(len(repeated), "beginning")
    return [
        f"the names of {count} subjects have {beginnings}, then a number, such as {listed}: is "
        "each beginning one person? if so, say so in a table with the columns image, label and "
        "subject"
    ]
