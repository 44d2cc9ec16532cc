"""portguard: one door between people or programs outside and TCP ports inside.

The rooms, from the bottom up: `errors`, `reasons`, `instants` and `secret_line`; the pure rooms `identity` (certificate
to name) and `policy` (name and service to decision); `limits` (who has used how much, and the ledger), `tls`, and
`observe` (log, audit, metrics); then `gateway` (the server), `pki` (the certificate authority), `client` (the helper at
the other end) and `control` (what operators call); `cli` on top. A room imports only from those below it, and beside
it. docs/explanation/architecture.md shows the way of a connection through them.
"""

__version__ = "0.1.0"
