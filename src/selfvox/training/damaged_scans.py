"""Damaged scans: those that cannot be read while a network is pre-trained."""

from __future__ import annotations

from selfvox.errors import DataError
from selfvox.runs.progress import echo
from selfvox.runs.run_folder import Run

SCANS_PER_DAMAGED = 100  # one scan in a hundred may be damaged, and one in any case


class DamagedScans:
    """Names and counts damaged scans, in `run.json` too; too many of them end the run.

    Args:
        run: remembers the scans if it is resumed.
        scans: number of all scans.
    """

    def __init__(self, run: Run, scans: int):
        self.run = run
        self.limit = max(1, scans // SCANS_PER_DAMAGED)

    def note(self, text: str) -> None:
        """Count a scan once.

        Args:
            text: `ID: reason`.

        Raises:
            DataError: these are too many.
        """
        case = text.partition(": ")[0]
        damaged = self.run.record.get("damaged_scans", [])
        if case not in damaged:
            echo(f"{text}; left out where it is damaged")
            damaged = [*damaged, case]
            self.run.note(damaged_scans=damaged)
        # also of a run that is resumed without a repair
        if len(damaged) > self.limit:
            raise DataError(
                f"{self.run.path}: {len(damaged)} damaged scans, and at most {self.limit} may "
                f"be left out; the last is {text}"
            )
