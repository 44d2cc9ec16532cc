"""Certificates that the gateway renews: from a worker's question to the authority, the audit, and the answer.

A worker that somebody has taken over could ask in the name of whoever it likes. So nothing is taken from it but what
the client has signed, and all of that is looked at here again: the chain of the certificate to be renewed, the request,
and that the key of the old certificate wants the new one. Either the request is for that very key, and so signed by it,
or there is a proof (`portguard.pki.proof`). What such a worker can get is a certificate whose private key it lacks.

One thread does what takes long, one renewal after the other: SQLite, signatures, and the files of the authority.
"""

import asyncio
import contextlib
import hashlib
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TypeVar

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes

from portguard.errors import PortguardError, Refused
from portguard.gateway.admission import Admission
from portguard.gateway.audit_trail import AuditTrail
from portguard.gateway.configuration import TrustSettings
from portguard.gateway.issuing import open_authority_of
from portguard.gateway.messages import LARGEST_CHAIN_BYTES, Message, Misconduct, Refusal, RenewalWanted, Renewed
from portguard.gateway.snapshot import Snapshot
from portguard.gateway.workers import Worker
from portguard.identity.issued import check_issued
from portguard.identity.names import Identity
from portguard.identity.trust import Caller, Trusts
from portguard.limits.ledger import Owner
from portguard.limits.locks import Locks
from portguard.limits.rates import ConnectRates
from portguard.observe import log
from portguard.pki.errors import NotRenewed, PkiError
from portguard.pki.issued import SignedCertificate
from portguard.pki.proof import Purpose, check_proof
from portguard.pki.renewal import renew
from portguard.pki.request import read_request
from portguard.policy.quantities import Rate, format_duration
from portguard.reasons import Reason

_T = TypeVar("_T")

MOST_AT_ONCE = 16
"""Renewals that are under way, or wait for their turn: each takes some milliseconds."""

RENEWALS = 10
"""How often an identity may renew in a day, or in the time for which it gets a certificate, where that is shorter."""

_DAY_S = 86_400
_BUSY_S = 2.0


@dataclass(frozen=True, slots=True)
class _Asked:
    caller: Caller
    certificate: x509.Certificate
    public_key: CertificatePublicKeyTypes


class Renewals:
    """Answers workers that ask for certificates. Belongs to the running loop.

    `locks`, `admission` and `trail` each may refuse one. `send(worker, message)` reaches a worker, and does nothing for
    one that is gone.
    """

    def __init__(
        self,
        snapshot: Snapshot,
        *,
        locks: Locks,
        admission: Admission,
        trail: AuditTrail,
        send: Callable[[int, Message], None],
    ):
        self._locks = locks
        self._admission = admission
        self._trail = trail
        self._send = send
        self._rates = ConnectRates()
        self._issuing: set[Identity] = set()  # whose certificate is being issued
        self._tasks: dict[int, asyncio.Task[None]] = {}  # by connection
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="renewal")
        self.configure(snapshot)

    def configure(self, snapshot: Snapshot) -> None:
        """Renew by another configuration from now on."""
        self._snapshot = snapshot

    @property
    def under_way(self) -> bool:
        """Whether somebody waits for a certificate."""
        return bool(self._tasks)

    def renew(self, worker: Worker, request: RenewalWanted) -> None:
        """Answer a worker that asks for a certificate, in a while. *Fails closed*.

        Raises Misconduct when it does not ask for a connection of its own, or asks twice for one.
        """
        connection = request.connection
        self._admission.check_pending(connection, worker.number)
        if connection in self._tasks:
            raise Misconduct(f"connection {connection}: expected one request for a certificate at a time, got another")
        if sum(map(len, request.chain)) > LARGEST_CHAIN_BYTES:
            raise Misconduct(f"connection {connection}: expected a chain of {LARGEST_CHAIN_BYTES} bytes, got more")
        if len(self._tasks) >= MOST_AT_ONCE:
            message = f"{MOST_AT_ONCE} renewals are under way"
            self._send(worker.number, Refusal(connection, Reason.GATEWAY_FULL, message, _BUSY_S))
            return
        task = asyncio.create_task(self._answer(worker.number, request), name=f"renewal {connection}")
        self._tasks[connection] = task
        task.add_done_callback(lambda _: self._tasks.pop(connection))

    async def stop(self) -> None:
        """End what is under way."""
        for task in self._tasks.values():
            task.cancel()
        await asyncio.to_thread(self._thread.shutdown, cancel_futures=True)

    async def _answer(self, worker: int, request: RenewalWanted) -> None:
        answer: Renewed | Refusal
        try:
            answer = Renewed(request.connection, await self._renew(request))
        except Refused as refused:
            answer = Refusal(request.connection, refused.reason, refused.message, refused.retry_after_s)
        except (PortguardError, OSError) as error:
            # Where the authority is, and what is wrong with it, is for the operator's eyes.
            log.event("error", "certificate.issue_failed", message=str(error))
            message = "the authority cannot issue certificates now"
            answer = Refusal(request.connection, Reason.LEDGER_UNAVAILABLE, message, None)
        self._send(worker, answer)

    async def _renew(self, request: RenewalWanted) -> str:
        """Return the new chain, PEM. Raises Refused; PortguardError and OSError when the authority fails."""
        snapshot = self._snapshot
        at = datetime.now(UTC)
        asked = await self._in_thread(partial(_check, snapshot.trusts, request, at))
        identity, serial = asked.caller.identity, f"{asked.caller.serial:x}"
        [settings] = [trust for trust in snapshot.configuration.trusts if trust.name == identity.trust]
        if settings.authority is None:
            raise Refused(Reason.BAD_REQUEST, f"certificates of trust {identity.trust} are not renewed here")
        self._locks.refuse(identity, asked.caller.fingerprint, serial, time.time())
        if self._trail.refuses:
            raise Refused(Reason.AUDIT_UNAVAILABLE)
        with self._counted(settings, identity):
            signed = await self._in_thread(partial(_issue, snapshot.trusts, settings, asked, at))
        written: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._trail.issues(
            f"{signed.serial:x}",
            {
                "session": request.session,
                "trust": identity.trust,
                "identity": identity.name,
                "source": request.source,
                "serial": serial,
                "fingerprint": asked.caller.fingerprint,
                "issued_serial": f"{signed.serial:x}",
                "issued_fingerprint": hashlib.sha256(signed.record.der).hexdigest(),
                "not_after": signed.not_after.strftime("%Y-%m-%dT%H:%M:%SZ"),
            },
            partial(_settle, written),
        )
        if not await written:
            raise Refused(Reason.AUDIT_UNAVAILABLE)
        log.event(
            "info",
            "certificate.issue",
            session=request.session,
            identity=snapshot.written(identity.trust, identity.name),
            source=request.source,
            serial=serial,
            issued_serial=f"{signed.serial:x}",
        )
        return signed.certificate_pem.decode("ascii")

    @contextlib.contextmanager
    def _counted(self, settings: TrustSettings, identity: Identity) -> Iterator[None]:
        """Count what is issued within, so that nobody fills the authority's record.

        Raises Refused with `connect_rate` for who renews too often, or more than once at a time.
        """
        rate = Rate(RENEWALS, min(_DAY_S, int(settings.renew_for_s)))
        owner = Owner("", identity.trust, identity.name)
        wait_s = self._rates.wait_s(owner, rate, time.time())
        if wait_s:
            message = f"a certificate may be renewed {RENEWALS} times in {format_duration(rate.per_s)}"
            raise Refused(Reason.CONNECT_RATE, message, retry_after_s=wait_s)
        if identity in self._issuing:
            raise Refused(Reason.CONNECT_RATE, "a renewal is under way already", retry_after_s=_BUSY_S)
        self._issuing.add(identity)
        try:
            yield
            self._rates.admit(owner, rate, time.time())
            self._rates.changed()  # no ledger is told, and nothing is to be kept for it
        finally:
            self._issuing.discard(identity)

    async def _in_thread(self, step: Callable[[], _T]) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, step)


def _check(trusts: Trusts, wanted: RenewalWanted, at: datetime) -> _Asked:
    """Who asks, and for which key. *Fails closed*: raises Refused."""
    check_issued(wanted.chain)
    caller = trusts.identify(wanted.chain, wanted.chain, at)
    leaf = wanted.chain[0]
    certificate = x509.load_der_x509_certificate(leaf)
    try:
        request = read_request(wanted.request, "request")
        if request.public_key != certificate.public_key():
            if wanted.proof is None:
                raise PkiError("request", "the key of the certificate, or a proof by it", "another key without one")
            check_proof(Purpose.RENEWAL, wanted.proof, leaf, request.der, at.timestamp())
    except PkiError as error:
        raise Refused(Reason.BAD_REQUEST, str(error)) from None
    return _Asked(caller, certificate, request.public_key)


def _settle(future: asyncio.Future[bool], written: bool) -> None:
    if not future.done():  # who waited has ended
        future.set_result(written)


def _issue(trusts: Trusts, settings: TrustSettings, asked: _Asked, at: datetime) -> SignedCertificate:
    """Raises Refused for a certificate that the authority's own record does not have as good, PkiError."""
    assert settings.authority is not None
    [trust] = [each for each in trusts.every if each.name == settings.name]
    authority = open_authority_of(trust, settings.authority)
    valid_for = timedelta(seconds=settings.renew_for_s)
    name = asked.caller.identity.name
    try:
        return renew(authority, asked.certificate, asked.public_key, name, at=at, valid_for=valid_for)
    except NotRenewed as error:
        if error.revoked:
            raise Refused(Reason.CERTIFICATE_REVOKED) from None
        message = "the authority has no record of the client certificate, and does not renew it"
        raise Refused(Reason.CERTIFICATE_UNTRUSTED, message) from None
