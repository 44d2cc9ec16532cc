"""Contexts for clients of tests: Python's own, but for what Pythons do not agree about."""

import ssl
from typing import Any


def trusting(**where: Any) -> ssl.SSLContext:
    """As ssl.create_default_context(); a connection that ends without close_notify is an error in every version."""
    context = ssl.create_default_context(**where)
    context.options &= ~ssl.OP_IGNORE_UNEXPECTED_EOF
    return context
