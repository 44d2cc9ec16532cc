"""Who a client certificate in a file stands for, by the trusts of a configuration."""

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from cryptography.hazmat.primitives.serialization import Encoding

from portguard.errors import ConfigurationError, Problem, Refused, UsageError, because
from portguard.gateway.configuration import Configuration
from portguard.gateway.trust_files import read_trusts
from portguard.identity.authorities import UNREADABLE, Authority, is_authority, read_authority
from portguard.identity.names import Malformed
from portguard.identity.pem import read_blocks
from portguard.identity.trust import Caller, Trust
from portguard.reasons import Reason

_LONGEST_CHAIN = 10


def identify(certificate_path: str, configuration: Configuration, at: datetime) -> Caller:
    """The caller that the gateway would see at `at` (aware); the file holds the certificate, then intermediate ones.

    The chain is built by names and signatures. What OpenSSL asks of it besides, such as path lengths and name
    constraints, is not asked here. Raises UsageError for the file, ConfigurationError for the trusts and Refused
    for whom the gateway would refuse. *Fails closed.*
    """
    try:
        sent = read_blocks(Path(certificate_path).read_bytes(), "CERTIFICATE", "certificate")
        authorities = [read_authority(der) for der in sent]
    except OSError as error:
        raise UsageError(f"{certificate_path}: expected a certificate that can be read, got {because(error)}") from None
    except Malformed as error:
        raise UsageError(f"{certificate_path}: {error}") from None
    problems: list[Problem] = []
    trusts, judge = read_trusts(configuration, _trust_files(configuration, problems), problems)
    if judge is None or problems:
        raise ConfigurationError(dict.fromkeys(problems))
    chain = _chain(authorities, trusts)
    return judge.identify([authority.der for authority in chain], sent, at)


def _chain(sent: Sequence[Authority], trusts: Sequence[Trust]) -> list[Authority]:
    """From the first certificate to the anchor of a trust. Raises Refused where there is no way."""
    anchors = [read_authority(anchor.public_bytes(Encoding.DER)) for trust in trusts for anchor in trust.anchors]
    ends = {anchor.der for anchor in anchors}
    known = [*anchors, *sent[1:]]
    chain = [sent[0]]
    while chain[-1].der not in ends:
        issuer = next((other for other in known if other not in chain and _has_issued(other, chain[-1])), None)
        if issuer is None or len(chain) == _LONGEST_CHAIN:
            message = f"{chain[-1].name}: expected an authority of a trust to have issued it, found none"
            raise Refused(Reason.CERTIFICATE_UNTRUSTED, message)
        chain.append(issuer)
    return chain


def _has_issued(issuer: Authority, other: Authority) -> bool:
    try:
        return is_authority(issuer.certificate) and issuer.has_issued(other)
    except UNREADABLE:
        return False


def _trust_files(configuration: Configuration, problems: list[Problem]) -> dict[str, bytes]:
    files = {}
    for path in {path for trust in configuration.trusts for path in (trust.ca, *trust.crl)}:
        try:
            files[path] = Path(path).read_bytes()
        except OSError as error:
            problems.append(Problem(path, "", "a file that can be read", because(error)))
    return files
