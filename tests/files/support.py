"""A small session, as its files and in its folder."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from sessiond.files.folder import SessionFolder
from sessiond.files.layout import Rendered, rendered
from sessiond.files.state import FolderState
from sessiond.model import Cache

SESSION = {
    "metadata": {
        "session_id": "ses_1",
        "created_at": "2026-01-13T10:30:00Z",
        "last_activity": "2026-01-13T11:45:00Z",
        "user_agent": "opencode/1.0.0",
        "environment": "development",
        "status": "active",
    },
    "conversation": {
        "messages": [
            {
                "id": "msg_001",
                "timestamp": "2026-01-13T10:30:00Z",
                "role": "user",
                "content": "Hélp",
                "tool_calls": [],
                "metadata": {},
            }
        ],
        "total_messages": 1,
        "context_window_used": 0,
    },
    "context": {
        "working_directory": "/home/user/project",
        "active_files": ["README.md"],
        "recent_commands": [],
        "state": {},
    },
    "preferences": {"theme": "dark"},
    "position": "00f3a9c1d2e4b7:2",
    "versions": {"context": "00f3a9c1d2e4b6:1"},
}


def session(**preferences: str) -> Rendered:
    """The session as its files, with other preferences if they are given."""
    given = {**SESSION, "preferences": preferences or {"theme": "d"}}
    return rendered(msgspec.json.encode(given), Cache())


def written(root: Path) -> tuple[SessionFolder, FolderState]:
    """A folder with the session's files, and what is known of them."""
    folder = SessionFolder(root / "ses_1", root / ".quarantine")
    return folder, folder.write(FolderState(session_id="ses_1"), session())


def overwrite(path: Path, content: bytes, *, keep_time: bool) -> None:
    """Change a file in its place: as an editor does, or with its time kept, as a bad disk does."""
    before = path.stat()
    path.write_bytes(content)
    if keep_time:
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    else:
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1_000_000))
