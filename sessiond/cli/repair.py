"""`sessiond repair ID… | --all`: what can be restored of damaged sessions, and restoring it."""

from __future__ import annotations

import argparse
from collections.abc import AsyncIterator

from sessiond.cli.connecting import (
    add_command,
    add_connection_options,
    add_json_option,
    with_client,
)
from sessiond.cli.exits import DAMAGED, OK
from sessiond.cli.scan import pages
from sessiond.cli.terminal import one_line, paint, print_json
from sessiond.client import DaemonClient
from sessiond.errors import InvalidInput, SessiondError
from sessiond.service.health.repairing import RepairPlan, RepairRequest


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = add_command(
        commands,
        "repair",
        help="plan the repair of damaged sessions, and do it with --apply",
        description="Print what a repair of damaged sessions would do; with --apply, do it. What "
        "is replaced is kept in quarantine keys, nothing is deleted. The exit code is 12 where "
        "something is lost, or is damaged and was not repaired.",
    )
    parser.add_argument("session_ids", nargs="*", metavar="ID", help="the sessions")
    parser.add_argument("--all", action="store_true", help="all that a scan finds damaged")
    parser.add_argument("--apply", action="store_true", help="do it; else it is only planned")
    add_connection_options(parser)
    add_json_option(parser)
    parser.set_defaults(command=_repair)


def _repair(options: argparse.Namespace) -> int:
    if options.all == bool(options.session_ids):
        raise InvalidInput("name the sessions to repair, or --all")

    async def run(client: DaemonClient) -> list[RepairPlan]:
        plans = []
        async for session_id in _wanted(client, options):
            try:
                plan = await _plan(client, session_id, apply=options.apply)
            except SessiondError as error:
                if not options.all or error.temporary:
                    raise
                plan = _refused(session_id, error)  # it must not keep from the others
            plans.append(plan)
            if not options.json:
                _print(plan)
        return plans

    plans = with_client(options, run)
    left = any(plan.lost or (plan.steps and not plan.applied) for plan in plans)
    if options.json:
        print_json({"ok": not left, "plans": plans})
    elif not any(plan.steps or plan.lost for plan in plans):
        print("there is nothing to repair")
    elif not options.apply:
        print("nothing was changed; --apply does it")
    return DAMAGED if left else OK


async def _wanted(client: DaemonClient, options: argparse.Namespace) -> AsyncIterator[str]:
    if not options.all:
        for session_id in options.session_ids:
            yield session_id
        return
    seen: set[str] = set()
    async for page in pages(client, []):
        for damage in page.damage:
            is_there = "{" in damage.key or damage.severity == "damaged"
            if is_there and not damage.is_file and damage.session_id not in seen | {""}:
                seen.add(damage.session_id)
                yield damage.session_id


async def _plan(client: DaemonClient, session_id: str, *, apply: bool) -> RepairPlan:
    path = f"/v1/sessions/{session_id}/repair"
    plan: RepairPlan = (
        await client.call("POST", path, RepairPlan, body=RepairRequest(apply=apply))
    )[0]
    return plan


def _refused(session_id: str, error: SessiondError) -> RepairPlan:
    return RepairPlan(session_id=session_id, steps=[], lost=[error.detail], quarantine="")


def _print(plan: RepairPlan) -> None:
    """Print what is done with each key, and what is lost."""
    verb = "repaired" if plan.applied else "would be repaired" if plan.steps else "stays as it is"
    print(f"{plan.session_id} {verb}", flush=True)
    for step in plan.steps:
        print(f"  {one_line(step.key)}: {one_line(step.action)}")
    for again in plan.again:
        print(f"  {paint('again:', 'yellow')} {one_line(again)}")
    for lost in plan.lost:
        print(f"  {paint('lost:', 'red')} {one_line(lost)}")
    if plan.applied:
        print(f"  what was replaced is kept: {one_line(plan.quarantine)}…")
