"""Sessions out and in as files, through a daemon or directly on Redis."""

from __future__ import annotations

from pathlib import Path

import pytest

from sessiond import Session, SessionManager
from sessiond.errors import InvalidInput, NotFound, SessionDeleted


async def test_an_exported_session_is_taken_in_again_and_merged(
    manager: SessionManager, session: Session, tmp_path: Path
) -> None:
    folder = await manager.export(session.id, tmp_path)
    assert folder == tmp_path / session.id
    preferences = (folder / "preferences.json").read_text(encoding="utf-8")
    (folder / "preferences.json").write_text(preferences.replace("dark", "light"), encoding="utf-8")
    session.preferences["language"] = "en"
    await session.save()
    (report,) = await manager.import_from(tmp_path)
    assert (report.session_id, report.created, report.refused) == (session.id, False, [])
    await session.refresh()
    assert session.preferences == {"theme": "light", "language": "en"}
    assert session.messages[0].content == "said"


async def test_what_cannot_be_exported_or_taken_in_is_an_error(
    manager: SessionManager, session: Session, tmp_path: Path
) -> None:
    with pytest.raises(NotFound):
        await manager.export("ses_none", tmp_path)
    await manager.export(session.id, tmp_path)
    with pytest.raises(InvalidInput, match="is there already"):
        await manager.export(session.id, tmp_path)
    await manager.delete(session.id)
    with pytest.raises(SessionDeleted):
        await manager.import_from(tmp_path)
    with pytest.raises(InvalidInput, match="there is no"):
        await manager.import_from(tmp_path / "nothing")
