"""The state of files: whatever changes makes another one, however it is hidden."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from sessiond.errors import InvalidInput
from sessiond.service.cached import fingerprints
from sessiond.service.cached.fingerprints import Fingerprint, Fingerprints, Unknown

SECOND_NS = 1_000_000_000
LATER_NS = 10 * SECOND_NS


class Clock:
    """The clock of this machine, ahead of or behind that of the files."""

    def __init__(self) -> None:
        self.ahead_ns = 0

    def __call__(self) -> int:
        return time.time_ns() + self.ahead_ns


@pytest.fixture
def clock() -> Clock:
    """Ten seconds on: files that were just written have been there for a while."""
    clock = Clock()
    clock.ahead_ns = LATER_NS
    return clock


@pytest.fixture
def prints(clock: Clock) -> Fingerprints:
    return Fingerprints(clock)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "project"
    (root / "src" / "deep").mkdir(parents=True)
    (root / "src" / "a.py").write_text("aaaa")
    (root / "src" / "deep" / "b.py").write_text("bbbb")
    (root / ".gitignore").write_text("*.log\n")
    return root


def of(prints: Fingerprints, root: Path, path: str = "src/a.py") -> Fingerprint:
    return prints.of(str(root), path, "tree" if (root / path).is_dir() else "file")


def rewrite_keeping_times(path: Path, text: str) -> None:
    """Write as many bytes into the same file and give it its former time back."""
    before = path.stat()
    assert before.st_size == len(text)
    with path.open("r+") as file:
        file.write(text)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_mtime_ns == before.st_mtime_ns


def rename_over(path: Path, text: str) -> None:
    """Put another file of the same size and time in its place."""
    before = path.stat()
    other = path.with_name("other")
    other.write_text(text)
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    other.replace(path)


def append(path: Path, text: str) -> None:
    with path.open("a") as file:
        file.write(text)


CHANGES: list[Callable[[Path, str], None]] = [
    lambda path, text: (path.write_text(text), None)[1],
    rewrite_keeping_times,
    rename_over,
    append,
]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("path", ["src/a.py", "src", "."])
def test_another_content_is_another_state_however_it_came(
    prints: Fingerprints, root: Path, path: str, change: Callable[[Path, str], None]
) -> None:
    before = of(prints, root, path)
    change(root / "src" / "a.py", "cccc")
    after = of(prints, root, path)
    assert after.digest != before.digest
    assert after.stamp != before.stamp


@pytest.mark.parametrize("change", CHANGES)
def test_a_file_that_changed_a_moment_ago_is_read_each_time(
    root: Path, change: Callable[[Path, str], None]
) -> None:
    """The clock is right, so nothing is trusted: a change may leave the same signature."""
    prints = Fingerprints()
    before = of(prints, root)
    assert before.stamp == ""
    assert not prints._digests
    change(root / "src" / "a.py", "cccc")
    assert of(prints, root).digest != before.digest


def test_two_changes_of_one_moment_with_one_signature_are_told_apart(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a file system whose times are coarse: what is seen of the file never changes."""
    signature = fingerprints._signature((root / "src" / "a.py").stat())
    monkeypatch.setattr(fingerprints, "_signature", lambda _: signature)
    prints = Fingerprints()
    digests = set()
    for text in ("aaaa", "bbbb", "cccc"):
        (root / "src" / "a.py").write_text(text)
        digests.add(of(prints, root).digest)
    assert len(digests) == 3


def test_a_content_that_comes_back_is_the_same_state_but_not_the_same_stamp(
    prints: Fingerprints, root: Path
) -> None:
    """So a tool that saw what was between cannot be taken for one that saw this."""
    before = of(prints, root)
    rewrite_keeping_times(root / "src" / "a.py", "cccc")
    rewrite_keeping_times(root / "src" / "a.py", "aaaa")
    after = of(prints, root)
    assert after.digest == before.digest
    assert "" != after.stamp != before.stamp != ""


@pytest.mark.parametrize("ahead_s", [-3600, -3, 0, 1])
def test_files_from_the_future_are_never_trusted(
    root: Path, clock: Clock, prints: Fingerprints, ahead_s: int
) -> None:
    """The clock was set back, or that of the file system is ahead."""
    clock.ahead_ns = ahead_s * SECOND_NS
    assert of(prints, root).stamp == ""
    assert of(prints, root, ".").stamp == ""
    assert not prints._digests


def test_a_time_that_somebody_set_into_the_future_is_not_trusted(
    root: Path, prints: Fingerprints
) -> None:
    soon = time.time_ns() + 3600 * SECOND_NS
    os.utime(root / "src" / "a.py", ns=(soon, soon))
    assert of(prints, root).stamp == ""


def test_looking_again_reads_nothing(
    root: Path, prints: Fingerprints, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = of(prints, root), of(prints, root, ".")
    monkeypatch.setattr(fingerprints, "_digest", lambda _: pytest.fail("it was read again"))
    assert (of(prints, root), of(prints, root, ".")) == first


def test_the_same_files_are_the_same_state_elsewhere(
    root: Path, prints: Fingerprints, tmp_path: Path
) -> None:
    other = tmp_path / "another machine"
    shutil.copytree(root, other)
    os.utime(other / "src" / "a.py", (1, 1))
    for path in ("src/a.py", "src", "."):
        assert of(prints, other, path).digest == of(prints, root, path).digest
        assert of(prints, other, path).stamp != of(prints, root, path).stamp


def test_a_folder_s_state_has_names_links_ignored_files_and_hidden_ones(
    root: Path, prints: Fingerprints
) -> None:
    seen = {of(prints, root, "src").digest}

    def differs() -> None:
        digest = of(prints, root, "src").digest
        assert digest not in seen
        seen.add(digest)

    (root / "src" / "a.py").rename(root / "src" / "c.py")
    differs()
    (root / "src" / ".hidden").write_text("h")
    differs()
    (root / "src" / "x.log").write_text("ignored, unless the rules change")
    differs()
    (root / "src" / "link").symlink_to("c.py")
    differs()
    (root / "src" / "link").unlink()
    (root / "src" / "link").symlink_to("deep")
    differs()
    (root / "src" / "empty").mkdir()
    differs()
    (root / "src" / "deep" / "b.py").unlink()
    differs()


@pytest.mark.parametrize("rules", [".gitignore", ".ignore", ".rgignore", ".git/info/exclude"])
def test_what_a_search_ignores_by_rules_from_above_is_part_of_its_state(
    root: Path, prints: Fingerprints, rules: str
) -> None:
    (root / ".git" / "info").mkdir(parents=True)
    before = of(prints, root, "src")
    (root / rules).write_text("deep\n")
    after = of(prints, root, "src")
    assert after.digest != before.digest
    assert after.stamp != before.stamp


def git(root: Path, *arguments: str) -> None:
    subprocess.run(
        ["git", "-c", "user.name=t", "-c", "user.email=t@t", *arguments],
        cwd=root,
        check=True,
        capture_output=True,
    )


def revision(prints: Fingerprints, root: Path) -> Fingerprint:
    return prints.of(str(root), "src", "revision")


def test_a_revision_is_the_commit_that_is_checked_out_and_nothing_else(
    root: Path, prints: Fingerprints, tmp_path: Path
) -> None:
    git(root, "init", "-b", "topic/main")
    git(root, "add", ".")
    git(root, "commit", "-m", "one")
    one = revision(prints, root)
    assert one.stamp
    (root / "src" / "a.py").write_text("cccc")
    git(root, "tag", "t")
    git(root, "branch", "other")
    assert revision(prints, root) == one
    git(root, "commit", "-am", "two")
    two = revision(prints, root)
    assert two.digest != one.digest
    git(root, "pack-refs", "--all")
    assert revision(prints, root).digest == two.digest
    git(root, "checkout", "--detach", "HEAD")
    assert revision(prints, root).digest == two.digest
    git(root, "checkout", "other")
    back = revision(prints, root)
    assert (back.digest, back.stamp == one.stamp) == (one.digest, False)
    git(tmp_path, "clone", str(root), "clone")
    assert revision(prints, tmp_path / "clone").digest == one.digest


def test_a_revision_of_a_moment_ago_is_given_but_nothing_is_cached_for_it(root: Path) -> None:
    git(root, "init")
    git(root, "commit", "--allow-empty", "-m", "one")
    assert revision(Fingerprints(), root).stamp == ""


def test_without_a_commit_there_is_no_revision(root: Path, prints: Fingerprints) -> None:
    with pytest.raises(Unknown):
        revision(prints, root)
    git(root, "init")
    with pytest.raises(Unknown):
        revision(prints, root)


@pytest.mark.parametrize("head", ["ref: ../../outside", "ref: refs//x", "nonsense", ""])
def test_a_head_that_leads_nowhere_is_no_revision(
    root: Path, prints: Fingerprints, head: str
) -> None:
    (root.parent / "outside").write_text("0" * 40)
    (root / ".git").mkdir()
    (root / ".git" / "HEAD").write_text(head)
    with pytest.raises(Unknown):
        revision(prints, root)


def test_git_s_own_files_do_not_count_and_a_checkout_does(root: Path, prints: Fingerprints) -> None:
    git(root, "init", "-b", "main")
    git(root, "add", ".")
    git(root, "commit", "-m", "one")
    on_main = of(prints, root, ".")
    git(root, "tag", "t")
    assert of(prints, root, ".").digest == on_main.digest
    git(root, "checkout", "-b", "branch")
    (root / "src" / "a.py").write_text("cccc")
    git(root, "commit", "-am", "two")
    on_branch = of(prints, root, ".")
    assert on_branch.digest != on_main.digest
    git(root, "checkout", "main")
    assert of(prints, root, ".").digest == on_main.digest
    git(root, "checkout", "branch")
    assert of(prints, root, ".").digest == on_branch.digest


def test_no_link_is_followed_at_the_end_of_a_path_or_on_its_way(
    root: Path, prints: Fingerprints, tmp_path: Path
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_text("secret")
    (root / "file").symlink_to(outside / "secret")
    (root / "folder").symlink_to(outside)
    for path, scope in (("file", "file"), ("folder/secret", "file"), ("folder", "tree")):
        with pytest.raises(Unknown):
            prints.of(str(root), path, scope)  # type: ignore[arg-type]
    inside = of(prints, root, ".")
    (outside / "secret").write_text("another")
    assert of(prints, root, ".") == inside


def test_a_file_that_becomes_a_link_is_not_known_any_more(
    root: Path, prints: Fingerprints, tmp_path: Path
) -> None:
    of(prints, root)
    (tmp_path / "same").write_text("aaaa")
    (root / "src" / "a.py").unlink()
    (root / "src" / "a.py").symlink_to(tmp_path / "same")
    with pytest.raises(Unknown):
        of(prints, root)


def test_what_is_no_readable_file_is_unknown_and_keeps_nobody_waiting(
    root: Path, prints: Fingerprints
) -> None:
    os.mkfifo(root / "src" / "pipe")
    for path, scope in (
        ("src/pipe", "file"),
        ("src", "file"),
        ("src", "tree"),
        ("src/a.py", "tree"),
        ("missing", "file"),
        ("src/a.py/b", "file"),
        ("x" * 300, "file"),
    ):
        with pytest.raises(Unknown):
            prints.of(str(root), path, scope)  # type: ignore[arg-type]
    with pytest.raises(Unknown):
        prints.of(str(root / "missing"), "a", "file")
    with pytest.raises(InvalidInput):
        prints.of(str(root), "../outside", "file")


def test_what_is_too_much_to_look_at_is_unknown(
    root: Path, prints: Fingerprints, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fingerprints, "LARGEST_FILE", 3)
    with pytest.raises(Unknown, match="more than 3 bytes"):
        of(prints, root)
    monkeypatch.undo()
    monkeypatch.setattr(fingerprints, "MOST_FILES", 3)
    with pytest.raises(Unknown, match="more than 3 files"):
        of(prints, root, ".")
    monkeypatch.undo()
    monkeypatch.setattr(fingerprints, "MOST_READ", 7)
    with pytest.raises(Unknown, match="more than 7 bytes"):
        of(prints, root, ".")
    monkeypatch.undo()
    monkeypatch.setattr(fingerprints, "_DEEPEST", 1)
    with pytest.raises(Unknown, match="more than 1 folders"):
        of(prints, root, ".")


def test_a_file_that_changes_while_it_is_read_is_unknown_or_as_it_was_at_one_moment(
    root: Path, prints: Fingerprints, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = fingerprints._digest

    def disturbed(descriptor: int) -> bytes:
        digest = read(descriptor)
        append(root / "src" / "a.py", "more")
        return digest

    monkeypatch.setattr(fingerprints, "_digest", disturbed)
    with pytest.raises(Unknown, match="changes while"):
        of(prints, root)


def test_a_folder_that_changes_while_it_is_looked_at_is_looked_at_again(
    root: Path, prints: Fingerprints, monkeypatch: pytest.MonkeyPatch
) -> None:
    look, looks = fingerprints._listing, 0

    def disturbed(folder: int) -> list[fingerprints._Item]:
        nonlocal looks
        looks += 1
        found = look(folder)
        if looks == 1:  # after the first look, before the second
            (root / "src" / "new.py").write_text("new")
        return found

    monkeypatch.setattr(fingerprints, "_listing", disturbed)
    found = of(prints, root, "src")
    assert looks == 4
    monkeypatch.undo()
    assert found.digest == Fingerprints().of(str(root), "src", "tree").digest


def test_only_so_many_digests_are_remembered(root: Path, clock: Clock) -> None:
    prints = Fingerprints(clock, remembered=2)
    for name in "abcde":
        (root / name).write_text(name)
        of(prints, root, name)
    assert len(prints._digests) == 2
