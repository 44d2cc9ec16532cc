"""The descriptors of this process, for tests that nothing stays open."""

import gc
import os


def open_descriptors() -> set[str]:
    """Those that are open, by number."""
    # What other tests left to the garbage collector would else be closed between two looks, and a number be free.
    gc.collect()
    # Listing them takes one, which is gone afterwards.
    return {name for name in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{name}")}
