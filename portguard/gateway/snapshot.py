"""One configuration of the gateway, complete and checked: what a bundle means.

`build` is the only way in. It reports everything that is wrong in all files in one go, or returns something that works:
nothing is half loaded. It depends on the bundle alone, so that supervisor and workers arrive at the same.
"""

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from portguard.errors import ConfigurationError, Problem
from portguard.gateway.bundle import Bundle, policy_files
from portguard.gateway.configuration import Configuration, read_configuration
from portguard.gateway.server_certificate import (
    Finding,
    check_key_pair,
    check_server_certificate,
    date_warnings,
    revocation_warnings,
)
from portguard.gateway.trust_files import authority_problems, authority_warnings, read_trusts, trust_warnings
from portguard.identity.names import Identity, Malformed
from portguard.identity.pem import parse_certificates
from portguard.identity.trust import Trusts
from portguard.policy import checks
from portguard.policy.addresses import ListenAddress
from portguard.policy.decide import Policy
from portguard.policy.model import UpstreamTls
from portguard.policy.read import PolicyFile, nameless_problems, read_policy

# The keys of the configuration without which the names in a policy cannot be told.
_NAMING_KEYS = re.compile(r"trusts(\..*\.(identity|trust_domain|default)|\.[^.]*)?")


@dataclass(frozen=True, slots=True)
class UpstreamMaterial:
    """What the files of a service's `tls` hold, as PEM. None where it names none."""

    ca: str | None  # certificates only, each of them an anchor
    certificate: bytes | None = field(repr=False)
    key: bytes | None = field(repr=False)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One configuration, ready to serve by. `warnings` are lines for people; they may hold what any file may hold."""

    configuration: Configuration
    policy: Policy = field(repr=False)
    trusts: Trusts = field(repr=False)
    certificate: bytes = field(repr=False)  # PEM chain, leaf first
    key: bytes = field(repr=False)  # PEM, without a passphrase
    upstream_tls: Mapping[str, UpstreamMaterial] = field(repr=False)  # of the services that are spoken to over TLS
    revision: str  # SHA-256, in hexadecimal, of what was loaded
    trusts_revision: str  # the same of all that `trusts` depends on
    warnings: tuple[str, ...]

    def written(self, trust: str, name: str) -> str:
        """An identity as people write it, without prefix when its trust is the default one."""
        return Identity(trust, name).written(self.configuration.namespace.default)


def build(bundle: Bundle) -> Snapshot:
    """Read and check everything. Raises ConfigurationError with all problems of all files. *Fails closed.*"""
    problems = list(bundle.problems)
    configuration = _configuration(bundle, problems)
    gateway, files, at = configuration.gateway, bundle.files, bundle.read_at
    policy = _policy(bundle, configuration, problems)
    services = tuple(policy.services.values()) if policy is not None else ()

    readable_trusts, trusts = read_trusts(configuration, files, problems)
    problems += authority_problems(configuration, readable_trusts, files)
    findings: list[Finding] = [*check_key_pair(gateway.certificate, gateway.key, files)]
    if not findings and gateway.certificate in files and gateway.key in files:
        findings += check_server_certificate(
            gateway.certificate, files[gateway.certificate], gateway.name, services, at
        )
    material = {
        service.name: _material(service.tls, bundle, findings) for service in services if service.tls is not None
    }

    problems += [finding for finding in findings if isinstance(finding, Problem)]
    if problems or policy is None or trusts is None:
        raise ConfigurationError(dict.fromkeys(problems))
    warnings = [
        *checks.warnings(policy),
        *(finding for finding in findings if isinstance(finding, str)),
        *revocation_warnings(
            gateway.certificate, files[gateway.certificate], [crl for trust in readable_trusts for crl in trust.crls]
        ),
        *trust_warnings(configuration.path, readable_trusts, at),
        *authority_warnings(configuration, files, at),
    ]
    return Snapshot(
        configuration=configuration,
        policy=policy,
        trusts=trusts,
        certificate=files[gateway.certificate],
        key=files[gateway.key],
        upstream_tls=material,
        revision=bundle.revision,
        trusts_revision=_trusts_revision(configuration, files),
        warnings=tuple(dict.fromkeys(warnings)),
    )


def build_policy(bundle: Bundle) -> tuple[Configuration, Policy]:
    """Read and check the configuration and the policy alone, of a `read_policy_bundle`. Raises ConfigurationError."""
    problems = list(bundle.problems)
    configuration = _configuration(bundle, problems)
    policy = _policy(bundle, configuration, problems)
    if problems or policy is None:
        raise ConfigurationError(dict.fromkeys(problems))
    return configuration, policy


def policy_by(configuration: Configuration, files: Sequence[PolicyFile]) -> Policy:
    """Read a policy as that of the configuration, whose addresses no service may have. Raises ConfigurationError."""
    name = configuration.gateway.name or None
    return read_policy(files, configuration.namespace, gateway_name=name, occupied=_occupied(configuration))


def _occupied(configuration: Configuration) -> list[tuple[ListenAddress, str]]:
    """What the gateway listens on itself, for `read_policy`."""
    listen = [(address, "that of gateway.listen") for address in configuration.gateway.listen]
    return [*listen, (configuration.metrics.listen, "that of metrics.listen")]


def _trusts_revision(configuration: Configuration, files: Mapping[str, bytes]) -> str:
    digest = hashlib.sha256(repr(configuration.trusts).encode())
    for trust in configuration.trusts:
        for path in (trust.ca, *trust.crl):
            digest.update(hashlib.sha256(files[path]).digest())
    return digest.hexdigest()


def _configuration(bundle: Bundle, problems: list[Problem]) -> Configuration:
    path = bundle.configuration_path
    if path not in bundle.files:
        raise ConfigurationError(problems)
    return read_configuration(path, bundle.files[path], problems)


def _policy(bundle: Bundle, configuration: Configuration, problems: list[Problem]) -> Policy | None:
    """The policy; None where it, or what names in it mean, cannot be read."""
    files = policy_files(configuration, bundle.files)
    of_configuration = [problem.key for problem in problems if problem.file == configuration.path]
    if not files:
        return None
    if any(map(_NAMING_KEYS.fullmatch, of_configuration)):
        # Where the trusts are in doubt, every member of the policy would be reported as wrong too.
        name = configuration.gateway.name or None
        problems += nameless_problems(files, gateway_name=name, occupied=_occupied(configuration))
        return None
    try:
        return policy_by(configuration, files)
    except ConfigurationError as error:
        problems += error.problems
        return None


def _material(tls: UpstreamTls, bundle: Bundle, findings: list[Finding]) -> UpstreamMaterial:
    """What a service's TLS files hold. What is wrong with them is added to `findings`."""
    files, at = bundle.files, bundle.read_at
    certificate, key = files.get(tls.certificate or ""), files.get(tls.key or "")
    if tls.certificate is not None and tls.key is not None:
        unusable = tuple(check_key_pair(tls.certificate, tls.key, files))
        findings += unusable
        if certificate is not None and not unusable:
            findings += date_warnings(tls.certificate, x509.load_pem_x509_certificates(certificate), at)
    return UpstreamMaterial(_anchors(tls.ca, bundle, findings) if tls.ca is not None else None, certificate, key)


def _anchors(path: str, bundle: Bundle, findings: list[Finding]) -> str:
    try:
        certificates = parse_certificates(bundle.files[path]) if path in bundle.files else ()
    except Malformed as error:
        findings.append(Problem(path, "", error.expected, error.found))
        return ""
    findings += date_warnings(path, certificates, bundle.read_at)
    return "".join(certificate.public_bytes(Encoding.PEM).decode() for certificate in certificates)
