"""A ledger in memory that does as the test says."""

from portguard.limits.fleet import News, Others
from portguard.limits.ledger import Contents, LockRow, RateRow, UsageRow


class MemoryLedger:
    """A `ledger.Store` that writes when `commit()` is called, at once if `prompt`, and never while `trouble` is set."""

    def __init__(self, *, prompt=True):
        self.prompt = prompt
        self.trouble = None
        self.failing_for_s = 10.0
        self.errors = 0
        self.rows = {}  # by owner and period; by owner and None the connects, by target and None locks
        self._pending = []
        self.closed = False

    def contents(self, now_s):
        kinds = {UsageRow: [], RateRow: [], LockRow: []}
        for row in self.rows.values():
            end_s = row.until_s if isinstance(row, LockRow) else row.end_s
            if end_s is None or end_s > now_s:
                kinds[type(row)].append(row)
        return Contents(*map(tuple, kinds.values()))

    def start(self, deliver):
        self._deliver = deliver

    def write(self, rows, on_written=None):
        self._pending.append((list(rows), on_written))
        if self.prompt:
            self.commit()

    def commit(self):
        """Write all that waits; while there is trouble, say that it cannot be."""
        pending, self._pending = self._pending, []
        answers = []
        for rows, on_written in pending:
            if self.trouble is None:
                self.rows.update({(row[0], getattr(row, "period", None)): row for row in rows})
            else:
                self.errors += 1
                self._pending.append((rows, None))
            if on_written is not None:
                answers.append((on_written, self.trouble is None))
        if answers:
            self._deliver(answers)

    def failing_s(self):
        return None if self.trouble is None else self.failing_for_s

    def flush_and_close(self, timeout_s):
        self.commit()
        self.closed = True
        return self.trouble is None


class MemoryFleet(MemoryLedger):
    """A `fleet.Fleet` where others have used `others_used` of what is claimed, and `tell(news)` is up to the test."""

    def __init__(self):
        super().__init__()
        self.others_used = 0
        self.claims = []  # all that were made
        self.sessions = {}  # how many others were told of
        self._listeners = []

    def listen(self, hear):
        self._listeners.append(hear)

    def tell(self, news):
        for hear in self._listeners:
            hear(news)

    def tell_sessions(self, rows):
        self.sessions |= {row.counted: row.sessions for row in rows}

    def claim(self, claims, on_claimed):
        self.claims.append(claims)
        if self.trouble is not None:
            self._deliver([(lambda _: on_claimed(None), True)])
            return
        others = [Others(row.owner, row.period, row.start_s, self.others_used, 0, row.resets) for row, _, _ in claims]
        granted = []
        for row, needed_bytes, limit_bytes in claims:
            most = row.used_bytes if limit_bytes is None else limit_bytes - self.others_used
            granted.append(row._replace(used_bytes=min(row.used_bytes, most)))
            if needed_bytes > most:
                granted = []
                break
        self._deliver([(lambda _: self.tell(News(use=others)), True), (lambda _: on_claimed(granted), True)])
