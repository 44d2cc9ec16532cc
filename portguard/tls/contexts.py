"""The TLS contexts of the gateway. One function makes them all; they differ only in ALPN."""

import ssl
import sys
from collections.abc import Callable, Mapping

from portguard.tls.chain import load_chain
from portguard.tls.context import new_context
from portguard.tls.peer import ServerName
from portguard.tls.tls_socket import prepare

AlpnProtocols = tuple[str, ...]


def _server_context(certificate_pem: bytes, key_pem: bytes, anchors_pem: str, alpn: AlpnProtocols) -> ssl.SSLContext:
    """Return a context that takes only TLS 1.3 and only clients with a certificate below one of the anchors.

    Fails closed: a client without a certificate, or with one that does not verify, does not finish the handshake.
    """
    context = new_context(ssl.PROTOCOL_TLS_SERVER)
    prepare(context)
    # Below TLS 1.3, Python's ssl cannot switch session-id resumption off, and a resumed session has no verified chain.
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.num_tickets = 0
    context.verify_mode = ssl.CERT_REQUIRED
    # What the operator names is the anchor, also when it is an intermediate authority.
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    context.load_verify_locations(cadata=anchors_pem)
    load_chain(context, certificate_pem, key_pem)
    if alpn:
        context.set_alpn_protocols(list(alpn))
    return context


class ServerContexts:
    """The contexts of one configuration: one per list of ALPN protocols, switched to by server name.

    `alpn_of` answers which protocols the named server takes. It is called within OpenSSL's callback and must not
    raise; a name that means nothing takes none, and is refused after the handshake, when it is known who asks.
    """

    def __init__(
        self,
        *,
        certificate_pem: bytes,
        key_pem: bytes,
        anchors_pem: str,
        alpn_of: Callable[[ServerName], AlpnProtocols],
    ):
        self._material = (certificate_pem, key_pem, anchors_pem)
        self._by_alpn: dict[AlpnProtocols, ssl.SSLContext] = {}
        # Verify mode, minimum version and tickets stay those of the first context whatever is switched to, so that
        # one is as strict as all the others: they come from the same function.
        self._first = _server_context(*self._material, alpn=())
        # Not a method: a cycle with the context in it would never be freed in a process that has called gc.freeze().
        self._first.sni_callback = _switching(self._by_alpn, alpn_of)
        self.prepare(())

    def prepare(self, alpn: AlpnProtocols) -> None:
        """Make the context for `alpn` now, so that no handshake has to wait for it or fail with it."""
        if alpn not in self._by_alpn:
            self._by_alpn[alpn] = _server_context(*self._material, alpn=alpn)

    @property
    def by_name(self) -> ssl.SSLContext:
        """The context for a connection whose client names its service by SNI; see `server_name`."""
        return self._first

    def of_port(self, alpn: AlpnProtocols) -> ssl.SSLContext:
        """The context for a connection to a port of a service's own, where SNI selects nothing.

        `alpn` must have been prepared.
        """
        return self._by_alpn[alpn]


def _switching(
    by_alpn: Mapping[AlpnProtocols, ssl.SSLContext], alpn_of: Callable[[ServerName], AlpnProtocols]
) -> Callable[[ssl.SSLObject | ssl.SSLSocket, ServerName, ssl.SSLContext], None]:
    def on_server_name(tls: ssl.SSLObject | ssl.SSLSocket, name: ServerName, _context: ssl.SSLContext) -> None:
        # Called once more, perhaps with another name, when the client has to send its first message again.
        tls.server_name = name  # type: ignore[union-attr]  # read back by server_name()
        context = by_alpn.get(alpn_of(name))
        if context is not None:
            tls.context = context

    return on_server_name


def count_unreadable_names(on_name: Callable[[], None]) -> None:
    """Call `on_name` for each client whose server name is not ASCII, and keep its traceback off standard error.

    Python decodes the name before it calls us, tells sys.unraisablehook that it could not, and fails the handshake
    (OpenSSL's reason is CALLBACK_FAILED). Any stranger can cause that, as often as it likes. The hook is the whole
    process's; what it is told otherwise goes on to the hook that was there.
    """
    before = sys.unraisablehook

    def hook(unraisable: "sys.UnraisableHookArgs") -> None:
        # What Python passes is the name itself, as bytes, which nothing else in a process does.
        if unraisable.exc_type is UnicodeDecodeError and isinstance(unraisable.object, bytes):
            on_name()
        else:
            before(unraisable)

    sys.unraisablehook = hook
