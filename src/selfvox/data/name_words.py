"""Words in names of files and folders: which say label, scan, kind, subset, time, side or group."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache


class Role(Enum):
    """What a word says of a file."""

    LABEL = "label"
    SCAN = "scan"
    KIND = "kind of scan"
    SUBSET = "subset"
    OTHER = "other"


@dataclass(frozen=True)
class Word:
    """A word of a name, in lower case and NFC, with its role."""

    text: str
    role: Role


_LABEL = (
    r"segs?|segms?|segmentations?|dsegs?|labels?|labelmaps?|lbls?|masks?|msks?|masken?|tumou?rsegs?|gts?|"
    r"groundtruths?|truths?|annos?|annots?|annotations?|manual|contours?|delineations?|rois?|"
    r"\d(?:st|nd|rd|th)ho"  # the first and the second human observer
)
# of a label, but also of a scan that shows it, and of a class of scans
MAYBE_LABEL = re.compile(r"lesions?|tumou?rs?|targets?")
_SCAN = (
    r"images?|imgs?|imaging|scans?|volumes?|vols?|orig|originals?|raw|rawdata|data|inputs?|"
    r"pictures?|photos?|bild|bilder"
)
KIND = (
    r"t1|t1w|t1n|t1c|t1ce|t1gd|t1km|t2|t2w|t2f|flair|dwi|adc|swi|bold|pd|pdw|mr|mri|"
    r"ct|cta|pet|pt|suv|us"
)
_SUBSET = r"train|training|tr|val|valid|validation|va|test|testing|ts"
_SUBSETS = {"tr": "train", "va": "val", "te": "test", "ts": "test"}  # by the first letters
# between folders of data and folders that were made from them
_OF_NOBODY = r"derivatives?|sourcedata"

_ROLES = (
    (re.compile(_LABEL), Role.LABEL),
    (re.compile(rf"{_SCAN}|{_OF_NOBODY}"), Role.SCAN),
    (re.compile(KIND), Role.KIND),
    (re.compile(_SUBSET), Role.SUBSET),
)
_TOKEN = re.compile(r"[^\W_]+")
_HUMP = re.compile(r"(?<=[a-z])(?=[A-Z])")  # in `TrainingMask`
_HALVES = re.compile(r"ground truths?|\d(st|nd|rd|th) ho")
# `label0001`, `imagestr`
_GLUED = re.compile(rf"({_LABEL}|{_SCAN})(\d+|{_SUBSET})")

_ANY_KIND = rf"{KIND}|image|img|scan|volume|vol|data|raw"
_DATE = (
    r"(?:19|20)\d\d[-_.]?(?:0[1-9]|1[0-2])[-_.]?(?:0[1-9]|[12]\d|3[01])|"
    r"(?:0[1-9]|[12]\d|3[01])[-.](?:0[1-9]|[12]\d|3[01])[-.](?:19|20)\d\d"
)
_TIME = (
    r"(?:ses|session|visit|run|timepoint|time|tp|t|mr|frame|phase|day|week|month|year|slice|sl)"
    r"[-_]?\d+|"
    r"(?:ses|run|acq|rec|echo|dir|task|desc|space)-[a-z0-9]+|"
    r"pre|post|before|after|baseline|bl|(?:follow[-_]?up|fu)[-_]?\d*|"
    r"native|arterial|portal|venous|portal[-_]?venous|delayed|"  # phases of the contrast agent
    r"axial|sagittal|coronal|transversal|ax|sag|cor|tra|"
    r"ed|es|sa|la|[234]ch|4d|cine|half_sequence|"  # phases and views of the heart
    rf"{_DATE}"
)
# words whose number may be a slice, a visit or a part of a scan, but also a person
COUNTED = r"z|m|w|v|scan|acq|im|img|image|patch"
_SIDE = r"left|right|od|os|l|r|cc|mlo"  # eyes and breasts of one person, and views of them
ENDING = re.compile(rf"[-_.](?:{_ANY_KIND}|{_TIME}|{_SIDE})$|(?<=\d)[lr]$", re.IGNORECASE)
# only after the number of a person
COUNTED_ENDING = re.compile(
    rf"[-_. ](?:(?:{COUNTED})[-_]?\d+|(?:{_DATE})[-_T](?:\d\d[-_.]?){{3}})$", re.IGNORECASE
)
# only in a person's folder
COUNTED_FOLDER = re.compile(rf"(?:19|20)\d\d|(?:{COUNTED})[-_ ]?(?:\d+|[a-z])", re.IGNORECASE)
# a name, then a number with or without a word: `case01_00012`, `p1_echo2`
NUMBERED = re.compile(r"(.+?)[-_. ]+(?:([a-z]{1,8})[-_. ]?)?\d+", re.IGNORECASE)
NO_SUBJECT = re.compile(
    rf"(?:{_ANY_KIND}|{_TIME}|{_SIDE}|anat|func|fmap|perf|nii|nifti|"
    r"train|training|val|valid|validation|test|testing|"
    r"images|imagestr|imagests|imagesval|imgs|scans|volumes)",
    re.IGNORECASE,
)
DATED = re.compile(rf"(?<!\d)(?:{_DATE})(?!\d)")
# of people, not one of them: `siteA`, `batch_2`, `fold 3`
GROUP = re.compile(
    r"(?:site|cent(?:er|re)|hospital|clinic|scanner|vendor|batch|part|fold|subset|group|class|grade|"
    r"cohort|study|dataset|set|release|version|v)[-_ ]?[a-z]?\d*",
    re.IGNORECASE,
)


def same_spelling(text: str) -> str:
    """The text as it is compared: NFC, since macOS takes letters apart, and without case."""
    return unicodedata.normalize("NFC", text).casefold()


@lru_cache(maxsize=2**16)
def words_of(name: str) -> tuple[Word, ...]:
    """The words of a name without its file ending, split at signs, humps and known words."""
    # humps first: they are lost in lower case
    spaced = _HUMP.sub(" ", unicodedata.normalize("NFC", name))
    texts: list[str] = []
    for token in _TOKEN.findall(spaced.casefold()):
        if texts and _HALVES.fullmatch(f"{texts[-1]} {token}"):
            texts[-1] += token
            continue
        glued = _GLUED.fullmatch(token)
        texts += glued.groups() if glued else (token,)
    return tuple(Word(text, _role(text)) for text in texts)


def subset_of(word: Word) -> str:
    """`train`, `val` or `test`, for a word with this role."""
    return _SUBSETS[word.text[:2]]


def _role(text: str) -> Role:
    for pattern, role in _ROLES:
        if pattern.fullmatch(text):
            return role
    return Role.OTHER
