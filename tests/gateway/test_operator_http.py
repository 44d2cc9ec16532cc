import asyncio
import socket
import threading

import aiohttp
import pytest

from portguard.gateway.listeners import bind_address
from portguard.gateway.operator_http import OperatorHttp
from portguard.observe.metrics import Reading, Totals
from portguard.policy.addresses import ListenAddress


def reading():
    return Reading(
        totals=Totals(),
        active={},
        sessions_limit=7,
        upstreams={},
        certificates={},
        crls={},
        last_load_successful=True,
        loaded_s=0.0,
        revision="",
        workers=0,
        draining=False,
    )


class Gateway:
    """What the server asks, and what it was told of faults."""

    def __init__(self):
        self.problems = []
        self.faults = []
        self.threads = []
        self.at_once = self.most_at_once = 0
        self.answer = reading

    def take(self):
        self.threads.append(threading.current_thread())
        return self._read

    def _read(self):
        self.threads.append(threading.current_thread())
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            return self.answer()
        finally:
            self.at_once -= 1

    def not_ready(self):
        return self.problems

    def report(self, message, error):
        self.faults.append((message, error))


@pytest.fixture
def gateway():
    return Gateway()


@pytest.fixture
async def get(gateway):
    server = OperatorHttp(take=gateway.take, not_ready=gateway.not_ready, faults=gateway)
    listening = bind_address(ListenAddress("127.0.0.1", 0), "portguard.toml", "metrics.listen")
    port = listening.getsockname()[1]
    await server.start(listening)

    async def get(path, method="GET", **headers):
        async with (
            aiohttp.ClientSession() as session,
            session.request(method, f"http://127.0.0.1:{port}{path}", headers=headers) as response,
        ):
            return response.status, response.headers["Content-Type"], await response.text()

    get.port = port
    yield get
    await server.stop()
    with pytest.raises(OSError, match="refused"), socket.create_connection(("127.0.0.1", port)):
        pass


async def test_metrics_are_served_in_the_format_that_is_asked_for(get):
    status, content_type, text = await get("/metrics")
    assert status == 200
    assert content_type.startswith("text/plain; version=0.0.4")
    assert "\nportguard_sessions_limit 7.0\n" in text
    _, content_type, text = await get("/metrics", Accept="application/openmetrics-text;version=1.0.0")
    assert content_type.startswith("application/openmetrics-text; version=1.0.0")
    assert text.endswith("# EOF\n")


async def test_a_moment_is_taken_on_the_loop_and_written_in_a_thread(get, gateway):
    await get("/metrics")
    taken, written = gateway.threads
    assert taken is threading.current_thread()
    assert written is not taken


async def test_one_scrape_waits_for_the_other(get, gateway):
    together = threading.Event()

    def wait():
        together.wait(0.05)  # which nobody sets: time for others to come in, if they could
        return reading()

    gateway.answer = wait
    answers = await asyncio.gather(*(get("/metrics") for _ in range(3)))
    assert [status for status, _, _ in answers] == [200] * 3
    assert gateway.most_at_once == 1


async def test_the_process_is_healthy_also_when_it_does_not_serve(get, gateway):
    gateway.problems = ["workers: none"]
    assert (await get("/healthz"))[::2] == (200, "ok\n")


async def test_readiness_says_what_is_wrong(get, gateway):
    assert (await get("/readyz"))[::2] == (200, "ready\n")
    gateway.problems = ["workers: none", "audit: no space"]
    assert (await get("/readyz"))[::2] == (503, "not ready\nworkers: none\naudit: no space\n")


async def test_nothing_else_is_served(get):
    assert (await get("/"))[0] == 404
    assert (await get("/metrics", method="POST"))[0] == 405


async def test_a_fault_is_reported_and_keeps_its_details_from_the_client(get, gateway):
    def fail():
        raise ValueError("inner details")

    gateway.answer = fail
    status, _, text = await get("/metrics")
    assert (status, text) == (500, "internal error\n")
    [(message, error)] = gateway.faults
    assert message == "GET /metrics failed"
    assert isinstance(error, ValueError)
    gateway.answer = reading
    assert (await get("/metrics"))[0] == 200


async def test_nonsense_is_answered_and_not_logged(get, gateway, capfd, caplog):
    reader, writer = await asyncio.open_connection("127.0.0.1", get.port)
    writer.write(b"\x16\x03\x01 nonsense\r\n\r\n")
    assert (await reader.read()).startswith(b"HTTP/1.0 400 ")
    writer.close()
    assert capfd.readouterr() == ("", "")
    assert caplog.records == []
    assert gateway.faults == []
