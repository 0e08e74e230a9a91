"""Counts what `mutmut run` found, per module; exits with 1 where too few mutants were killed (`make mutation`)."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path

#: Least share of mutants that tests must notice, in percent. A mutant that never ends is noticed.
WANTED = 95.0


def results() -> dict[str, Counter[str]]:
    """Module -> status -> how many mutants; `total` is the sum."""
    found = subprocess.run(
        [str(Path(sys.executable).with_name("mutmut")), "results", "--all", "true"], check=True, capture_output=True, text=True
    )
    out: dict[str, Counter[str]] = {}
    for line in found.stdout.splitlines():
        name, _, status = line.strip().partition(": ")
        if status:
            out.setdefault(name.rpartition(".")[0].rpartition(".")[2], Counter())[status] += 1
    return {**dict(sorted(out.items())), "total": sum(out.values(), Counter())}


def main() -> int:
    """Print the table; exit code."""
    print("| module | mutants | killed | timeout | survived | no test | noticed |\n|---|---|---|---|---|---|---|")
    for module, counts in results().items():
        every, noticed = counts.total(), counts["killed"] + counts["timeout"]
        share = 100 * noticed / every
        cells = [every, counts["killed"], counts["timeout"], counts["survived"], every - noticed - counts["survived"]]
        print(f"| {module} | {' | '.join(map(str, cells))} | {share:.1f} % |")
    return int(share < WANTED)


if __name__ == "__main__":
    sys.exit(main())
