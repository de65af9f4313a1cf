"""opencode as a person sees it: its terminal interface, in tmux."""

from __future__ import annotations

import asyncio
import shlex
import subprocess
from pathlib import Path

from tests.opencode.instance import Opencode
from tests.opencode.waiting import until

_WIDTH, _HEIGHT = 140, 45


class Terminal:
    """A terminal in which opencode runs.

    Args:
        socket: where this terminal's tmux listens; a short path.
        opencode: whose home and project.
    """

    def __init__(self, socket: Path, opencode: Opencode) -> None:
        self._socket = socket
        self._opencode = opencode

    def start(self, *arguments: str) -> None:
        """Start opencode's terminal interface."""
        given = [f"{name}={value}" for name, value in self._opencode.environ.items()]
        command = ["env", "-i", *given, "TERM=xterm-256color", str(self._opencode.binary)]
        self._tmux(
            *("-f", "/dev/null", "new-session", "-d", "-x", str(_WIDTH), "-y", str(_HEIGHT)),
            *("-c", str(self._opencode.project), shlex.join([*command, *arguments])),
        )

    def stop(self) -> None:
        """End it, and the tmux around it."""
        subprocess.run(
            ["tmux", "-S", self._socket, "kill-server"], check=False, capture_output=True
        )

    def type(self, text: str) -> None:
        """Type a text."""
        self._tmux("send-keys", "-l", text)

    def press(self, *keys: str) -> None:
        """Press keys by tmux's names: Enter, Escape, C-p."""
        self._tmux("send-keys", *keys)

    @property
    def screen(self) -> str:
        """What is on the screen, as text."""
        return self._tmux("capture-pane", "-p")

    async def shows(self, *texts: str, seconds: float = 30.0) -> str:
        """Return the screen when it shows these texts.

        Raises:
            AssertionError: it does not, in time.
        """

        def found() -> str:
            screen = self.screen
            return screen if all(text in screen for text in texts) else ""

        try:
            return await until(found, seconds)
        except AssertionError as error:
            raise AssertionError(f"{texts} did not appear on:\n{self.screen}") from error

    async def ask(self, text: str) -> None:
        """Type a prompt and send it."""
        self.type(text)
        await asyncio.sleep(0.3)  # as a person would: pasted text is handled apart
        self.press("Enter")

    def _tmux(self, *arguments: str) -> str:
        return subprocess.run(
            ["tmux", "-S", str(self._socket), *arguments],
            check=True,
            capture_output=True,
            text=True,
            timeout=10,
        ).stdout
