"""What a client certificate says of its holder: the name, from exactly one place, and the groups.

Nothing here asks who signed the certificate; `trust` does that first. Whatever cannot be read without doubt is refused;
where the certificate's extensions as a whole cannot be read, each function raises one of `authorities.UNREADABLE`.
"""

from collections.abc import Iterable, Sequence
from typing import TypeVar

from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID, ObjectIdentifier

from portguard.errors import Refused
from portguard.identity.names import Malformed, Source, check_group_name, check_name, fold, parse_spiffe_id
from portguard.reasons import Reason

_UPN = ObjectIdentifier("1.3.6.1.4.1.311.20.2.3")  # szOID_NT_PRINCIPAL_NAME, [MS-WCCE] 2.2.2.7.7.4

_MOST_GROUPS = 64

_Extension = TypeVar("_Extension", bound=x509.ExtensionType)

_PLACES: dict[Source, str] = {
    "spiffe": "URI in the subject alternative name",
    "email": "e-mail address in the subject alternative name",
    "dns": "DNS name in the subject alternative name",
    "upn": "user principal name in the subject alternative name",
    "cn": "common name in the subject",
}


def check_leaf(certificate: x509.Certificate, source: Source) -> None:
    """Check that the certificate is for a client, and not an authority's own. *Fails closed.*

    By X509-SVID 5.2, which every trust is held to: CA false; no keyCertSign and no cRLSign. By RFC 8446 4.4.2.2: key
    usage, where present, allows digital signatures. Extended key usage, where present, contains clientAuth itself:
    anyExtendedKeyUsage is not enough (RFC 5280 4.2.1.12 leaves that to the application). Outside SPIFFE, where it is
    only recommended, it must be present. Raises Refused: certificate_usage.
    """
    extensions = certificate.extensions
    constraints = _extension(extensions, x509.BasicConstraints)
    if constraints is not None and constraints.ca:
        raise _unusable("not an authority's own (CA false)", "CA true")
    usage = _extension(extensions, x509.KeyUsage)
    if usage is not None:
        if usage.key_cert_sign or usage.crl_sign:
            raise _unusable("not for signing certificates or revocation lists", "keyCertSign or cRLSign")
        if not usage.digital_signature:
            raise _unusable("for digital signatures (key usage)", "a key usage without digitalSignature")
    purposes = _extension(extensions, x509.ExtendedKeyUsage)
    if purposes is None:
        if source != "spiffe":
            raise _unusable("for clientAuth (extended key usage)", "no extended key usage")
    elif ExtendedKeyUsageOID.CLIENT_AUTH not in purposes:
        found = ", ".join(sorted(purpose.dotted_string for purpose in purposes))
        raise _unusable("for clientAuth (extended key usage)", found)


def read_name(certificate: x509.Certificate, source: Source, trust_domain: str | None) -> str:
    """Return the one name that the certificate carries at `source`, folded. *Fails closed.*

    `trust_domain` is that of a spiffe trust, None otherwise. Raises Refused: `ambiguous_identity` for more than one
    candidate, or a name that could be taken for a pattern; `no_identity` for none, or one that cannot be used.
    """
    candidates = _candidates(certificate, source)
    place = _PLACES[source]
    if not candidates:
        raise Refused(Reason.NO_IDENTITY, f"client certificate: expected one {place}, got none")
    if len(candidates) > 1:
        shown = ", ".join(map(repr, candidates[:4]))
        message = f"client certificate: expected one {place}, got {len(candidates)}: {shown}"
        raise Refused(Reason.AMBIGUOUS_IDENTITY, message)
    try:
        text = candidates[0] if isinstance(candidates[0], str) else _utf8_string(candidates[0])
        if source == "spiffe":
            domain, name = parse_spiffe_id(text)
            if domain != trust_domain:
                raise Malformed(f"the trust domain {trust_domain}", repr(text))
            return name
        name = fold(text, source)
        check_name(name, source)
    except Malformed as error:
        # Only a star is in doubt between two meanings; everything else means nothing.
        reason = Reason.AMBIGUOUS_IDENTITY if "*" in str(candidates[0]) else Reason.NO_IDENTITY
        raise Refused(reason, f"client certificate, {place}: {error}") from error
    return name


def read_groups(certificate: x509.Certificate, rule: str | None) -> frozenset[str]:
    """Return the names of the groups that the certificate puts its holder in. *Fails closed.*

    `rule` is "ou" (every organizational unit of the subject), "uri:PREFIX" (what follows the prefix in every URI of
    the subject alternative name that begins so), or None for no groups. Raises Refused (`no_identity`) for a group
    that cannot be used: to leave it out could lift a deny entry.
    """
    if rule is None:
        return frozenset()
    if rule == "ou":
        names = _attributes(certificate, NameOID.ORGANIZATIONAL_UNIT_NAME)
    else:
        prefix = rule.removeprefix("uri:")
        uris = _alternative_names(certificate, x509.UniformResourceIdentifier)
        names = [uri.removeprefix(prefix) for uri in uris if uri.startswith(prefix)]
    if len(names) > _MOST_GROUPS:
        raise Refused(
            Reason.NO_IDENTITY, f"client certificate: expected at most {_MOST_GROUPS} groups, got {len(names)}"
        )
    for name in names:
        try:
            check_group_name(name)
        except Malformed as error:
            raise Refused(Reason.NO_IDENTITY, f"client certificate, group: {error}") from error
    return frozenset(names)


def _candidates(certificate: x509.Certificate, source: Source) -> Sequence[str | bytes]:
    match source:
        case "spiffe":
            return _alternative_names(certificate, x509.UniformResourceIdentifier)
        case "email":
            return _alternative_names(certificate, x509.RFC822Name)
        case "dns":
            return _alternative_names(certificate, x509.DNSName)
        case "upn":
            names = _extension(certificate.extensions, x509.SubjectAlternativeName) or ()
            return [name.value for name in names if isinstance(name, x509.OtherName) and name.type_id == _UPN]
        case "cn":
            return _attributes(certificate, NameOID.COMMON_NAME)


def _alternative_names(
    certificate: x509.Certificate,
    kind: type[x509.UniformResourceIdentifier] | type[x509.RFC822Name] | type[x509.DNSName],
) -> list[str]:
    names: Iterable[x509.GeneralName] = _extension(certificate.extensions, x509.SubjectAlternativeName) or ()
    return [name.value for name in names if isinstance(name, kind)]


def _attributes(certificate: x509.Certificate, oid: ObjectIdentifier) -> list[str]:
    values = [attribute.value for attribute in certificate.subject.get_attributes_for_oid(oid)]
    return [value if isinstance(value, str) else repr(value) for value in values]


def _extension(extensions: x509.Extensions, kind: type[_Extension]) -> _Extension | None:
    try:
        return extensions.get_extension_for_class(kind).value
    except x509.ExtensionNotFound:
        return None


def _utf8_string(der: bytes) -> str:
    """Decode a UTF8String. Reading the extension has made sure that this is one whole DER value. Raises Malformed."""
    if der[0] != 0x0C:
        raise Malformed("a UTF8String", f"a value with the DER tag {der[0]:#x}")
    length_octets = der[1] & 0x7F if der[1] >= 0x80 else 0
    try:
        return der[2 + length_octets :].decode()
    except UnicodeDecodeError as error:
        raise Malformed("a UTF8String", "bytes that are not UTF-8") from error


def _unusable(expected: str, found: str) -> Refused:
    return Refused(Reason.CERTIFICATE_USAGE, f"client certificate: expected one {expected}, got {found}")
