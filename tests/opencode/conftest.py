"""Real opencode instances for tests."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.opencode.binary import opencode_binary
from tests.opencode.instance import Opencode
from tests.opencode.machines import Team
from tests.opencode.model import Model
from tests.opencode.projects import git_project

StartOpencode = Callable[..., Awaitable[Opencode]]


@pytest.fixture(scope="session")
def binary() -> Path:
    """The executable of opencode."""
    return opencode_binary()


@pytest.fixture
def model() -> Iterator[Model]:
    """A model that does as it is told."""
    model = Model()
    yield model
    model.close()


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    """Two clones of one repository, at different paths."""
    return git_project(tmp_path / "here" / "project"), git_project(tmp_path / "there" / "clone")


@pytest.fixture
async def start_opencode(
    binary: Path, model: Model, tmp_path: Path
) -> AsyncIterator[StartOpencode]:
    """Makes an opencode and starts it, unless told not to; all end with the test.

    Instances of one name share home and database. Without a project each name gets a clone of
    the same repository.
    """
    made: list[Opencode] = []

    async def start(
        name: str = "a", project: Path | None = None, *, start: bool = True, **options: Any
    ) -> Opencode:
        if project is None:
            project = tmp_path / "projects" / name
            if not project.exists():
                git_project(project)
        opencode = Opencode(
            tmp_path / "opencode" / name,
            project.resolve(),
            binary=binary,
            model_url=model.url,
            **options,
        )
        made.append(opencode)
        if start:
            await opencode.start()
        return opencode

    yield start
    await asyncio.gather(*(opencode.stop() for opencode in made))


@pytest.fixture
async def team(binary: Path, model: Model) -> AsyncIterator[Team]:
    """Machines that share sessions; the test says which."""
    model.delay = 0.01
    team = Team(binary, model.url)
    yield team
    await team.stop()
