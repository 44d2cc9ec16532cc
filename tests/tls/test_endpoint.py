"""All in memory. The other end is Python's ssl, not an Endpoint, so that the two cannot be wrong together."""

import contextlib
import ssl
from datetime import timedelta

import pytest

from portguard.tls.chain import load_chain
from portguard.tls.context import new_context
from portguard.tls.endpoint import Endpoint
from portguard.tls.peer import sent_chain, verified_chain
from tests.certificates import now
from tests.peers import NAME, pki, shake_hands
from tests.relayed import noise

RECORD = 16 * 1024


class Peer:
    """The other end of an endpoint."""

    def __init__(self, context: ssl.SSLContext | None = None, *, server_side: bool = False):
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.told_end = False  # close_notify came
        self.tls = (context or pki().client_context()).wrap_bio(
            self.incoming, self.outgoing, server_side=server_side, server_hostname=None if server_side else NAME
        )

    def encrypt(self, data: bytes) -> bytes:
        self.tls.write(data)
        return self.outgoing.read()

    def decrypt(self, *ciphertext: bytes) -> bytes:
        self.incoming.write(b"".join(ciphertext))
        plaintext = b""
        try:
            while data := self.tls.read(RECORD):
                plaintext += data
            self.told_end = True
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLZeroReturnError:  # after its own close_notify
            self.told_end = True
        return plaintext

    def close_notify(self) -> bytes:
        with pytest.raises(ssl.SSLWantReadError):
            self.tls.unwrap()
        return self.outgoing.read()


def joined(peer: Peer | None = None) -> tuple[Endpoint, Peer]:
    """A server's endpoint and its client, hands shaken."""
    peer = peer or Peer()
    endpoint = Endpoint(pki().contexts().by_name, server_side=True)
    shake_hands(endpoint, peer.tls, peer.incoming, peer.outgoing)
    return endpoint, peer


def decrypt(endpoint: Endpoint, ciphertext: bytes = b"") -> bytes:
    """With exactly the room that is asked for."""
    plaintext = memoryview(bytearray(len(ciphertext) + Endpoint.HEADROOM))
    return bytes(plaintext[: endpoint.decrypt(memoryview(ciphertext), plaintext)])


def encrypt(endpoint: Endpoint, plaintext: bytes) -> list[bytes]:
    return list(endpoint.encrypt(memoryview(plaintext)))


# The handshake.


def test_a_handshake_goes_on_as_bytes_come_one_by_one() -> None:
    endpoint, peer = Endpoint(pki().contexts().by_name, server_side=True), Peer()
    done = False
    while not done:
        with contextlib.suppress(ssl.SSLWantReadError):
            peer.tls.do_handshake()
        for byte in peer.outgoing.read():
            assert not done
            endpoint.receive(bytes([byte]))
            done = endpoint.handshake()
        peer.incoming.write(endpoint.take())
    assert decrypt(endpoint, peer.encrypt(b"hello")) == b"hello"


def test_a_failed_handshake_leaves_the_alert_for_the_peer() -> None:
    endpoint = Endpoint(pki().contexts().by_name, server_side=True)
    context = pki().client_context()
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    peer = Peer(context)
    with pytest.raises(ssl.SSLWantReadError):
        peer.tls.do_handshake()
    endpoint.receive(peer.outgoing.read())
    with pytest.raises(ssl.SSLError):
        endpoint.handshake()
    peer.incoming.write(endpoint.take())
    with pytest.raises(ssl.SSLError, match="ALERT_PROTOCOL_VERSION"):
        peer.tls.do_handshake()
    assert endpoint.take() == b""


def test_an_endpoint_can_be_the_client() -> None:
    peer = Peer(_server_context(), server_side=True)
    endpoint = Endpoint(pki().client_context(), server_side=False, server_hostname=NAME)
    shake_hands(endpoint, peer.tls, peer.incoming, peer.outgoing)
    assert peer.decrypt(*encrypt(endpoint, b"hello")) == b"hello"
    assert decrypt(endpoint, peer.encrypt(b"back")) == b"back"


def test_as_a_client_it_takes_only_the_server_it_was_told() -> None:
    peer = Peer(_server_context(), server_side=True)
    endpoint = Endpoint(pki().client_context(), server_side=False, server_hostname="other.test")
    with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
        shake_hands(endpoint, peer.tls, peer.incoming, peer.outgoing)


def _server_context() -> ssl.SSLContext:
    context = new_context(ssl.PROTOCOL_TLS_SERVER)
    load_chain(context, pki().server.pem, pki().server.key_pem)
    return context


# Chains.


def test_the_verified_chain_ends_in_the_anchor_and_the_sent_one_is_what_came() -> None:
    root = pki().authority
    issuing = root.intermediate()
    bob = issuing.issue("bob")
    stray = root.issue("stray").pem  # sent along, in no chain
    context = pki().client_context()
    load_chain(context, bob.pem + issuing.pem + stray, bob.key_pem)
    endpoint, _ = joined(Peer(context))
    assert verified_chain(endpoint.tls) == (bob.der, issuing.der, root.der)
    assert sent_chain(endpoint.tls) == (bob.der, issuing.der, ssl.PEM_cert_to_DER_cert(stray.decode()))


def test_without_a_peer_certificate_both_chains_are_empty() -> None:
    context = _server_context()
    context.verify_mode = ssl.CERT_NONE
    endpoint, peer = Endpoint(context, server_side=True), Peer()
    assert verified_chain(endpoint.tls) == sent_chain(endpoint.tls) == ()
    shake_hands(endpoint, peer.tls, peer.incoming, peer.outgoing)
    assert verified_chain(endpoint.tls) == sent_chain(endpoint.tls) == ()


# Bytes.


@pytest.mark.parametrize("count", [1, RECORD - 1, RECORD, RECORD + 1, 64 * 1024, 64 * 1024 + 1, 700_000])
def test_what_goes_in_comes_out(count: int) -> None:
    endpoint, peer = joined()
    data = noise(count)
    assert peer.decrypt(*encrypt(endpoint, data)) == data
    assert decrypt(endpoint, peer.encrypt(data)) == data
    assert endpoint.take() == b""


def test_encrypting_nothing_sends_nothing() -> None:
    endpoint, _ = joined()
    assert encrypt(endpoint, b"") == []


def test_what_is_encrypted_comes_in_pieces_that_keep_memory_small() -> None:
    endpoint, _ = joined()
    pieces = encrypt(endpoint, noise(700_000))
    assert len(pieces) > 10
    assert max(map(len, pieces)) < 66 * 1024


@pytest.mark.parametrize("piece", [1, 2, 5, 21, 22, 23, 1000, RECORD + 22, 100_000])
def test_ciphertext_may_come_in_any_pieces(piece: int) -> None:
    endpoint, peer = joined()
    data = noise(40_000)
    ciphertext = b"".join(peer.encrypt(data[start : start + 7000]) for start in range(0, len(data), 7000))
    plaintext = b"".join(
        decrypt(endpoint, ciphertext[start : start + piece]) for start in range(0, len(ciphertext), piece)
    )
    assert plaintext == data


def test_the_room_asked_for_is_enough_when_all_but_a_byte_of_a_record_waits_inside() -> None:
    endpoint, peer = joined()
    data = noise(RECORD)
    ciphertext = peer.encrypt(data)
    assert decrypt(endpoint, ciphertext[:-1]) == b""
    following = peer.encrypt(b"and more")
    assert decrypt(endpoint, ciphertext[-1:] + following) == data + b"and more"


def test_what_came_with_the_end_of_the_handshake_is_decrypted_without_more() -> None:
    peer, endpoint = Peer(), Endpoint(pki().contexts().by_name, server_side=True)
    with pytest.raises(ssl.SSLWantReadError):
        peer.tls.do_handshake()
    endpoint.receive(peer.outgoing.read())
    assert not endpoint.handshake()
    peer.incoming.write(endpoint.take())
    peer.tls.do_handshake()
    peer.tls.write(b"hello")
    endpoint.receive(peer.outgoing.read())
    assert endpoint.handshake()
    assert decrypt(endpoint) == b"hello"
    assert decrypt(endpoint) == b""


def test_tickets_are_not_given_and_nothing_is_resumed() -> None:
    endpoint, peer = joined()
    assert peer.decrypt(*encrypt(endpoint, b"tickets would come with the first bytes")) != b""
    assert peer.tls.session is not None
    assert not peer.tls.session.has_ticket
    again = Peer(peer.tls.context)
    again.tls.session = peer.tls.session
    endpoint, again = joined(again)
    assert not endpoint.tls.session_reused
    assert not again.tls.session_reused


# The end.


def test_close_notify_of_the_peer_is_its_end_and_not_ours() -> None:
    endpoint, peer = joined()
    assert decrypt(endpoint, peer.encrypt(b"bye") + peer.close_notify()) == b"bye"
    assert endpoint.peer_closed
    assert endpoint.failure is None
    assert peer.decrypt(*encrypt(endpoint, b"not so fast")) == b"not so fast"
    assert not peer.told_end
    assert peer.decrypt(endpoint.close_notify()) == b""
    assert peer.told_end


def test_our_close_notify_is_our_end_and_reading_goes_on() -> None:
    endpoint, peer = joined()
    assert peer.decrypt(endpoint.close_notify()) == b""
    assert peer.told_end
    assert decrypt(endpoint, peer.encrypt(b"one more thing")) == b"one more thing"
    assert not endpoint.peer_closed
    peer.tls.unwrap()
    assert decrypt(endpoint, peer.outgoing.read()) == b""
    assert endpoint.peer_closed


def test_both_may_close_at_the_same_time() -> None:
    endpoint, peer = joined()
    ours, theirs = endpoint.close_notify(), peer.close_notify()
    assert decrypt(endpoint, theirs) == b""
    assert endpoint.peer_closed
    assert peer.decrypt(ours) == b""
    assert peer.told_end


def test_what_follows_close_notify_is_ignored() -> None:
    endpoint, peer = joined()
    assert decrypt(endpoint, peer.close_notify() + noise(200_000)) == b""
    assert endpoint.peer_closed
    assert endpoint.failure is None


def test_no_end_of_the_peer_is_no_end() -> None:
    endpoint, peer = joined()
    decrypt(endpoint, peer.encrypt(b"x"))
    assert not endpoint.peer_closed


def test_a_broken_record_is_raised() -> None:
    endpoint, _ = joined()
    with pytest.raises(ssl.SSLError, match="WRONG_VERSION_NUMBER"):
        decrypt(endpoint, b"GET / HTTP/1.1\r\n\r\n")
    assert endpoint.failure is not None
    assert endpoint.has_output


@pytest.mark.parametrize("count", [5, 200_000])
def test_what_came_before_a_broken_record_is_decrypted(count: int) -> None:
    endpoint, peer = joined()
    data = noise(count)
    spoilt = bytearray(peer.encrypt(data) + peer.encrypt(b"spoilt"))
    spoilt[-1] ^= 1
    assert decrypt(endpoint, bytes(spoilt)) == data
    assert endpoint.failure is not None
    assert "BAD_RECORD_MAC" in str(endpoint.failure)


def test_after_a_broken_record_there_is_no_close_notify_and_no_error_either() -> None:
    endpoint, peer = joined()
    with pytest.raises(ssl.SSLError):
        decrypt(endpoint, b"GET / HTTP/1.1\r\n\r\n")
    alert = endpoint.take()
    assert endpoint.close_notify() == b""
    with pytest.raises(ssl.SSLError, match="ALERT"):
        peer.decrypt(alert)


def test_close_notify_gets_out_also_when_a_whole_record_waits() -> None:
    """It is against the rules; what waits is lost, but the peer is told."""
    endpoint, peer = joined()
    endpoint.receive(peer.encrypt(b"never read"))
    assert peer.decrypt(endpoint.close_notify()) == b""
    assert peer.told_end


def test_a_clients_certificate_that_expires_is_refused_at_the_handshake() -> None:
    late = pki().authority.issue("late", not_before=now() - timedelta(days=2), not_after=now() - timedelta(days=1))
    with pytest.raises(ssl.SSLCertVerificationError, match="expired"):
        joined(Peer(pki().client_context(late)))
