"""What a check found: its severity, one line of text, and the scans that it is about."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from selfvox.data.naming import first_of

Severity = Literal["error", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")  # the worst first


@dataclass(frozen=True)
class Finding:
    """One thing to know about a data set.

    error: a scan cannot be used, or a result would be wrong. warning: probably a mistake.
    note: good to know.
    """

    severity: Severity
    check: str  # a word or two, such as "duplicates"
    text: str  # with the remedy
    scans: tuple[str, ...] = ()  # ids

    @property
    def scans_text(self) -> str:
        """How many scans, and the first of them."""
        if not self.scans:
            return ""
        return f"{len(self.scans)}: {first_of(self.scans)}"


def sort_findings(findings: Iterable[Finding]) -> list[Finding]:
    """The worst first; of one severity, what concerns more scans."""
    return sorted(
        findings,
        key=lambda finding: (SEVERITIES.index(finding.severity), -len(finding.scans)),
    )
