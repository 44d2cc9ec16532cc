"""The gateway's own certificates: usable, in date, for servers, and for every name it goes by."""

from datetime import timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, PrivateFormat

from portguard.errors import Problem
from portguard.gateway.server_certificate import (
    check_key_pair,
    check_server_certificate,
    date_warnings,
    revocation_warnings,
)
from portguard.identity.revocation import parse_revocation_lists
from portguard.policy.model import Service, Upstream
from tests.certificates import ANY_USAGE, CLIENT_AUTH, SERVER_AUTH, SUBJECT_ALTERNATIVE_NAME, Authority, dns, now

NAME = "bastion.example.com"
ROOT = Authority.root()
UPSTREAM = (Upstream(host="10.0.3.7", port=5432),)
ORDERS = Service("orders-db", UPSTREAM)
METRICS = Service("metrics", UPSTREAM, aliases=("metrics.example.com", "graphs.example.org"))


def issue(*names, **keywords):
    return ROOT.issue("gateway", **({"sans": [dns(name) for name in names], "usages": [SERVER_AUTH]} | keywords))


def findings(certificate, services=(), at=None, pem=None):
    """Problems and warnings, as text."""
    return [
        ("problem: " if isinstance(finding, Problem) else "warning: ") + str(finding)
        for finding in check_server_certificate("g.crt", pem or certificate.pem, NAME, services, at or now())
    ]


def pair_problems(certificate_pem, key_pem):
    return list(map(str, check_key_pair("g.crt", "g.key", {"g.crt": certificate_pem, "g.key": key_pem})))


def test_a_certificate_and_its_key_are_a_pair():
    good = issue(NAME)
    assert pair_problems(good.pem, good.key_pem) == []
    assert pair_problems(good.pem + ROOT.pem, good.key_pem) == []


def test_the_key_of_another_certificate_is_a_problem_of_the_key():
    assert pair_problems(issue(NAME).pem, issue(NAME).key_pem) == [
        "g.key: expected the certificate's key, got the key of another certificate"
    ]


def test_a_key_with_a_passphrase_is_a_problem():
    good = issue(NAME)
    encrypted = good.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"s3cret"))
    assert pair_problems(good.pem, encrypted) == [
        "g.key: expected a private key without a passphrase, got an encrypted one"
    ]


def test_a_key_that_is_too_short_is_a_problem():
    weak = issue(NAME, key=rsa.generate_private_key(65537, 1024))
    (problem,) = pair_problems(weak.pem, weak.key_pem)
    assert problem.startswith("g.crt: expected a chain that OpenSSL takes")


@pytest.mark.parametrize(
    ("certificate", "key", "file"), [(b"", None, "g.crt"), (None, b"", "g.key"), (b"x", b"x", "g.crt")]
)
def test_what_is_no_pem_is_a_problem_of_its_file(certificate, key, file):
    good = issue(NAME)
    problems = pair_problems(good.pem if certificate is None else certificate, good.key_pem if key is None else key)
    assert len(problems) == 1
    assert problems[0].startswith(f"{file}: expected a PEM")


def test_a_missing_file_is_told_elsewhere():
    assert list(check_key_pair("g.crt", "g.key", {"g.crt": b""})) == []
    assert list(check_key_pair("g.crt", "g.key", {"g.key": b""})) == []


def test_a_certificate_with_all_names_gives_no_finding():
    assert findings(issue(NAME, f"*.{NAME}", *METRICS.aliases), [ORDERS, METRICS]) == []


def test_names_that_are_missing_are_named():
    assert findings(issue(f"{NAME}"), [ORDERS, METRICS]) == [
        f"warning: g.crt: expected a certificate for *.{NAME}, metrics.example.com, graphs.example.org, "
        f"which clients look for, got one for {NAME}"
    ]
    assert findings(issue(f"*.{NAME}"), [ORDERS]) == [
        f"warning: g.crt: expected a certificate for {NAME}, which clients look for, got one for *.{NAME}"
    ]


def test_a_certificate_without_dns_names_covers_nothing():
    assert findings(issue(sans=[])) == [
        f"warning: g.crt: expected a certificate for {NAME}, which clients look for, got one for no DNS name"
    ]


def test_the_wildcard_is_needed_only_for_services_without_a_name_of_their_own():
    assert findings(issue(NAME)) == []
    assert findings(issue(NAME, f"orders-db.{NAME}"), [ORDERS]) == []
    assert f"*.{NAME}" in findings(issue(NAME, f"orders-db.{NAME}", *METRICS.aliases), [ORDERS, METRICS])[0]


def test_a_wildcard_covers_one_label_and_no_more():
    assert findings(issue("*.example.com")) == []
    assert findings(issue(NAME, "*.example.com"), [ORDERS]) != []
    assert findings(issue("*.com")) != []
    assert findings(issue("*")) != []


def test_names_are_compared_in_lower_case():
    assert findings(issue(NAME.upper())) == []


def test_long_lists_of_names_are_cut():
    service = Service("many", UPSTREAM, aliases=tuple(f"a{n}.example.org" for n in range(9)))
    (warning,) = findings(issue(NAME, f"*.{NAME}"), [service])
    assert "a4.example.org and 4 more, which" in warning
    assert "a5" not in warning


def test_a_certificate_out_of_date_is_a_problem():
    expired = issue(NAME, not_before=now() - timedelta(days=9), not_after=now() - timedelta(days=1))
    early = issue(NAME, not_before=now() + timedelta(days=1))
    (problem,) = findings(expired)
    assert problem.startswith("problem: g.crt: expected a certificate that is valid at ")
    assert ", got one until " in problem
    (problem,) = findings(early)
    assert problem.startswith("problem: g.crt: expected a certificate that is valid at ")
    assert problem.endswith(" UTC on")


def test_dates_hold_to_the_second():
    good = issue(NAME)
    start, end = good.certificate.not_valid_before_utc, good.certificate.not_valid_after_utc
    second = timedelta(seconds=1)
    assert findings(good, at=start) == []
    assert findings(good, at=start - second)[0].startswith("problem: ")
    assert findings(good, at=end)[0].startswith("warning: ")
    assert findings(good, at=end + second)[0].startswith("problem: ")


def test_every_certificate_of_the_chain_must_be_in_date():
    issuing = ROOT.intermediate()
    leaf = issuing.issue("gateway", sans=[dns(NAME)], usages=[SERVER_AUTH], not_after=now() + timedelta(days=300))
    later = now() + timedelta(days=100)
    assert [text.partition(": expected")[0] for text in findings(leaf, pem=leaf.pem + issuing.pem, at=later)] == [
        "problem: g.crt: certificate 2"
    ]


@pytest.mark.parametrize(
    ("life_days", "left_days", "warned"), [(365, 13, True), (365, 15, False), (5, 0.9, True), (5, 1.1, False)]
)
def test_a_certificate_that_expires_soon_is_a_warning(life_days, left_days, warned):
    end = now() + timedelta(days=left_days)
    certificate = issue(NAME, not_before=end - timedelta(days=life_days), not_after=end)
    expected = [f"warning: g.crt: the certificate expires on {end:%Y-%m-%d %H:%M:%S} UTC"] if warned else []
    assert findings(certificate) == expected


@pytest.mark.parametrize("usages", [None, [SERVER_AUTH], [CLIENT_AUTH, SERVER_AUTH], [ANY_USAGE]])
def test_a_certificate_for_servers_is_taken(usages):
    assert findings(issue(NAME, usages=usages)) == []


def test_a_certificate_for_clients_only_is_a_warning():
    (warning,) = findings(issue(NAME, usages=[CLIENT_AUTH]))
    assert warning.startswith("warning: g.crt: expected a certificate for servers (extended key usage)")


def test_extensions_that_cannot_be_read_are_a_problem():
    odd = issue(sans=[], extensions=[x509.UnrecognizedExtension(SUBJECT_ALTERNATIVE_NAME, b"\x00")])
    (problem,) = findings(odd)
    assert problem.startswith("problem: g.crt: expected a certificate with readable extensions")


def test_of_certificates_towards_services_dates_are_only_warned_of():
    good = issue(NAME).certificate
    expired = issue(NAME, not_before=now() - timedelta(days=9), not_after=now() - timedelta(days=1)).certificate
    assert list(date_warnings("u.crt", [good], now())) == []
    (warning,) = date_warnings("u.crt", [good, expired], now())
    assert warning.startswith("u.crt: certificate 2: expected a certificate that is valid at")


def test_a_certificate_that_is_revoked_or_whose_issuer_is_is_told_of():
    issuing, other = ROOT.intermediate(), Authority.root("Other")
    own, below = issue(NAME), issuing.issue("gateway", sans=[dns(NAME)], usages=[SERVER_AUTH])
    number = own.certificate.serial_number

    def warnings(pem, *lists):
        return list(
            revocation_warnings(
                "g.crt", pem, parse_revocation_lists(b"".join(each.public_bytes(Encoding.PEM) for each in lists))
            )
        )

    name, root = (each.certificate.subject.rfc4514_string() for each in (issuing, ROOT))
    assert warnings(own.pem, ROOT.crl(revoked=[number])) == [
        f"g.crt: the certificate is revoked by {root}; have another one issued"
    ]
    assert warnings(below.pem + issuing.pem, issuing.crl(), ROOT.crl(revoked=[issuing.certificate.serial_number])) == [
        f"g.crt: its issuer {name} is revoked by {root}; have another one issued"
    ]
    assert warnings(own.pem, ROOT.crl(revoked=[number + 1]), other.crl(revoked=[number])) == []
