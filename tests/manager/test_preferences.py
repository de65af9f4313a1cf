"""Users' preferences through the Python API, in both ways."""

from __future__ import annotations

import pytest

from sessiond import SessionManager
from sessiond.errors import InvalidInput


async def test_a_session_begins_with_what_is_given_before_the_users_own(
    manager: SessionManager, way: str
) -> None:
    user = f"ann-{way}"
    changed = await manager.change_user_preferences(user, {"theme": "dark", "language": "de"})
    assert changed == await manager.user_preferences(user) == {"theme": "dark", "language": "de"}
    session = await manager.create(user_id=user, preferences={"language": "en"})
    assert session.preferences == {"theme": "dark", "language": "en"}
    with pytest.raises(InvalidInput):
        await manager.user_preferences("no id")
