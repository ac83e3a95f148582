"""What the chaos tests did and saw, as JSON and as a table."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

HEADER = "| Scenario | Repeats | Expected | Seen | Seconds |\n|---|---|---|---|---|\n"


@dataclass(frozen=True, slots=True)
class Finding:
    """One scenario's outcome."""

    scenario: str
    repeats: int
    expected: str
    seen: str
    seconds: float


class ChaosReport:
    """Findings of one run."""

    def __init__(self) -> None:
        self.findings: list[Finding] = []

    def write(self, folder: Path) -> None:
        """Write `chaos.json` and `chaos.md` into a folder."""
        folder.mkdir(parents=True, exist_ok=True)
        found = [asdict(finding) for finding in self.findings]
        (folder / "chaos.json").write_text(json.dumps(found, indent=1) + "\n")
        (folder / "chaos.md").write_text(HEADER + "".join(map(_line, self.findings)))


def _line(finding: Finding) -> str:
    cells = (finding.scenario, finding.repeats, finding.expected, finding.seen)
    return "| " + " | ".join(map(str, cells)) + f" | {finding.seconds:.0f} |\n"
