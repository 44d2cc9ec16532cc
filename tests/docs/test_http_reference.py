"""The reference of the gateway's HTTP has the fields that its answers have."""

import json
import re
from datetime import UTC, datetime
from ipaddress import ip_address
from pathlib import Path

from portguard.gateway.bundle import read_bundle
from portguard.gateway.http_request import ApiRequest
from portguard.gateway.http_response import status_of
from portguard.gateway.messages import ForeseenRefusal, PastRefusal, QuotaStanding, RoleStanding
from portguard.gateway.self_service import Visitor, answer
from portguard.gateway.snapshot import build
from portguard.identity.names import Group, Identity
from portguard.identity.trust import Caller
from portguard.reasons import Reason
from tests.gateway_folder import GatewayFolder

_PAGE = (Path(__file__).parents[2] / "docs" / "reference" / "http-api.md").read_text()
_LIMITS = 'max_sessions = 10\nconnect_rate = "30/m"\nbandwidth = "50MB/s"\n'


def _shape(value: object) -> object:
    """The keys of a document, without its values."""
    if isinstance(value, dict):
        return {key: _shape(each) for key, each in value.items()}
    return [_shape(each) for each in value[:1]] if isinstance(value, list) else None


class _Supervisor:
    async def standing(self, request):
        return [RoleStanding(3, 0.0, [QuotaStanding("day", False, 5, 0, 1, 0)])]

    async def forecast(self, request):
        return [ForeseenRefusal(Reason.CONNECT_RATE, "m", 1.0)]

    async def past_refusals(self, request):
        return [PastRefusal(1.0, "orders-db", "quota_exhausted", "m", "ab")]


async def test_the_examples_have_the_fields_of_the_answers(tmp_path: Path) -> None:
    folder = GatewayFolder(tmp_path)
    folder.add("policy.toml", _LIMITS)
    snapshot = build(read_bundle(folder.configuration))
    caller = Caller(Identity("local", "alice"), frozenset({Group("local", "dba")}), 1, "ab", datetime.now(UTC))
    visitor = Visitor(7, caller, ip_address("192.0.2.7"), snapshot)
    examples = dict(re.findall(r"^## `GET (\S+)`\n+```json\n(.*?)^```$", _PAGE, re.MULTILINE | re.DOTALL))
    assert examples.keys() == {"/v1/whoami", "/v1/services"}
    for path, example in examples.items():
        answered = await answer(ApiRequest("GET", path, "", (), b""), visitor, _Supervisor(), lambda _: None)
        assert _shape(json.loads(example)) == _shape(json.loads(answered.partition(b"\r\n\r\n")[2])), path


def test_every_status_of_a_refusal_is_there() -> None:
    rows = re.findall(r"^\| ([0-9, ]+) \|", _PAGE, re.MULTILINE)
    assert {int(status) for row in rows for status in row.split(", ")} == {status_of(reason) for reason in Reason}
