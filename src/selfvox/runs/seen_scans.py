"""The scans that weights were trained on, in a file of columns next to their card."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import safetensors

from selfvox.errors import DataError, WeightsError
from selfvox.runs.atomic_files import sha256
from selfvox.runs.mapped_columns import Texts, map_arrays, write_columns

FILE = "seen.safetensors"
LISTS = ("subjects", "image_hashes", "coarse_pictures")
_BASE64 = re.compile(r"([A-Za-z0-9+/]{4})*([A-Za-z0-9+/]{3}=|[A-Za-z0-9+/]{2}==)?")


def are_base64(texts: Iterable[str]) -> bool:
    """Whether all texts are in base64, as coarse pictures are."""
    return all(map(_BASE64.fullmatch, texts))


def write_seen(folder: Path, seen: Mapping[str, Iterable[str]]) -> str:
    """Write `seen.safetensors` of a folder, atomically.

    Args:
        folder: of the weights.
        seen: texts by the names of `LISTS`; one that is missing is empty.

    Returns:
        The SHA-256 of the file.
    """
    return write_columns(folder / FILE, {}, {name: Texts.of(seen.get(name, ())) for name in LISTS})


class SeenFile(Mapping[str, list[str]]):
    """The lists in `seen.safetensors`, mapped into memory; each is made when it is used.

    Args:
        folder: of the weights.
        checksum: of the file, from the card.

    Raises:
        WeightsError: it is missing, or not the one that was written with the weights.
    """

    def __init__(self, folder: Path, checksum: str):
        self.file = folder / FILE
        try:
            if sha256(self.file) != checksum:
                raise ValueError("its checksum does not match")
            arrays = map_arrays(self.file)
            self._columns = {name: Texts.take(arrays, name) for name in LISTS}
            for column in self._columns.values():
                column.check(len(column.starts) - 1)
        except DataError as error:
            raise WeightsError(f"{error}; copy it too") from None
        # a header of bad will has any value for any key
        except (safetensors.SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
            raise self._damaged(
                f"has no {error}" if isinstance(error, KeyError) else error
            ) from None

    def __getitem__(self, name: str) -> list[str]:
        """All texts of a list.

        Raises:
            WeightsError: they are no texts, or no pictures.
        """
        try:
            texts = self._columns[name].to_list()
        except UnicodeDecodeError as error:
            raise self._damaged(error) from None
        if name == "coarse_pictures" and not are_base64(texts):
            raise self._damaged("has coarse_pictures that are not in base64")
        return texts

    def __iter__(self) -> Iterator[str]:
        return iter(self._columns)

    def __len__(self) -> int:
        return len(self._columns)

    def _damaged(self, reason: object) -> WeightsError:
        return WeightsError(f"{self.file}: damaged ({reason}); copy it again")
