import dataclasses
import resource

import pytest

from portguard.errors import ConfigurationError
from portguard.gateway.bundle import read_bundle
from portguard.gateway.descriptors import raise_descriptor_limit
from portguard.gateway.snapshot import build
from tests.gateway_folder import GatewayFolder

_FILE = "portguard.toml"
_BESIDE = 512 + 1024 + 64  # pending, lingering, and the process's own


@pytest.fixture
def capacity(tmp_path):
    snapshot = build(read_bundle(GatewayFolder(tmp_path).configuration))
    return dataclasses.replace(snapshot.configuration.capacity, max_sessions=100, pending_handshakes=512)


@pytest.fixture
def limits(monkeypatch):
    """The system's limit: `limits(hard)` sets it; what it answers is filled with what was set."""

    def run(hard):
        taken = []
        monkeypatch.setattr(resource, "getrlimit", lambda _: (64, hard))
        monkeypatch.setattr(resource, "setrlimit", lambda _, both: taken.append(both))
        return taken

    return run


@pytest.mark.parametrize("hard", [200 + _BESIDE, resource.RLIM_INFINITY])
def test_all_descriptors_that_the_system_gives_are_taken(capacity, limits, hard):
    taken = limits(hard)
    raise_descriptor_limit(capacity, _FILE)
    assert taken == [(hard, hard)]


@pytest.mark.parametrize(("hard", "room"), [(200 + _BESIDE - 1, 99), (_BESIDE, 0), (10, 0)])
def test_a_capacity_that_they_do_not_hold_is_an_error(capacity, limits, hard, room):
    limits(hard)
    with pytest.raises(ConfigurationError) as caught:
        raise_descriptor_limit(capacity, _FILE)
    assert str(caught.value) == (
        f"portguard.toml: capacity.max_sessions: expected at most {room}, "
        f"which is what the limit of {hard} open files allows, got 100"
    )
