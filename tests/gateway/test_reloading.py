"""Reload: all or nothing at each step, with workers that the test plays."""

import asyncio
import io
import socket
from pathlib import Path

import pytest

from portguard.errors import ConfigurationError
from portguard.gateway import host
from portguard.gateway.bundle import read_bundle
from portguard.gateway.confinement import Landlock
from portguard.gateway.listeners import listen
from portguard.gateway.notify import Notifier
from portguard.gateway.reloading import InForce, Reloader
from portguard.gateway.snapshot import build
from portguard.gateway.workers import NotPrepared
from portguard.observe import log
from tests.descriptors import open_descriptors
from tests.gateway_folder import CONFIGURATION, GatewayFolder
from tests.patience import PATIENCE_S
from tests.ports import reserved_port

SERVICE = '[services.other]\nupstream = ["10.0.3.8:1"]\n'


class Stage:
    """All that a reloader works with. `happened` tells in which order it did what."""

    def __init__(self, folder):
        self.folder = folder
        self.happened = []
        self.failure = None  # of prepare()
        self.closes = 0
        self.go_on = asyncio.Event()
        self.go_on.set()
        self.notified = []
        bundle = read_bundle(folder.configuration)
        snapshot = build(bundle)
        bound, metrics = listen(snapshot.configuration, snapshot.policy, [])
        self.before = InForce(bundle, snapshot, tuple(bound), metrics)
        notifier = Notifier()
        notifier.reloading = lambda now_s: self.notified.append("reloading")
        notifier.reloaded = lambda: self.notified.append("reloaded")
        self.reloader = Reloader(self.before, workers=self, trail=self, apply=self._apply, notifier=notifier)

    # What a reloader asks of workers.

    async def prepare(self, bundle):
        self.happened.append("prepare")
        await self.go_on.wait()
        if self.failure is not None:
            raise self.failure

    def apply(self, bundle):
        self.happened.append("apply")
        self.applied = bundle

        async def closing():
            return self.closes

        return closing()

    # Of the audit.

    def loaded(self, loading, *, kept):
        self.happened.append(("loaded", loading.by, loading.message, kept))

    def not_loaded(self, problem, *, by, message):
        self.happened.append(("not loaded", problem, by, message))

    # And of the supervisor.

    def _apply(self, before, after):
        self.happened.append("swap")
        self.swapped = before, after

        async def rest():
            self.happened.append("rest")

        return rest()

    def take(self):
        happened, self.happened = self.happened, []
        return happened

    async def reload(self, by="uid 0 (root)", message="CHG-1"):
        return await self.reloader.reload(by=by, message=message)

    def close(self):
        for in_force in (self.before, self.reloader.in_force):
            for _, sock in in_force.bound:
                sock.close()
            in_force.metrics.close()


@pytest.fixture
def folder(tmp_path):
    folder = GatewayFolder(tmp_path)
    configure(folder)
    return folder


def configure(folder, gateway="", more="", listen='"127.0.0.1:0"', metrics="127.0.0.1:0"):
    """Write portguard.toml, with `gateway` added to [gateway] and `more` at its end."""
    text = CONFIGURATION.replace('listen = ["127.0.0.1:0"]', f'listen = [{listen}]\nstate = "state"\n{gateway}')
    folder.write("portguard.toml", f'{text}\n[metrics]\nlisten = "{metrics}"\n{more}')


@pytest.fixture
async def stage(folder):
    stage = Stage(folder)
    yield stage
    stage.close()


@pytest.fixture(autouse=True)
def lines(monkeypatch):
    stderr = io.StringIO()
    monkeypatch.setattr("sys.stderr", stderr)
    log.configure(json_lines=False, level="info")
    return lambda name: [line for line in stderr.getvalue().splitlines() if f" {name} " in line]


@pytest.fixture
def port():
    with reserved_port() as port:
        yield port


# What goes well.


async def test_it_is_prepared_and_only_then_swapped_everywhere_at_once(stage, folder, lines):
    folder.add("policy.toml", SERVICE)
    stage.closes = 3
    reloaded = await stage.reload()
    assert stage.take() == ["prepare", "apply", "swap", ("loaded", "uid 0 (root)", "CHG-1", True), "rest"]
    after = stage.reloader.in_force
    assert stage.swapped == (stage.before, after)
    assert stage.applied is after.bundle
    assert "other" in after.snapshot.policy.services
    assert (reloaded.revision, reloaded.changed, reloaded.closed) == (after.snapshot.revision, True, 3)
    assert (reloaded.needs_restart, reloaded.warnings) == ((), after.snapshot.warnings)
    assert stage.notified == ["reloading", "reloaded"]
    assert stage.reloader.last_read is after.bundle
    assert (stage.reloader.loaded_by, stage.reloader.loaded_message) == ("uid 0 (root)", "CHG-1")
    (line,) = lines("gateway.reload")
    assert " message=CHG-1 " in line
    assert " closed=3" in line


async def test_files_that_have_not_changed_change_nothing(stage, lines):
    reloaded = await stage.reload()
    assert (reloaded.changed, reloaded.closed, reloaded.needs_restart) == (False, 0, ())
    assert stage.take() == []
    assert stage.reloader.in_force is stage.before
    assert len(lines("gateway.reload")) == 1


async def test_a_policy_that_cannot_be_kept_comes_into_force_all_the_same(stage, folder, lines):
    folder.write("state", "a file where the folder should be")
    folder.add("policy.toml", SERVICE)
    await stage.reload()
    assert ("loaded", "uid 0 (root)", "CHG-1", False) in stage.take()
    assert len(lines("policy.keep_failed")) == 1


# Addresses.


async def test_sockets_of_addresses_that_stay_are_the_same_and_others_are_new(stage, folder, lines, port):
    [(_, kept)] = stage.before.bound
    configure(folder, listen=f'"127.0.0.1:{port}", "127.0.0.1:0"')
    await stage.reload()
    (first, new), (second, same) = stage.reloader.in_force.bound
    assert (str(first.address), str(second.address)) == (f"127.0.0.1:{port}", "127.0.0.1:0")
    assert new.getsockname()[1] == port
    assert same is kept
    assert stage.reloader.in_force.metrics is stage.before.metrics
    [line] = lines("gateway.listen")
    assert f"address=127.0.0.1:{port}" in line
    assert lines("metrics.listen") == []
    before = stage.reloader.in_force
    configure(folder)
    await stage.reload()
    assert [sock for _, sock in stage.reloader.in_force.bound] == [kept]
    assert len(lines("gateway.listen")) == 1
    assert new.fileno() >= 0  # to close it is up to who listened on it
    new.close()
    assert stage.swapped[0] is before


async def test_an_address_that_goes_to_a_service_keeps_its_socket(stage, folder, port):
    configure(folder, listen=f'"127.0.0.1:{port}", "127.0.0.1:0"')
    await stage.reload()
    [(_, moved), _] = stage.reloader.in_force.bound
    configure(folder)
    folder.add("policy.toml", f'{SERVICE}listen = ["127.0.0.1:{port}"]\n')
    await stage.reload()
    [_, (listener, sock)] = stage.reloader.in_force.bound
    assert sock is moved
    assert listener.service.name == "other"


async def test_two_addresses_whose_ports_the_system_picks_keep_a_socket_each(stage, folder):
    configure(folder, listen='"127.0.0.1:0", "127.0.0.1:0"')
    await stage.reload()
    [(_, one), (_, other)] = stage.reloader.in_force.bound
    assert one is not other
    folder.add("policy.toml", "# more\n")
    await stage.reload()
    assert [sock for _, sock in stage.reloader.in_force.bound] == [one, other]


async def test_the_metrics_move(stage, folder, lines, port):
    configure(folder, metrics=f"127.0.0.1:{port}")
    await stage.reload()
    assert stage.reloader.in_force.metrics.getsockname()[1] == port
    assert stage.reloader.in_force.bound[0][1] is stage.before.bound[0][1]
    [line] = lines("metrics.listen")
    assert f"address=127.0.0.1:{port}" in line
    assert lines("gateway.listen") == []


def test_at_the_start_all_addresses_are_told(stage, lines):
    stage.before.log_listening()
    assert (len(lines("gateway.listen")), len(lines("metrics.listen"))) == (1, 1)


# What needs a restart.


@pytest.mark.parametrize(
    ("gateway", "more", "named"),
    [
        ("workers = 3", "", ("gateway.workers",)),
        ('control = "c.sock"', "", ("gateway.control",)),
        ("", "[capacity]\nmax_sessions = 7\npending_handshakes = 8", ("capacity.max_sessions",)),
        ("", '[audit]\npath = "a.jsonl"\nsync = "disk"', ("audit.path", "audit.sync")),
        (
            "",
            '[audit]\nrotate_size = "off"\nrotate_age = "off"\ncopy = "journal"',
            ("audit.rotate_size", "audit.rotate_age", "audit.copy"),
        ),
        ("", '[control]\ngroup = "root"', ("control.group",)),
        ("", '[timeouts]\nidle = "1m"\n[log]\nlevel = "debug"\n[audit]\nrequired = false', ()),
    ],
)
async def test_exactly_what_needs_a_restart_is_named_and_stays_as_it_was(stage, folder, gateway, more, named):
    configure(folder, gateway, more)
    for _ in range(2):  # it is named for as long as it is so
        assert (await stage.reload()).needs_restart == named
        assert stage.reloader.needs_restart == named
    before, after = stage.before.snapshot.configuration, stage.reloader.in_force.snapshot.configuration
    assert (after.gateway.workers, after.gateway.control) == (before.gateway.workers, before.gateway.control)
    assert after.capacity.max_sessions == before.capacity.max_sessions
    assert (after.audit.path, after.audit.sync, after.audit.copy) == (
        before.audit.path,
        before.audit.sync,
        before.audit.copy,
    )
    assert after.control.group == before.control.group
    assert (after.timeouts.idle_s, after.audit.required) == ((3600, True) if named else (60, False))
    configure(folder)
    assert (await stage.reload()).needs_restart == stage.reloader.needs_restart == ()


async def test_a_reload_that_fails_leaves_what_needs_a_restart_as_it_was(stage, folder):
    configure(folder, "workers = 3")
    await stage.reload()
    folder.write("portguard.toml", "[[")
    with pytest.raises(ConfigurationError):
        await stage.reload()
    assert stage.reloader.needs_restart == ("gateway.workers",)


async def test_of_what_needed_a_restart_another_program_has_done_the_most_part(stage):
    stage.reloader.still_needs_restart(["gateway.workers", "gateway.control", "capacity.max_sessions", "ledger.url"])
    assert stage.reloader.needs_restart == ("gateway.control", "capacity.max_sessions")


async def test_of_another_state_the_path_of_the_audit_is_no_second_change(stage, folder):
    text = (folder.path / "portguard.toml").read_text()
    folder.write("portguard.toml", text.replace('state = "state"', 'state = "elsewhere"'))
    assert (await stage.reload()).needs_restart == ("gateway.state",)
    assert stage.reloader.in_force.snapshot.configuration.audit == stage.before.snapshot.configuration.audit
    folder.add("portguard.toml", '[audit]\npath = "other.jsonl"\n')
    assert (await stage.reload()).needs_restart == ("gateway.state", "audit.path")


# What fails.


async def fails(stage, error=ConfigurationError):
    """Reload in vain: everything is as before, and everybody has been told."""
    open_before = open_descriptors()
    with pytest.raises(error) as caught:
        await stage.reload()
    assert stage.reloader.in_force is stage.before
    assert stage.reloader.failed is not None
    assert open_descriptors() == open_before
    assert stage.notified == ["reloading", "reloaded"]
    stage.notified.clear()
    happened = stage.take()
    assert [each for each in happened if each in ("apply", "swap", "rest")] == []
    assert happened[-1] == ("not loaded", "; ".join(str(caught.value).splitlines()), "uid 0 (root)", "CHG-1")
    return str(caught.value)


async def test_all_that_is_wrong_is_told_and_workers_hear_nothing_of_it(stage, folder, lines):
    folder.write("policy.toml", "what = 1\never = 2\n")
    folder.write("ca.crt", "nothing")
    text = await fails(stage)
    assert len(text.splitlines()) == 3
    assert stage.reloader.failed.problem == text.splitlines()[0]
    assert (stage.reloader.loaded_by, stage.reloader.loaded_message) == (None, None)
    assert len(lines("gateway.reload_failed")) == 3
    assert stage.reloader.last_read is not stage.before.bundle
    folder.write("ca.crt", folder.authority.pem)
    folder.write("policy.toml", "")
    await stage.reload()
    assert stage.reloader.failed is None


async def test_a_confinement_that_is_required_and_cannot_be_had_does_not_come_into_force(stage, folder, monkeypatch):
    monkeypatch.setattr(host, "landlock", lambda: Landlock(None, "no kernel"))
    configure(folder, 'confinement = "required"')
    assert await fails(stage) == (
        f"{folder.configuration}: gateway.confinement: "
        'expected a host with Landlock, as it is "required", got no kernel'
    )
    monkeypatch.setattr(host, "landlock", lambda: Landlock(1))
    assert (await stage.reload()).changed


async def test_files_as_they_were_end_a_failure(stage, folder):
    text = (folder.path / "policy.toml").read_text()
    folder.write("policy.toml", "[[")
    await fails(stage)
    folder.write("policy.toml", text)
    assert not (await stage.reload()).changed
    assert stage.reloader.failed is None


async def test_an_address_that_cannot_be_had_leaves_the_others_closed_again(stage, folder, port):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        configure(folder, listen=f'"127.0.0.1:0", "127.0.0.1:{port}", "{address}"')
        assert f"gateway.listen: expected an address that can be listened on, got {address}: " in await fails(stage)
        configure(folder, listen=f'"127.0.0.1:0", "127.0.0.1:{port}"', metrics=address)
        assert f"metrics.listen: expected an address that can be listened on, got {address}: " in await fails(stage)
    with socket.create_server(("127.0.0.1", port)):
        pass


async def test_a_worker_that_is_not_able_to_leaves_new_addresses_closed_and_old_ones_open(stage, folder, lines):
    configure(folder, listen='"127.0.0.1:0", "127.0.0.2:0"', metrics="127.0.0.2:0")
    stage.failure = NotPrepared("worker 3: expected it to take the configuration, got ValueError: no")
    assert "worker 3" in await fails(stage, NotPrepared)
    assert all(sock.fileno() >= 0 for _, sock in stage.before.bound)
    assert stage.before.metrics.fileno() >= 0
    (line,) = lines("gateway.reload_failed")
    assert "worker 3" in line


async def test_a_reload_that_is_given_up_leaves_nothing_behind(stage, folder):
    configure(folder, listen='"127.0.0.1:0", "127.0.0.2:0"')
    stage.go_on.clear()
    before = open_descriptors()
    reloading = asyncio.create_task(stage.reload())
    await reached(stage, "prepare")
    assert len(open_descriptors() - before) == 1
    reloading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reloading
    assert open_descriptors() == before
    assert stage.reloader.in_force is stage.before
    assert stage.notified == ["reloading", "reloaded"]


async def reached(stage, step):
    async with asyncio.timeout(PATIENCE_S):
        while step not in stage.happened:  # noqa: ASYNC110  # no event, only for a test
            await asyncio.sleep(0.001)


# Several.


async def test_one_begins_when_the_one_before_is_over(stage, folder):
    stage.go_on.clear()
    folder.add("policy.toml", "# one\n")
    one = asyncio.create_task(stage.reload("one"))
    await reached(stage, "prepare")
    folder.add("policy.toml", "# two\n")
    two = asyncio.create_task(stage.reload("two"))
    for _ in range(20):
        await asyncio.sleep(0)
    assert stage.happened == ["prepare"]
    stage.go_on.set()
    assert (await one).changed
    assert (await two).changed
    one_by_one = ["prepare", "apply", "swap", ("loaded", "one", "CHG-1", True), "rest"]
    assert stage.take() == [*one_by_one, *one_by_one[:3], ("loaded", "two", "CHG-1", True), "rest"]


async def test_of_those_that_nobody_waits_for_only_one_is_to_come(stage, folder):
    stage.go_on.clear()
    folder.add("policy.toml", "# one\n")
    first = stage.reloader.soon("SIGHUP")
    assert first is not None
    assert stage.reloader.soon("SIGHUP") is None
    await reached(stage, "prepare")
    folder.add("policy.toml", "# two\n")
    second = stage.reloader.soon("SIGHUP")  # the first may have read the files already
    assert second is not None
    assert stage.reloader.soon("SIGHUP") is None
    stage.go_on.set()
    await asyncio.gather(first, second)
    assert [each[1:3] for each in stage.take() if each[0] == "loaded"] == [("SIGHUP", None)] * 2
    assert Path(folder.configuration).parent.joinpath("policy.toml").read_bytes().endswith(b"# two\n")
    assert stage.reloader.in_force.bundle.files[str(folder.path / "policy.toml")].endswith(b"# two\n")


async def test_one_that_nobody_waits_for_fails_quietly(stage, folder):
    folder.write("policy.toml", "[[")
    await stage.reloader.soon("SIGHUP")
    assert stage.reloader.failed is not None
    assert stage.take()[-1][2:] == ("SIGHUP", None)
    folder.write("policy.toml", "")
    await stage.reloader.soon("SIGHUP")
    assert stage.reloader.failed is None
