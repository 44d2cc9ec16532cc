"""CPU time and memory of a process family, read from the kernel, and facts about the machine."""

import os
import platform
import ssl
import time
from dataclasses import dataclass
from pathlib import Path

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_KIB = 1024


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes of all processes together. `pss` counts a shared page once, `rss` in every process that maps it."""

    pss: int
    rss: int


@dataclass(frozen=True, slots=True)
class _Stat:
    """What /proc/PID/stat tells (proc(5)); `reaped_s` is the CPU time of children that ended and were waited for."""

    pid: int
    parent: int
    session: int
    reaped_s: float


class Family:
    """A process, its descendants, and whatever is in its session: a daemon's child that lost its parent counts too."""

    def __init__(self, leader: int):
        self.leader = leader

    def members(self) -> list[int]:
        """The processes that exist now."""
        return [stat.pid for stat in self._stats()]

    def cpu_s(self) -> float:
        """CPU seconds, user and system, that the family has used so far.

        Exact to the nanosecond for processes that live, threads that ended included; to 10 ms for those that ended.
        """
        return sum(stat.reaped_s + _process_clock_s(stat.pid) for stat in self._stats())

    def settled_cpu_s(self, patience_s: float = 5.0) -> float:
        """`cpu_s()` once the family has come to rest: what a load set off belongs to it, also after its last byte.

        A family that never rests is read after `patience_s`.
        """
        deadline = time.monotonic() + patience_s
        quiet = 0
        before = self.cpu_s()
        while quiet < 5 and time.monotonic() < deadline:
            time.sleep(0.02)
            now = self.cpu_s()
            quiet = quiet + 1 if now - before < 0.0005 else 0
            before = now
        return before

    def memory(self) -> Memory:
        """Memory now. Kernel memory, such as socket buffers, is not in it."""
        pss = rss = 0
        for pid in self.members():
            try:
                rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
            except (FileNotFoundError, ProcessLookupError):
                continue
            fields = dict(line.split(":", 1) for line in rollup.splitlines()[1:])
            pss += int(fields["Pss"].split()[0]) * _KIB
            rss += int(fields["Rss"].split()[0]) * _KIB
        return Memory(pss, rss)

    def _stats(self) -> list[_Stat]:
        everything = [stat for stat in map(_read_stat, map(int, filter(str.isdigit, os.listdir("/proc")))) if stat]
        family = {stat.pid for stat in everything if self.leader in {stat.pid, stat.session}}
        grown = True
        while grown:
            children = {stat.pid for stat in everything if stat.parent in family}
            grown = not children <= family
            family |= children
        return [stat for stat in everything if stat.pid in family]


def _read_stat(pid: int) -> _Stat | None:
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The command name stands in parentheses and may contain any character.
    fields = text.rpartition(")")[2].split()
    reaped_ticks = int(fields[13]) + int(fields[14])
    return _Stat(pid, parent=int(fields[1]), session=int(fields[3]), reaped_s=reaped_ticks / _TICKS_PER_S)


def _process_clock_s(pid: int) -> float:
    """Read the CPU clock of another process; its id is made as clock_getcpuclockid(3) does, which Python lacks."""
    try:
        return time.clock_gettime_ns((~pid << 3) | 2) / 1e9
    except OSError:
        return 0.0


@dataclass(frozen=True, slots=True)
class Machine:
    """What the figures depend on."""

    cpu: str
    cores: int
    kernel: str
    python: str
    openssl: str
    load_average: float

    @property
    def busy(self) -> bool:
        """Say whether others take so much of the machine that the figures mean little."""
        return self.load_average > 0.5 * self.cores


def machine() -> Machine:
    """Describe this machine as it is now; the load average is that of the last minute."""
    models = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return Machine(
        cpu=models[0].partition(":")[2].strip() if models else platform.machine(),
        cores=len(os.sched_getaffinity(0)),
        kernel=platform.release(),
        python=platform.python_version(),
        openssl=ssl.OPENSSL_VERSION,
        load_average=os.getloadavg()[0],
    )
