"""Names of classes in the header of a NIfTI label, as Connectome Workbench writes them."""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping
from xml.sax.saxutils import escape

from selfvox.plotting import class_colour

NO_EXTENSION = bytes(4)  # after a header without one
_CARET = 30  # code of the extension, <https://nifti.nimh.nih.gov/nifti-1/documentation/faq>
_EXTENSION_EDGE = 16  # bytes; lengths are multiples
# no characters of XML 1.0: control characters and halves of pairs, which JSON can have
_NOT_IN_XML = re.compile("[^\t\n\r -\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def label_table(classes: Mapping[int, str]) -> bytes:
    """The bytes between header and voxels: the flag of an extension, and the extension.

    Args:
        classes: names by label value; the background is not shown by viewers.
    """
    labels = "".join(_label(value, name) for value, name in sorted(classes.items()))
    # in the order in which Workbench writes it; without the date, so that equal labels are equal
    text = (
        '<?xml version="1.0" encoding="UTF-8"?><CaretExtension><VolumeInformation Index="0">'
        f"<LabelTable>{labels}</LabelTable><StudyMetaDataLinkSet></StudyMetaDataLinkSet>"
        "<VolumeType>Label</VolumeType></VolumeInformation></CaretExtension>"
    ).encode()
    # spaces, since XML may end in them, and in zeros not
    text += b" " * (-(len(text) + 8) % _EXTENSION_EDGE)
    return b"\1\0\0\0" + struct.pack("<2i", len(text) + 8, _CARET) + text


def _label(value: int, name: str) -> str:
    colour = bytes.fromhex(class_colour(value)[1:]) if value else bytes(3)
    red, green, blue = (f"{part / 255:.3g}" for part in colour)
    text = escape(_NOT_IN_XML.sub("\ufffd", name))
    return (
        f'<Label Key="{value}" Red="{red}" Green="{green}" Blue="{blue}" '
        f'Alpha="{min(value, 1)}">{text}</Label>'
    )
