"""Reexec: another version of the program takes over in place: the same process, sockets, slots and workers.

First it is tried: its `serve --check` must take the files, and a process of it must understand what would be left to it
and start a worker that serves. Until then nothing has changed. Then this program falls silent, writes down what it
knows (`handover`), and becomes the other one. The workers carry their sessions on meanwhile, and to the end.
"""

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from portguard.gateway.handover import Handover, NotTakenOver

_TRIAL_S = 180.0
_LONGEST_WORDS = 1000


async def try_out(handover: Handover) -> None:
    """See whether the version that is installed now could take over. Raises NotTakenOver."""
    await _succeed("serve", "--check", "-c", handover.bundle.configuration_path, module="portguard")
    descriptor = handover.write()
    try:
        await _succeed(str(descriptor), module="portguard.gateway.trial", pass_fds=(descriptor,))
    finally:
        os.close(descriptor)


HELD_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR2)
"""What comes between two programs waits until the second one hears it: most would end the process meanwhile."""


def become(handover: Handover) -> NoReturn:
    """Be the version that is installed now, from here on. Raises OSError."""
    environment = dict(os.environ)
    handover.leave(environment)
    signal.pthread_sigmask(signal.SIG_BLOCK, HELD_SIGNALS)
    # As this one was called: options of the interpreter, a script or a module, and the arguments.
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)  # noqa: S606 - nothing of it is a stranger's


def keep_name() -> None:
    """Let this process, which another program has become, be listed by the name that it had: that of its script.

    The kernel lists it by the name of the interpreter now, and `pgrep portguard` would find nothing.
    """
    script = Path(sys.argv[0])
    if script.name != "__main__.py":  # `python -m portguard` was listed by the interpreter's name all the time
        with contextlib.suppress(OSError):
            Path("/proc/self/comm").write_text(script.name)


async def _succeed(*arguments: str, module: str, pass_fds: Sequence[int] = ()) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-P",
        "-m",
        module,
        *arguments,
        pass_fds=pass_fds,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(_TRIAL_S):
            _, said = await process.communicate()
    except TimeoutError:
        process.kill()
        await process.wait()
        raise NotTakenOver(f"trial: expected {module} to end within {_TRIAL_S:.0f} s, got no end") from None
    if process.returncode != 0:
        words = said.decode(errors="replace").strip()[-_LONGEST_WORDS:]
        raise NotTakenOver(f"trial: expected {module} to succeed, got exit code {process.returncode}: {words}")
