"""TLS contexts, and TLS that can half-close: on a socket for the gateway, over memory buffers for its clients."""
