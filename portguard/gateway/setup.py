"""What a worker serves by: one configuration, made ready. A reload makes a new one and swaps one reference."""

import ssl
from dataclasses import dataclass

from portguard.gateway.listeners import listeners
from portguard.gateway.snapshot import Snapshot
from portguard.policy.model import Service
from portguard.tls.contexts import AlpnProtocols, ServerContexts
from portguard.tls.peer import ServerName
from portguard.tls.upstream import upstream_context

_HTTP = ("http/1.1",)


@dataclass(frozen=True, slots=True)
class Setup:
    """A snapshot, and the TLS contexts made from it.

    `listeners` tells for each listener, in the configuration's order, which service it is the port of; None for the
    gateway's own. `upstream_contexts` has the services that are spoken to over TLS.
    """

    snapshot: Snapshot
    contexts: ServerContexts
    listeners: tuple[Service | None, ...]
    upstream_contexts: dict[str, ssl.SSLContext]

    @classmethod
    def make(cls, snapshot: Snapshot) -> "Setup":
        """Make ready. Everything that can fail, such as a key that OpenSSL does not take, fails here."""
        policy = snapshot.policy
        own_name = snapshot.configuration.gateway.name

        def alpn_of(name: ServerName) -> AlpnProtocols:
            if name is None or is_own_name(name, own_name):
                return _HTTP
            service = policy.resolve_name(name)
            return service.alpn if service is not None else ()

        contexts = ServerContexts(
            certificate_pem=snapshot.certificate,
            key_pem=snapshot.key,
            anchors_pem=snapshot.trusts.anchors_pem,
            alpn_of=alpn_of,
        )
        for alpn in {_HTTP} | {service.alpn for service in policy.services.values()}:
            contexts.prepare(alpn)
        return cls(
            snapshot,
            contexts,
            tuple(listener.service for listener in listeners(snapshot.configuration, policy)),
            {
                name: upstream_context(material.ca, material.certificate, material.key)
                for name, material in snapshot.upstream_tls.items()
            },
        )


def is_own_name(name: str, gateway_name: str) -> bool:
    """Whether a server name that a client asked for is the gateway's own."""
    return name.lower().removesuffix(".") == gateway_name
