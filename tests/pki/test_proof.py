import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa

from portguard.pki.errors import PkiError
from portguard.pki.proof import LONGEST, PATIENCE_S, Purpose, check_proof, make_proof
from tests.certificates import Authority

AT = 1_795_478_400
ROOT = Authority.root()
HOLDER = ROOT.issue("alice")
REQUEST = b"a request"


def proof(holder=HOLDER, request=REQUEST, at_s=AT, purpose=Purpose.RENEWAL):
    return make_proof(purpose, holder.key, holder.der, request, at_s)


@pytest.mark.parametrize(
    "make",
    [
        lambda: ec.generate_private_key(ec.SECP384R1()),
        lambda: rsa.generate_private_key(65537, 4096),
        ed25519.Ed25519PrivateKey.generate,
    ],
    ids=["P-384", "RSA", "Ed25519"],
)
def test_a_proof_by_the_key_of_the_certificate_is_taken(make):
    holder = ROOT.issue("alice", key=make())
    made = proof(holder)
    assert len(made) <= LONGEST
    check_proof(Purpose.RENEWAL, made, holder.der, REQUEST, AT)


@pytest.mark.parametrize("skew_s", [-PATIENCE_S, PATIENCE_S])
def test_clocks_may_differ_by_so_much(skew_s):
    check_proof(Purpose.RENEWAL, proof(), HOLDER.der, REQUEST, AT + skew_s)


def refused(made, certificate=HOLDER.der, request=REQUEST, now_s=AT, purpose=Purpose.RENEWAL):
    with pytest.raises(PkiError, match=r"^proof: expected "):
        check_proof(purpose, made, certificate, request, now_s)


@pytest.mark.parametrize(
    ("skew_s", "found"), [(-PATIENCE_S - 1, "one of 301 s ahead"), (PATIENCE_S + 1, "one of 301 s ago")]
)
def test_and_by_no_more(skew_s, found):
    with pytest.raises(PkiError, match=f"got {found}; is the client's clock right"):
        check_proof(Purpose.RENEWAL, proof(), HOLDER.der, REQUEST, AT + skew_s)


def test_a_proof_is_for_one_request_one_certificate_and_one_time():
    refused(proof(), request=b"another request")
    again = ROOT.issue("alice", key=HOLDER.key)
    refused(proof(), certificate=again.der)
    refused(proof(ROOT.issue("alice")), certificate=HOLDER.der)
    refused(proof().replace(str(AT), str(AT + 1)))


def test_a_proof_is_for_one_purpose():
    enrolling = proof(purpose=Purpose.ENROLMENT)
    check_proof(Purpose.ENROLMENT, enrolling, HOLDER.der, REQUEST, AT)
    refused(enrolling)
    refused(proof(), purpose=Purpose.ENROLMENT)


@pytest.mark.parametrize(
    "made", ["", ":", "1", f"{AT}:", f"{AT}:====", f"{AT}:AAA", f"-{AT}:AAAA", f"{AT}:{'A' * LONGEST}"]
)
def test_what_is_no_proof_is_refused(made):
    refused(made)


def test_a_key_of_a_kind_that_proves_nothing_is_refused():
    refused(proof(), certificate=ROOT.issue("alice", key=ed448.Ed448PrivateKey.generate()).der)
