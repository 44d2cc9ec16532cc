"""What a service hears before its client's bytes: a PROXY header, a TLS handshake, or one after the other."""

import ssl

from portguard.errors import Refused
from portguard.gateway.dial import Dialed
from portguard.gateway.ends import End, PlainEnd, TlsEnd
from portguard.gateway.handshake import handshake, send
from portguard.reasons import Reason
from portguard.tls.tls_socket import wrap


class FailedUpstream(Refused):
    """A service that was reached and could not be spoken to. `detail` is for the log: it names an address."""

    def __init__(self, reason: Reason, detail: str):
        super().__init__(reason)
        self.detail = detail


async def greet(dialed: Dialed, header: bytes, context: ssl.SSLContext | None, server_name: str | None) -> End:
    """Send the header, empty for none, and speak TLS by the context; None: in the clear. Return the end to relay to.

    The service has to be `server_name`, which None makes the host that was dialled. Raises FailedUpstream; the socket
    that was dialled is then still the caller's to close. *Fails closed*: without a verified service, no end.
    """
    try:
        if header:
            await send(dialed.sock, header)
        if context is None:
            return PlainEnd(dialed.sock)
        tls = wrap(dialed.sock, context, server_hostname=server_name or dialed.upstream.host)
        try:
            await handshake(tls)
        except BaseException:
            tls.close()
            raise
        return TlsEnd(tls)
    except ssl.SSLError as error:
        words = getattr(error, "verify_message", None) or (error.reason or str(error)).lower().replace("_", " ")
        raise FailedUpstream(Reason.UPSTREAM_TLS, f"{dialed.upstream}: {words}") from None
    except OSError as error:
        reason = Reason.UPSTREAM_UNREACHABLE if context is None else Reason.UPSTREAM_TLS
        raise FailedUpstream(reason, f"{dialed.upstream}: {error.strerror or error}") from None
