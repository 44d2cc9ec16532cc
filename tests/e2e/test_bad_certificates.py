"""Certificates that get nobody in: each flaw has its own reason in the log, and others are served meanwhile.

What is wrong with a certificate by itself is refused in the handshake, with an alert; what its name makes of it is
refused after it, by a connection that breaks.
"""

import json
import ssl
from datetime import timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from tests.certificates import SERVER_AUTH, Authority, now, spiffe
from tests.chains import break_of, present
from tests.unharmed import echoes, unharmed, warm_up

_BREAKS = "UNEXPECTED_EOF_WHILE_READING"


@pytest.fixture(scope="module")
def shared(start_gateway_for_module, echo):
    gateway = start_gateway_for_module({"echo": echo})
    warm_up(gateway)
    return gateway


@pytest.fixture
def gateway(shared):
    with unharmed(shared):
        yield shared.from_now()


@pytest.fixture(scope="module")
def authority(shared):
    """The gateway's own authority, in the hands of somebody who signs anything."""
    key = serialization.load_pem_private_key((shared.folder / "ca" / "ca.key").read_bytes(), None)
    return Authority(x509.load_pem_x509_certificate(shared.ca.read_bytes()), key)


def of_another_authority(authority):
    return Authority.root().issue()


def of_a_namesake_of_the_authority(authority):
    impostor = Authority.root().cross_sign(Authority.root(), subject=authority.subject)
    return impostor.issue()


def self_signed(authority):
    key = rsa.generate_private_key(65537, 2048)
    return Authority.root("alice", key=key)


def expired(authority):
    return authority.issue(not_before=now() - timedelta(days=2), not_after=now() - timedelta(seconds=5))


def not_yet_valid(authority):
    return authority.issue(not_before=now() + timedelta(hours=1))


def of_a_server(authority):
    return authority.issue(usages=[SERVER_AUTH])


def of_a_weak_key(authority):
    return authority.issue(key=rsa.generate_private_key(65537, 1024))


def with_an_extension_that_nobody_knows(authority):
    unknown = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.3.6.1.4.1.99999.1"), b"\x05\x00")
    return authority.issue(critical_extensions=[unknown])


@pytest.mark.parametrize(
    ("make", "alert", "logged"),
    [
        (of_another_authority, "TLSV1_ALERT_UNKNOWN_CA", 'certificate_untrusted message="unable to get local issuer'),
        (of_a_namesake_of_the_authority, "TLSV1_ALERT_UNKNOWN_CA", "certificate_untrusted"),
        (self_signed, "TLSV1_ALERT_UNKNOWN_CA", 'certificate_untrusted message="self-signed certificate"'),
        (expired, "SSLV3_ALERT_CERTIFICATE_EXPIRED", 'certificate_expired message="certificate has expired"'),
        (not_yet_valid, "SSLV3_ALERT_BAD_CERTIFICATE", 'certificate_not_yet_valid message="certificate is not yet'),
        (of_a_server, "SSLV3_ALERT_UNSUPPORTED_CERTIFICATE", 'certificate_usage message="unsuitable certificate'),
        (of_a_weak_key, "SSLV3_ALERT_BAD_CERTIFICATE", 'certificate_untrusted message="EE certificate key too weak"'),
        (
            with_an_extension_that_nobody_knows,
            "SSLV3_ALERT_CERTIFICATE_UNKNOWN",
            'certificate_untrusted message="unhandled critical extension"',
        ),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_certificate_that_does_not_verify_is_told_so_in_the_handshake(gateway, authority, make, alert, logged):
    assert break_of(gateway, make(authority)) == alert
    gateway.wait_for_log(f"handshake.fail .*source=127.0.0.1 reason={logged}")


def test_the_log_says_whose_certificate_was_refused_as_it_claims(gateway, authority):
    leaf = expired(authority)
    break_of(gateway, leaf)
    serial, fingerprint = f"{leaf.certificate.serial_number:x}", leaf.certificate.fingerprint(hashes.SHA256()).hex()
    gateway.wait_for_log(
        "handshake.fail .*reason=certificate_expired .*claimed_subject=spiffe://gateway.test/alice "
        f'claimed_issuer="CN=.*" claimed_serial={serial} claimed_fingerprint={fingerprint}'
    )


def test_a_client_without_a_certificate_is_asked_for_one(gateway):
    assert break_of(gateway, None) == "TLSV13_ALERT_CERTIFICATE_REQUIRED"
    gateway.wait_for_log("handshake.fail .*reason=certificate_missing")


def two_uris(authority):
    return authority.issue(sans=[spiffe("alice"), spiffe("bob")])


def no_uri(authority):
    return authority.issue(sans=[x509.DNSName("alice")])


def a_uri_of_another_domain(authority):
    return authority.issue(sans=[spiffe("alice", "elsewhere.test")])


def a_pattern(authority):
    return authority.issue(sans=[spiffe("*")])


def an_authority_itself(authority):
    return authority.issue(ca=True, key_uses=["digital_signature", "key_cert_sign"])


@pytest.mark.parametrize(
    ("make", "logged"),
    [
        (two_uris, 'ambiguous_identity message=".*expected one URI.*, got 2'),
        (no_uri, 'no_identity message=".*expected one URI.*, got none'),
        (a_uri_of_another_domain, 'no_identity message=".*expected the trust domain gateway.test, got .*elsewhere'),
        (a_pattern, "ambiguous_identity message="),
        (an_authority_itself, "certificate_usage message="),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_certificate_without_one_usable_name_breaks_after_the_handshake(gateway, authority, make, logged):
    assert break_of(gateway, make(authority)) == _BREAKS
    gateway.wait_for_log(f"handshake.fail .*reason={logged}")


def test_who_asks_by_connect_is_told_what_is_wrong_with_the_name(gateway, authority):
    with present(gateway, authority.issue(sans=[spiffe("alice"), spiffe("bob")]), service=None) as client:
        client.sendall(b"CONNECT echo HTTP/1.1\r\nHost: echo\r\n\r\n")
        answer = b"".join(iter(lambda: client.recv(65536), b""))
    assert answer.startswith(b"HTTP/1.1 403 ")
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["reason"] == "ambiguous_identity"
    gateway.wait_for_log("handshake.fail .*reason=ambiguous_identity")


def test_a_certificate_of_the_same_hand_without_a_flaw_is_served(gateway, authority):
    with present(gateway, authority.issue("alice")) as client:
        client.sendall(b"hello")
        assert client.recv(100) == b"hello"
        client.unwrap()
    gateway.wait_for_log("session.close .*identity=alice")


def test_a_chain_of_more_certificates_than_anybody_needs_is_refused(gateway, authority):
    stranger = Authority.root()
    others = [stranger.intermediate(f"CA {number}") for number in range(40)]
    assert break_of(gateway, authority.issue("alice"), *others) == _BREAKS
    gateway.wait_for_log('handshake.fail .*reason=certificate_untrusted message=".*at most 20 certificates, got 41')


def test_a_chain_of_many_links_is_refused(gateway, authority):
    links = [authority]
    for number in range(15):
        links.append(links[-1].intermediate(f"CA {number}"))
    assert break_of(gateway, links[-1].issue("alice"), *reversed(links[1:])) == "TLSV1_ALERT_UNKNOWN_CA"
    gateway.wait_for_log('handshake.fail .*reason=certificate_untrusted message="path length constraint exceeded"')


def test_a_chain_too_large_to_be_one_is_refused_before_it_is_read(gateway, authority):
    padding = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.3.6.1.4.1.99999.1"), bytes(30_000))
    others = [Authority.root().issue("pad", extensions=[padding]) for _ in range(4)]
    assert break_of(gateway, authority.issue("alice"), *others) == "SSLV3_ALERT_ILLEGAL_PARAMETER"
    gateway.wait_for_log('handshake.fail .*reason=handshake_failed message="excessive message size"')


@pytest.fixture
def trusts(start_gateway, echo, tmp_path):
    """A gateway with two trusts besides its own, and their authorities."""
    one, two = Authority.root("One Root"), Authority.root("Two Root")
    tables = ["default = true"]
    for name, root in (("one", one), ("two", two)):
        path = tmp_path / f"{name}.crt"
        path.write_bytes(root.pem)
        tables.append(f'[trusts.{name}]\nca = "{path}"\nidentity = "cn"')
    role = '[[roles]]\nname = "team"\nmembers = ["alice", "one:alice", "two:alice"]\nservices = ["*"]'
    return start_gateway({"echo": echo}, policy=role, configuration="\n".join(tables)), one, two


def test_a_cross_signed_authority_is_of_no_trust_in_whichever_order_it_comes(trusts):
    gateway, one, two = trusts
    warm_up(gateway)
    with unharmed(gateway):
        issuing = one.intermediate("Shared Issuing")
        crossed = two.cross_sign(issuing)
        for chain in ([issuing, crossed], [crossed, issuing], [issuing, two, crossed], [crossed, one, issuing]):
            assert break_of(gateway, issuing.issue("alice"), *chain) == _BREAKS
        gateway.wait_for_log(
            'handshake.fail .*reason=ambiguous_identity message="CN=Shared Issuing: .*under (one and two|two and one)"',
            count=4,
        )


def test_authorities_of_one_trust_each_let_their_own_in(trusts):
    gateway, one, two = trusts
    for name, root in (("one", one), ("two", two)):
        issuing = root.intermediate(f"{name} Issuing")
        with present(gateway, issuing.issue("alice"), issuing) as client:
            client.sendall(b"hello")
            assert client.recv(100) == b"hello"
            client.unwrap()
        gateway.wait_for_log(f"session.close .*identity={name}:alice")
    echoes(gateway)


def test_the_client_of_a_trust_is_not_its_namesake_in_another(trusts):
    gateway, one, _ = trusts
    with present(gateway, one.issue("bob")) as client, pytest.raises(ssl.SSLError):
        client.recv(1)
    gateway.wait_for_log("session.refuse .*identity=one:bob .*reason=no_role")
