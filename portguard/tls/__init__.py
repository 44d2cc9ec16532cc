"""TLS contexts, and a TLS endpoint over memory buffers that can half-close. No sockets."""
