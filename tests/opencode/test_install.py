"""Installing leaves alone what a person has, and uninstalling leaves no trace."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from sessiond.errors import AlreadyExists, ConfigurationError, InvalidInput
from sessiond.opencode.install import install, uninstall
from sessiond.opencode.installed import (
    PLUGIN,
    RECORD,
    SETTINGS,
    TWIN,
    Report,
    copies,
    packaged,
    read_record,
    read_settings,
)
from sessiond.opencode.locate import (
    configuration_folders,
    database_path,
    find_opencode,
    global_folder,
    project_folder,
    version_of,
)
from sessiond.opencode.seed import PACKAGE, importers, is_prepared, seed
from sessiond.opencode.settings import Settings, decoded, effective

VERSION = "1.18.33"
OPENCODES = "node_modules\npackage.json\npackage-lock.json\nbun.lock\n.gitignore"

THEIRS: dict[str, str | None] = {
    "opencode.json": '{"model": "mine"}',
    ".gitignore": OPENCODES,
    "plugin/theirs.js": "export const Theirs = async () => ({})",
    "tool/theirs.ts": f'import {{ tool }} from "{PACKAGE}"',
    "package.json": '{"dependencies": {"left-pad": "1.0.0"}}',
    "node_modules": None,
}
"""What a person may have in a configuration folder: files, and a folder."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A configuration folder that is not there yet."""
    return tmp_path / "config" / "opencode"


def put(folder: Path, contents: Mapping[str, str | None]) -> None:
    for name, content in contents.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if content is None:
            path.mkdir()
        else:
            path.write_text(content, encoding="utf-8")


def tree(root: Path) -> dict[str, bytes | str | None]:
    """All there is below a folder: links by target, files by content, folders by name."""
    return {
        str(path.relative_to(root)): str(path.readlink())
        if path.is_symlink()
        else path.read_bytes()
        if path.is_file()
        else None
        for path in root.rglob("*")
    }


def add(folder: Path, version: str = VERSION, **given: Any) -> Report:
    return install(folder, given, opencode=version)


def kept(report: Report) -> list[str]:
    return [step.path for step in report.steps if step.action == "keep"]


# In and out


def test_a_fresh_install_is_the_plugin_the_seed_and_a_record(folder: Path) -> None:
    add(folder)
    names = {"plugin", "node_modules", *seed(VERSION), PLUGIN, RECORD}
    assert tree(folder).keys() == names
    assert (folder / PLUGIN).read_bytes() == packaged()
    assert is_prepared(folder)
    assert read_settings(folder) == Settings()


def test_installing_again_changes_nothing(folder: Path) -> None:
    add(folder, mode="atomic", share_key="garden")
    before = tree(folder)
    report = add(folder)
    assert not report.changed
    assert tree(folder) == before
    assert read_settings(folder) == Settings(mode="atomic", share_key="garden")


@pytest.mark.parametrize(
    "names",
    [some for count in range(len(THEIRS) + 1) for some in combinations(THEIRS, count)],
    ids=lambda names: "+".join(names) or "nothing",
)
def test_uninstalling_leaves_no_trace_whatever_was_there(
    tmp_path: Path, folder: Path, names: tuple[str, ...]
) -> None:
    put(folder, {name: THEIRS[name] for name in names})
    if not names:
        folder.parent.rmdir() if folder.parent.exists() else None
    before = tree(tmp_path)
    add(folder, mode="defer")
    assert before.items() <= tree(tmp_path).items(), "theirs stays as it is"
    assert read_settings(folder).mode == "defer"
    report = uninstall(folder)
    assert tree(tmp_path) == before
    assert kept(report) == []


def test_what_opencode_wrote_into_a_folder_that_install_made_goes_with_it(
    tmp_path: Path, folder: Path
) -> None:
    add(folder)
    put(folder, {".gitignore": OPENCODES})
    uninstall(folder)
    assert tree(tmp_path) == {}


def test_a_folder_that_was_used_since_stays(tmp_path: Path, folder: Path) -> None:
    add(folder)
    used: dict[str, str | None] = {"opencode.json": "{}", "plugin/mine.js": "", ".gitignore": "x"}
    put(folder, used)
    uninstall(folder)
    assert tree(folder).keys() == {*used, "plugin"}


def test_a_dry_run_says_what_would_be_done_and_does_nothing(tmp_path: Path, folder: Path) -> None:
    told = install(folder, {"mode": "atomic"}, opencode=VERSION, dry_run=True)
    assert tree(tmp_path) == {}
    assert told.steps == add(folder, mode="atomic").steps
    before = tree(tmp_path)
    told = uninstall(folder, dry_run=True)
    assert tree(tmp_path) == before
    assert told.steps == uninstall(folder).steps
    assert tree(tmp_path) == {}


def test_uninstalling_where_nothing_is_does_nothing(folder: Path) -> None:
    assert uninstall(folder) == Report(folder=str(folder))


def test_a_plugin_that_was_put_there_by_hand_is_known(folder: Path) -> None:
    put(folder, {PLUGIN: packaged().decode()})
    assert uninstall(folder).changed
    assert not (folder / PLUGIN).exists()


# What a person changed


@pytest.mark.parametrize("name", [PLUGIN, SETTINGS, "package.json", "package-lock.json"])
def test_a_file_that_was_changed_stays_and_is_named(folder: Path, name: str) -> None:
    add(folder, mode="atomic")
    (folder / name).write_text("// mine now", encoding="utf-8")
    assert kept(uninstall(folder)) == [str(folder / name)]
    assert (folder / name).read_text(encoding="utf-8") == "// mine now"
    left = {name, "plugin"} if name.startswith("plugin/") else {name}
    assert tree(folder).keys() == left


@pytest.mark.parametrize("is_link", [False, True], ids=["file", "link"])
def test_another_plugin_of_that_name_is_not_replaced_unless_forced(
    tmp_path: Path, folder: Path, *, is_link: bool
) -> None:
    elsewhere = tmp_path / "mine.js"
    elsewhere.write_text("// mine", encoding="utf-8")
    (folder / "plugin").mkdir(parents=True)
    if is_link:
        (folder / PLUGIN).symlink_to(elsewhere)
    else:
        (folder / PLUGIN).write_text("// mine", encoding="utf-8")
    before = tree(tmp_path)
    with pytest.raises(AlreadyExists, match="--force"):
        add(folder)
    assert tree(tmp_path) == before
    install(folder, {}, opencode=VERSION, force=True)
    assert (folder / PLUGIN).read_bytes() == packaged()
    assert not (folder / PLUGIN).is_symlink()
    assert elsewhere.read_text(encoding="utf-8") == "// mine"


def test_an_older_plugin_of_ours_is_brought_up_to_date(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sessiond.opencode.install.packaged", lambda: b"// older")
    add(folder)
    monkeypatch.undo()
    report = add(folder)
    assert [step.action for step in report.steps if step.path.endswith(PLUGIN)] == ["replace"]
    assert (folder / PLUGIN).read_bytes() == packaged()
    uninstall(folder)
    assert not folder.exists()


def test_settings_of_a_person_are_merged_and_stay_theirs(folder: Path) -> None:
    mine = '{"mode": "atomic", "turn_seconds": 30}'
    put(folder, {SETTINGS: mine})
    add(folder)
    assert (folder / SETTINGS).read_text(encoding="utf-8") == mine, "nothing was given"
    add(folder, share="off")
    assert read_settings(folder) == Settings(mode="atomic", turn_seconds=30, share="off")
    assert kept(uninstall(folder)) == [str(folder / SETTINGS)]


def test_settings_that_are_a_link_stay_one(tmp_path: Path, folder: Path) -> None:
    mine = tmp_path / "dotfiles.json"
    mine.write_text('{"mode": "atomic"}', encoding="utf-8")
    (folder / "plugin").mkdir(parents=True)
    (folder / SETTINGS).symlink_to(mine)
    add(folder, share="off")
    assert (folder / SETTINGS).is_symlink()
    assert json.loads(mine.read_text(encoding="utf-8")) == {"mode": "atomic", "share": "off"}


def test_settings_back_at_their_defaults_leave_no_file(folder: Path) -> None:
    add(folder, mode="atomic")
    add(folder, mode="lease")
    assert not (folder / SETTINGS).exists()


def test_settings_without_sense_are_refused_and_nothing_is_done(folder: Path) -> None:
    with pytest.raises(InvalidInput, match="share key"):
        add(folder, share_key="no spaces, please")
    assert not folder.exists()


def test_a_second_copy_of_the_plugin_is_pointed_out(folder: Path) -> None:
    put(folder, {TWIN: "// by hand"})
    (note,) = add(folder).notes
    assert str(folder / TWIN) in note
    assert copies(folder) == [folder / PLUGIN, folder / TWIN]


# The seed


def test_another_version_of_opencode_is_seeded_anew(folder: Path) -> None:
    add(folder, "1.18.32")
    report = add(folder)
    assert [Path(step.path).name for step in report.steps if step.action == "replace"] == [
        *seed(VERSION),
        Path(RECORD).name,
    ]
    assert json.loads((folder / "package.json").read_bytes())["dependencies"] == {PACKAGE: VERSION}
    uninstall(folder)
    assert not folder.exists()


def test_without_an_opencode_nothing_is_seeded_and_that_is_said(folder: Path) -> None:
    (note,) = add(folder, "").notes
    assert "--opencode" in note
    assert not is_prepared(folder)


@pytest.mark.parametrize("name", ["package.json", "package-lock.json", "node_modules"])
def test_what_a_person_has_where_the_seed_belongs_stays_and_is_named(
    folder: Path, name: str
) -> None:
    put(folder, {name: None if name == "node_modules" else "{}"})
    (note,) = add(folder).notes
    assert f"{folder / name} is yours" in note
    assert tree(folder).keys() == {name, "plugin", PLUGIN, RECORD}


def test_a_link_that_leads_nowhere_is_a_persons_too(tmp_path: Path, folder: Path) -> None:
    folder.mkdir(parents=True)
    (folder / "package.json").symlink_to(tmp_path / "nowhere.json")
    assert "is yours" in add(folder).notes[0]
    assert not (tmp_path / "nowhere.json").exists()


def test_a_folder_that_opencode_prepared_needs_no_seed(folder: Path) -> None:
    put(folder, {name: content.decode() for name, content in seed("1.0.0").items()})
    put(folder, {f"node_modules/{PACKAGE}/index.js": "real"})
    before = tree(folder)
    assert add(folder).notes == []
    assert tree(folder).keys() - before.keys() == {"plugin", PLUGIN, RECORD}


def test_a_plugin_that_imports_the_package_gets_the_real_one(folder: Path) -> None:
    mine = "tool/mine.ts"
    put(folder, {mine: f'import {{ tool }} from "{PACKAGE}"'})
    (note,) = add(folder).notes
    assert str(folder / mine) in note
    assert not (folder / "node_modules").exists()


def test_the_seed_goes_when_a_plugin_that_imports_the_package_comes(folder: Path) -> None:
    add(folder)
    put(folder, {"plugins/mine.ts": f'import {{ tool }} from "{PACKAGE}"'})
    (note,) = add(folder).notes
    assert "fetches" in note
    assert not (folder / "node_modules").exists()
    assert tree(folder).keys() == {"plugin", PLUGIN, RECORD, "plugins", "plugins/mine.ts"}


def test_what_npm_made_of_the_seed_is_left_to_it(folder: Path) -> None:
    add(folder)
    installed = json.dumps({"packages": {"": {"dependencies": {PACKAGE: "1"}}}})
    put(folder, {"package-lock.json": installed, f"node_modules/{PACKAGE}/index.js": "real"})
    put(folder, {"plugins/mine.ts": f'import {{ tool }} from "{PACKAGE}"'})
    assert add(folder).notes == []
    assert (folder / "package-lock.json").read_text(encoding="utf-8") == installed
    uninstall(folder)
    assert (folder / "package.json").exists()


@pytest.mark.parametrize(
    ("package", "lock", "modules", "prepared"),
    [
        (None, {"": {"dependencies": {PACKAGE: "1"}}}, True, True),
        (None, {"": {"dependencies": {PACKAGE: "1"}}}, False, False),
        (None, {}, True, False),
        ({"dependencies": {"x": "1"}}, {"": {"dependencies": {PACKAGE: "1"}}}, True, False),
        (
            {"devDependencies": {"x": "1"}},
            {"": {"dependencies": {PACKAGE: "1"}, "peerDependencies": {"x": "2"}}},
            True,
            True,
        ),
        ({"dependencies": []}, {"": {"dependencies": {PACKAGE: "1"}}}, True, True),
        (None, [], True, False),
        (None, {"": None}, True, False),
    ],
)
def test_prepared_is_what_opencode_takes_for_it(
    folder: Path, package: Any, lock: Any, *, modules: bool, prepared: bool
) -> None:
    folder.mkdir(parents=True)
    if package is not None:
        put(folder, {"package.json": json.dumps(package)})
    put(folder, {"package-lock.json": json.dumps({"packages": lock})})
    if modules:
        put(folder, {"node_modules": None})
    assert is_prepared(folder) is prepared


def test_only_a_persons_own_sources_count_as_importers(folder: Path) -> None:
    text = f'import "{PACKAGE}"'
    put(
        folder,
        {
            PLUGIN: text,
            "plugin/notes.md": text,
            "tools/node_modules/x/index.js": text,
            "tools/deep/mine.ts": text,
            "plugin/plain.js": "export const X = 1",
        },
    )
    (folder / "tool").symlink_to(folder / "nowhere")
    assert importers(folder) == [folder / "tools/deep/mine.ts"]


# What can go wrong


def test_what_was_done_before_a_failure_is_written_down_and_can_be_undone(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full_disk(_folder: Path) -> list[Path]:
        raise ConfigurationError("cannot create: no space left on device")

    monkeypatch.setattr("sessiond.opencode.install.importers", full_disk)
    with pytest.raises(ConfigurationError):
        add(folder)
    assert (folder / PLUGIN).exists()
    uninstall(folder)
    assert tree(tmp_path) == {}


def test_a_folder_that_cannot_be_made_is_a_configuration_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationError, match="another folder"):
        add(tmp_path / "file" / "opencode")


@pytest.mark.parametrize("content", ["{", '{"files": 3}', "[]"])
def test_a_damaged_record_is_a_configuration_error(folder: Path, content: str) -> None:
    put(folder, {RECORD: content})
    with pytest.raises(ConfigurationError, match="install again"):
        uninstall(folder)


def test_a_record_from_elsewhere_cannot_name_other_files(tmp_path: Path, folder: Path) -> None:
    add(folder)
    victim = tmp_path / "victim"
    victim.touch()
    (tmp_path / "empty").mkdir()
    record = json.loads((folder / RECORD).read_bytes())
    empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    record["files"] |= {"../../victim": empty, str(victim): empty}
    record["folders"] += ["../../empty", str(tmp_path / "empty")]
    (folder / RECORD).write_text(json.dumps(record), encoding="utf-8")
    found = read_record(folder)
    assert found
    assert "../../victim" not in found.files
    uninstall(folder)
    assert tree(tmp_path) == {"victim": b"", "empty": None}


# Settings


@pytest.mark.parametrize(
    "content",
    [
        '{"mode": "naive"}',
        '{"unknown": 1}',
        '{"url": "http://example.org:80"}',
        '{"url": "https://127.0.0.1:1"}',
        '{"url": "http://127.0.0.1:1", "socket": "/run/x"}',
        '{"socket": "relative"}',
        '{"share_key": "-x"}',
        '{"turn_seconds": 0}',
        "{",
    ],
)
def test_settings_that_are_wrong_are_a_configuration_error(content: str) -> None:
    with pytest.raises(ConfigurationError):
        decoded(content.encode(), Path("sessiond.json"))


@pytest.mark.parametrize(
    ("share", "shares"), [('"on"', True), ('"off"', False), ("true", True), ("false", False)]
)
def test_sharing_is_switched_by_a_word_or_a_truth(share: str, *, shares: bool) -> None:
    content = f'{{"share": {share}}}'.encode()
    assert decoded(content, Path("sessiond.json")).is_sharing is shares


def test_a_new_place_of_the_daemon_replaces_the_old_one() -> None:
    there = Settings(url="http://127.0.0.1:7", token_file="/t", mode="atomic")  # noqa: S106 - a path
    assert there.changed({"socket": "/s"}) == Settings(socket="/s", mode="atomic")
    back = Settings(socket="/s").changed({"url": "http://[::1]:7", "token_file": "/t"})
    assert back == Settings(url="http://[::1]:7", token_file="/t")  # noqa: S106 - a path


@pytest.mark.parametrize(
    ("file", "environ", "expected"),
    [
        (Settings(), {}, Settings(socket="/default")),
        (Settings(socket="/s"), {}, Settings(socket="/s")),
        (Settings(socket="/s"), {"SESSIOND_SOCKET": "/e"}, Settings(socket="/e")),
        (
            Settings(socket="/s"),
            {"SESSIOND_URL": "http://127.0.0.1:7"},
            Settings(url="http://127.0.0.1:7"),
        ),
        (
            Settings(mode="atomic", share_key="a"),
            {"SESSIOND_OPENCODE_MODE": "defer", "SESSIOND_SHARE_KEY": "b", "SESSIOND_SHARE": "off"},
            Settings(socket="/default", mode="defer", share_key="b", share="off"),
        ),
        (Settings(share="off"), {"SESSIOND_SHARE": "on"}, Settings(socket="/default")),
    ],
)
def test_the_environment_goes_before_the_file(
    file: Settings, environ: dict[str, str], expected: Settings
) -> None:
    assert effective(file, environ, Path("/default")) == expected


def test_a_wrong_environment_is_a_configuration_error() -> None:
    with pytest.raises(ConfigurationError, match="SESSIOND_"):
        effective(Settings(), {"SESSIOND_OPENCODE_MODE": "naive"}, Path("/default"))


# Places


def test_folders_are_those_of_opencode(tmp_path: Path) -> None:
    project = tmp_path / "project"
    deep = project / "a" / "b"
    deep.mkdir(parents=True)
    assert project_folder(deep) == deep / ".opencode", "outside git"
    (project / ".git").touch()  # a file, as in worktrees
    assert project_folder(deep) == project / ".opencode"
    environ = {"HOME": str(tmp_path), "XDG_CONFIG_HOME": ""}
    assert global_folder(environ) == tmp_path / ".config" / "opencode"
    assert global_folder({"XDG_CONFIG_HOME": "/x"}) == Path("/x/opencode")
    with pytest.raises(ConfigurationError):
        global_folder({})

    wanted = [global_folder(environ), deep / ".opencode", project / ".opencode"]
    for found in (*wanted, tmp_path / ".opencode"):
        found.mkdir(parents=True)
    assert configuration_folders(deep, environ) == [*wanted, tmp_path / ".opencode"]


def test_the_database_is_where_opencode_puts_it() -> None:
    assert database_path({"HOME": "/h"}) == Path("/h/.local/share/opencode/opencode.db")
    environ = {"HOME": "/h", "XDG_DATA_HOME": "/d", "OPENCODE_DB": "other.db"}
    assert database_path(environ) == Path("/d/opencode/other.db")
    assert database_path(environ | {"OPENCODE_DB": "/abs.db"}) == Path("/abs.db")


def program(path: Path, text: str) -> Path:
    path.write_text(f"#!/bin/sh\n{text}\n", encoding="utf-8")
    path.chmod(0o755)
    return path


def test_opencode_is_found_and_asked_for_its_version_without_a_trace(tmp_path: Path) -> None:
    binary = program(tmp_path / "opencode", 'echo 9.9.9; echo "$HOME" > "$(dirname $0)/home"')
    assert find_opencode("", {"PATH": str(tmp_path)}) == binary
    assert find_opencode(str(binary), {}) == binary
    assert find_opencode("", {"PATH": "/nowhere"}) is None
    with pytest.raises(InvalidInput, match="not an executable"):
        find_opencode(str(tmp_path / "missing"), {})
    assert version_of(binary) == "9.9.9"
    home = (tmp_path / "home").read_text(encoding="utf-8").strip()
    assert home != os.environ.get("HOME")
    assert not Path(home).exists()


@pytest.mark.parametrize("text", ["exit 3", "echo some words", "true"])
def test_a_program_that_does_not_tell_its_version_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigurationError, match="--opencode"):
        version_of(program(tmp_path / "opencode", text))
