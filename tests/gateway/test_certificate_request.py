"""`POST /v1/renew` and `POST /v1/enroll` as a worker takes them, with a supervisor that the test plays."""

from dataclasses import replace
from datetime import UTC, datetime
from ipaddress import ip_address

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from portguard.gateway.bundle import read_bundle
from portguard.gateway.certificate_request import Asker, is_enrolment, wanted_enrolment
from portguard.gateway.http_request import ApiRequest, ConnectTarget
from portguard.gateway.http_response import RefusedRequest
from portguard.gateway.messages import LARGEST_CERTIFICATE_BYTES, MOST_CHAIN, EnrolmentWanted, RenewalWanted
from portguard.gateway.self_service import Visitor, answer
from portguard.gateway.snapshot import build
from portguard.identity.names import Identity
from portguard.identity.trust import Caller
from portguard.pki.authority import Authority
from tests.gateway_folder import CONFIGURATION, GatewayFolder

KEY = ec.generate_private_key(ec.SECP256R1())


def request(extensions=()):
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    for extension in extensions:
        builder = builder.add_extension(extension, critical=False)
    return builder.sign(KEY, hashes.SHA256())


CSR = request().public_bytes(Encoding.PEM)


class Supervisor:
    def __init__(self):
        self.asked = []

    async def certificate(self, wanted):
        self.asked.append(wanted)
        return "-----BEGIN\n"


@pytest.fixture
def supervisor():
    return Supervisor()


@pytest.fixture
def post(tmp_path, supervisor):
    folder = GatewayFolder(tmp_path)
    Authority.create(tmp_path / "ca", trust_domain="gateway.test", at=datetime.now(UTC))
    folder.write("portguard.toml", CONFIGURATION.replace('"ca.crt"', '"ca/ca.crt"\nauthority = "ca"'))
    snapshot = build(read_bundle(folder.configuration))
    caller = Caller(Identity("local", "alice"), frozenset(), 1, "ab", datetime.now(UTC))
    visitor = Visitor(7, caller, ip_address("192.0.2.7"), snapshot, "ab" * 16, (b"leaf", b"anchor"))

    async def post(body=CSR, *, content_type="application/pkcs10", chain=None, **headers):
        lines = (("content-type", content_type), *((name.replace("_", "-"), value) for name, value in headers.items()))
        asker = visitor if chain is None else replace(visitor, chain=chain)
        return await answer(ApiRequest("POST", "/v1/renew", "", lines, body), asker, supervisor, None)

    return post


@pytest.fixture
def asker(tmp_path):
    """Who has an invitation to a trust with an authority."""
    folder = GatewayFolder(tmp_path)
    Authority.create(tmp_path / "ca", trust_domain="gateway.test", at=datetime.now(UTC))
    folder.write("portguard.toml", CONFIGURATION.replace('"ca.crt"', '"ca/ca.crt"\nauthority = "ca"'))
    chain = (b"leaf", b"anchor")
    return Asker(7, "ab" * 16, None, "local", chain, build(read_bundle(folder.configuration)))


async def refused(post, status, fragment, *arguments, **keywords):
    with pytest.raises(RefusedRequest) as caught:
        await post(*arguments, **keywords)
    assert caught.value.status == status
    assert fragment in caught.value.message


async def test_the_supervisor_is_asked_for_what_the_client_has_signed(post, supervisor):
    head, _, body = (await post(portguard_proof="1:AAAA")).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK\r\nContent-Type: application/pem-certificate-chain\r\n")
    assert body == b"-----BEGIN\n"
    der = request().public_bytes(Encoding.DER)
    await post(der)
    first, second = supervisor.asked
    assert first == RenewalWanted(7, "ab" * 16, "192.0.2.7", [b"leaf", b"anchor"], first.request, "1:AAAA")
    assert x509.load_der_x509_csr(first.request) == x509.load_pem_x509_csr(CSR)
    assert (second.request, second.proof) == (der, None)


async def test_what_no_message_could_carry_is_refused(post, supervisor):
    large = request([x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3"), b"x" * 5000)])
    await refused(post, 413, "body: expected at most 4096 bytes of DER, got", large.public_bytes(Encoding.DER))
    await refused(post, 400, "Portguard-Proof: expected at most 1024 characters, got 1025", portguard_proof="1" * 1025)
    for chain in ((b"x",) * (MOST_CHAIN + 1), (b"x", b"x" * (LARGEST_CERTIFICATE_BYTES + 1)), (b"x" * 4000,) * 3):
        await refused(post, 400, "client chain: expected at most 5 certificates of 10000 bytes in all", chain=chain)
    assert supervisor.asked == []


@pytest.mark.parametrize("content_type", ["", "application/x-www-form-urlencoded", "application/pkcs10x"])
async def test_a_body_of_another_type_is_refused(post, supervisor, content_type):
    await refused(post, 415, "expected Content-Type: application/pkcs10, got", content_type=content_type)
    await post(content_type="Application/PKCS10 ; charset=utf-8")
    assert len(supervisor.asked) == 1


# By an invitation.


def enrolling(method="POST", path="/v1/enroll", body=CSR):
    headers = (("content-type", "application/pkcs10"), ("portguard-proof", "1:AAAA"))
    return ApiRequest(method, path, "", headers, body)


def test_there_is_one_request_for_who_has_no_name():
    assert is_enrolment(enrolling())
    for other in (
        None,
        ConnectTarget("orders-db", None, b""),
        enrolling("GET"),
        enrolling("PUT"),
        enrolling(path="/v1/renew"),
        enrolling(path="/v1/enroll/"),
        enrolling(path="/v1/whoami"),
    ):
        assert not is_enrolment(other)


def test_the_supervisor_is_asked_for_what_an_invitation_s_holder_has_signed(asker):
    wanted = wanted_enrolment(enrolling(), asker)
    der = request().public_bytes(Encoding.DER)
    assert x509.load_der_x509_csr(wanted.request).public_key() == x509.load_der_x509_csr(der).public_key()
    assert wanted == EnrolmentWanted(7, "ab" * 16, None, [b"leaf", b"anchor"], wanted.request, "1:AAAA")
    with pytest.raises(RefusedRequest, match="expected one certificate request"):
        wanted_enrolment(enrolling(body=b"x"), asker)


def test_of_a_trust_without_an_authority_no_invitation_is_taken(asker):
    settings = [replace(trust, authority=None) for trust in asker.snapshot.configuration.trusts]
    configuration = replace(asker.snapshot.configuration, trusts=tuple(settings))
    without = replace(asker, snapshot=replace(asker.snapshot, configuration=configuration))
    with pytest.raises(RefusedRequest, match=r"local are not taken here, as .*; tell who invited you$") as caught:
        wanted_enrolment(enrolling(), without)
    assert caught.value.status == 404
