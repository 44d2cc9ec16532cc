from dataclasses import replace
from datetime import timedelta

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from portguard.gateway.bundle import read_bundle
from portguard.gateway.expiries import certificate_expiries, crl_expiries
from portguard.gateway.meter import Loaded
from portguard.gateway.snapshot import build
from portguard.identity.trust import Trusts
from tests.certificates import CLIENT_AUTH, Authority, now
from tests.gateway_folder import GatewayFolder


@pytest.fixture
def folder(tmp_path):
    return GatewayFolder(tmp_path)


def snapshot(folder):
    return build(read_bundle(folder.configuration))


def ends(holder):
    return holder.certificate.not_valid_after_utc.timestamp()


def test_the_gateway_and_its_trusts_are_told(folder):
    assert certificate_expiries(snapshot(folder)) == {
        "gateway": ends(folder.gateway),
        "trust:local": ends(folder.authority),
    }


def test_of_a_chain_the_first_to_expire_counts(folder):
    issuing = Authority.root("Short", not_after=now() + timedelta(hours=1))
    folder.write("tls/gateway.crt", folder.gateway.pem + issuing.pem)
    assert certificate_expiries(snapshot(folder))["gateway"] == ends(issuing)


def test_what_services_are_spoken_to_with_is_told(folder):
    holder = folder.authority.issue("gw", usages=[CLIENT_AUTH])
    folder.write("tls/up.crt", holder.pem)
    folder.write("tls/up.key", holder.key_pem)
    folder.write(
        "policy.toml",
        """
[services.web]
upstream = ["10.0.0.1:443"]
tls = { ca = "ca.crt", certificate = "tls/up.crt", key = "tls/up.key" }
[services.plain]
upstream = ["10.0.0.1:443"]
[services.public]
upstream = ["example.com:443"]
tls = {}
""",
    )
    expiries = certificate_expiries(snapshot(folder))
    assert expiries.keys() == {"gateway", "trust:local", "service:web", "service-ca:web"}
    assert expiries["service:web"] == ends(holder)
    assert expiries["service-ca:web"] == ends(folder.authority)


def test_without_lists_nothing_is_told(folder):
    assert crl_expiries(snapshot(folder)) == {}


def lists(folder, *crls):
    for number, crl in enumerate(crls):
        folder.write(f"{number}.crl", crl.public_bytes(Encoding.PEM))
    names = ", ".join(f'"{number}.crl"' for number in range(len(crls)))
    folder.add("portguard.toml", f"crl = [{names}]\n")


def test_of_one_issuers_lists_the_last_counts_and_of_all_issuers_the_first(folder):
    issuing = folder.authority.intermediate()
    soon, later, latest = (now() + timedelta(days=days) for days in (1, 2, 3))
    lists(
        folder,
        folder.authority.crl(next_update=soon),
        folder.authority.crl(next_update=latest),
        issuing.crl(next_update=later),
    )
    assert crl_expiries(snapshot(folder)) == {"local": int(later.timestamp())}


@pytest.mark.parametrize(("when", "accepting"), [("refuse", set()), ("accept", {"local"})])
def test_what_is_in_force_says_whose_lists_may_be_out_of_date(folder, when, accepting):
    lists(folder, folder.authority.crl())
    folder.add("portguard.toml", f'crl_expired = "{when}"\n')
    assert Loaded.of(snapshot(folder), now()).accept_stale == accepting


def test_lists_that_never_expire_are_left_out(folder):
    lists(folder, folder.authority.crl())
    before = snapshot(folder)
    [trust] = before.trusts.every
    endless = replace(trust, crl_expired="accept", crls=(replace(trust.crls[0], next_update=None),))
    assert crl_expiries(before).keys() == {"local"}
    assert crl_expiries(replace(before, trusts=Trusts([endless]))) == {}
