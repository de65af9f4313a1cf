"""The JSON of the specification, in and out."""

from __future__ import annotations

import json
import secrets
from typing import Any

import msgspec
import pytest

from sessiond import SessionManager
from sessiond.model import Context, Conversation, Metadata, Preferences

# The JSON of the specification, word for word.
METADATA = """
{
  "session_id": "ses_abc123",
  "created_at": "2026-01-13T10:30:00Z",
  "last_activity": "2026-01-13T11:45:00Z",
  "user_agent": "opencode/1.0.0",
  "environment": "development",
  "status": "active"
}
"""
CONVERSATION = """
{
  "messages": [
    {
      "id": "msg_001",
      "timestamp": "2026-01-13T10:30:00Z",
      "role": "user",
      "content": "Help me analyze this codebase",
      "tool_calls": [],
      "metadata": {}
    }
  ],
  "total_messages": 1,
  "context_window_used": 1000
}
"""
CONTEXT = """
{
  "working_directory": "/home/user/project",
  "active_files": ["src/main.js", "README.md"],
  "recent_commands": ["read", "grep", "bash"],
  "state": {
    "current_task": "codebase_analysis",
    "phase": "exploration",
    "findings": []
  }
}
"""
PREFERENCES = '{ "theme": "dark", "language": "en" }'


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        (METADATA, Metadata),
        (CONVERSATION, Conversation),
        (CONTEXT, Context),
        (PREFERENCES, Preferences),
    ],
    ids=["metadata", "conversation", "context", "preferences"],
)
def test_the_specifications_json_passes_through_unchanged(text: str, kind: Any) -> None:
    """Same members, same order, same values."""
    passed = msgspec.json.encode(msgspec.json.decode(text, type=kind))
    assert passed.decode() == json.dumps(json.loads(text), separators=(",", ":"))


async def test_a_stored_session_has_the_specifications_json(manager: SessionManager) -> None:
    name = f"ses_{secrets.token_hex(4)}"
    created = await manager.create(
        session_id=name,
        user_agent="opencode/1.0.0",
        context=msgspec.json.decode(CONTEXT, type=Context),
        preferences=json.loads(PREFERENCES),
    )
    (message,) = json.loads(CONVERSATION)["messages"]
    await created.add_message(**message)
    session = await manager.load(name)
    assert json.loads(msgspec.json.encode(session.context)) == json.loads(CONTEXT)
    assert list(session.preferences.items()) == list(json.loads(PREFERENCES).items())
    assert json.loads(msgspec.json.encode(session.messages)) == [message]
    assert list(json.loads(msgspec.json.encode(session.messages[0]))) == list(message)
    written = json.loads(msgspec.json.encode(session.metadata))
    assert list(written) == [*json.loads(METADATA), "workspace"]
    assert written | json.loads(METADATA) == json.loads(METADATA) | {"workspace": "default"}
