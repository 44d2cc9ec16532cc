"""How an accepted connection gets to a worker: to the one with the fewest, or to none when there is no room."""

import socket
import time
from collections.abc import Mapping
from functools import lru_cache
from ipaddress import ip_address

from portguard.errors import Refused
from portguard.gateway.admission import Admission
from portguard.gateway.audit_trail import AuditTrail
from portguard.gateway.messages import Accepted
from portguard.gateway.meter import Meter
from portguard.gateway.workers import Worker
from portguard.observe import log

# Clients come back, and taking an address apart costs more than remembering it.
_address = lru_cache(maxsize=4096)(ip_address)


class Assigner:
    """Passes connections on. `serving` are the workers that serve, by number, kept by others."""

    def __init__(
        self,
        serving: Mapping[int, Worker],
        *,
        admission: Admission,
        meter: Meter,
        trail: AuditTrail,
        floods: log.Floods,
    ):
        self._serving = serving
        self._admission = admission
        self._meter = meter
        self._trail = trail
        self._floods = floods

    def assign(self, number: int, sock: socket.socket, address: tuple[str, int]) -> None:
        """Pass on a connection that came to listener `number`, or close it; its socket is no longer the caller's.

        To be called only while a worker serves. *Fails closed*: without a place, nothing is read from it.
        """
        serving = self._serving
        worker = serving[min(serving, key=self._admission.load)]
        try:
            connection = self._admission.begin(worker.number, _address(address[0]))
        except Refused as refused:
            sock.close()
            self._floods.event(
                time.monotonic(),
                "warning",
                "connection.refuse",
                source=address[0],
                reason=refused.reason,
                message=refused.message,
            )
            self._meter.refused(None, refused.reason)
            self._trail.refused_at_once(address[0], refused.reason, time.monotonic())
            return
        worker.channel.send(Accepted(connection, number, address[0], address[1]), sock.detach())
