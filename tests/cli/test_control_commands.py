"""What commands over the control socket have in common."""

import pytest

from portguard.control.access import Level
from portguard.control.routes import Route
from tests.control_double import ControlDouble


@pytest.mark.parametrize(
    ("command", "method", "path"),
    [
        (("drain",), "POST", "/v1/drain"),
        (("resume",), "POST", "/v1/resume"),
        (("reload",), "POST", "/v1/reload"),
        (("lock", "alice", "--reason", "INC-1"), "POST", "/v1/lock"),
        (("lock", "--list"), "GET", "/v1/locks"),
        (("unlock", "alice"), "POST", "/v1/unlock"),
        (("quota", "show"), "GET", "/v1/quotas"),
        (("quota", "reset", "alice"), "POST", "/v1/quotas/reset"),
        (("quota", "grant", "alice", "1GB"), "POST", "/v1/quotas/grant"),
        (("sessions", "list"), "GET", "/v1/sessions"),
        (("sessions", "kill", "abcdef01"), "POST", "/v1/sessions/kill"),
        (("status",), "GET", "/v1/status"),
    ],
)
def test_an_answer_that_is_not_understood_is_told_in_a_sentence(configuration, run_portguard, command, method, path):
    async def reply(_peer, _given):
        return {"of": "another version"}

    with ControlDouble(configuration.parent / "c.sock", [Route(method, path, Level.ADMIN, reply)]):
        code, out, err = run_portguard(*command)
    assert (code, out) == (1, "")
    assert err == "portguard: the gateway: expected an answer that this version understands, got another one\n"
