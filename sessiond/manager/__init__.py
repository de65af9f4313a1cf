"""The Python API: `SessionManager` and the sessions it gives.

```python
async with SessionManager.connect() as manager:
    session = await manager.create(user_id="user123", preferences={"theme": "dark"})
    await session.add_message(role="user", content="Help me analyze this codebase")
    session.context.active_files.append("README.md")
    await session.save()
    async for event in session.subscribe():
        ...
```
"""

from sessiond.manager.manager import SessionManager
from sessiond.manager.session import Session

__all__ = ["Session", "SessionManager"]
