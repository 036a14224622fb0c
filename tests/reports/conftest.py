"""Predictions to make reports of: three scans on a turned grid, several passes, a known truth."""

import base64
import gzip
import re
from html.parser import HTMLParser

import nibabel as nib
import numpy as np
import pytest

import selfvox

from ..conftest import affine, blob, make_run, write_scan

NASTY = '</script><img src=x onerror=alert("1")>'  # a name that somebody gave to a class
CLASSES = {"0": "background", "1": "organ", "2": NASTY}
SHAPE = (20, 17, 12)
# swapped and flipped axes, so that an order that is mixed up is seen
TURNED = affine(spacing=(1.5, 1.0, 2.0), turn=0.2, axes=(1, 0, 2), signs=(-1, 1, -1))


@pytest.fixture(scope="session")
def predicted(tmp_path_factory):
    """A folder with `scans` (images and labels) and their `predictions` by six passes."""
    root = tmp_path_factory.mktemp("CANARY-of-a-folder")
    run = make_run(root / "run", classes=CLASSES)
    for number in range(3):
        scan = blob(SHAPE, number)
        write_scan(root / "scans" / "images" / f"scan_{number}.nii.gz", scan, TURNED)
        label = (scan > 0).astype(np.uint8) + (scan > 800)
        write_scan(root / "scans" / "labels" / f"scan_{number}.nii.gz", label, TURNED)
    selfvox.predict(
        run,
        root / "scans",
        out=root / "predictions",
        passes=6,
        maps=("entropy", "percentiles"),
        device="cpu",
        precision="fp32",
    )
    return root


@pytest.fixture(scope="session")
def page(predicted, tmp_path_factory):
    """The folder of a report on these predictions."""
    out = tmp_path_factory.mktemp("out") / "report"
    selfvox.report(predicted / "predictions", out=out)
    return out


def volume(folder, name):
    """The volume that a page loads as `name`."""
    text = (folder / "data" / f"{name}.js").read_text()
    match = re.fullmatch(r'selfvox\.data\.receive\("([^"]+)", "([A-Za-z0-9+/=]+)"\);\n', text)
    assert match[1] == name
    return nib.Nifti1Image.from_bytes(gzip.decompress(base64.b64decode(match[2])))


class Elements(HTMLParser):
    """The elements of a page: tag and attributes of each; texts of cells and scripts."""

    def __init__(self, text):
        super().__init__()
        self.elements = []
        self.texts = []  # (stack of tags, attributes of the innermost, text)
        self._stack = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in ("meta", "link", "img", "input", "br"):
            self._stack.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        while self._stack and self._stack.pop()[0] != tag:
            pass

    def handle_data(self, data):
        if self._stack and data.strip():
            self.texts.append((*self._stack[-1], data.strip()))

    def of(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]

    def text_of(self, tag, **attributes):
        wanted = {name.rstrip("_"): value for name, value in attributes.items()}
        return [
            text
            for name, actual, text in self.texts
            if name == tag and wanted.items() <= actual.items()
        ]
