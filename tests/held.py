"""Sessions that a test holds and looks after, while commands are run on the gateway and on its authority."""

import os
import ssl
import subprocess

import pytest

from tests.e2e.conftest import PORTGUARD
from tests.patience import PATIENCE_S


def portguard(gateway, *words, code=0):
    """Run a command in the gateway's folder; return its standard output, and its errors too when it is to fail."""
    environment = os.environ | {"PORTGUARD_CA": "ca", "PORTGUARD_CONFIG": "portguard.toml"}
    done = subprocess.run(
        [*PORTGUARD, *words], cwd=gateway.folder, env=environment, capture_output=True, text=True,
        timeout=PATIENCE_S, check=False,
    )  # fmt: skip
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout if code == 0 else done.stdout + done.stderr


def held(gateway, name="alice"):
    client = gateway.connect("echo", name)
    client.settimeout(PATIENCE_S)
    assert goes_on(client)
    return client


def goes_on(client):
    client.sendall(b"more")
    return client.recv(10) == b"more"


def is_cut(client):
    """Wait for its end, of which the client can tell that it was none in order."""
    with pytest.raises((ssl.SSLError, ConnectionResetError)):
        client.recv(10)
    return True


def is_refused(gateway, name):
    with pytest.raises(OSError, match=r"EOF|reset|alert"), gateway.connect("echo", name) as client:
        client.recv(1)
    return True
