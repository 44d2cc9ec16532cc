"""What certificates are worth, with and without the CA that issued them."""

from datetime import datetime, timedelta
from pathlib import Path

import pytest

from portguard.pki.authority import Authority
from portguard.pki.profiles import Kind, RevocationReason
from portguard.pki.revocation import revoke
from portguard.pki.rotation import replace_issuing
from portguard.pki.standing import Standings, left_to_clients
from portguard.pki.store import Status


@pytest.fixture
def two_tiers(tmp_path: Path, now: datetime) -> Authority:
    return Authority.create(
        tmp_path / "two", trust_domain="bastion.example.com", at=now, root_directory=tmp_path / "stick"
    )


def test_a_certificate_falls_with_its_issuer_and_keeps_its_own_reason(
    two_tiers: Authority, tmp_path: Path, now: datetime
) -> None:
    first, second = (two_tiers.issue_client("alice", at=now).record for _ in range(2))
    revoke(two_tiers, [first.serial], reason=RevocationReason.SUPERSEDED, at=now)
    replaced = replace_issuing(two_tiers, tmp_path / "stick", at=now, compromised=True)
    third = replaced.issue_client("alice", at=now).record
    standings = Standings(replaced)
    own = standings.of(replaced.store.get(first.serial), now)
    assert (own.status, own.revocation.reason, own.revoked_issuer) == (Status.REVOKED, "superseded", None)
    fallen = standings.of(second, now + timedelta(days=365))  # past its end, as what is revoked by itself
    assert (fallen.status, fallen.revocation.reason) == (Status.REVOKED, "cACompromise")
    assert fallen.revoked_issuer == two_tiers.issuer.subject
    good = standings.of(third, now)
    assert (good.status, good.revocation, good.revoked_issuer) == (Status.VALID, None, None)
    assert left_to_clients(replaced, [first], now) == {"alice": {Kind.CLIENT: 1}}


def test_under_a_root_that_issues_itself_the_record_is_all(authority: Authority, now: datetime) -> None:
    issued = authority.issue_client("alice", at=now).record
    assert Standings(authority).of(issued, now).status is Status.VALID
