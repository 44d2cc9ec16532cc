"""The processes that workers are, as they are started."""

import os

from portguard.gateway.processes import start


def test_a_worker_is_no_process_of_the_terminal_that_the_supervisor_is_on(capfd):
    """It could type there, ioctl_tty(2), and have the operator's shell execute that."""
    process = start([0, 0, 0], [])  # which is no channel: it ends by itself
    try:
        assert os.getsid(process.pid) == process.pid != os.getsid(0)
    finally:
        process.kill()
        process.wait()
    capfd.readouterr()
