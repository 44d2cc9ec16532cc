"""Whether the ledger can be written, and what that means for sessions: `ledger.when_unavailable`."""

from typing import Literal

from portguard.gateway.condition import Failing
from portguard.limits.ledger import Store

PATIENCE_S = 2.0
"""For how long the ledger may fail before sessions are refused for it."""

WhenUnavailable = Literal["refuse", "allow"]


class LedgerHealth:
    """How one ledger is."""

    def __init__(self, store: Store, when_unavailable: WhenUnavailable):
        self._store = store
        self._when_unavailable = when_unavailable

    def configure(self, when_unavailable: WhenUnavailable) -> None:
        """Go on with another answer to its being away."""
        self._when_unavailable = when_unavailable

    @property
    def refuses(self) -> bool:
        """Whether sessions are refused, and leases not given, while it is unavailable. *Fails closed*."""
        return self._when_unavailable == "refuse"

    @property
    def unavailable(self) -> bool:
        """Whether it could not be written for a while."""
        failing_s = self._store.failing_s()
        return failing_s is not None and failing_s > PATIENCE_S

    @property
    def failing(self) -> Failing | None:
        """For how long, and why, it could not be written; None when it can."""
        failing_s = self._store.failing_s()
        return Failing(failing_s, self._store.trouble or "it cannot be written") if failing_s is not None else None

    @property
    def errors(self) -> int:
        """How many attempts at writing it have failed."""
        return self._store.errors
