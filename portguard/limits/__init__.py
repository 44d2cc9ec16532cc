"""What identities may use, and have used: rates, calendar periods, leases of bytes, and the ledger that outlives us."""
