"""What the supervisor grants: the right to begin a handshake, and the slot of a session.

It only counts: no sockets, and time is an argument. The counts are those of the whole gateway, because every
connection passes the one supervisor.

A connection is pending from accept() until it is a session or gone, so what waits for a certificate, a request or an
answer is bounded too.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Any, TypedDict, TypeVar

from portguard.errors import Refused
from portguard.gateway.messages import Misconduct
from portguard.gateway.slot_tables import SlotTables
from portguard.limits.ledger import Owner
from portguard.reasons import Reason

MOST_LINGERING = 1024
"""Connections of one worker that hold no place any more, and a descriptor for as long as their last bytes take."""

_Key = TypeVar("_Key")

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network


@dataclass(frozen=True, slots=True)
class Client:
    """Who a session was admitted for, beyond its identity: what its certificate says, and where it came from."""

    groups: tuple[str, ...]  # of very many, the last one says how many more there are
    serial: str  # of its certificate, lower-case hex
    fingerprint: str  # SHA-256 of its certificate, lower-case hex
    source: str | None  # its address; None: a balancer did not say


@dataclass(frozen=True, slots=True)
class Session:
    """A session that was admitted, and what it is for."""

    id: str  # 128 random bits, lower-case hex
    slot: int
    worker: int
    owner: Owner  # the identity, in the role that let it in
    service: str
    client: Client
    upstreams: tuple[str, ...]  # those of the service by which it was admitted; empty: not known
    opened_ns: int  # when it was admitted, time.monotonic_ns()


@dataclass(frozen=True, slots=True)
class Account:
    """What a session that has ended moved: bytes from the client, bytes to it, and how long it lasted."""

    session: Session
    received: int
    sent: int
    duration_s: float
    connected_s: float | None  # how long connecting to the service took; None: it never came to that
    upstream: str | None  # that it had reached; None: none, or it is not known


@dataclass(frozen=True, slots=True)
class _Pending:
    worker: int
    counted: Address | None  # its _subscriber(); None: the address is exempt from the bound per address


class PendingBounds(TypedDict):
    """Bounds on connections that are neither sessions nor gone; `exempt` are networks without one per address."""

    max_pending: int
    max_pending_per_address: int
    exempt: Iterable[Network]


class Admission:
    """Who is being let in, and who is in."""

    def __init__(
        self,
        slots: SlotTables,
        *,
        max_pending: int,
        max_pending_per_address: int,
        exempt: Iterable[Network] = (),
    ):
        self.sessions: dict[int, Session] = {}  # by slot
        self._slots = slots
        self._max_pending = max_pending
        self._max_pending_per_address = max_pending_per_address
        self._exempt = tuple(exempt)
        self._pending: dict[int, _Pending] = {}  # by connection
        # Those of which there are none are not in these: everything that ever was would stay.
        self._per_address: dict[Address, int] = {}
        self._per_worker: dict[int, int] = {}
        self._per_owner: dict[Owner, int] = {}
        self._per_service: dict[str, int] = {}
        self._last_connection = 0

    def configure(self, *, max_pending: int, max_pending_per_address: int, exempt: Iterable[Network]) -> None:
        """Go on with other bounds on those that are pending; `exempt` holds for those to come."""
        self._max_pending = max_pending
        self._max_pending_per_address = max_pending_per_address
        self._exempt = tuple(exempt)

    def state(self) -> dict[str, Any]:
        """Everything, for another program that goes on with it: what json.dumps() takes."""
        return {
            "sessions": [asdict(session) for session in self.sessions.values()],
            "pending": [
                [connection, pending.worker, None if pending.counted is None else str(pending.counted)]
                for connection, pending in self._pending.items()
            ],
            "last_connection": self._last_connection,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state`; the slots are those of then."""
        for document in state["sessions"]:
            session = Session(
                **document
                | {
                    "owner": Owner(*document["owner"]),
                    "client": Client(**document["client"] | {"groups": tuple(document["client"]["groups"])}),
                    "upstreams": tuple(document["upstreams"]),
                }
            )
            self.sessions[session.slot] = session
            self._count(session)
        self._slots.retake(self.sessions)
        for connection, worker, counted in state["pending"]:
            address = None if counted is None else ip_address(counted)
            self._pending[connection] = _Pending(worker, address)
            _add(self._per_worker, worker)
            if address is not None:
                _add(self._per_address, address)
        self._last_connection = state["last_connection"]

    def _count(self, session: Session) -> None:
        _add(self._per_worker, session.worker)
        _add(self._per_owner, session.owner)
        _add(self._per_service, session.service)

    @property
    def pending(self) -> int:
        """How many connections are neither sessions nor gone."""
        return len(self._pending)

    def load(self, worker: int) -> int:
        """How many connections and sessions the worker has."""
        return self._per_worker.get(worker, 0)

    def begin(self, worker: int, source: Address) -> int:
        """Let a connection begin its handshake; return its number.

        Raises Refused with `gateway_full` or `address_limit`. *Fails closed*.
        """
        if len(self._pending) >= self._max_pending:
            raise Refused(Reason.GATEWAY_FULL, f"{self._max_pending} handshakes are under way")
        counted = None if any(source in network for network in self._exempt) else _subscriber(source)
        if counted is not None:
            already = self._per_address.get(counted, 0)
            if already >= self._max_pending_per_address:
                raise Refused(Reason.ADDRESS_LIMIT)
            self._per_address[counted] = already + 1
        self._last_connection += 1
        self._pending[self._last_connection] = _Pending(worker, counted)
        _add(self._per_worker, worker)
        return self._last_connection

    def check_room(
        self,
        owner: Owner,
        service: str,
        *,
        most_of_owner: int | None,
        most_of_service: int | None,
        elsewhere: Callable[[Owner | str], int],
    ) -> None:
        """Raise Refused with `max_sessions` or `service_full` where there are as many sessions already; None: no bound.

        `owner` is the identity in its role; `elsewhere` tells how many it, or a service, has at other gateways.
        *Fails closed*.
        """
        if most_of_owner is not None and self._per_owner.get(owner, 0) + elsewhere(owner) >= most_of_owner:
            raise Refused(
                Reason.MAX_SESSIONS,
                f"role {owner.role} allows {_sessions(most_of_owner)} at once, and as many are open",
            )
        if most_of_service is not None and self._per_service.get(service, 0) + elsewhere(service) >= most_of_service:
            raise Refused(
                Reason.SERVICE_FULL,
                f"service {service} allows {_sessions(most_of_service)} at once, and as many are open",
            )

    def check_free(self) -> None:
        """Raise Refused with `gateway_full` when there is no slot for another session. *Fails closed*."""
        if len(self.sessions) >= self._slots.capacity:
            raise Refused(Reason.GATEWAY_FULL)

    def sessions_of(self, owner: Owner) -> int:
        """How many sessions an identity has in a role."""
        return self._per_owner.get(owner, 0)

    def admit(
        self,
        connection: int,
        *,
        session_id: str,
        owner: Owner,
        service: str,
        client: Client,
        upstreams: tuple[str, ...],
        now_ns: int,
    ) -> Session:
        """Make a session of a pending connection, whose client the policy lets in as `owner`.

        Raises Refused with `gateway_full`; the connection is then still pending. *Fails closed*: KeyError for a
        connection that is not pending.
        """
        pending = self._pending[connection]
        self.check_free()
        self._forget(connection)
        slot = self._slots.take(pending.worker, now_ns)
        session = Session(session_id, slot, pending.worker, owner, service, client, upstreams, now_ns)
        self.sessions[slot] = session
        self._count(session)
        return session

    def check_pending(self, connection: int, worker: int) -> None:
        """Raise Misconduct unless the connection is pending with that worker. *Fails closed*."""
        pending = self._pending.get(connection)
        if pending is None or pending.worker != worker:
            raise Misconduct(f"connection {connection}: expected one that is pending with the worker, got another")

    def check_session(self, slot: int, worker: int) -> None:
        """Raise Misconduct unless the session in the slot is that worker's. *Fails closed*."""
        session = self.sessions.get(slot)
        if session is None or session.worker != worker:
            raise Misconduct(f"slot {slot}: expected a session of the worker, got another's or none")

    def gone(self, connection: int, worker: int) -> None:
        """A connection of that worker has ended without becoming a session. Raises Misconduct when it is another's.

        It may have been admitted meanwhile: then the worker hears of its ticket later, and ends the session.
        """
        if connection in self._pending:
            self.check_pending(connection, worker)
            self._forget(connection)

    def move(self, slot: int, role: str) -> Session:
        """Let a session go on in another role; return it. Raises KeyError when there is none in the slot."""
        session = self.sessions[slot]
        _discount(self._per_owner, session.owner)
        session = self.sessions[slot] = replace(session, owner=session.owner._replace(role=role))
        _add(self._per_owner, session.owner)
        return session

    def upstream(self, session: Session) -> str | None:
        """The upstream that a session which is open has reached; None while it has not, or when that is not known."""
        index = self._slots.of(session.slot).upstream(session.slot)
        return session.upstreams[index] if index is not None and index < len(session.upstreams) else None

    def end(self, slot: int, now_ns: int) -> Account:
        """End a session; return what it moved. Raises KeyError when there is none in the slot."""
        session = self.sessions.pop(slot)
        _discount(self._per_worker, session.worker)
        _discount(self._per_owner, session.owner)
        _discount(self._per_service, session.service)
        connected_s, upstream = self._slots.of(slot).connected_s(slot), self.upstream(session)
        received, sent = self._slots.free(slot)
        return Account(session, received, sent, (now_ns - session.opened_ns) / 1e9, connected_s, upstream)

    def lose(self, worker: int, now_ns: int) -> list[Account]:
        """End all that a worker had, because it is no more; return what its sessions moved, read from their slots."""
        for connection in [number for number, pending in self._pending.items() if pending.worker == worker]:
            self._forget(connection)
        return [self.end(slot, now_ns) for slot, session in list(self.sessions.items()) if session.worker == worker]

    def _forget(self, connection: int) -> None:
        pending = self._pending.pop(connection)
        _discount(self._per_worker, pending.worker)
        if pending.counted is not None:
            _discount(self._per_address, pending.counted)


def _subscriber(source: Address) -> Address:
    """What the bound per address counts by. Of IPv6 one host has a whole /64 (RFC 7421): its first address."""
    return IPv6Address(int(source) >> 64 << 64) if isinstance(source, IPv6Address) else source


def _add(counts: dict[_Key, int], key: _Key) -> None:
    counts[key] = counts.get(key, 0) + 1


def _discount(counts: dict[_Key, int], key: _Key) -> None:
    left = counts[key] - 1
    if left:
        counts[key] = left
    else:
        del counts[key]


def _sessions(count: int) -> str:
    return f"{count} session" if count == 1 else f"{count} sessions"
