"""The verb `convert`: scans of any layout and format as NIfTI files, without a person's texts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from selfvox.data.formats import image as images
from selfvox.data.formats.image import Image
from selfvox.data.naming import printable
from selfvox.data.preparation.prepare_case import Rejected, make_rejected, read_case
from selfvox.data.sources import Case, Dataset, find_dataset
from selfvox.errors import DataError, UsageError
from selfvox.runs.atomic_files import check_new_folder, write_csv, write_json
from selfvox.runs.progress import echo, progress_bar
from selfvox.settings.verbs import Convert
from selfvox.training.folder_kind import check_scans

REJECTED = "rejected.csv"


def convert(settings: Convert) -> list[Path]:
    """Write scans as NIfTI files: voxels, grid and nothing else.

    Labelled scans become `imagesTr/ID_0000.nii.gz`, `labelsTr/ID.nii.gz` and `dataset.json`, as
    nnU-Net reads them; others `ID.nii.gz`, or `ID_0000.nii.gz` and so on of several channels.

    Raises:
        UsageError: the folder is not empty, or among the scans.
        DataError: there is no volume, or at least one scan cannot be used; the others were written.
    """
    out = settings.out
    check_scans(settings.scans)
    check_new_folder(out)
    if settings.scans.is_dir() and out.resolve().is_relative_to(settings.scans.resolve()):
        raise UsageError(f"{out}: is among the scans; name another --out")
    dataset = find_dataset(settings.scans, settings.source)
    for note in dataset.notes:
        echo(note)
    is_labelled = any(case.label is not None for case in dataset.cases)
    out.mkdir(parents=True, exist_ok=True)
    files: list[Path] = []
    values: set[int] = set()
    rejected: list[Rejected] = []
    with progress_bar("convert", len(dataset.cases)) as bar:
        for case in dataset.cases:
            try:
                files += _write_case(case, dataset, out, values, is_labelled)
            except DataError as error:
                rejected.append(make_rejected(case, str(error)))
                echo(f"{rejected[-1].file}: {rejected[-1].reason}")
            bar.advance()
    if is_labelled:
        _write_description(out, dataset, values, len(dataset.cases) - len(rejected))
    echo(f"{len(dataset.cases) - len(rejected)} scans: {out}; their names are those of the files")
    if rejected:
        rows = [[scan.id, scan.file, scan.reason] for scan in rejected]
        write_csv(out / REJECTED, ["id", "file", "reason"], rows)
        raise DataError(
            f"{out}: {len(rejected)} of {len(dataset.cases)} scans could not be converted, see "
            f"{REJECTED} there"
        )
    return files


def _write_case(
    case: Case, dataset: Dataset, out: Path, values: set[int], is_labelled: bool
) -> list[Path]:
    """Write a scan and its label; adds the values of the label to `values`.

    Raises:
        DataError: a file cannot be used.
    """
    image = read_case(case, len(dataset.channel_names))
    if image.spatial_dims != 3:
        raise DataError(f"{image.name}: is a picture, which has no NIfTI file; leave it out")
    label = None
    if case.label is not None:
        label = images.read_label(case.label, image, dataset.classes)
    # without the header, of which fields may name a person
    bare = Image(image.data, image.affine, printable(case.id))
    folder = out / "imagesTr" if is_labelled else out
    folder.mkdir(parents=True, exist_ok=True)
    numbered = is_labelled or len(image.data) > 1
    files = []
    for number, channel in enumerate(image.data):
        path = folder / (f"{case.id}_{number:04}.nii.gz" if numbered else f"{case.id}.nii.gz")
        images.write_volume(path, channel, bare)
        files.append(path)
    if label is not None:
        values |= set(np.unique(label).tolist())
        labels = out / "labelsTr"
        labels.mkdir(exist_ok=True)
        images.write_label(labels / f"{case.id}.nii.gz", label, bare)
    return files


def _write_description(out: Path, dataset: Dataset, values: set[int], count: int) -> None:
    """Write `dataset.json` of nnU-Net."""
    names: Mapping[int, str] = {0: "background", **(dataset.classes or {})}
    labels = {names.get(value, f"class {value}"): value for value in sorted(values | names.keys())}
    description = {
        "channel_names": {str(number): name for number, name in enumerate(dataset.channel_names)},
        "labels": labels,
        "numTraining": count,
        "file_ending": ".nii.gz",
    }
    write_json(out / "dataset.json", description)
