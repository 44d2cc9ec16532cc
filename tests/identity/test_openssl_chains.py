"""Chains as OpenSSL verifies them in real handshakes: what `identify` is told, and what it makes of it."""

import ssl
from collections.abc import Sequence
from itertools import permutations

import pytest
from cryptography import x509

from portguard.errors import Refused
from portguard.identity.names import Identity
from portguard.identity.trust import Caller, Trust, Trusts
from portguard.reasons import Reason
from portguard.tls.chain import load_chain
from portguard.tls.contexts import ServerContexts
from portguard.tls.endpoint import Endpoint
from portguard.tls.peer import sent_chain, verified_chain
from tests import certificates as pki

A = pki.Authority.root("Root A")
B = pki.Authority.root("Root B")
ISSUING = A.intermediate("Issuing")
ISSUING_B = B.cross_sign(ISSUING)
ALICE = ISSUING.issue("alice")
GATEWAY = pki.Authority.root("Gateway").issue("gateway.test", usages=[pki.SERVER_AUTH])

TRUST_A = Trust("a", (A.certificate,), "spiffe", pki.DOMAIN)
TRUST_B = Trust("b", (B.certificate,), "cn")


def connect(trusts: Trusts, leaf: pki.Holder, *others: pki.Holder) -> Caller:
    """Handshake with a gateway of these trusts as a client that sends `leaf` and then `others`."""
    contexts = ServerContexts(
        certificate_pem=GATEWAY.pem,
        key_pem=GATEWAY.key_pem,
        anchors_pem=trusts.anchors_pem,
        alpn_of=lambda _name: (),
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    load_chain(context, b"".join(each.pem for each in (leaf, *others)), leaf.key_pem)
    server, client = Endpoint(contexts.by_name, server_side=True), Endpoint(context, server_side=False)
    done = {server: False, client: False}
    for _ in range(4):
        for end, peer in ((client, server), (server, client)):
            done[end] = done[end] or end.handshake()
            peer.receive(end.take())
    assert all(done.values())
    assert sent_chain(server.tls) == tuple(each.der for each in (leaf, *others))
    return trusts.identify(verified_chain(server.tls), sent_chain(server.tls), pki.now())


def reason(trusts: Trusts, *sent: pki.Holder) -> Reason:
    with pytest.raises(Refused) as caught:
        connect(trusts, *sent)
    return caught.value.reason


def both() -> Trusts:
    return Trusts([TRUST_A, TRUST_B])


def test_an_honest_client_is_identified() -> None:
    assert connect(both(), ALICE, ISSUING).identity == Identity("a", "alice")


def test_a_client_that_sends_its_root_too_is_identified() -> None:
    assert connect(both(), ALICE, ISSUING, A).identity == Identity("a", "alice")


def test_certificates_that_have_nothing_to_do_with_it_do_no_harm() -> None:
    assert connect(both(), ALICE, B, B.intermediate("Other"), ISSUING).identity == Identity("a", "alice")


def test_a_chain_to_no_anchor_ends_in_the_handshake() -> None:
    other = pki.Authority.root("Other")
    with pytest.raises(ssl.SSLCertVerificationError):
        connect(both(), other.issue(), other)


@pytest.mark.parametrize("others", list(permutations([ISSUING, ISSUING_B])))
def test_cross_certificates_in_either_order_are_ambiguous(others: Sequence[pki.Holder]) -> None:
    assert reason(both(), ALICE, *others) is Reason.AMBIGUOUS_IDENTITY


def test_a_client_could_choose_its_trust_if_nobody_looked() -> None:
    """The twin of the test above: each certificate alone does verify, under a trust of its own."""
    assert connect(both(), ALICE, ISSUING).identity == Identity("a", "alice")
    assert connect(both(), ALICE, ISSUING_B).identity == Identity("b", "alice")


def test_one_cross_certificate_after_the_other_is_ambiguous() -> None:
    trusts = both()
    assert connect(trusts, ALICE, ISSUING_B).identity == Identity("b", "alice")
    assert reason(trusts, ALICE, ISSUING) is Reason.AMBIGUOUS_IDENTITY
    assert reason(trusts, ALICE, ISSUING_B) is Reason.AMBIGUOUS_IDENTITY


def test_names_that_differ_in_case_and_spaces_are_one_name_to_openssl() -> None:
    shouted = B.cross_sign(ISSUING, subject=pki.common_name(" ISSUING "))
    assert connect(both(), ALICE, shouted).identity == Identity("b", "alice")
    for others in permutations([ISSUING, shouted]):
        assert reason(both(), ALICE, *others) is Reason.AMBIGUOUS_IDENTITY


def test_a_root_that_another_trust_certified_is_ambiguous() -> None:
    assert reason(both(), ALICE, ISSUING, B.cross_sign(A)) is Reason.AMBIGUOUS_IDENTITY


def test_a_longer_way_to_the_other_trust_is_ambiguous() -> None:
    middle = B.intermediate("Middle")
    cross = middle.cross_sign(ISSUING)
    for others in permutations([ISSUING, cross, middle]):
        assert reason(both(), ALICE, *others) is Reason.AMBIGUOUS_IDENTITY


def test_a_leaf_cannot_name_the_certificate_of_its_issuer_to_leave_its_anchor() -> None:
    """By the serial number in its key identifier the leaf fits only the cross certificate, not the anchor."""
    trusts = Trusts([Trust("a", (ISSUING.certificate,), "spiffe", pki.DOMAIN), TRUST_B])
    identifier = x509.AuthorityKeyIdentifier(None, [x509.DirectoryName(B.subject)], ISSUING_B.certificate.serial_number)
    leaf = ISSUING.issue("alice", authority_key_identifier=identifier)
    assert connect(trusts, ALICE).identity == Identity("a", "alice")
    assert reason(trusts, leaf, ISSUING_B) is Reason.AMBIGUOUS_IDENTITY


def test_the_root_and_its_intermediate_may_both_be_anchors_of_one_trust() -> None:
    trusts = Trusts([Trust("a", (ISSUING.certificate, A.certificate), "spiffe", pki.DOMAIN), TRUST_B])
    assert connect(trusts, ALICE).identity == Identity("a", "alice")
    assert connect(trusts, ALICE, ISSUING).identity == Identity("a", "alice")


def test_the_key_of_an_anchor_does_not_make_a_client() -> None:
    """With partial chains OpenSSL takes a certificate that is itself in the store for a chain of one."""
    with pytest.raises((Refused, ssl.SSLError)):
        connect(both(), A)
