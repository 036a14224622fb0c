"""Names of classes from `classes.csv` in the folder of a data set: columns `value` and `name`."""

from __future__ import annotations

from pathlib import Path

from selfvox.data.naming import printable
from selfvox.data.sources._table_text import column_names, read_rows, read_table_text
from selfvox.errors import DataError

CLASS_TABLE = "classes.csv"
_LARGEST = 2**16 - 1


def read_class_table(
    folder: Path, of_labels: bool = True
) -> tuple[dict[int, str] | None, tuple[str, ...]]:
    """The names by class number, and notes; None where there is no table.

    Args:
        folder: of the data set.
        of_labels: the classes are those of label images, in which 0 is the background.

    Raises:
        DataError: a row is damaged, a number is no class, or a number or name is there twice.
    """
    file = folder / CLASS_TABLE
    if not file.is_file():
        return None, ()
    text = read_table_text(file)
    if not {"value", "name"} <= set(column_names(text)):
        return None, (f"{CLASS_TABLE} not read: it has no columns value and name",)
    classes: dict[int, str] = {}
    for number, cells in read_rows(text, printable(file)):
        place = f"{printable(file)} line {number}"
        value, name = cells["value"], cells["name"]
        if not (value.isascii() and value.isdecimal() and int(value) <= _LARGEST) or not name:
            raise DataError(
                f"{place}: '{printable(value)}', '{printable(name)}' is no class; write a number "
                f"from 0 to {_LARGEST} and a name"
            )
        if int(value) in classes or name in classes.values():
            raise DataError(f"{place}: {printable(name)} or its number is there twice; keep one")
        classes[int(value)] = name
    if not classes:
        raise DataError(f"{printable(file)}: names no class; add a row for each, or remove it")
    background = {0: "background"} if of_labels else {}
    return dict(sorted({**background, **classes}.items())), ()
