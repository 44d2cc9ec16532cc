"""Who may do what over the control socket: three levels, given to users and groups of the host."""

from dataclasses import dataclass
from enum import IntEnum
from typing import Literal


class Level(IntEnum):
    """What a caller may do. Each level includes those below it."""

    VIEWER = 1
    OPERATOR = 2
    ADMIN = 3

    def __str__(self) -> str:
        return self.name.lower()


@dataclass(frozen=True, slots=True, order=True)
class Principal:
    """A user or group of the host, `user:anna` or `group:audit`. Whether it exists is known when it is used."""

    kind: Literal["user", "group"]
    name: str

    def __str__(self) -> str:
        return f"{self.kind}:{self.name}"


@dataclass(frozen=True, slots=True)
class Peer:
    """Who is calling, as the kernel tells it: the process that connected. `name` is None for a user id without one."""

    uid: int
    gid: int
    pid: int
    name: str | None

    def __str__(self) -> str:
        return f"uid {self.uid}" if self.name is None else f"uid {self.uid} ({self.name})"


@dataclass(frozen=True, slots=True)
class Account:
    """A user of the host. `groups` are those that were asked about and that it belongs to."""

    name: str
    groups: frozenset[str]


@dataclass(frozen=True, slots=True)
class Access:
    """The levels as `[control]` gives them out. The user that the gateway runs as, `own_uid`, is an admin anyway.

    That user could read and change the process itself: to refuse it here would protect nothing. Of its processes those
    that cannot, confined workers, are no callers; see `ControlServer`.
    """

    own_uid: int
    viewers: tuple[Principal, ...] = ()
    operators: tuple[Principal, ...] = ()
    admins: tuple[Principal, ...] = ()

    @property
    def groups(self) -> frozenset[str]:
        """The groups that matter for a level."""
        everybody = (*self.viewers, *self.operators, *self.admins)
        return frozenset(principal.name for principal in everybody if principal.kind == "group")

    def level(self, uid: int, account: Account | None) -> Level | None:
        """The highest level of a user; `account` is None for one that the host does not know. *Fails closed.*"""
        if uid == self.own_uid:
            return Level.ADMIN
        if account is None:
            return None
        for level, principals in (
            (Level.ADMIN, self.admins),
            (Level.OPERATOR, self.operators),
            (Level.VIEWER, self.viewers),
        ):
            if any(_is(account, principal) for principal in principals):
                return level
        return None


def _is(account: Account, principal: Principal) -> bool:
    if principal.kind == "user":
        return principal.name == account.name
    return principal.name in account.groups
