"""The supervisor's way into the limits of roles: connect rates, quotas and bandwidths, and the ledger behind them.

What sessions and workers have to do with leases is in `leasing`, how the ledger is in `ledger_health`.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from portguard.errors import ConfigurationError, Problem, Refused
from portguard.gateway.admission import Account, Session
from portguard.gateway.leasing import Leasing
from portguard.gateway.ledger_health import LedgerHealth, WhenUnavailable
from portguard.gateway.messages import (
    LeaseReturned,
    LeaseWanted,
    Message,
    Misconduct,
    Regranted,
    Share,
    ShareWanted,
    Ticket,
)
from portguard.gateway.shares import Shares
from portguard.gateway.slot_tables import SlotTables
from portguard.limits.accounts import Accounts, Warned
from portguard.limits.fleet import Counted, Fleet, News
from portguard.limits.fleet_sessions import FleetSessions
from portguard.limits.leases import Leases
from portguard.limits.ledger import Answers, Owner, Store
from portguard.limits.rates import ConnectRates
from portguard.observe import log
from portguard.policy.decide import Policy
from portguard.policy.quantities import Rate
from portguard.reasons import Reason

_NOTE_EVERY_S = 5.0
_NOTED_AT_A_TIME = 500  # less than a millisecond
_CLOSE_S = 5.0

_RATE_UNITS = {1: "a second", 60: "a minute", 3600: "an hour", 86_400: "a day"}


class Accounting:
    """Who may use how much. It lives in the running loop, and never waits for the disk or the network.

    `send(worker, message)` reaches a worker, and does nothing for one that is gone; nor does `on_misconduct(worker,
    error)`, which ends one. `on_warned` is told when a quota is used for the most part.
    """

    def __init__(
        self,
        policy: Policy,
        slots: SlotTables,
        store: Store,
        *,
        when_unavailable: WhenUnavailable,
        send: Callable[[int, Message], None],
        on_misconduct: Callable[[int, Misconduct], None],
        on_warned: Callable[[Warned], None],
    ):
        now_s = time.time()
        self._fleet = store if isinstance(store, Fleet) else None
        limits = {role.name: role.limits for role in policy.roles}
        self.accounts = Accounts(limits, policy.zone, now_s, shared=self._fleet is not None)
        contents = store.contents(now_s)
        self.locks = contents.locks  # that the ledger held; who is in charge of them takes them over
        self.accounts.load(contents.usage)
        self._bounded_services = _bounded_services(policy)
        self._moved = slots.moved
        self._leases = Leases(self.accounts, self._moved)
        self._rates = ConnectRates()
        try:
            self._rates.load(contents.rates)
        except ValueError as error:
            raise ConfigurationError([Problem("ledger", "connects", "what portguard writes", str(error))]) from None
        self._store = store
        self.health = LedgerHealth(store, when_unavailable)
        self._send = send
        self._on_warned = on_warned
        self._loop = asyncio.get_running_loop()
        self._restored = False  # what was used before is known already
        if self._fleet is not None:
            self._fleet.listen(self._hear)
        store.start(self._deliver)
        self._owners: list[Owner] = []  # by number
        self._numbers: dict[Owner, int] = {}
        self._sessions: dict[int, Session] = {}  # by slot, those that may move bytes
        self._drawing: Counter[tuple[int, Owner]] = Counter()  # how many of them, by worker and owner
        self._leasing = Leasing(
            self._leases,
            self.accounts,
            store,
            self.health,
            number=self._number,
            send=send,
            on_misconduct=on_misconduct,
        )
        self._counts = FleetSessions(self._is_bounded) if self._fleet is not None else None
        self._shares = Shares(lambda role: self.accounts.limits(role).bandwidth, self._give_share)
        self._note_at_s = time.monotonic() + _NOTE_EVERY_S

    def configure(self, policy: Policy, when_unavailable: WhenUnavailable) -> None:
        """Go on with other limits, for live sessions too."""
        limits = {role.name: role.limits for role in policy.roles}
        self.accounts.configure(limits, policy.zone, time.time())
        self._bounded_services = _bounded_services(policy)
        if self._counts is not None:
            self._counts.bounds_changed()
        self._tell_counts()
        self.health.configure(when_unavailable)
        self._shares.configure()
        self._leasing.act(self._leases.recall_excess())
        for role in limits:
            self.serve_waiting(role)

    async def suspend(self) -> bool:
        """Have everything written, and the ledger closed, for another program; return whether that was possible."""
        self._settle()
        return await asyncio.to_thread(self._store.flush_and_close, _CLOSE_S)

    @property
    def is_securing(self) -> bool:
        """Whether a lease waits for the ledger."""
        return self._leasing.is_securing

    def state(self) -> dict[str, Any]:
        """Everything but leases that wait for the ledger, for another program: what json.dumps() takes."""
        return {
            "accounts": self.accounts.state(),
            "leases": self._leases.state(),
            "owners": self._owners,
            "sessions": list(self._sessions),
            "stalled": [[worker, self._number(owner)] for worker, owner in self._leasing.stalled],
            "shares": [
                [self._number(owner), direction, workers] for owner, direction, workers in self._shares.waiting()
            ],
        }

    def restore(self, state: Mapping[str, Any], sessions: Mapping[int, Session]) -> None:
        """Go on from a `state`; `sessions` are all that are admitted, by slot. The workers can be reached."""
        self._restored = True
        self.accounts.restore(state["accounts"])
        self._leases.restore(state["leases"])
        for owner in state["owners"]:
            self._number(Owner(*owner))
        self._sessions = {slot: sessions[slot] for slot in state["sessions"]}
        self._drawing = Counter((session.worker, session.owner) for session in self._sessions.values())
        if self._counts is not None:
            for session in self._sessions.values():
                self._counts.began(session.owner, session.service)
        self._tell_counts()
        self._leasing.ask_again((worker, self._owners[number]) for worker, number in state["stalled"])
        for number, direction, workers in state["shares"]:
            for worker in workers:
                self._shares.ask(worker, self._owners[number], direction)

    # Sessions.

    def sessions_elsewhere(self, counted: Counted) -> int:
        """How many sessions of an owner or a service there are at other gateways; 0 while nobody can know."""
        return 0 if self._counts is None or self.health.unavailable else self._counts.elsewhere(counted)

    def _is_bounded(self, counted: Counted) -> bool:
        if isinstance(counted, str):
            return counted in self._bounded_services
        return self.accounts.limits(counted.role).max_sessions is not None

    def check(self, owner: Owner, *, counts: bool = True) -> None:
        """Raise Refused when the role's limits, or the ledger, allow no further session now. *Fails closed*.

        If it `counts`, it is an attempt at the connect rate when everything else allows it.
        """
        if self.health.unavailable:
            if self.health.refuses:
                raise Refused(Reason.LEDGER_UNAVAILABLE)
            return
        now_s = time.time()
        self._leases.check(owner, now_s)
        rate = self.accounts.limits(owner.role).connect_rate
        if rate is None:
            return
        if wait_s := (self._rates.admit if counts else self._rates.wait_s)(owner, rate, now_s):
            raise Refused(Reason.CONNECT_RATE, _too_often(owner.role, rate), retry_after_s=wait_s)
        if counts and self._fleet is not None:
            self._store.write(self._rates.changed())  # others are to know of it soon

    def connect_wait_s(self, owner: Owner) -> float:
        """After how many seconds the connect rate lets the owner in again; 0 is now. Nothing is counted."""
        rate = self.accounts.limits(owner.role).connect_rate
        return self._rates.wait_s(owner, rate, time.time()) if rate is not None else 0.0

    def open(self, connection: int, session: Session) -> Ticket:
        """A session that is admitted may move bytes. Return what its worker is to be told now, before all else.

        It has the session's first lease if the ledger holds that already; if not, `Leased` follows once it does.
        """
        return Ticket(connection, session.slot, *self._open(session, 0))

    def move(self, session: Session) -> Regranted:
        """A session goes on under other limits, perhaps in another role. What is returned is as that of `open`."""
        moved_bytes = self._moved(session.slot)
        self._leave(self._sessions[session.slot])
        self._leases.end(session.slot, moved_bytes, time.time())
        return Regranted(session.slot, *self._open(session, moved_bytes))

    def _open(self, session: Session, moved_bytes: int) -> tuple[int, bool, bool, int]:
        """Return account, whether it is leased and paced, and the bytes that are leased with that."""
        owner, slot = session.owner, session.slot
        self._sessions[slot] = session
        self._drawing[session.worker, owner] += 1
        if self._counts is not None:
            self._counts.began(owner, session.service)
            self._tell_counts()
        leased_bytes = self._leasing.open(slot, session.worker, owner, moved_bytes)
        return (
            self._number(owner),
            self._leases.are_needed(owner.role),
            self.accounts.limits(owner.role).bandwidth is not None,
            leased_bytes,
        )

    def ended(self, account: Account) -> None:
        """A session has ended; nothing for one that was never opened."""
        session = self._sessions.pop(account.session.slot, None)
        if session is not None:
            self._leave(session)
            self._leases.end(session.slot, account.received + account.sent, time.time())
            self._write_changed()
            self._tell_counts()

    def _leave(self, session: Session) -> None:
        if self._counts is not None:
            self._counts.ended(session.owner, session.service)
        key = session.worker, session.owner
        self._drawing[key] -= 1
        if not self._drawing[key]:
            del self._drawing[key]

    def lost(self, worker: int) -> None:
        """A worker is no more, and its sessions have been ended."""
        self._shares.forget(worker)
        self._leasing.act(self._leases.lose(worker, time.time()))

    def on_message(self, worker: int, message: LeaseWanted | LeaseReturned | ShareWanted) -> None:
        """Answer a worker, now or later. Raises Misconduct for an account that there is not."""
        if message.account >= len(self._owners):
            raise Misconduct(f"account {message.account}: expected one that there is, got another")
        owner = self._owners[message.account]
        match message:
            case LeaseWanted() | LeaseReturned():
                self._leasing.on_message(worker, owner, message)
            case ShareWanted():
                # Without a session of its own it has no use for a share, and others get less.
                if (worker, owner) in self._drawing:
                    self._shares.ask(worker, owner, message.direction)

    def _give_share(self, worker: int, owner: Owner, direction: int, share_bytes: int) -> None:
        self._send(worker, Share(self._number(owner), direction, share_bytes))

    # What there is has changed.

    def serve_waiting(self, role: str) -> None:
        """Somebody has changed what there is for a role."""
        self._leasing.act(self._leases.serve_waiting(role, time.time()))
        self._write_changed()

    def _hear(self, news: News) -> None:
        """Other gateways have written something, or we learn late what we had."""
        now_s = time.time()
        if not self._restored:
            self.accounts.load_late(news.own, now_s)
        roles = self.accounts.hear(news.use, now_s, all_there_is=news.all_there_is)
        self._rates.hear(news.connects, all_there_is=news.all_there_is)
        assert self._counts is not None  # who hears news is in a fleet
        self._counts.hear(news.sessions, news.gone, all_there_is=news.all_there_is)
        for role in roles:
            self._leasing.act(self._leases.serve_waiting(role, now_s))
        self._write_changed()

    # The ledger.

    async def tick(self) -> None:
        """To be called about once a second."""
        self._leasing.tick()
        for warned in self.accounts.warnings():
            self._on_warned(warned)
        if self._fleet is not None:
            # What nobody uses any more is to be had elsewhere.
            self.accounts.settle()
            self._write_changed()
        if time.monotonic() < self._note_at_s:
            return
        self._note_at_s = time.monotonic() + _NOTE_EVERY_S
        for number, slot in enumerate(self._leases.slots(), start=1):
            self._leases.note(slot, time.time())
            if number % _NOTED_AT_A_TIME == 0:
                await asyncio.sleep(0)
        self._settle()

    def _settle(self) -> None:
        self.accounts.settle()
        self._write_changed()
        self._rates.forget_idle(time.time())
        if rows := self._rates.changed():
            self._store.write(rows)
        self._shares.drop_idle()

    def _write_changed(self) -> None:
        if rows := self.accounts.take_rows(time.time()):
            self._store.write(rows)

    def _tell_counts(self) -> None:
        if self._fleet is not None and self._counts is not None and (rows := self._counts.take_rows()):
            self._fleet.tell_sessions(rows)

    async def stop(self) -> None:
        """All sessions have ended: write what is to be kept."""
        self._shares.stop()
        self._settle()
        if not await asyncio.to_thread(self._store.flush_and_close, _CLOSE_S):
            log.event("error", "ledger.unavailable", message=f"expected the last rows written in {_CLOSE_S:.0f} s")

    def _deliver(self, answers: Answers) -> None:
        """Called in the ledger's thread."""
        self._loop.call_soon_threadsafe(_answer, answers)

    def _number(self, owner: Owner) -> int:
        number = self._numbers.get(owner)
        if number is None:
            number = self._numbers[owner] = len(self._owners)
            self._owners.append(owner)
        return number


def _answer(answers: Answers) -> None:
    for on_written, written in answers:
        on_written(written)


def _bounded_services(policy: Policy) -> frozenset[str]:
    return frozenset(service.name for service in policy.services.values() if service.max_sessions is not None)


def _too_often(role: str, rate: Rate) -> str:
    connections = "1 connection" if rate.count == 1 else f"{rate.count} connections"
    return f"role {role} allows {connections} {_RATE_UNITS[rate.per_s]}"
