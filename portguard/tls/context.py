"""The TLS context that all others begin as."""

import ssl


def new_context(protocol: int) -> ssl.SSLContext:
    """Return a context by which a connection that ends without close_notify has not ended, but broken.

    Some Pythons, such as the 3.11.2 of Debian 12, tell OpenSSL to take the one for the other: half an upload would look
    like a whole one. `protocol` is ssl.PROTOCOL_TLS_SERVER or ssl.PROTOCOL_TLS_CLIENT.
    """
    context = ssl.SSLContext(protocol)
    context.options &= ~ssl.OP_IGNORE_UNEXPECTED_EOF
    return context
