"""A control server on a real socket, and curl to talk to it, as whatever user is needed."""

import asyncio
import json
import os
import shutil
import socket
import subprocess
import tempfile
from pathlib import Path

import pytest
import uvloop

from portguard.control.access import Access, Principal
from portguard.control.listening import listen
from portguard.control.server import ControlServer
from tests.patience import PATIENCE_S


def pytest_asyncio_loop_factories(item):
    return {"uvloop": uvloop.new_event_loop}


class Faults:
    """Faults that were reported."""

    def __init__(self):
        self.reported = []

    def report(self, message, error):
        self.reported.append((message, error))


class Control:
    """A server with what it was told and what it told."""

    def __init__(self, path, server, faults, acts):
        self.path = path
        self.server = server
        self.faults = faults.reported
        self.acts = acts  # (name of the peer, method, path, arguments, outcome)

    async def curl(self, target, *options, user=None):
        """Ask with curl, as `user` (a pwd entry); status and JSON."""
        ended = await asyncio.to_thread(self.run_curl, target, "--write-out", "\n%{http_code}", *options, user=user)
        assert ended.returncode == 0, ended.stderr
        body, _, status = ended.stdout.rpartition("\n")
        return int(status), json.loads(body)

    def run_curl(self, target, *options, user=None):
        """The same in a thread; the ended process."""
        identity = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []} if user is not None else {}
        command = ["curl", "--silent", "--show-error", "--unix-socket", str(self.path), *options]
        return subprocess.run(
            [*command, f"http://portguard{target}"],
            capture_output=True,
            text=True,
            check=False,
            timeout=PATIENCE_S,
            **identity,
        )

    async def until(self, ready):
        """Return once `ready()` is true."""
        while not ready():  # noqa: ASYNC110 - it happens in the server, which tells nobody
            await asyncio.sleep(0.01)

    async def raw(self, data, *, shut=False):
        """Send bytes, and return all that comes until the server closes."""
        with socket.socket(socket.AF_UNIX) as client:
            client.setblocking(False)
            loop = asyncio.get_running_loop()
            await loop.sock_connect(client, str(self.path))
            try:
                await loop.sock_sendall(client, data)
                if shut:
                    client.shutdown(socket.SHUT_WR)
                answer = b""
                while piece := await loop.sock_recv(client, 65536):
                    answer += piece
            except ConnectionError:
                return b""
            return answer

    async def ask(self, method, target, body=None, **headers):
        """Ask by a request of one's own; status and JSON."""
        lines = [f"{method} {target} HTTP/1.1", "Host: portguard"]
        data = b""
        headers = {name.replace("_", "-"): value for name, value in headers.items()}
        if body is not None:
            data = body if isinstance(body, bytes) else json.dumps(body).encode()
            headers.setdefault("Content-Type", "application/json")
            lines.append(f"Content-Length: {len(data)}")
        lines += [f"{name}: {value}" for name, value in headers.items()]
        answer = await self.raw("\r\n".join([*lines, "", ""]).encode() + data)
        head, _, rest = answer.partition(b"\r\n\r\n")
        return int(head.split()[1]), json.loads(rest)


@pytest.fixture
def folder():
    """A short path that all users can come through, which pytest's own folders do not let."""
    path = Path(tempfile.mkdtemp(prefix="pg-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


@pytest.fixture
async def control(folder):
    """`control(routes, group, **levels)` serves routes; `levels` are arrays such as `viewers=["user:anna"]`."""
    running = []

    def start(routes, group="root", *, own_uid=None, accounts=None, **levels):
        principals = {key: tuple(Principal(*each.split(":")) for each in given) for key, given in levels.items()}
        access = Access(own_uid=os.getuid() if own_uid is None else own_uid, **principals)
        faults, acts = Faults(), []
        server = ControlServer(
            access=access,
            routes=routes,
            faults=faults,
            on_act=lambda peer, *told: acts.append((peer.name, *told)),
            accounts=accounts,
        )
        path = folder / "control.sock"
        server.start(listen(str(path), group, "portguard.toml"))
        running.append(server)
        return Control(path, server, faults, acts)

    yield start
    for server in running:
        await server.stop()
