"""What a service hears before its client's bytes: a PROXY header, a TLS handshake, or one after the other."""

import socket
import ssl

from portguard.gateway.connecting import FailedAttempt
from portguard.gateway.ends import End, PlainEnd, TlsEnd
from portguard.gateway.handshake import handshake, send
from portguard.policy.model import Upstream
from portguard.reasons import Reason
from portguard.tls.tls_socket import wrap


async def greet(
    sock: socket.socket, upstream: Upstream, header: bytes, context: ssl.SSLContext | None, server_name: str | None
) -> End:
    """Send the header, empty for none, and speak TLS by the context; None: in the clear. Return the end to relay to.

    The service has to be `server_name`, which None makes the host that was dialled. Raises FailedAttempt; `sock` is
    then still the caller's to close. *Fails closed*: without a verified service, no end.
    """
    try:
        if header:
            await send(sock, header)
        if context is None:
            return PlainEnd(sock)
        tls = wrap(sock, context, server_hostname=server_name or upstream.host)
        try:
            await handshake(tls)
        except BaseException:
            tls.close()
            raise
        return TlsEnd(tls)
    except ssl.SSLError as error:
        words = getattr(error, "verify_message", None) or (error.reason or str(error)).lower().replace("_", " ")
        raise FailedAttempt(Reason.UPSTREAM_TLS, words) from None
    except OSError as error:
        reason = Reason.UPSTREAM_UNREACHABLE if context is None else Reason.UPSTREAM_TLS
        raise FailedAttempt(reason, error.strerror or str(error)) from None
