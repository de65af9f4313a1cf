"""Projects to work in: clones of one repository, as far as opencode can tell."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

_DATE = "2024-01-01T00:00:00Z"
_NOBODY = {
    "GIT_CONFIG_GLOBAL": os.devnull,
    "GIT_CONFIG_SYSTEM": os.devnull,
    "GIT_TERMINAL_PROMPT": "0",
    "GIT_AUTHOR_NAME": "sessiond",
    "GIT_AUTHOR_EMAIL": "sessiond@localhost",
    "GIT_AUTHOR_DATE": _DATE,
    "GIT_COMMITTER_NAME": "sessiond",
    "GIT_COMMITTER_EMAIL": "sessiond@localhost",
    "GIT_COMMITTER_DATE": _DATE,
}


def git_project(path: Path, seed: str = "shared") -> Path:
    """Make a git repository, and return its path with links resolved, as opencode names it.

    The root commit depends on the seed alone, and opencode's id of the project is the root
    commit: two folders of one seed are two clones of one project.
    """
    path.mkdir(parents=True)
    environ = {"PATH": os.environ.get("PATH", os.defpath)} | _NOBODY
    for command in (
        ("init", "--quiet", "--initial-branch=main"),
        ("commit", "--quiet", "--allow-empty", "--message", f"begin {seed}"),
    ):
        subprocess.run(("git", *command), cwd=path, env=environ, check=True, timeout=30)
    return path.resolve()
