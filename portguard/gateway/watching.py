"""Reload by itself: with `[gateway] watch = true`, when a file that the configuration names has changed.

It is looked for once a second, and not asked of the kernel: that works on every file system, tells of symbolic links
that are swapped and of folders that are mounted, and costs a stat(2) a file. A change counts once it has stood still
for one more look, so that most files are whole by then; who wants to be sure writes another file and renames it.
"""

import asyncio
import os
import stat
from collections.abc import Callable, Hashable, Sequence

from portguard.gateway.bundle import Bundle, read_bundle
from portguard.gateway.configuration import read_configuration
from portguard.gateway.reloading import Reloader
from portguard.policy.read import policy_file_names

_LOOK_S = 1.0


class Stillness:
    """Tells when something that is looked at has changed and stands still again."""

    def __init__(self) -> None:
        self._last: Hashable = None
        self._told: Hashable = None

    def look(self, seen: Hashable) -> bool:
        """Whether this is as at the last look, and nothing that was told of already."""
        still, self._last = seen == self._last, seen
        if not still or seen == self._told:
            return False
        self._told = seen
        return True


class Watcher:
    """Has the reloader reload what has changed. `may()` tells whether it may now.

    A change that fails is told once, and tried again when files change again.
    """

    def __init__(self, reloader: Reloader, *, may: Callable[[], bool]):
        self._reloader = reloader
        self._may = may
        self._stillness = Stillness()
        self._paths: tuple[str, ...] = ()
        self._paths_of: Bundle | None = None

    async def run(self) -> None:
        """Watch, until cancelled, for as long as the configuration in force says so."""
        while True:
            await asyncio.sleep(_LOOK_S)
            await self.look()

    async def look(self) -> None:
        """Look once."""
        reloader = self._reloader
        if not (reloader.in_force.snapshot.configuration.gateway.watch and self._may()):
            return
        last = reloader.last_read
        if self._paths_of is not last:
            self._paths, self._paths_of = await asyncio.to_thread(watched, last), last
        if not self._stillness.look(await asyncio.to_thread(signature, self._paths)):
            return
        bundle = await asyncio.to_thread(read_bundle, last.configuration_path)
        # Somebody may have reloaded it by hand meanwhile, or a file was only touched.
        last = reloader.last_read
        if (bundle.revision, bundle.problems) != (last.revision, last.problems) and self._may():
            await reloader.reload_quietly("watch")


def watched(bundle: Bundle) -> tuple[str, ...]:
    """The paths of all files and folders that matter, also of those that could not be read."""
    path = bundle.configuration_path
    paths = {path, *bundle.files, *(problem.file for problem in bundle.problems)}
    if path in bundle.files:
        paths.add(read_configuration(path, bundle.files[path], []).gateway.policy)
    return tuple(sorted(paths - {""}))


def signature(paths: Sequence[str]) -> Hashable:
    """What differs when one of them has changed, is another one, or has come or gone."""
    return tuple(map(_signature, paths))


def _signature(path: str) -> Hashable:
    try:
        status = os.stat(path)
        if stat.S_ISDIR(status.st_mode):
            return tuple(policy_file_names(os.listdir(path)))
    except OSError as error:
        return error.errno
    # The time of the inode's change too: a mode that was too wide for a key may have been put right.
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
