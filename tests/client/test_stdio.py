import asyncio
import contextlib
import os
import socket
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from portguard.client.stdio import StandardStreams


class Pipes:
    """Two pipes in the place of standard input and output, and their far ends."""

    def __init__(self) -> None:
        self.input, self.typing = os.pipe()
        self.showing, self.output = os.pipe()
        self.joined: list[StandardStreams] = []

    async def close(self) -> None:
        end_typing(self)
        for joined in self.joined:
            joined.sock.close()
            with contextlib.suppress(BrokenPipeError):
                await joined.written()
        # A thread that still went on would take these numbers for its own when the next test has opened them again.
        for thread in threading.enumerate():
            if thread.name in ("standard input", "standard output"):
                thread.join()
        for descriptor in (self.input, self.typing, self.showing, self.output):
            os.close(descriptor)


@pytest_asyncio.fixture
async def pipes() -> AsyncIterator[Pipes]:
    pipes = Pipes()
    yield pipes
    await pipes.close()


def streams(pipes: Pipes) -> StandardStreams:
    streams = StandardStreams(pipes.input, pipes.output)
    streams.sock.setblocking(False)
    pipes.joined.append(streams)
    return streams


async def read_all(sock: socket.socket) -> bytes:
    data = b""
    while more := await asyncio.get_running_loop().sock_recv(sock, 65536):
        data += more
    return data


def end_typing(pipes: Pipes) -> None:
    nowhere = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nowhere, pipes.typing)
    os.close(nowhere)


async def test_input_comes_out_of_the_socket_and_ends_there(pipes: Pipes) -> None:
    joined = streams(pipes)
    os.write(pipes.typing, b"hello")
    end_typing(pipes)
    with joined.sock:
        assert await read_all(joined.sock) == b"hello"
        # The other direction is still open.
        joined.sock.sendall(b"answer")
        assert await asyncio.to_thread(os.read, pipes.showing, 100) == b"answer"
    await joined.written()


async def test_what_is_sent_goes_to_the_output_which_then_ends(pipes: Pipes) -> None:
    joined = streams(pipes)
    data = os.urandom(1_000_000)
    loop = asyncio.get_running_loop()
    sending = asyncio.ensure_future(loop.sock_sendall(joined.sock, data))
    shown = b""
    while len(shown) < len(data):
        shown += await asyncio.to_thread(os.read, pipes.showing, 65536)
    await sending
    assert shown == data
    joined.sock.shutdown(socket.SHUT_WR)
    await joined.written()
    assert os.read(pipes.showing, 1) == b"", "expected the output to be closed"
    # The input goes on.
    os.write(pipes.typing, b"more")
    assert await loop.sock_recv(joined.sock, 100) == b"more"
    joined.sock.close()


async def test_the_number_of_the_output_is_not_given_to_the_next_file(pipes: Pipes) -> None:
    joined = streams(pipes)
    joined.sock.close()
    await joined.written()
    os.write(pipes.output, b"what is printed now goes nowhere")
    assert os.read(pipes.showing, 100) == b""


async def test_an_output_that_nobody_reads_any_more_is_an_error(pipes: Pipes) -> None:
    joined = streams(pipes)
    nowhere = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nowhere, pipes.showing)
    os.close(nowhere)
    joined.sock.sendall(b"hello")
    with pytest.raises(BrokenPipeError):
        await joined.written()
    assert await read_all(joined.sock) == b"", "expected the session to see its local side end"
    joined.sock.close()


async def test_input_and_output_may_be_files(pipes: Pipes, tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(b"from a file")
    given = os.open(tmp_path / "in", os.O_RDONLY)
    taken = os.open(tmp_path / "out", os.O_WRONLY | os.O_CREAT)
    joined = StandardStreams(given, taken)
    joined.sock.setblocking(False)
    with joined.sock:
        assert await read_all(joined.sock) == b"from a file"
        joined.sock.sendall(b"to a file")
    await joined.written()
    assert (tmp_path / "out").read_bytes() == b"to a file"
    os.close(given)
    os.close(taken)


async def test_an_input_that_is_ended_goes_through_as_far_as_it_was_there(pipes: Pipes) -> None:
    joined = streams(pipes)
    os.write(pipes.typing, b"x" * 50_000)
    await joined.end_input()
    os.write(pipes.typing, b"too late")
    with joined.sock:
        assert await read_all(joined.sock) == b"x" * 50_000


async def test_an_input_whose_end_is_there_goes_through_whole(pipes: Pipes) -> None:
    joined = streams(pipes)
    os.write(pipes.typing, b"hello")
    end_typing(pipes)
    await joined.end_input()
    await joined.end_input()
    with joined.sock:
        assert await read_all(joined.sock) == b"hello"


async def test_what_the_session_does_not_take_is_waited_for(pipes: Pipes) -> None:
    joined = streams(pipes)
    os.set_blocking(pipes.typing, False)
    written = 0
    with contextlib.suppress(BlockingIOError):  # as much as the buffers on the way hold
        while True:
            written += os.write(pipes.typing, b"x" * 4096)
    end_typing(pipes)
    ending = asyncio.create_task(joined.end_input())
    with joined.sock:
        assert len(await read_all(joined.sock)) == written
    await ending
