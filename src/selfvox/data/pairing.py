"""Pairs of scans and labels, by their names: which files are labels, and of which scan.

The only rule for that: sources, scores and checks of a folder use it. `tell_labels` says which
files are labels, `match_labels` which scan each of them belongs to. A label of `ann.nii.gz` may be
called `ann_seg.nii.gz`, be in a folder of labels under the same name, be called `label.nii.gz` next
to the only scan of a folder, or have more words than its scan (`ann_liver_mask.nii.gz`).

From the strictest way to the most lenient, each label takes the first that finds a scan:

1. the same folders and the same name, without the words for labels;
2. the same name, also without the words for scans, kinds of scan and subsets;
3. as 1 and 2, with the name cut at the word for a label (`1_mask_2` -> `1`);
4. one name begins with the other, and what follows contains no number;
5. one of both is named by its folder alone, and they share that folder.

`lesion`, `tumor` and `target` are words for labels only where a scan without them is found in this
way (`T1` next to `lesion`): `tumor_001` and `normal_001` are classes, and `tumor` may be the folder
of one.

Except for the first way, the label's folder, or the folder that contains the folder of labels, must
contain the scan too, and one must not be of training where the other is of test.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import PurePath

from selfvox.data.formats.image import suffix
from selfvox.data.name_words import MAYBE_LABEL, Role, Word, same_spelling, subset_of, words_of
from selfvox.data.naming import NaturalKey, natural_key, stem

_Key = tuple[str, ...]
_PLAIN_WORD = re.compile(r"[\w.+-]+")


@dataclass(frozen=True)
class Pairing:
    """Labels with their scans, and what names leave open; all paths as they were given."""

    scans: tuple[PurePath, ...]
    labels: Mapping[PurePath, PurePath]  # the label of each scan that has exactly one
    several_labels: Mapping[PurePath, tuple[PurePath, ...]]  # of scans that may have several
    several_scans: Mapping[PurePath, tuple[PurePath, ...]]  # of labels that fit several
    unmatched: tuple[PurePath, ...]  # labels without a scan


def pair_files(files: Sequence[PurePath]) -> Pairing:
    """Tell labels from scans and match them.

    Args:
        files: relative to the folder that was named.
    """
    return match_labels(*tell_labels(files))


def tell_labels(files: Sequence[PurePath]) -> tuple[list[PurePath], list[PurePath]]:
    """The scans and the labels among files, in the order given.

    A word for labels in the name of a file decides, or else the innermost folder with a word for
    labels or scans.
    """
    names = [_Name(file) for file in files]
    with_word = {name.path for name in names if name.says_label}
    in_folder = [name for name in names if not name.says_label and name.in_label_folder]
    # `masks_2024/7/scan.nii.gz` next to `masks_2024/7/mask.nii.gz` is a scan
    mates = {(name.path.parent, name.core) for name in names if name.says_label}
    elsewhere = {name.core for name in names if not name.says_label and not name.in_label_folder}
    by_folder = {
        name.path
        for name in in_folder
        if (name.path.parent, name.core) not in mates or name.core in elsewhere
    }
    certain = with_word | by_folder
    certain |= _with_maybe_word([name.path for name in names if name.path not in certain])
    scans = [name.path for name in names if name.path not in certain]
    labels = [name.path for name in names if name.path in certain]
    return scans, labels


def _with_maybe_word(files: Sequence[PurePath]) -> set[PurePath]:
    """The files with a word that may be for labels, if a scan without such a word fits them."""
    as_labels = [_Name(file, maybe_label=True) for file in files]
    possible = {name.path: name for name in as_labels if (name.says_label or name.in_label_folder)}
    candidates = _Candidates([_Name(file) for file in files if file not in possible])
    return {path for path, name in possible.items() if candidates.of_label(name)}


def match_labels(scans: Sequence[PurePath], labels: Sequence[PurePath]) -> Pairing:
    """Match labels with scans, where it is known which are which.

    Args:
        scans: relative to any folder.
        labels: relative to the same folder, or to another that has the same subfolders.
    """
    candidates = _Candidates([_Name(path) for path in scans])
    labels_of: dict[PurePath, list[PurePath]] = defaultdict(list)
    several_scans: dict[PurePath, tuple[PurePath, ...]] = {}
    unmatched = []
    for path in sorted(labels, key=_order):
        partners = candidates.of_label(_Name(path))
        partners = partners or candidates.of_label(_Name(path, maybe_label=True))
        if not partners:
            unmatched.append(path)
        elif len(partners) > 1:
            several_scans[path] = tuple(partners)
        else:
            labels_of[partners[0]].append(path)
    return Pairing(
        scans=tuple(scans),
        labels={scan: found[0] for scan, found in labels_of.items() if len(found) == 1},
        several_labels={scan: tuple(found) for scan, found in labels_of.items() if len(found) > 1},
        several_scans=several_scans,
        unmatched=tuple(unmatched),
    )


def answers_to(path: PurePath, word: str) -> bool:
    """Whether a person means this file by `word`.

    It is its path, one of its folders, or its name, or how the name begins or ends.
    """
    wanted = same_spelling(word)
    if wanted in map(same_spelling, (path.as_posix(), *path.parent.parts)):
        return True
    name = same_spelling(_stem(path))
    if name == wanted:
        return True
    before, after = name[: -len(wanted)], name[len(wanted) :]
    ends = name.endswith(wanted) and not before[-1:].isalnum()
    begins = name.startswith(wanted) and not after[:1].isalnum()
    return bool(wanted) and (ends or begins)


def shortest_word(path: PurePath, others: Iterable[PurePath]) -> str:
    """The shortest word that means `path` and none of the others, for a question to a person."""
    others = [other for other in others if other != path]
    name = _stem(path)
    starts = [place for place in range(1, len(name)) if not name[place - 1].isalnum()]
    ends = [name[start:] for start in reversed(starts) if name[start].isalnum()]
    words = [*reversed(path.parent.parts), *ends, name]
    # a word that needs no quotes on a command line, if there is one
    for word in sorted(words, key=lambda word: not _PLAIN_WORD.fullmatch(word)):
        if not any(answers_to(other, word) for other in others):
            return word
    return path.as_posix()


class _Name:
    """The name of a file in words, taken apart when they are needed.

    With `maybe_label`, `lesion`, `tumor` and `target` are words for labels. A folder `tumor` is
    of a class as often; `IMD001_lesion/IMD001_lesion.bmp` is not.
    """

    def __init__(self, path: PurePath, maybe_label: bool = False):
        self.path = path
        self.words = words_of(_stem(path))
        self.folders = [words_of(folder) for folder in path.parent.parts]
        if maybe_label:
            plain = self.words
            self.words = _as_labels(plain)
            self.folders = [
                _as_labels(words) if _is_of_labels(words, self.words != plain) else words
                for words in self.folders
            ]

    @property
    def says_label(self) -> bool:
        return any(word.role is Role.LABEL for word in self.words)

    @cached_property
    def in_label_folder(self) -> bool:
        """Whether the innermost folder with a word for labels or scans has one for labels."""
        for words in reversed(self.folders):
            roles = {word.role for word in words}
            if roles & {Role.LABEL, Role.SCAN}:
                return Role.LABEL in roles
        return False

    @property
    def strict_core(self) -> _Key:
        """The name without the words for labels."""
        return tuple(word.text for word in self.words if word.role is not Role.LABEL)

    @property
    def core(self) -> _Key:
        """The name without the words that say what kind of file it is, and nnU-Net's channel 0."""
        return _core(self.words)

    @property
    def cut_words(self) -> tuple[Word, ...]:
        """The words before the last one for a label; all of them where it comes first."""
        places = [place for place, word in enumerate(self.words) if word.role is Role.LABEL]
        return self.words[: places[0]] if places and places[0] > 0 else self.words

    @property
    def folder_key(self) -> _Key:
        """The folders without words for scans and labels; the subsets by their short names."""
        key = []
        for words in self.folders:
            others = [
                subset_of(word) if word.role is Role.SUBSET else word.text
                for word in words
                if word.role not in (Role.LABEL, Role.SCAN)
            ]
            key += [" ".join(others)] if others else []
        return tuple(key)

    @cached_property
    def subsets(self) -> set[str]:
        """The subsets that the folders name."""
        return {
            subset_of(word) for words in self.folders for word in words if word.role is Role.SUBSET
        }

    @cached_property
    def folder_names(self) -> _Key:
        return tuple(map(same_spelling, self.path.parent.parts))

    @cached_property
    def base(self) -> _Key:
        """The folders above the outermost one that is of labels or of scans."""
        for place, words in enumerate(self.folders):
            if any(word.role in (Role.LABEL, Role.SCAN) for word in words):
                return self.folder_names[:place]
        return self.folder_names


class _Candidates:
    """Scans by the names that a label may look for."""

    def __init__(self, scans: Sequence[_Name]):
        self._by_path: dict[tuple[_Key, _Key], list[_Name]] = defaultdict(list)
        self._by_core: dict[_Key, list[_Name]] = defaultdict(list)
        self._by_beginning: dict[_Key, list[_Name]] = defaultdict(list)
        self._by_folder: dict[_Key, list[_Name]] = defaultdict(list)
        for scan in scans:
            self._by_path[scan.folder_key, scan.strict_core].append(scan)
            self._by_core[scan.core].append(scan)
            for length in range(1, len(scan.core)):
                if _has_no_number(scan.core[length:]):
                    self._by_beginning[scan.core[:length]].append(scan)
            self._by_folder[scan.folder_names].append(scan)
            if scan.base != scan.folder_names:
                self._by_folder[scan.base].append(scan)

    def of_label(self, label: _Name) -> list[PurePath]:
        """The scans that a label fits, by the first way that finds one."""
        cut = label.cut_words
        cut_core = _core(cut)
        cut_strict = tuple(word.text for word in cut if word.role is not Role.LABEL)
        same_path = self._by_path.get((label.folder_key, label.strict_core), [])
        if same_path:
            return [scan.path for scan in same_path]
        ways: tuple[Callable[[], Sequence[_Name]], ...] = (
            lambda: self._by_core.get(label.core, []) if label.core else [],
            lambda: self._by_path.get((label.folder_key, cut_strict), []) if cut_strict else [],
            lambda: self._by_core.get(cut_core, []) if cut_core else [],
            lambda: self._longest_beginning(label.core),
            lambda: self._by_beginning.get(label.core, []),
            lambda: self._by_beginning.get(cut_core, []),
            lambda: self._of_folder(label),
        )
        for way in ways:
            possible = _nearest(label, [scan for scan in way() if _may_belong(label, scan)])
            if possible:
                return [scan.path for scan in possible]
        return []

    def _longest_beginning(self, core: _Key) -> Sequence[_Name]:
        """The scans with the longest name that the label's begins with."""
        for length in range(len(core) - 1, 0, -1):
            if not _has_no_number(core[length:]):
                return []
            if core[:length] in self._by_core:
                return self._by_core[core[:length]]
        return []

    def _of_folder(self, label: _Name) -> Sequence[_Name]:
        """The scans of the label's folder that are called after it alone, or its only scan."""
        scans = self._by_folder.get(label.base, [])
        folder = _core(label.folders[len(label.base) - 1]) if label.base else ()
        named_by_folder = [scan for scan in scans if scan.core in ((), folder)]
        if named_by_folder:
            return named_by_folder
        return scans if len(scans) == 1 and not label.core else []


def _may_belong(label: _Name, scan: _Name) -> bool:
    """Whether the folders of a label and of a scan do not contradict each other."""
    if scan.folder_names[: len(label.base)] != label.base:
        return False
    return not (label.subsets and scan.subsets and label.subsets.isdisjoint(scan.subsets))


def _nearest(label: _Name, scans: Sequence[_Name]) -> Sequence[_Name]:
    """The scans that share most folders with a label."""
    if len(scans) < 2:
        return scans
    folders = set(label.folder_names)
    shared = [len(folders.intersection(scan.folder_names)) for scan in scans]
    return [scan for scan, count in zip(scans, shared, strict=True) if count == max(shared)]


def _as_labels(words: Sequence[Word]) -> tuple[Word, ...]:
    """The words, those that may be for labels as if they were."""
    return tuple(
        Word(word.text, Role.LABEL) if MAYBE_LABEL.fullmatch(word.text) else word for word in words
    )


def _is_of_labels(folder: Sequence[Word], names_label: bool) -> bool:
    """Whether a folder with a word that may be for labels is of labels, not of a class of scans.

    Args:
        folder: its words.
        names_label: whether its file has such a word too.
    """
    texts = [word.text for word in folder]
    has_number = any(character.isdecimal() for text in texts for character in text)
    return (names_label and has_number) or any(text.startswith("target") for text in texts)


def _core(words: Sequence[Word]) -> _Key:
    texts = [word.text for word in words if word.role is Role.OTHER]
    # nnU-Net's channel 0, which its labels do not have
    return tuple(texts[:-1] if texts[1:] and texts[-1] == "0000" else texts)


def _has_no_number(texts: _Key) -> bool:
    return not any(text.isdecimal() for text in texts)


def _stem(path: PurePath) -> str:
    return stem(path, suffix(path))


def _order(path: PurePath) -> NaturalKey:
    return natural_key(path.as_posix())
