"""Names of the channels of one file from `channels.csv` in the folder of a data set."""

from __future__ import annotations

from pathlib import Path

from selfvox.data.naming import printable
from selfvox.data.sources._files import channels_of
from selfvox.data.sources._table_text import column_names, read_rows, read_table_text
from selfvox.errors import DataError

CHANNEL_TABLE = "channels.csv"


def read_channel_names(folder: Path, image: Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The names of the channels of each file, and notes.

    Args:
        folder: of the data set, which may have a table with a column `name`.
        image: the first scan; without a table, a picture says whether it is in colour.

    Raises:
        DataError: the table has no name, or one twice.
    """
    file = folder / CHANNEL_TABLE
    if not file.is_file():
        return channels_of(image), ()
    text = read_table_text(file)
    if "name" not in column_names(text):
        return channels_of(image), (f"{CHANNEL_TABLE} not read: it has no column name",)
    names = [cells["name"] for _, cells in read_rows(text, printable(file))]
    if not names or "" in names or len(set(names)) < len(names):
        raise DataError(
            f"{printable(file)}: write one name for each channel, in their order, each once"
        )
    return tuple(names), ()
