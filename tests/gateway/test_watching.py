"""When files that have changed are reloaded by themselves."""

import asyncio
import os
import shutil
from dataclasses import replace
from types import SimpleNamespace

import pytest

from portguard.gateway import watching
from portguard.gateway.bundle import read_bundle
from portguard.gateway.watching import Stillness, Watcher, signature, watched
from tests.gateway_folder import GatewayFolder
from tests.patience import PATIENCE_S


def test_what_has_changed_is_told_of_once_it_stands_still():
    stillness = Stillness()
    assert [stillness.look(seen) for seen in "aaabbaaacdddd"] == [
        *[False, True, False],  # a
        *[False, True],  # b
        *[False, True, False],  # a again
        *[False],  # c, which did not stand still
        *[False, True, False, False],  # d
    ]


@pytest.fixture
def folder(tmp_path):
    folder = GatewayFolder(tmp_path)
    watch(folder)
    return folder


def watch(folder, on=True):
    text = (folder.path / "portguard.toml").read_text().replace("watch = true\n", "")
    folder.write("portguard.toml", text.replace("[gateway]\n", f"[gateway]\n{'watch = true' * on}\n"))


class Reloader:
    """One that notes who reloads; what is read comes into force unless `fails`."""

    def __init__(self, path):
        self.path = path
        self.reloads = []
        self.fails = False
        self.watch = True
        self.last_read = read_bundle(path)

    @property
    def in_force(self):
        gateway = SimpleNamespace(watch=self.watch)
        return SimpleNamespace(snapshot=SimpleNamespace(configuration=SimpleNamespace(gateway=gateway)))

    async def reload_quietly(self, by):
        self.reloads.append(by)
        self.last_read = read_bundle(self.path)


@pytest.fixture
def reloader(folder):
    return Reloader(folder.configuration)


@pytest.fixture
async def look(reloader):
    watcher = Watcher(reloader, may=lambda: True)

    async def look(times=3):
        before = len(reloader.reloads)
        for _ in range(times):
            await watcher.look()
        return reloader.reloads[before:]

    await look()
    return look


async def test_nothing_is_reloaded_while_nothing_changes(look, reloader):
    assert await look(10) == []
    assert reloader.reloads == []


@pytest.mark.parametrize("file", ["policy.toml", "portguard.toml", "ca.crt", "tls/gateway.crt", "tls/gateway.key"])
async def test_a_change_of_any_file_is_reloaded_once_it_stands_still(look, folder, file):
    folder.add(file, "\n")
    assert await look(1) == []
    assert await look(1) == ["watch"]
    assert await look(5) == []


async def test_a_file_that_is_being_written_is_waited_for(look, folder):
    for _ in range(3):
        folder.add("policy.toml", "# more\n")
        assert await look(1) == []
    assert await look(1) == ["watch"]


async def test_a_file_that_was_only_touched_is_not_reloaded(look, folder):
    os.utime(folder.path / "policy.toml", ns=(1, 1))
    assert await look() == []


async def test_what_somebody_has_reloaded_already_is_not_reloaded_again(look, folder, reloader):
    folder.add("policy.toml", "# more\n")
    reloader.last_read = read_bundle(folder.configuration)
    assert await look(5) == []


async def test_a_change_that_fails_is_told_once_and_tried_when_files_change_again(look, folder):
    good = (folder.path / "policy.toml").read_text()
    folder.write("policy.toml", "[[[")
    assert await look(6) == ["watch"]
    folder.write("policy.toml", good)
    assert await look(6) == ["watch"]


async def test_a_file_that_is_missing_is_reloaded_when_it_comes(look, folder):
    folder.add("portguard.toml", 'crl = ["local.crl"]\n')
    assert await look(6) == ["watch"]
    folder.write("local.crl", "anything")
    assert await look(6) == ["watch"]


async def test_another_problem_with_the_same_file_is_told_too(look, folder):
    (folder.path / "ca.crt").unlink()
    assert await look() == ["watch"]
    (folder.path / "ca.crt").mkdir()
    assert await look() == ["watch"]


async def test_what_is_reloaded_or_forbidden_while_it_is_read_is_not_reloaded(folder, reloader, monkeypatch):
    may = True
    watcher = Watcher(reloader, may=lambda: may)
    for _ in range(2):
        await watcher.look()

    def reload_meanwhile(path):
        reloader.last_read = read_bundle(path)
        return reloader.last_read

    def forbid_meanwhile(path):
        nonlocal may
        may = False
        return read_bundle(path)

    for meanwhile in (reload_meanwhile, forbid_meanwhile):
        monkeypatch.setattr(watching, "read_bundle", meanwhile)
        folder.add("policy.toml", "# more\n")
        for _ in range(3):
            await watcher.look()
    assert not may
    assert reloader.reloads == []


async def test_a_key_whose_mode_is_put_right_is_reloaded(look, folder):
    (folder.path / "tls/gateway.key").chmod(0o644)
    assert await look() == ["watch"]
    (folder.path / "tls/gateway.key").chmod(0o600)
    assert await look() == ["watch"]


async def test_a_link_that_is_swapped_is_reloaded(look, folder):
    for name in ("one", "two"):
        (folder.path / name).mkdir()
        shutil.copy(folder.path / "policy.toml", folder.path / name / "policy.toml")
    folder.add("two/policy.toml", "# other\n")
    (folder.path / "now").symlink_to("one")
    text = (folder.path / "portguard.toml").read_text()
    folder.write("portguard.toml", text.replace("[gateway]\n", '[gateway]\npolicy = "now/policy.toml"\n'))
    assert await look() == ["watch"]
    (folder.path / "next").symlink_to("two")
    (folder.path / "next").rename(folder.path / "now")
    assert await look() == ["watch"]


async def test_a_file_that_comes_into_a_policy_folder_is_reloaded_and_one_that_is_hidden_is_not(look, folder):
    folder.write("policy.d/10.toml", (folder.path / "policy.toml").read_text())
    text = (folder.path / "portguard.toml").read_text()
    folder.write("portguard.toml", text.replace("[gateway]\n", '[gateway]\npolicy = "policy.d"\n'))
    assert await look() == ["watch"]
    folder.write("policy.d/.20.toml.swp", "")
    assert await look() == []
    folder.write("policy.d/20.toml", "# more\n")
    assert await look() == ["watch"]
    (folder.path / "policy.d/20.toml").unlink()
    assert await look() == ["watch"]


async def test_without_watch_nothing_is_looked_at_until_it_is_set(look, folder, reloader, monkeypatch):
    reloader.watch = False
    folder.add("policy.toml", "# more\n")
    with monkeypatch.context() as patch:
        patch.setattr(watching, "signature", None)
        assert await look() == []
    reloader.watch = True
    assert await look() == ["watch"]


async def test_while_it_may_not_nothing_is_reloaded_and_afterwards_it_is(folder, reloader):
    may = False
    watcher = Watcher(reloader, may=lambda: may)
    folder.add("policy.toml", "# more\n")
    for _ in range(3):
        await watcher.look()
    assert reloader.reloads == []
    may = True
    for _ in range(3):
        await watcher.look()
    assert reloader.reloads == ["watch"]


async def test_it_looks_again_and_again(folder, reloader, monkeypatch):
    monkeypatch.setattr(watching, "_LOOK_S", 0.001)
    reloaded = asyncio.Event()

    async def reload_quietly(by):
        reloaded.set()

    reloader.reload_quietly = reload_quietly
    running = asyncio.create_task(Watcher(reloader, may=lambda: True).run())
    folder.add("policy.toml", "# more\n")
    async with asyncio.timeout(PATIENCE_S):
        await reloaded.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running


def test_all_that_the_configuration_names_is_watched(folder):
    bundle = read_bundle(folder.configuration)
    names = ("ca.crt", "policy.toml", "portguard.toml", "tls/gateway.crt", "tls/gateway.key")
    assert watched(bundle) == tuple(str(folder.path / name) for name in names)
    (folder.path / "policy.toml").unlink()
    assert watched(read_bundle(folder.configuration)) == watched(bundle)
    (folder.path / "portguard.toml").unlink()
    assert watched(read_bundle(folder.configuration)) == (folder.configuration,)
    assert watched(replace(bundle, files={})) == (folder.configuration,)


def test_a_file_that_cannot_be_looked_at_has_a_signature_too(folder, tmp_path):
    assert signature([str(tmp_path / "none")]) != signature([folder.configuration])
