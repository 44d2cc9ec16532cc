import asyncio
import socket

import aiohttp
import pytest

from portguard.gateway.listeners import Binding
from portguard.gateway.operator_http import OperatorHttp
from portguard.observe.metrics import QuotaUse, Reading, Totals
from portguard.policy.addresses import ListenAddress


async def answer():
    return reading()


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
        quotas=QuotaUse(),
        audit_failures=0,
        ledger_errors=0,
    )


class Gateway:
    """What the server asks, and what it was told of faults."""

    def __init__(self):
        self.problems = []
        self.faults = []
        self.at_once = self.most_at_once = 0
        self.answer = answer

    async def read(self):
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            return await self.answer()
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
    server = OperatorHttp(read=gateway.read, not_ready=gateway.not_ready, faults=gateway)
    with Binding("portguard.toml") as binding:
        listening = binding.bind_metrics(ListenAddress("127.0.0.1", 0))
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


async def test_one_scrape_waits_for_the_other_and_lets_others_run(get, gateway):
    go_on = asyncio.Event()

    async def wait():
        await go_on.wait()
        return reading()

    gateway.answer = wait
    scrapes = [asyncio.create_task(get("/metrics")) for _ in range(3)]
    while not gateway.at_once:
        assert (await get("/healthz"))[0] == 200
    for _ in range(3):  # time for the other scrapes to come in, if they could
        assert (await get("/healthz"))[0] == 200
    go_on.set()
    assert [status for status, _, _ in await asyncio.gather(*scrapes)] == [200] * 3
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
    async def fail():
        raise ValueError("inner details")

    gateway.answer = fail
    status, _, text = await get("/metrics")
    assert (status, text) == (500, "internal error\n")
    [(message, error)] = gateway.faults
    assert message == "GET /metrics failed"
    assert isinstance(error, ValueError)
    gateway.answer = answer
    assert (await get("/metrics"))[0] == 200


async def test_nonsense_is_answered_and_not_logged(get, gateway, capfd, caplog):
    reader, writer = await asyncio.open_connection("127.0.0.1", get.port)
    writer.write(b"\x16\x03\x01 nonsense\r\n\r\n")
    assert (await reader.read()).startswith(b"HTTP/1.0 400 ")
    writer.close()
    assert capfd.readouterr() == ("", "")
    assert caplog.records == []
    assert gateway.faults == []
