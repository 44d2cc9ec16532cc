import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from portguard.identity.names import Malformed
from portguard.identity.pem import parse_certificates, read_blocks
from tests import certificates as pki

ONE = pki.Authority.root("One")
TWO = pki.Authority.root("Two")


def complaint(content: bytes) -> str:
    with pytest.raises(Malformed) as caught:
        parse_certificates(content)
    return str(caught.value)


def test_der_is_one_certificate() -> None:
    assert parse_certificates(ONE.der) == (ONE.certificate,)


def test_pem_may_hold_several_certificates_and_text_between_them() -> None:
    content = b"# the old one\n" + ONE.pem + b"\nCertificate:\n    Data: ...\r\n" + TWO.pem.replace(b"\n", b"\r\n")
    assert parse_certificates(content) == (ONE.certificate, TWO.certificate)


@pytest.mark.parametrize("content", [b"", b"\n \n"])
def test_an_empty_file_is_an_error(content: bytes) -> None:
    assert complaint(content) == "expected a certificate, got an empty file"


def test_a_file_of_something_else_is_an_error() -> None:
    assert complaint(b"hello") == 'expected a certificate as DER or as PEM block "CERTIFICATE", got something else'


def test_another_kind_of_block_is_an_error_that_keeps_a_key_to_itself() -> None:
    message = complaint(ONE.pem + ONE.key_pem)
    assert message == "expected PEM blocks \"CERTIFICATE\", got 'PRIVATE KEY'"


def test_a_revocation_list_is_no_certificate() -> None:
    complaint(ONE.crl().public_bytes(Encoding.PEM))
    complaint(ONE.crl().public_bytes(Encoding.DER))


def test_a_block_that_is_cut_short_is_an_error() -> None:
    assert complaint(ONE.pem + TWO.pem[:-30]) == (
        'expected the end of the last "CERTIFICATE" block, got the end of the file'
    )
    begin = b"-----BEGIN CERTIFICATE-----\n"
    assert "got a second BEGIN line in a row" in complaint(begin + ONE.pem)
    assert "got a second END line in a row" in complaint(b"-----END CERTIFICATE-----\n" + ONE.pem)


def test_a_block_that_is_not_base64_is_an_error() -> None:
    assert "expected a certificate in base64" in complaint(ONE.pem.replace(b"\nM", b"\n!M", 1))


def test_a_block_that_is_no_certificate_is_an_error() -> None:
    assert "expected a readable X.509 certificate" in complaint(
        b"-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n"
    )


def test_der_with_something_after_it_is_an_error() -> None:
    complaint(ONE.der + b"\x00")


def test_blocks_come_in_the_order_of_the_file() -> None:
    assert read_blocks(TWO.pem + ONE.pem, "CERTIFICATE", "certificate") == (TWO.der, ONE.der)
