"""Findings: what a check found, how bad it is, and what to do about it."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

State = Literal["ok", "warning", "failed", "skipped"]


class Finding(Struct, kw_only=True):
    """What one check found, and what to do about it. `code`: of the error, when it failed."""

    check: str
    state: State
    finding: str
    remedy: str = ""
    code: str = ""


def ok(check: str, finding: str) -> Finding:
    """Return that nothing is wrong."""
    return Finding(check=check, state="ok", finding=finding)


def skipped(check: str, reason: str) -> Finding:
    """Return that nothing was checked, and why."""
    return Finding(check=check, state="skipped", finding=reason)


def warning(check: str, finding: str, remedy: str) -> Finding:
    """Return what works, but not as well as it could."""
    return Finding(check=check, state="warning", finding=finding, remedy=remedy)


def failed(check: str, finding: str, remedy: str, *, code: str) -> Finding:
    """Return what does not work; `code` is that of the error that it leads to."""
    return Finding(check=check, state="failed", finding=finding, remedy=remedy, code=code)
