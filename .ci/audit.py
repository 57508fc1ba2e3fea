"""Known vulnerabilities of what requirements.lock pins: exit code 1 where there are any.

pip-audit asks a service on the network. Where that cannot be reached, or does not know the
packages, nothing is found, and this says so: the hashes of the lock file are what holds then.
"""

from __future__ import annotations

import json
import subprocess
import sys
import venv
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
LOCK = HERE.parent / "requirements.lock"
TOOLS = HERE.parent / ".venv" / "audit"
LIMIT_S = 300


def verdict(report: dict[str, Any]) -> tuple[int, list[str]]:
    """Exit code and what to say. report: of pip-audit, as JSON."""
    packages = report.get("dependencies", [])
    known = [one for one in packages if "skip_reason" not in one]
    lines = [
        f"{one['name']} {one['version']}: {found['id']}, "
        f"mended in {', '.join(found['fix_versions']) or 'no version'}"
        for one in known
        for found in one["vulns"]
    ]
    if lines:
        return 1, ["AUDIT: known vulnerabilities in requirements.lock:", *lines]
    if len(known) < len(packages) or not packages:
        some = f"{len(known)} of {len(packages)} packages"
        return 0, [f"AUDIT NOT DONE: the service knew {some}; the lock file's hashes hold"]
    return 0, [f"AUDIT: no known vulnerability in {len(known)} packages"]


def audit() -> dict[str, Any]:
    """pip-audit's report. Raises OSError, ValueError or SubprocessError where it made none."""
    python = TOOLS / "bin" / "python"
    if not python.exists():
        venv.create(TOOLS, with_pip=True)
    install = ["-m", "pip", "install", "--quiet", "--require-hashes", "-r", HERE / "audit.lock"]
    subprocess.run([python, *install], check=True, capture_output=True, timeout=LIMIT_S)
    look = ["-m", "pip_audit", "--requirement", LOCK, "--require-hashes", "--disable-pip"]
    look += ["--format", "json", "--progress-spinner", "off"]
    found = subprocess.run([python, *look], capture_output=True, text=True, timeout=LIMIT_S)
    report = json.loads(found.stdout)
    if not isinstance(report, dict):
        raise ValueError("no report")
    return report


def main() -> int:
    """Entry point."""
    try:
        code, lines = verdict(audit())
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        code, lines = 0, [f"AUDIT NOT DONE: pip-audit gave no report ({type(error).__name__})"]
    print("\n".join(lines), file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
