"""The verb `convert`: scans of any layout and format as NIfTI files, without a person's texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from selfvox.data.formats import image as images
from selfvox.data.formats.image import Image
from selfvox.data.naming import count_of, printable
from selfvox.data.preparation.prepare_case import Rejected, make_rejected, read_case
from selfvox.data.sources import Case, Dataset, find_dataset
from selfvox.errors import DataError, UsageError
from selfvox.neighbours.bids_folder import BidsFolder
from selfvox.runs.atomic_files import check_new_folder, write_csv, write_json
from selfvox.runs.progress import echo, progress_bar
from selfvox.settings.verbs import Convert
from selfvox.training.folder_kind import check_scans

REJECTED = "rejected.csv"


def convert(settings: Convert) -> list[Path]:
    """Write scans as NIfTI files: voxels, grid and nothing else.

    Labelled scans become `imagesTr/ID_0000.nii.gz`, `labelsTr/ID.nii.gz` and `dataset.json`, as
    nnU-Net reads them; others `ID.nii.gz`, or `ID_0000.nii.gz` and so on of several channels. Or
    all of them become a BIDS folder.

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
    layout: BidsFolder | _PlainFolder = _PlainFolder(out, dataset)
    if settings.bids is not None:
        layout = BidsFolder(out, dataset, settings.bids)
    files: list[Path] = []
    values: set[int] = set()
    rejected: list[Rejected] = []
    written: list[Case] = []
    with progress_bar("convert", len(dataset.cases)) as bar:
        for case in dataset.cases:
            try:
                files += _write_case(case, dataset, layout, values)
                written.append(case)
            except DataError as error:
                rejected.append(make_rejected(case, str(error)))
                echo(f"{rejected[-1].file}: {rejected[-1].reason}")
            bar.advance()
    if not written:
        raise DataError(
            f"{settings.scans}: none of {count_of(len(rejected), 'scan')} could be "
            f"converted, such as {rejected[0].file}: {rejected[0].reason}"
        )
    is_labelled = any(case.label is not None for case in dataset.cases)
    layout.describe(written, _class_names(dataset, values) if is_labelled else None)
    echo(f"{len(written)} scans: {out}; their names are those of the files")
    if rejected:
        rows = [[scan.id, scan.file, scan.reason] for scan in rejected]
        write_csv(out / REJECTED, ["id", "file", "reason"], rows)
        raise DataError(
            f"{out}: {len(rejected)} of {len(dataset.cases)} scans could not be converted, see "
            f"{REJECTED} there"
        )
    return files


class _PlainFolder:
    """All scans in a folder; of labelled scans, the folders of nnU-Net."""

    def __init__(self, out: Path, dataset: Dataset):
        self.out = out
        self.channel_names = dataset.channel_names
        self.is_labelled = any(case.label is not None for case in dataset.cases)

    def image_files(self, case: Case) -> list[Path]:
        if self.is_labelled:
            # nnU-Net refuses training scans without a label
            folder = "imagesTs" if case.label is None else "imagesTr"
            return self._numbered(case, self.out / folder)
        if len(self.channel_names) > 1:
            return self._numbered(case, self.out)
        return [self.out / f"{case.id}.nii.gz"]

    def _numbered(self, case: Case, folder: Path) -> list[Path]:
        return [
            folder / f"{case.id}_{number:04}.nii.gz" for number in range(len(self.channel_names))
        ]

    def label_file(self, case: Case) -> Path:
        return self.out / "labelsTr" / f"{case.id}.nii.gz"

    def describe(self, written: Sequence[Case], classes: Mapping[int, str] | None) -> None:
        """Write `dataset.json` of nnU-Net."""
        if classes is None:
            return
        description = {
            "channel_names": {str(number): name for number, name in enumerate(self.channel_names)},
            "labels": {name: value for value, name in classes.items()},
            "numTraining": sum(case.label is not None for case in written),
            "file_ending": ".nii.gz",
        }
        write_json(self.out / "dataset.json", description)


def _write_case(
    case: Case, dataset: Dataset, layout: BidsFolder | _PlainFolder, values: set[int]
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
    files = layout.image_files(case)
    for path, channel in zip(files, image.data, strict=True):
        path.parent.mkdir(parents=True, exist_ok=True)
        images.write_volume(path, channel, bare)
    if label is not None:
        values |= set(np.unique(label).tolist())
        path = layout.label_file(case)
        path.parent.mkdir(parents=True, exist_ok=True)
        images.write_label(path, label, bare, dataset.classes)
    return files


def _class_names(dataset: Dataset, values: set[int]) -> dict[int, str]:
    """The names of all classes, by value; `class 2` of one that has none."""
    names: Mapping[int, str] = {0: "background", **(dataset.classes or {})}
    return {value: names.get(value, f"class {value}") for value in sorted(values | names.keys())}
