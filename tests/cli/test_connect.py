"""`portguard connect` as people run it: a process, its output, its exit code."""

import asyncio
import contextlib
import hashlib
import json
import os
import re
import signal
import socket
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import pytest_asyncio

from portguard.reasons import Reason
from tests.gateway_double import SESSION, Double, count, double, echo, refusal
from tests.ports import reserved_port


@dataclass
class Shell:
    """Runs `portguard connect` with alice's profile."""

    gateway: Double
    profile: Path
    started: list[Process] = field(default_factory=list)

    async def start(self, *arguments: str, stdin: int = DEVNULL, stdout: int = PIPE, **environment: str) -> Process:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-m", "portguard", "connect", *arguments),
            stdin=stdin,
            stdout=stdout,
            stderr=PIPE,
            env=os.environ | {"PORTGUARD_PROFILE": str(self.profile)} | environment,
            start_new_session=True,  # without the terminal of whoever runs the tests
        )
        self.started.append(process)
        return process

    async def run(self, *arguments: str, **environment: str) -> tuple[int, str, str]:
        """Exit code, standard output, standard error."""
        process = await self.start(*arguments, **environment)
        output, errors = await process.communicate()
        assert process.returncode is not None
        return process.returncode, output.decode(), errors.decode()


@pytest_asyncio.fixture
async def shell(tmp_path: Path) -> AsyncIterator[Shell]:
    async with double(tmp_path) as gateway:
        shell = Shell(gateway, gateway.write_profile(tmp_path / "alice.toml"))
        yield shell
        for process in shell.started:
            if process.returncode is None:
                process.kill()
            await process.communicate()


@pytest_asyncio.fixture
async def serve() -> AsyncIterator[Callable]:
    servers: list[asyncio.Server] = []

    async def start(handler: Callable) -> int:
        servers.append(await asyncio.start_server(handler, "127.0.0.1", 0))
        port: int = servers[-1].sockets[0].getsockname()[1]
        return port

    yield start
    for server in servers:
        server.close()


async def line(process: Process) -> str:
    assert process.stdout is not None
    return (await process.stdout.readline()).decode().rstrip("\n")


def port_of(line: str) -> int:
    return int(re.search(r":(\d+)(?: \(.*\))?$", line)[1])


async def stop(process: Process, number: signal.Signals = signal.SIGINT) -> tuple[int, str]:
    process.send_signal(number)
    _, errors = await process.communicate()
    assert process.returncode is not None
    return process.returncode, errors.decode()


PRINT_ENVIRONMENT = "import os, json; print(json.dumps(dict(os.environ)))"


# Local ports.


async def test_a_port_opens_and_leads_to_the_service(shell: Shell, serve: Callable) -> None:
    shell.gateway.services["echo"] = await serve(echo)
    process = await shell.start("echo")
    reader, writer = await asyncio.open_connection("127.0.0.1", port_of(await line(process)))
    writer.write(b"hello")
    assert await reader.readexactly(5) == b"hello"
    writer.close()
    await writer.wait_closed()
    code, errors = await stop(process)
    assert code == 0, "expected Ctrl-C to be the way in which this ends"
    assert errors == f"connected to 127.0.0.1:{shell.gateway.port}; reachable from this machine only; Ctrl-C ends it\n"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
async def test_a_service_manager_may_end_it_too(shell: Shell, number: signal.Signals) -> None:
    process = await shell.start("echo")
    await line(process)
    assert (await stop(process, number))[0] == 0


async def test_a_session_that_is_open_at_the_end_is_cut(shell: Shell, serve: Callable) -> None:
    shell.gateway.services["echo"] = await serve(echo)
    process = await shell.start("echo")
    reader, writer = await asyncio.open_connection("127.0.0.1", port_of(await line(process)))
    writer.write(b"hello")
    await reader.readexactly(5)
    assert (await stop(process))[0] == 0
    assert await reader.read() == b""
    writer.close()
    assert await shell.gateway.ended.get() is Reason.CLIENT_TRUNCATED


async def test_the_port_is_the_services_own(shell: Shell) -> None:
    with reserved_port() as port:
        shell.gateway.local_ports["web"] = port
        process = await shell.start("web")
        assert await line(process) == f"web: 127.0.0.1:{port}"


async def test_the_profile_goes_before_the_services_own_port(shell: Shell) -> None:
    with reserved_port() as port:
        shell.gateway.local_ports["web"] = 1
        shell.gateway.write_profile(shell.profile, f"[services.web]\nlocal_port = {port}")
        process = await shell.start("web")
        assert await line(process) == f"web: 127.0.0.1:{port}"


async def test_a_port_that_is_taken_becomes_a_free_one_and_is_printed(shell: Shell) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = shell.gateway.local_ports["web"] = other.getsockname()[1]
        process = await shell.start("web")
        said = await line(process)
    assert said == f"web: 127.0.0.1:{port_of(said)} ({taken} is taken or privileged)"
    assert port_of(said) != taken


async def test_a_port_that_was_asked_for_and_is_taken_is_an_error(shell: Shell) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = other.getsockname()[1]
        code, output, errors = await shell.run("web", "-L", str(taken))
    assert (code, output) == (1, "")
    assert errors == f"portguard: web: expected to listen at 127.0.0.1:{taken}, got “Address already in use”\n"


async def test_several_services_open_several_ports(shell: Shell, serve: Callable) -> None:
    shell.gateway.services |= {"echo": await serve(echo), "count": await serve(count)}
    process = await shell.start("echo", "count", "-L", "count=[::1]:0", "-L", "127.0.0.2:0")
    said = [await line(process), await line(process)]
    assert re.fullmatch(r"echo: 127\.0\.0\.2:\d+", said[0])
    assert re.fullmatch(r"count: \[::1\]:\d+", said[1])
    reader, writer = await asyncio.open_connection("::1", port_of(said[1]))
    writer.write(b"hello")
    writer.write_eof()
    assert await reader.read() == b"5"
    writer.close()


async def test_json_is_for_programs(shell: Shell) -> None:
    process = await shell.start("web", "db", "--json")
    [web, db] = json.loads(await line(process))
    assert (web["service"], web["host"], db["service"]) == ("web", "127.0.0.1", "db")
    assert web["port"] != db["port"]


async def test_an_address_that_others_reach_is_warned_of(shell: Shell) -> None:
    process = await shell.start("web", "-L", "0.0.0.0:0")
    said = await line(process)
    _, errors = await stop(process)
    address = said.removeprefix("web: ")
    assert f"portguard: warning: web: whoever reaches {address} uses it with your certificate\n" in errors
    assert "this machine only" not in errors


async def test_a_later_refusal_is_told_and_others_go_on(shell: Shell, serve: Callable) -> None:
    shell.gateway.services["echo"] = await serve(echo)
    process = await shell.start("echo")
    port = port_of(await line(process))
    shell.gateway.answers["echo"] = refusal(403, "policy\x1b[2J", "you \x07 may not")
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    with pytest.raises(ConnectionResetError):
        await reader.read()
    writer.close()
    del shell.gateway.answers["echo"]
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"hello")
    assert await reader.readexactly(5) == b"hello"
    writer.close()
    _, errors = await stop(process)
    assert errors.splitlines()[1] == rf"portguard: echo: policy\x1b[2J: you \x07 may not (session {SESSION})"


# Refused, unreachable, wrong.


async def test_a_refusal_comes_before_anything_listens(shell: Shell) -> None:
    shell.gateway.answers["db"] = refusal(403, "no_role")
    code, output, errors = await shell.run("web", "db")
    assert (code, output) == (3, "")
    assert errors == f"portguard: db: no_role: no role has this identity as a member (session {SESSION})\n"


QUOTA = {
    "reason": "quota_exhausted",
    "message": "daily quota of 10 kB is used up; it renews at 00:00 UTC",
    "retry_after_s": 17_999.2,
}


@pytest.mark.parametrize("words", [(), ("--", "touch", "{port}")], ids=["ports", "a command"])
async def test_what_would_be_refused_once_used_is_refused_before_anything_listens(
    shell: Shell, tmp_path: Path, words: tuple[str, ...]
) -> None:
    shell.gateway.foreseen["db"] = QUOTA
    words = tuple(word.replace("{port}", str(tmp_path / "started")) for word in words)
    code, output, errors = await shell.run("web", "db", *words)
    assert (code, output) == (3, "")
    assert errors == (
        "portguard: db: quota_exhausted: daily quota of 10 kB is used up; it renews at 00:00 UTC (try again in 5 h)\n"
    )
    assert not (tmp_path / "started").exists()


async def test_every_refused_service_is_told(shell: Shell) -> None:
    shell.gateway.answers |= {"db": refusal(403, "no_role"), "web": refusal(404, "unknown_service")}
    code, _, errors = await shell.run("web", "db")
    assert code == 3
    assert sorted(text.split(": ")[1:3] for text in errors.splitlines()) == [
        ["db", "no_role"],
        ["web", "unknown_service"],
    ]


async def test_a_gateway_that_is_down_is_told_once(shell: Shell) -> None:
    with reserved_port() as port:
        shell.profile.write_text(shell.profile.read_text().replace(str(shell.gateway.port), str(port)))
        code, _, errors = await shell.run("web", "db")
    assert code == 4
    assert errors == (
        f"portguard: gateway 127.0.0.1:{port}: expected a connection, got “Connection refused” (tried 127.0.0.1)\n"
    )


async def test_a_missing_profile_is_told(shell: Shell, tmp_path: Path) -> None:
    code, _, errors = await shell.run("web", PORTGUARD_PROFILE="", XDG_CONFIG_HOME=str(tmp_path))
    assert code == 2
    path = tmp_path / "portguard" / "default.toml"
    assert errors == (
        f"portguard: {path}: expected a profile that can be read, got “No such file or directory”; "
        "--profile or $PORTGUARD_PROFILE names another\n"
    )


async def test_a_profile_goes_by_its_name(shell: Shell, tmp_path: Path) -> None:
    folder = tmp_path / "config" / "portguard"
    folder.mkdir(parents=True)
    shell.gateway.write_profile(folder / "work.toml")
    process = await shell.start("--profile", "work", "web", XDG_CONFIG_HOME=str(tmp_path / "config"))
    assert (await line(process)).startswith("web: 127.0.0.1:")


async def test_without_a_terminal_nobody_is_asked_for_a_passphrase(shell: Shell) -> None:
    key = shell.gateway.folder / "alice.key"
    key.write_text("-----BEGIN ENCRYPTED PRIVATE KEY-----\n")
    code, _, errors = await shell.run("web")
    assert code == 2
    assert errors == (
        f"portguard: {key}: expected key_passphrase_file in the profile, as the key is encrypted and there is no "
        "terminal to ask, got none\n"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["web", "web"], "services: expected each once, got web, web"),
        (["we b"], "service: expected a name such as orders-db, got 'we b'"),
        (["web", "--"], "command: expected one after --, got nothing"),
        (["web", "db", "--stdio"], "--stdio: expected one service, got 2"),
        (["web", "--stdio", "--", "true"], "--stdio: expected no command beside it, got one"),
        (["web", "--json", "--", "true"], "--json: expected no command beside it, got one"),
        (["web", "--stdio", "-L", "1"], "--stdio: expected no -L beside it, got one"),
        (["web", "--stdio", "--json"], "--stdio: expected no --json beside it, got one"),
        (["web", "-L", "x"], "-L: expected [SERVICE=][ADDR:]PORT"),
        (["web", "-L", "db=1"], "-L: expected one of the services web, each once, got 'db'"),
    ],
)
async def test_what_cannot_work_is_refused_with_the_reason(shell: Shell, arguments: list[str], message: str) -> None:
    code, _, errors = await shell.run(*arguments)
    assert code == 2
    assert errors.startswith(f"portguard: {message}")
    assert shell.gateway.requests == []


AFTER_DASHES = "a command and its options go after --, as in: portguard connect SERVICE -- COMMAND"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["web", "psql", "-d", "orders"], f" ({AFTER_DASHES})"),
        (["web", "curl", "http://{host}/"], f"got 'http://{{host}}/' ({AFTER_DASHES})"),
    ],
)
async def test_a_command_without_dashes_before_it_is_told_where_it_goes(
    shell: Shell, arguments: list[str], message: str
) -> None:
    code, _, errors = await shell.run(*arguments)
    assert code == 2
    assert errors.endswith(f"{message}\n")
    assert shell.gateway.requests == []


@pytest.mark.parametrize(
    "arguments", [["web", "--stdoi"], ["web", "-d", "--", "true"], ["we b"], ["web", "we b", "--", "true"]]
)
async def test_what_is_no_forgotten_command_is_told_nothing_of_one(shell: Shell, arguments: list[str]) -> None:
    code, _, errors = await shell.run(*arguments)
    assert code == 2
    assert "after --" not in errors


async def test_a_command_that_was_taken_for_services_is_told_where_it_goes(shell: Shell) -> None:
    unknown = {name: refusal(404, "unknown_service", f"there is no service called {name}") for name in ("echo", "hi")}
    shell.gateway.answers |= unknown
    code, _, errors = await shell.run("web", "echo", "hi")
    assert code == 3
    assert errors.splitlines()[-1] == (
        "portguard: echo: unknown_service: there is no service called echo; a command goes after --, as in: "
        f"portguard connect web -- echo hi (session {SESSION})"
    )
    for arguments in (["echo"], ["web", "echo", "--", "true"]):
        code, _, errors = await shell.run(*arguments)
        assert code == 3
        assert "after --" not in errors


async def test_the_help_shows_where_a_command_goes(shell: Shell) -> None:
    code, output, _ = await shell.run("--help")
    assert code == 0
    assert "SERVICE... [-- COMMAND...]" in output


# A command beside its tunnel.


async def test_a_command_finds_its_tunnel_and_its_exit_code_is_ours(shell: Shell, serve: Callable) -> None:
    shell.gateway.services["orders-db"] = await serve(count)
    program = """
import os, socket, sys
with socket.create_connection((os.environ["PGHOST"], int(os.environ["PGPORT"]))) as sock:
    assert sock.getpeername() == (os.environ["PORTGUARD_HOST"], int(os.environ["PORTGUARD_PORT"]))
    assert sys.argv[1:] == ["-h", os.environ["PGHOST"], "--port=" + os.environ["PGPORT"]]
    sock.sendall(b"x" * 1_000_000)
    sock.shutdown(socket.SHUT_WR)
    print(sock.recv(100).decode())
sys.exit(7)
"""
    words = (sys.executable, "-c", program, "-h", "{host}", "--port={port}")
    assert await shell.run("orders-db", "--", *words) == (7, "1000000\n", "")


async def test_a_command_gets_a_free_port_whatever_the_services_own_is(shell: Shell) -> None:
    with reserved_port() as port:
        shell.gateway.local_ports["web"] = port
        code, output, _ = await shell.run("web", "--", sys.executable, "-c", PRINT_ENVIRONMENT)
        assert code == 0
        assert int(json.loads(output)["PORTGUARD_PORT"]) not in (0, port)
        shell.gateway.write_profile(shell.profile, f"[services.web]\nlocal_port = {port}")
        code, output, _ = await shell.run("web", "--", sys.executable, "-c", PRINT_ENVIRONMENT)
        assert int(json.loads(output)["PORTGUARD_PORT"]) != port
        code, output, _ = await shell.run("web", "-L", str(port), "--", sys.executable, "-c", PRINT_ENVIRONMENT)
        assert json.loads(output)["PORTGUARD_PORT"] == str(port)


async def test_a_command_beside_several_services_finds_each(shell: Shell) -> None:
    program = (sys.executable, "-c", PRINT_ENVIRONMENT)
    code, output, _ = await shell.run("orders-db", "web", "--", *program, PGHOST="elsewhere")
    assert code == 0
    environment = json.loads(output)
    assert environment["PORTGUARD_ORDERS_DB_PORT"] != environment["PORTGUARD_WEB_PORT"]
    assert environment["PGHOST"] == "elsewhere"
    assert "PORTGUARD_PORT" not in environment


async def test_a_refused_command_is_not_started(shell: Shell, tmp_path: Path) -> None:
    shell.gateway.answers["web"] = refusal(403, "no_role")
    code, _, errors = await shell.run("web", "--", "touch", str(tmp_path / "started"))
    assert code == 3
    assert errors.startswith("portguard: web: no_role: ")
    assert not (tmp_path / "started").exists()


async def test_a_command_that_is_not_there_is_127(shell: Shell) -> None:
    code, _, errors = await shell.run("web", "--", "no-such-program")
    assert code == 127
    assert errors == (
        "portguard: no-such-program: expected a program that can be started, got “No such file or directory”\n"
    )


async def test_a_command_that_may_not_be_run_is_126(shell: Shell) -> None:
    assert (await shell.run("web", "--", str(shell.profile)))[0] == 126


async def test_a_command_that_a_signal_ends_is_128_and_its_number(shell: Shell) -> None:
    assert (await shell.run("web", "--", "sh", "-c", "kill -9 $$"))[0] == 137


async def test_a_signal_for_us_is_one_for_the_command(shell: Shell) -> None:
    program = 'trap "exit 42" TERM; echo ready; while :; do sleep 0.05; done'
    process = await shell.start("web", "--", "sh", "-c", program)
    assert await line(process) == "ready"
    assert (await stop(process, signal.SIGTERM))[0] == 42


async def test_what_a_command_sent_last_arrives_although_it_has_ended(shell: Shell, serve: Callable) -> None:
    ended = asyncio.Event()
    received: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    async def read_late(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await ended.wait()
        received.set_result(len(await reader.read()))
        writer.close()

    shell.gateway.services["log"] = await serve(read_late)
    # It fills every buffer on the way, until nothing more is taken.
    program = """
import os, select, socket
sent = 0
with socket.create_connection((os.environ["PORTGUARD_HOST"], int(os.environ["PORTGUARD_PORT"]))) as sock:
    sock.setblocking(False)
    while select.select([], [sock], [], 0.5)[1]:
        sent += sock.send(b"x" * 65536)
print(sent)
"""
    process = await shell.start("log", "--", sys.executable, "-c", program)
    sent = int(await line(process))
    ended.set()
    assert await received == sent
    assert await process.wait() == 0


# Standard streams.


async def test_standard_streams_reach_the_service_and_half_close_goes_through(shell: Shell, serve: Callable) -> None:
    async def digest(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(hashlib.sha256(await reader.read()).hexdigest().encode())
        writer.close()

    shell.gateway.services["digest"] = await serve(digest)
    process = await shell.start("digest", "--stdio", stdin=PIPE)
    data = os.urandom(3_000_000)
    output, errors = await process.communicate(data)
    assert (output.decode(), errors, process.returncode) == (hashlib.sha256(data).hexdigest(), b"", 0)


async def test_input_may_be_a_file_and_output_as_well(shell: Shell, serve: Callable, tmp_path: Path) -> None:
    shell.gateway.services["echo"] = await serve(echo)
    data = os.urandom(3_000_000)
    (tmp_path / "in").write_bytes(data)
    with (tmp_path / "in").open("rb") as given, (tmp_path / "out").open("wb") as taken:
        process = await shell.start("echo", "--stdio", stdin=given.fileno(), stdout=taken.fileno())
        assert await process.wait() == 0
    assert (tmp_path / "out").read_bytes() == data


async def test_output_ends_when_the_service_has_finished_and_input_goes_on(shell: Shell, serve: Callable) -> None:
    received: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"that is all")
        writer.write_eof()
        received.set_result(await reader.read())
        writer.close()

    shell.gateway.services["greet"] = await serve(greet)
    process = await shell.start("greet", "--stdio", stdin=PIPE)
    assert process.stdout is not None
    assert process.stdin is not None
    assert await process.stdout.read() == b"that is all"
    process.stdin.write(b"still talking")
    process.stdin.close()
    assert await received == b"still talking"
    assert await process.wait() == 0


async def test_a_refused_standard_stream_says_why_and_prints_nothing(shell: Shell) -> None:
    shell.gateway.answers["ssh"] = refusal(403, "denied", "contractors stay out")
    code, output, errors = await shell.run("ssh", "--stdio")
    assert (code, output) == (3, "")
    assert errors == f"portguard: ssh: denied: contractors stay out (session {SESSION})\n"


async def test_a_cut_standard_stream_is_no_success(shell: Shell, serve: Callable) -> None:
    shell.gateway.services["echo"] = await serve(echo)
    process = await shell.start("echo", "--stdio", stdin=PIPE)
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(b"hello")
    assert await process.stdout.readexactly(5) == b"hello"
    shell.gateway.relays[0].close(Reason.KILLED)
    assert process.stderr is not None
    assert await process.stderr.read() == (
        f"portguard: echo: the gateway ended the session before it was finished (session {SESSION})\n".encode()
    )
    assert await process.wait() == 1


async def test_output_that_nobody_reads_is_no_success(shell: Shell, serve: Callable) -> None:
    async def talk(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"x" * 1_000_000)
        writer.close()

    shell.gateway.services["talk"] = await serve(talk)
    reading, writing = os.pipe()
    os.close(reading)
    process = await shell.start("talk", "--stdio", stdout=writing)
    os.close(writing)
    _, errors = await process.communicate()
    assert process.returncode == 1
    assert errors.decode() == "portguard: standard output: expected somebody to read it, got “Broken pipe”\n"


async def test_a_standard_stream_that_is_stopped_says_so_in_its_exit_code(shell: Shell, serve: Callable) -> None:
    shell.gateway.services["echo"] = await serve(echo)
    process = await shell.start("echo", "--stdio", stdin=PIPE)
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(b"hello")
    await process.stdout.readexactly(5)
    assert (await stop(process))[0] == 130


@dataclass
class Listener:
    """A service that keeps what it hears, says one byte back, and finishes when it may."""

    may_finish: asyncio.Event = field(default_factory=asyncio.Event)
    heard: asyncio.Queue[bytes] = field(default_factory=asyncio.Queue)

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"!")
        self.heard.put_nowait(await reader.read())
        await self.may_finish.wait()
        writer.close()


async def listening(shell: Shell, serve: Callable, *, may_finish: bool = True) -> tuple[Process, Listener]:
    """Join a process to a listener, which it has reached."""
    listener = Listener()
    if may_finish:
        listener.may_finish.set()
    shell.gateway.services["ssh"] = await serve(listener)
    process = await shell.start("ssh", "--stdio", stdin=PIPE)
    assert process.stdout is not None
    assert await process.stdout.readexactly(1) == b"!"
    return process, listener


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM, signal.SIGINT])
async def test_a_signal_before_the_end_of_the_input_ends_the_session_in_order(
    shell: Shell, serve: Callable, number: signal.Signals
) -> None:
    process, listener = await listening(shell, serve)
    assert process.stdin is not None
    process.stdin.write(b"bye")
    process.send_signal(number)
    assert await process.wait() == 128 + number
    assert await listener.heard.get() == b"bye"
    assert await shell.gateway.ended.get() is Reason.CLIENT_CLOSED


async def test_a_signal_and_the_end_of_the_input_at_once_end_the_session_in_order(
    shell: Shell, serve: Callable
) -> None:
    process, listener = await listening(shell, serve, may_finish=False)
    assert process.stdin is not None
    # It finds both when it goes on.
    process.send_signal(signal.SIGSTOP)
    await asyncio.to_thread(os.waitid, os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)
    process.stdin.write(b"bye")
    process.stdin.close()
    await process.stdin.wait_closed()
    process.send_signal(signal.SIGHUP)
    process.send_signal(signal.SIGCONT)
    assert await listener.heard.get() == b"bye"
    listener.may_finish.set()
    assert await process.wait() == 128 + signal.SIGHUP
    assert await shell.gateway.ended.get() is Reason.CLIENT_CLOSED


async def test_a_signal_after_the_end_of_the_input_ends_the_session_in_order(shell: Shell, serve: Callable) -> None:
    process, listener = await listening(shell, serve, may_finish=False)
    assert process.stdin is not None
    process.stdin.write(b"bye")
    process.stdin.close()
    assert await listener.heard.get() == b"bye"
    process.send_signal(signal.SIGHUP)
    assert await process.wait() == 128 + signal.SIGHUP, (
        "expected a service that does not finish to be waited for briefly"
    )
    listener.may_finish.set()
    assert await shell.gateway.ended.get() is Reason.CLIENT_CLOSED


async def test_an_input_that_a_signal_cuts_in_the_middle_does_not_look_whole(shell: Shell, serve: Callable) -> None:
    reached = asyncio.Event()

    async def swallow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionResetError):
            while await reader.read(65536):
                reached.set()
        writer.close()

    shell.gateway.services["swallow"] = await serve(swallow)
    endless = os.open("/dev/zero", os.O_RDONLY)
    process = await shell.start("swallow", "--stdio", stdin=endless)
    os.close(endless)
    await reached.wait()
    assert (await stop(process, signal.SIGTERM))[0] == 128 + signal.SIGTERM
    assert await shell.gateway.ended.get() is Reason.CLIENT_TRUNCATED
