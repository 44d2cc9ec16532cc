"""What supervisor and workers say to each other (`channel`).

A packet is one message: an array of the name of the message's type and its fields, in MessagePack. Both sides are of
one version, since the supervisor starts the workers; `Hello` says so all the same, because a supervisor may be replaced
under workers that finish their sessions.
"""

from typing import Annotated, Literal, NamedTuple

import msgspec

from portguard.identity.claim import Claim
from portguard.reasons import Reason

VERSION = 6

MOST_ROLES = 10
"""In one `StandingWanted`: its answer has up to eight quotas for each."""

MOST_FORECAST = 25
"""Sessions in one `ForecastWanted`: its answer may have a sentence for each."""

MOST_CHAIN = 5
"""Certificates in one `RenewalWanted` or `EnrolmentWanted`, from the holder's to the anchor."""

LARGEST_CERTIFICATE_BYTES = 4096
LARGEST_CHAIN_BYTES = 10_000
"""Of one of them, and of all."""

LARGEST_REQUEST_BYTES = 4096
"""Of a request for a certificate (PKCS #10, DER)."""

LARGEST_BYTES = 16384
"""Of a packet: a name of 2048 bytes, 3000 of groups and 200 characters of a message, and room."""

Number = Annotated[int, msgspec.Meta(ge=0)]
"""No negative one: it would count from the end of a list, and take where it should give."""

Seconds = Annotated[float, msgspec.Meta(ge=0, le=1e9)]
"""No NaN and no infinity: added to a sum, that would be all that is left of it."""

SessionId = Annotated[str, msgspec.Meta(max_length=32)]
"""Hex digits. What is remembered of refusals is bounded in number, so each must be bounded, too."""

Direction = Annotated[int, msgspec.Meta(ge=0, le=1)]
"""0 is from clients, 1 to them."""


CLAIM_FIELDS = ("claimed_subject", "claimed_issuer", "claimed_serial", "claimed_fingerprint")
"""What the parts of a `Claim` are called in log and audit: never to be taken for what was verified."""


class Misconduct(ValueError):
    """What no worker says that is in our hands: it is no message, or about what is not the worker's."""


class _Message(msgspec.Struct, frozen=True, array_like=True, tag=True, forbid_unknown_fields=True, gc=False):
    """What a packet can be, by the name of its class."""


# What the supervisor says.


class Configure(_Message, frozen=True):
    """Work by this configuration from now on. Carries the memory file of the bundle."""


class Prepare(_Message, frozen=True):
    """Make ready to work by this configuration. Carries the memory file of the bundle.

    `reload` numbers it: an answer that came too late must not be taken for that to the next one.
    """

    reload: Number


class Apply(_Message, frozen=True):
    """Work from now on by the configuration that was made ready so, and look at every live session again."""

    reload: Number


class Accepted(_Message, frozen=True):
    """A client has connected. Carries the socket; `listener` counts the listeners in the configuration's order."""

    connection: Number
    listener: Number
    source_address: str
    source_port: Number


class Ticket(_Message, frozen=True):
    """The session is admitted. Its bytes are counted in `slot`.

    `leased`: it may move only what is leased to its `account`; `paced`: only its share of the account's bandwidth.
    `lease_bytes` are leased to the account with this, as by `Leased`; 0 is no lease, and one may follow.
    """

    connection: Number
    slot: Number
    account: Number
    leased: bool
    paced: bool
    lease_bytes: Number


class Refusal(_Message, frozen=True):
    """The session is not admitted."""

    connection: Number
    reason: Reason
    message: str
    retry_after_s: float | None


class End(_Message, frozen=True):
    """The session in `slot` ends now, for `reason`."""

    slot: Number
    reason: Reason


class Regranted(_Message, frozen=True):
    """The session in `slot` goes on under other limits; the fields are those of `Ticket`."""

    slot: Number
    account: Number
    leased: bool
    paced: bool
    lease_bytes: Number


class QuotaStanding(NamedTuple):
    """How an identity, or its role's pool, stands in one period, which ends at `end_s` (since the epoch)."""

    period: str
    pooled: bool
    limit_bytes: int
    granted_bytes: int
    used_bytes: int
    end_s: int


class RoleStanding(NamedTuple):
    """How an identity stands in one role: sessions that are open, and the time until it may connect again."""

    sessions: int
    connect_wait_s: float
    quotas: list[QuotaStanding]


class Standing(_Message, frozen=True):
    """How the identity of a `StandingWanted` stands, in each of its roles."""

    connection: Number
    roles: list[RoleStanding]


class ForeseenRefusal(NamedTuple):
    """A session would be refused now, as by a `Refusal`."""

    reason: Reason
    message: str
    retry_after_s: float | None


class Forecast(_Message, frozen=True):
    """How each session of a `ForecastWanted` would be answered now; None: it would be admitted."""

    connection: Number
    refusals: list[ForeseenRefusal | None]


class Issued(_Message, frozen=True):
    """The certificate that a `CertificateWanted` asked for, with those between it and the anchor, PEM."""

    connection: Number
    chain: str


class PastRefusal(NamedTuple):
    """An identity was refused, or its session was ended, at `time_s` since the epoch."""

    time_s: float
    service: str | None
    reason: str
    message: str
    session: str


class PastRefusals(_Message, frozen=True):
    """What the identity of a `PastRefusalsWanted` was refused of late, the latest one first."""

    connection: Number
    refusals: list[PastRefusal]


class Leased(_Message, frozen=True):
    """The account's sessions may move so many bytes more, in both directions together."""

    account: Number
    lease_bytes: Number


class Recalled(_Message, frozen=True):
    """What the account's sessions have not used of their leases is wanted back, even if that is nothing."""

    account: Number


class Closed(_Message, frozen=True):
    """The account's sessions end now, for `reason`."""

    account: Number
    reason: Reason


class Share(_Message, frozen=True):
    """The account's sessions may move so many bytes more in one direction."""

    account: Number
    direction: Direction
    share_bytes: Number


class Locked(_Message, frozen=True):
    """Whom this names is locked out, until `until_s` since the epoch; None: until further notice. See `LockTarget`."""

    kind: Literal["identity", "fingerprint", "serial"]
    trust: str
    value: str
    until_s: int | None


class Unlocked(_Message, frozen=True):
    """Whom this names is not locked out by that any more."""

    kind: Literal["identity", "fingerprint", "serial"]
    trust: str
    value: str


class Drain(_Message, frozen=True):
    """No more connections will come. End when the last session has."""


class Stop(_Message, frozen=True):
    """End all sessions now, for `reason`, and then yourself."""

    reason: Reason


# What a worker says.


class Hello(_Message, frozen=True):
    """The worker is there."""

    version: Number


class Configured(_Message, frozen=True):
    """The worker works by the configuration that it was sent last."""


class Prepared(_Message, frozen=True):
    """The worker is ready to work by the configuration of that reload; or it is not, because of `failure`."""

    reload: Number
    failure: str | None


class Rechecked(_Message, frozen=True):
    """All live sessions were looked at by the new configuration; those that lost their right are being closed."""

    reload: Number
    closed: Number


class Regrant(_Message, frozen=True):
    """The session in `slot` goes on in `role`, another one or under other kinds of limits. It is held meanwhile."""

    slot: Number
    role: str


class Admit(_Message, frozen=True):
    """May this session begin? The policy has said yes."""

    connection: Number
    session: SessionId
    trust: str
    name: str
    service: str
    role: str
    groups: list[str]
    serial: str
    fingerprint: str
    source: str | None
    handshake_s: Seconds  # how long the TLS handshake took
    policy: str  # the revision that has said yes


class StandingWanted(_Message, frozen=True):
    """How does this identity stand in these roles?"""

    connection: Number
    trust: str
    name: str
    roles: Annotated[list[str], msgspec.Meta(max_length=MOST_ROLES)]


class ForecastWanted(_Message, frozen=True):
    """Would these sessions of this identity begin now, each by itself? The policy has said yes.

    `sessions` are pairs of service and role. Nothing is counted.
    """

    connection: Number
    trust: str
    name: str
    serial: str
    fingerprint: str
    sessions: Annotated[list[tuple[str, str]], msgspec.Meta(max_length=MOST_FORECAST)]


class PastRefusalsWanted(_Message, frozen=True):
    """What was this identity refused of late?"""

    connection: Number
    trust: str
    name: str


class _AnotherWanted(_Message, frozen=True):
    """Who comes with a certificate wants another one.

    `chain` is the one that there is up to its anchor, `request` the request (PKCS #10) for the next, all DER; `proof`
    is the header of `portguard.pki.proof`, as the client sent it.
    """

    connection: Number
    session: SessionId
    source: str | None
    chain: Annotated[
        list[Annotated[bytes, msgspec.Meta(max_length=LARGEST_CERTIFICATE_BYTES)]],
        msgspec.Meta(min_length=2, max_length=MOST_CHAIN),
    ]
    request: Annotated[bytes, msgspec.Meta(max_length=LARGEST_REQUEST_BYTES)]
    proof: str | None


class RenewalWanted(_AnotherWanted, frozen=True):
    """May the holder of a certificate have another one, for the same identity?"""


class EnrolmentWanted(_AnotherWanted, frozen=True):
    """May the holder of an invitation have the certificate that it is for? A refusal is recorded with the answer."""


CertificateWanted = RenewalWanted | EnrolmentWanted


class TurnedAway(_Message, frozen=True):
    """Somebody was refused a session, or the handshake. What is not known is None.

    `claim` is what the certificate says of one who is nobody to us.
    """

    session: SessionId
    trust: str | None
    name: str | None
    groups: list[str] | None
    serial: str | None
    fingerprint: str | None
    source: str | None
    service: str | None
    reason: Reason
    message: str
    claim: Claim | None = None


class Gone(_Message, frozen=True):
    """The connection ended without becoming a session. `handshake_s` is None when there was no whole handshake."""

    connection: Number
    handshake_s: Seconds | None


class LeaseReturned(_Message, frozen=True):
    """The account's sessions will not use so many bytes of their leases."""

    account: Number
    lease_bytes: Number


class Ended(_Message, frozen=True):
    """The session ended. `upstream` is the address that it reached, None when it reached none.

    `returned` is what the last session of an account says besides; None: it was not the last, or had no lease.
    """

    slot: Number
    reason: Reason
    upstream: str | None
    returned: LeaseReturned | None


class LeaseWanted(_Message, frozen=True):
    """The account's lease is half used, or `empty`: sessions wait."""

    account: Number
    empty: bool


class ShareWanted(_Message, frozen=True):
    """The account's share in one direction is used up, and sessions wait."""

    account: Number
    direction: Direction


class Beat(_Message, frozen=True):
    """The worker's loop turns."""


class Tried(_Message, frozen=True):
    """Which upstreams were dialled of late, and whether the last attempt reached them: [("10.0.3.7:5432", True), …]."""

    upstreams: list[tuple[str, bool]]


Message = (
    Configure
    | Prepare
    | Apply
    | Accepted
    | Ticket
    | Refusal
    | End
    | Regranted
    | Standing
    | Forecast
    | PastRefusals
    | Issued
    | Leased
    | Recalled
    | Closed
    | Share
    | Locked
    | Unlocked
    | Drain
    | Stop
    | Hello
    | Configured
    | Prepared
    | Rechecked
    | Regrant
    | Admit
    | StandingWanted
    | ForecastWanted
    | PastRefusalsWanted
    | RenewalWanted
    | EnrolmentWanted
    | TurnedAway
    | Gone
    | Ended
    | LeaseWanted
    | LeaseReturned
    | ShareWanted
    | Beat
    | Tried
)
_encode = msgspec.msgpack.Encoder().encode
_decoder: msgspec.msgpack.Decoder[Message] = msgspec.msgpack.Decoder(Message)


def encode(message: Message) -> bytes:
    """Return the message as a packet. Raises ValueError for one that the other side would not receive whole."""
    packet = _encode(message)
    if len(packet) > LARGEST_BYTES:
        raise ValueError(f"channel: expected a message of at most {LARGEST_BYTES} bytes, got {len(packet)}")
    return packet


def decode(packet: bytes) -> Message:
    """Return the message in a packet. *Fails closed*: raises Misconduct unless each field is what this version knows.

    The other side may be a worker that is in somebody else's hands.
    """
    try:
        return _decoder.decode(packet)
    except msgspec.DecodeError as error:
        raise Misconduct(f"channel: expected a message of version {VERSION}, got {packet[:100]!r}: {error}") from None
