"""Codes of classes for DICOM segmentations, from a table: `name`, `code`, `scheme`, `meaning`."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from selfvox.data.formats.dicom_segmentation import Code
from selfvox.data.naming import printable
from selfvox.data.sources._table_text import column_names, read_rows, read_table_text
from selfvox.errors import DataError, did_you_mean

_COLUMNS = ("name", "code", "scheme", "meaning")
# of the attributes Code Value, Coding Scheme Designator and Code Meaning (DICOM PS3.3, 8.8)
_LONGEST = {"code": 16, "scheme": 16, "meaning": 64}


def read_code_table(file: Path, classes: Collection[str]) -> dict[str, Code]:
    """The code of each class that the table has.

    Args:
        file: CSV or TSV.
        classes: names of all classes.

    Raises:
        DataError: a column or cell is missing or too long, or a class is unknown or there twice.
    """
    text = read_table_text(file)
    missing = [name for name in _COLUMNS if name not in column_names(text)]
    if missing:
        raise DataError(
            f"{printable(file)}: has no column {', '.join(missing)}; write the columns "
            f"{', '.join(_COLUMNS)}, such as Liver,10200004,SCT,Liver"
        )
    codes: dict[str, Code] = {}
    for number, cells in read_rows(text, printable(file)):
        place = f"{printable(file)} line {number}"
        name = cells["name"]
        if name not in classes:
            nearest = did_you_mean(name, list(classes))
            raise DataError(f"{place}: '{printable(name)}' is no class of the run{nearest}")
        if name in codes:
            raise DataError(f"{place}: {printable(name)} is there twice; keep one row")
        for column, longest in _LONGEST.items():
            if not 0 < len(cells[column]) <= longest:
                raise DataError(f"{place}: {column} needs 1 to {longest} characters")
        codes[name] = Code(cells["code"], cells["scheme"], cells["meaning"])
    return codes
