"""curl against a gateway: straight, as by any TLS client, and through the gateway as an HTTPS proxy.

    answer = curl(gateway, "web", "/")                   # by SNI
    answer = curl_by_connect(gateway, "bob", "http://web/")
    assert answer.returncode == 56

What curl wrote is text: the body on standard output, after the heads where `-i` is among the options.
"""

import subprocess
from typing import Any

from tests.patience import PATIENCE_S

# curl finds names below .localhost on loopback by itself, but would try ::1 first, where no gateway listens.
_COMMAND = ["curl", "--silent", "--show-error", "--ipv4"]

Answer = subprocess.CompletedProcess[str]


def curl(gateway: Any, name: str | None, url: str, *options: str) -> Answer:
    """Fetch `url`, as the client `name`; None: without a certificate. "{port}" is the gateway's."""
    return _run(*_credentials(gateway, name, ""), *options, url.replace("{port}", str(gateway.port)))


def curl_by_connect(gateway: Any, name: str | None, url: str, *options: str) -> Answer:
    """Fetch `url` through a tunnel that the client `name` asks the gateway for with CONNECT."""
    proxy = ["--proxytunnel", "--proxy", f"https://gw.localhost:{gateway.port}"]
    return _run(*proxy, *_credentials(gateway, name, "proxy-"), *options, url)


def _credentials(gateway: Any, name: str | None, prefix: str) -> list[str]:
    options = [f"--{prefix}cacert", str(gateway.ca)]
    if name is not None:
        certificate, key = gateway.certificate(name)
        options += [f"--{prefix}cert", str(certificate), f"--{prefix}key", str(key)]
    return options


def _run(*arguments: str) -> Answer:
    return subprocess.run([*_COMMAND, *arguments], capture_output=True, text=True, check=False, timeout=PATIENCE_S)
