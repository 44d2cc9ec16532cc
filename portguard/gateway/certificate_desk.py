"""Certificates that the gateway issues: from a worker's question to the authority, the audit, and the answer.

They are asked for by who has a certificate (`renewing`) and by who was invited (`enrolling`). A worker that somebody
has taken over could ask in the name of whoever it likes. So nothing is taken from it but what the client has signed,
and all of that is looked at here again: the chain of the certificate that the client came with, the request, and that
the key of that certificate wants it. What such a worker can get is a certificate whose private key it lacks.

One thread does what takes long, one certificate after the other: SQLite, signatures, and the files of the authority.
"""

import asyncio
import contextlib
import hashlib
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from functools import partial
from typing import TypeVar

from cryptography.hazmat.primitives import hashes

from portguard.errors import PortguardError, Refused
from portguard.gateway import enrolling, renewing
from portguard.gateway.admission import Admission
from portguard.gateway.audit_trail import AuditTrail
from portguard.gateway.configuration import TrustSettings
from portguard.gateway.issuing import Asked, settings_of
from portguard.gateway.messages import (
    LARGEST_CHAIN_BYTES,
    CertificateWanted,
    EnrolmentWanted,
    Issued,
    Message,
    Misconduct,
    Refusal,
    RenewalWanted,
    TurnedAway,
)
from portguard.gateway.snapshot import Snapshot
from portguard.gateway.workers import Worker
from portguard.identity.claim import read_claim
from portguard.instants import written_instant
from portguard.limits.ledger import Owner
from portguard.limits.locks import Locks
from portguard.limits.rates import ConnectRates
from portguard.observe import log
from portguard.pki.issued import SignedCertificate
from portguard.policy.quantities import Rate, format_duration
from portguard.reasons import Reason

_T = TypeVar("_T")

MOST_AT_ONCE = 16
"""Certificates that are being issued, or wait for their turn: each takes some milliseconds."""

MOST_OF_ONE = 10
"""How often an identity may renew in a day, or in the time for which it gets a certificate, where that is shorter.

An invitation may be used as often: all but the first time that is for who has lost the answer.
"""

_DAY_S = 86_400
_BUSY_S = 2.0
_LONGEST_MESSAGE = 200
_ISSUING = "a certificate is being issued already"


class CertificateDesk:
    """Answers workers that ask for certificates. Belongs to the running loop.

    `locks`, `admission` and `trail` each may refuse one. `send(worker, message)` reaches a worker, and does nothing for
    one that is gone. `on_turned_away(reason)` hears of those who were invited and refused: nobody else tells of them.
    """

    def __init__(
        self,
        snapshot: Snapshot,
        *,
        locks: Locks,
        admission: Admission,
        trail: AuditTrail,
        send: Callable[[int, Message], None],
        on_turned_away: Callable[[Reason], None],
    ):
        self._locks = locks
        self._admission = admission
        self._trail = trail
        self._send = send
        self._on_turned_away = on_turned_away
        self._rates = ConnectRates()
        self._issuing: set[Owner] = set()  # whose certificate is being issued, or by which invitation
        self._tasks: dict[int, asyncio.Task[None]] = {}  # by connection
        self._asking: set[bytes] = set()  # the certificates, DER, that those have come with
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="certificates")
        self.configure(snapshot)

    def configure(self, snapshot: Snapshot) -> None:
        """Issue by another configuration from now on."""
        self._snapshot = snapshot

    @property
    def under_way(self) -> bool:
        """Whether somebody waits for a certificate."""
        return bool(self._tasks)

    def ask(self, worker: Worker, wanted: CertificateWanted) -> None:
        """Answer a worker that asks for a certificate, in a while. *Fails closed*.

        Raises Misconduct when it does not ask for a connection of its own, or asks twice for one.
        """
        connection = wanted.connection
        self._admission.check_pending(connection, worker.number)
        if connection in self._tasks:
            raise Misconduct(f"connection {connection}: expected one request for a certificate at a time, got another")
        if sum(map(len, wanted.chain)) > LARGEST_CHAIN_BYTES:
            raise Misconduct(f"connection {connection}: expected a chain of {LARGEST_CHAIN_BYTES} bytes, got more")
        leaf = wanted.chain[0]
        busy = None
        if leaf in self._asking:  # or its holder, from one address, could have all turns
            busy = Refused(Reason.CONNECT_RATE, _ISSUING, retry_after_s=_BUSY_S)
        elif len(self._tasks) >= MOST_AT_ONCE:
            message = f"{MOST_AT_ONCE} certificates are being issued"
            busy = Refused(Reason.GATEWAY_FULL, message, retry_after_s=_BUSY_S)
        if busy is not None:
            self._send(worker.number, self._refusal(wanted, None, busy))
            return
        task = asyncio.create_task(self._answer(worker.number, wanted), name=f"certificate {connection}")
        self._tasks[connection] = task
        self._asking.add(leaf)
        task.add_done_callback(lambda _: self._done(connection, leaf))

    async def stop(self) -> None:
        """End what is under way."""
        for task in self._tasks.values():
            task.cancel()
        await asyncio.to_thread(self._thread.shutdown, cancel_futures=True)

    async def _answer(self, worker: int, wanted: CertificateWanted) -> None:
        snapshot, at = self._snapshot, datetime.now(UTC)
        asked: Asked | None = None
        answer: Issued | Refusal
        try:
            asked = await self._in_thread(partial(_check, snapshot, wanted, at))
            answer = Issued(wanted.connection, await self._issue(snapshot, wanted, asked, at))
        except Refused as refused:
            answer = self._refusal(wanted, asked, refused)
        except (PortguardError, OSError) as error:
            # Where the authority is, and what is wrong with it, is for the operator's eyes.
            log.event("error", "certificate.issue_failed", message=str(error))
            message = "the authority cannot issue certificates now"
            answer = self._refusal(wanted, asked, Refused(Reason.LEDGER_UNAVAILABLE, message))
        self._send(worker, answer)

    def _done(self, connection: int, leaf: bytes) -> None:
        del self._tasks[connection]
        self._asking.remove(leaf)

    async def _issue(self, snapshot: Snapshot, wanted: CertificateWanted, asked: Asked, at: datetime) -> str:
        """Return the new chain, PEM. Raises Refused; PortguardError and OSError when the authority fails."""
        identity, serial = asked.identity, f"{asked.certificate.serial_number:x}"
        fingerprint = asked.certificate.fingerprint(hashes.SHA256()).hex()
        self._locks.refuse(identity, fingerprint, serial, time.time())
        if self._trail.refuses:
            raise Refused(Reason.AUDIT_UNAVAILABLE)
        with self._counted(settings_of(snapshot, identity.trust), wanted, asked):
            signed = await self._in_thread(partial(_issue, snapshot, wanted, asked, at))
        written: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._trail.issues(
            f"{signed.serial:x}",
            {
                "session": wanted.session,
                "trust": identity.trust,
                "identity": identity.name,
                "source": wanted.source,
                "serial": serial,
                "fingerprint": fingerprint,
                "invitation": True if isinstance(wanted, EnrolmentWanted) else None,
                "issued_serial": f"{signed.serial:x}",
                "issued_fingerprint": hashlib.sha256(signed.record.der).hexdigest(),
                "not_after": written_instant(signed.not_after),
            },
            partial(_settle, written),
        )
        if not await written:
            raise Refused(Reason.AUDIT_UNAVAILABLE)
        log.event(
            "info",
            "certificate.issue",
            session=wanted.session,
            identity=snapshot.written(identity.trust, identity.name),
            source=wanted.source,
            serial=serial,
            issued_serial=f"{signed.serial:x}",
        )
        return signed.certificate_pem.decode("ascii")

    def _refusal(self, wanted: CertificateWanted, asked: Asked | None, refused: Refused) -> Refusal:
        """Return the answer. That somebody was invited, and refused, is recorded; of others their worker tells."""
        if isinstance(wanted, EnrolmentWanted):
            leaf = wanted.chain[0]
            turned_away = TurnedAway(
                session=wanted.session,
                trust=asked.identity.trust if asked is not None else None,
                name=asked.identity.name if asked is not None else None,
                groups=None,
                serial=f"{asked.certificate.serial_number:x}" if asked is not None else None,
                fingerprint=hashlib.sha256(leaf).hexdigest() if asked is not None else None,
                source=wanted.source,
                service=None,
                reason=refused.reason,
                message=refused.message[:_LONGEST_MESSAGE],
                claim=read_claim(leaf) if asked is None else None,
            )
            self._trail.invitation_refused(turned_away, time.monotonic())
            self._on_turned_away(refused.reason)
        return Refusal(wanted.connection, refused.reason, refused.message, refused.retry_after_s)

    @contextlib.contextmanager
    def _counted(self, settings: TrustSettings, wanted: CertificateWanted, asked: Asked) -> Iterator[None]:
        """Count what is issued within, so that nobody fills the authority's record, or the audit.

        Raises Refused with `connect_rate` for who asks too often, or more than once at a time.
        """
        rate = Rate(MOST_OF_ONE, min(_DAY_S, int(settings.renew_for_s)))
        enrolls = isinstance(wanted, EnrolmentWanted)
        owner = Owner("", asked.identity.trust, asked.identity.name)
        if enrolls:  # each by itself: who has stolen one must not use up what the next one to its victim is good for
            owner = Owner("invitation", asked.identity.trust, f"{asked.certificate.serial_number:x}")
        wait_s = self._rates.wait_s(owner, rate, time.time())
        if wait_s:
            what = "an invitation may be used again" if enrolls else "a certificate may be renewed"
            message = f"{what} {MOST_OF_ONE} times in {format_duration(rate.per_s)}"
            raise Refused(Reason.CONNECT_RATE, message, retry_after_s=wait_s)
        if owner in self._issuing:
            raise Refused(Reason.CONNECT_RATE, _ISSUING, retry_after_s=_BUSY_S)
        self._issuing.add(owner)
        try:
            yield
            self._rates.admit(owner, rate, time.time())
            self._rates.changed()  # no ledger is told, and nothing is to be kept for it
        finally:
            self._issuing.discard(owner)

    async def _in_thread(self, step: Callable[[], _T]) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, step)


def _check(snapshot: Snapshot, wanted: CertificateWanted, at: datetime) -> Asked:
    match wanted:
        case RenewalWanted():
            return renewing.check(snapshot, wanted, at)
        case EnrolmentWanted():
            return enrolling.check(snapshot, wanted, at)


def _issue(snapshot: Snapshot, wanted: CertificateWanted, asked: Asked, at: datetime) -> SignedCertificate:
    match wanted:
        case RenewalWanted():
            return renewing.issue(snapshot, asked, at)
        case EnrolmentWanted():
            return enrolling.issue(snapshot, asked, at)


def _settle(future: asyncio.Future[bool], written: bool) -> None:
    if not future.done():  # who waited has ended
        future.set_result(written)
