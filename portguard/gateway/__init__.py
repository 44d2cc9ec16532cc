"""The server: a supervisor that accepts, workers that relay, and what stands between a client and a port."""
