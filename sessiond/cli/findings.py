"""Printing what checks found, and the exit code that it makes: what both doctors share."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from sessiond.cli.exits import FAILED, OK, exit_code
from sessiond.cli.terminal import one_line, paint, print_json
from sessiond.errors import BY_CODE, SessiondError
from sessiond.service.finding import Finding, failed

_COLOURS = {"ok": "green", "warning": "yellow", "failed": "red", "skipped": "dim"}


def failed_by(check: str, error: SessiondError) -> Finding:
    """Return what an error says of a check."""
    return failed(check, error.detail, error.hint, code=error.code)


def report(findings: Iterable[Finding], *, as_json: bool, well: str, **more: Any) -> int:
    """Print findings as they come, and return the exit code of the first that failed.

    Args:
        findings: what the checks found.
        as_json: print JSON for programs, with `more` in it, when all are there.
        well: what to say when none failed.
        more: what else the JSON tells.
    """
    found = []
    for finding in findings:
        found.append(finding)
        if not as_json:
            print_finding(finding)
    codes = [exit_code_of(finding) for finding in found if finding.state == "failed"]
    if as_json:
        listed = [msgspec.to_builtins(finding) | _exit(finding) for finding in found]
        print_json({"ok": not codes, "findings": listed, **more})
    elif not codes:
        print(f"\n{well}")
    return codes[0] if codes else OK


def print_finding(finding: Finding) -> None:
    """Print a finding, and below it the remedy."""
    state = paint(finding.state.ljust(8), _COLOURS[finding.state])
    print(f"{state} {finding.check.ljust(14)} {one_line(finding.finding)}", flush=True)
    if finding.remedy:
        print(f"{'':23} {paint('→', 'yellow')} {one_line(finding.remedy)}", flush=True)


def exit_code_of(finding: Finding) -> int:
    """Return the exit code of a finding: that of its error; 0 unless it failed."""
    if finding.state != "failed":
        return OK
    kind = BY_CODE.get(finding.code)
    return exit_code(kind("")) if kind else FAILED


def _exit(finding: Finding) -> dict[str, int]:
    return {"exit_code": exit_code_of(finding)}
