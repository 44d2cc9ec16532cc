"""The operator's HTTP and JSON on a unix socket: server and client."""
