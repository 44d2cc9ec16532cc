"""What supervisor and workers say to each other (`channel`).

A packet is one message: a JSON array of the name of the message's type and its fields. Both sides are of one version,
since the supervisor starts the workers; `Hello` says so all the same, because a supervisor may be replaced under
workers that finish their sessions.
"""

import json
import typing
from typing import Literal, NamedTuple

from portguard.reasons import Reason

VERSION = 2

MOST_ROLES = 10
"""In one `StandingWanted`: its answer has up to eight quotas for each."""

LARGEST_BYTES = 16384
"""Of a packet: a name of 2048 bytes, 3000 of groups and 200 characters of a message, each escaped, and room."""


# What the supervisor says.


class Configure(NamedTuple):
    """Work by this configuration from now on. Carries the memory file of the bundle."""


class Prepare(NamedTuple):
    """Make ready to work by this configuration. Carries the memory file of the bundle.

    `reload` numbers it: an answer that came too late must not be taken for that to the next one.
    """

    reload: int


class Apply(NamedTuple):
    """Work from now on by the configuration that was made ready so, and look at every live session again."""

    reload: int


class Accepted(NamedTuple):
    """A client has connected. Carries the socket; `listener` counts the listeners in the configuration's order."""

    connection: int
    listener: int
    source_address: str
    source_port: int


class Ticket(NamedTuple):
    """The session is admitted. Its bytes are counted in `slot`.

    `leased`: it may move only what is leased to its `account`; `paced`: only its share of the account's bandwidth.
    `lease_bytes` are leased to the account with this, as by `Leased`; 0 is no lease, and one may follow.
    """

    connection: int
    slot: int
    account: int
    leased: bool
    paced: bool
    lease_bytes: int


class Refusal(NamedTuple):
    """The session is not admitted."""

    connection: int
    reason: str
    message: str
    retry_after_s: float | None


class End(NamedTuple):
    """The session in `slot` ends now, for `reason`."""

    slot: int
    reason: str


class Regranted(NamedTuple):
    """The session in `slot` goes on under other limits; the fields are those of `Ticket`."""

    slot: int
    account: int
    leased: bool
    paced: bool
    lease_bytes: int


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


class Standing(NamedTuple):
    """How the identity of a `StandingWanted` stands, in each of its roles."""

    connection: int
    roles: list[RoleStanding]


class PastRefusal(NamedTuple):
    """An identity was refused, or its session was ended, at `time_s` since the epoch."""

    time_s: float
    service: str | None
    reason: str
    message: str
    session: str


class PastRefusals(NamedTuple):
    """What the identity of a `PastRefusalsWanted` was refused of late, the latest one first."""

    connection: int
    refusals: list[PastRefusal]


class Leased(NamedTuple):
    """The account's sessions may move so many bytes more, in both directions together."""

    account: int
    lease_bytes: int


class Recalled(NamedTuple):
    """What the account's sessions have not used of their leases is wanted back, even if that is nothing."""

    account: int


class Closed(NamedTuple):
    """The account's sessions end now, for `reason`."""

    account: int
    reason: str


class Share(NamedTuple):
    """The account's sessions may move so many bytes more in one direction: 0 from clients, 1 to them."""

    account: int
    direction: int
    share_bytes: int


class Locked(NamedTuple):
    """Whom this names is locked out, until `until_s` since the epoch; None: until further notice. See `LockTarget`."""

    kind: Literal["identity", "fingerprint", "serial"]
    trust: str
    value: str
    until_s: int | None


class Unlocked(NamedTuple):
    """Whom this names is not locked out by that any more."""

    kind: Literal["identity", "fingerprint", "serial"]
    trust: str
    value: str


class Drain(NamedTuple):
    """No more connections will come. End when the last session has."""


class Stop(NamedTuple):
    """End all sessions now, for `reason`, and then yourself."""

    reason: str


# What a worker says.


class Hello(NamedTuple):
    """The worker is there."""

    version: int


class Configured(NamedTuple):
    """The worker works by the configuration that it was sent last."""


class Prepared(NamedTuple):
    """The worker is ready to work by the configuration of that reload; or it is not, because of `failure`."""

    reload: int
    failure: str | None


class Rechecked(NamedTuple):
    """All live sessions were looked at by the new configuration; those that lost their right are being closed."""

    reload: int
    closed: int


class Regrant(NamedTuple):
    """The session in `slot` goes on in `role`, another one or under other kinds of limits. It is held meanwhile."""

    slot: int
    role: str


class Admit(NamedTuple):
    """May this session begin? The policy has said yes."""

    connection: int
    session: str
    trust: str
    name: str
    service: str
    role: str
    groups: list[str]
    serial: str
    fingerprint: str
    source: str | None
    handshake_s: float  # how long the TLS handshake took
    policy: str  # the revision that has said yes


class StandingWanted(NamedTuple):
    """How does this identity stand in these roles? At most `MOST_ROLES` of them."""

    connection: int
    trust: str
    name: str
    roles: list[str]


class PastRefusalsWanted(NamedTuple):
    """What was this identity refused of late?"""

    connection: int
    trust: str
    name: str


class TurnedAway(NamedTuple):
    """Somebody was refused a session, or the handshake. What is not known is None."""

    session: str
    trust: str | None
    name: str | None
    groups: list[str] | None
    serial: str | None
    fingerprint: str | None
    source: str | None
    service: str | None
    reason: str
    message: str


class Gone(NamedTuple):
    """The connection ended without becoming a session. `handshake_s` is None when there was no whole handshake."""

    connection: int
    handshake_s: float | None


class Ended(NamedTuple):
    """The session ended. `upstream` is the address that it reached, None when it reached none.

    `account`: whose last session here it was, and `lease_bytes` are returned of its lease, as by `LeaseReturned`. None:
    it had no lease, or others go on with it.
    """

    slot: int
    reason: str
    upstream: str | None
    account: int | None
    lease_bytes: int


class LeaseWanted(NamedTuple):
    """The account's lease is half used, or `empty`: sessions wait."""

    account: int
    empty: bool


class LeaseReturned(NamedTuple):
    """The account's sessions will not use so many bytes of their leases."""

    account: int
    lease_bytes: int


class ShareWanted(NamedTuple):
    """The account's share in one direction is used up, and sessions wait."""

    account: int
    direction: int


class Beat(NamedTuple):
    """The worker's loop turns."""


class Tried(NamedTuple):
    """Which upstreams were dialled of late, and whether the last attempt reached them: [["10.0.3.7:5432", true], …]."""

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
    | PastRefusals
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
    | PastRefusalsWanted
    | TurnedAway
    | Gone
    | Ended
    | LeaseWanted
    | LeaseReturned
    | ShareWanted
    | Beat
    | Tried
)
_TYPES = {kind.__name__: kind for kind in typing.get_args(Message)}

_to_json = json.JSONEncoder(separators=(",", ":")).encode


def encode(message: Message) -> bytes:
    """Return the message as a packet. Raises ValueError for one that the other side would not receive whole."""
    packet = _to_json((type(message).__name__, *message)).encode()
    if len(packet) > LARGEST_BYTES:
        raise ValueError(f"channel: expected a message of at most {LARGEST_BYTES} bytes, got {len(packet)}")
    return packet


def decode(packet: bytes) -> Message:
    """Return the message in a packet. Raises ValueError for one that this version does not know."""
    tag, *fields = json.loads(packet.decode())
    try:
        message: Message = _TYPES[tag](*fields)
    except (KeyError, TypeError):
        raise ValueError(f"channel: expected a message of version {VERSION}, got {packet[:100]!r}") from None
    return message


def refused(refusal: Refusal) -> tuple[Reason, str, float | None]:
    """Return the parts of a refusal, its reason as one again."""
    return Reason(refusal.reason), refusal.message, refusal.retry_after_s


def role_standings(standing: Standing) -> list[RoleStanding]:
    """Return the parts of a standing, each as what it is again."""
    return [
        RoleStanding(sessions, wait_s, [QuotaStanding(*quota) for quota in quotas])
        for sessions, wait_s, quotas in standing.roles
    ]


def past_refusals(past: PastRefusals) -> list[PastRefusal]:
    """Return the refusals, each as one again."""
    return [PastRefusal(*refusal) for refusal in past.refusals]
