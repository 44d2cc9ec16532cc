"""HTTP requests: the answer does not depend on the pieces in which the bytes come."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from portguard.gateway.http_request import LONGEST_HEAD_BYTES, ApiRequest, ConnectTarget, NeedMore, RequestReader

pieces_of_heads = st.sampled_from(
    [
        b"CONNECT ", b"GET ", b"POST ", b"orders-db", b":5432", b"/v1/whoami", b" HTTP/1.1", b"HTTP/1.0", b"\r\n",
        b"\r\n\r\n", b"\r", b"\n", b" ", b"\t", b"\x00", b"Host: a\r\n", b"Host: a", b"Origin: b\r\n", b"\xff",
        b"Content-Length: 3\r\n", b"Expect: 100-continue\r\n", b"Transfer-Encoding: chunked\r\n", b"x" * 9000, b"abc",
    ]
)  # fmt: skip
well_begun = st.sampled_from(
    [
        b"CONNECT orders-db:5432 HTTP/1.1\r\nHost: a\r\n",
        b"GET /v1/whoami HTTP/1.1\r\nHost: a\r\n",
        b"POST /v1/renew HTTP/1.1\r\nHost: a\r\n",
    ]
)
streams = st.builds(
    lambda start, pieces, end: start + b"".join(pieces) + end,
    st.just(b"") | well_begun,
    st.lists(pieces_of_heads, max_size=8),
    st.sampled_from([b"", b"\r\n", b"\r\n\r\nabc"]),
)


def answer(chunks: list[bytes]) -> tuple[object, bytes]:
    """The final answer (None if there is none yet), and everything after it, as the tunnel would get it."""
    reader = RequestReader()
    for index, chunk in enumerate(chunks):
        outcome = reader.feed(chunk)
        if isinstance(outcome, ConnectTarget):
            return (outcome.host, outcome.port), outcome.trailing + b"".join(chunks[index + 1 :])
        if not isinstance(outcome, NeedMore):
            return outcome, b""
    return None, b""


@given(streams, st.lists(st.integers(0, 20_000), max_size=6))
def test_any_pieces_give_the_same_answer(stream: bytes, cuts: list[int]) -> None:
    bounds = [0, *sorted(cut % (len(stream) + 1) for cut in cuts), len(stream)]
    chunks = [stream[start:end] for start, end in itertools.pairwise(bounds)]
    assert answer(chunks) == answer([stream])


@given(streams)
def test_single_bytes_give_the_same_answer(stream: bytes) -> None:
    stream = stream[:2000]
    assert answer([stream[at : at + 1] for at in range(len(stream))]) == answer([stream])


@given(st.binary(max_size=400), st.booleans())
def test_no_bytes_whatsoever_make_it_raise_or_wait_forever(rubbish: bytes, begun: bool) -> None:
    start = b"CONNECT orders-db HTTP/1.1\r\nHost: a\r\n" if begun else b""
    outcome = RequestReader().feed((start + rubbish).ljust(LONGEST_HEAD_BYTES, b"x"))
    assert not isinstance(outcome, NeedMore) or outcome.send == b""
    if isinstance(outcome, ConnectTarget):
        assert outcome.host == "orders-db" if begun else outcome.host.isascii()


@given(streams)
def test_nothing_with_a_body_of_unclear_length_is_ever_taken(stream: bytes) -> None:
    outcome = RequestReader().feed(stream)
    if isinstance(outcome, ApiRequest):
        names = [name for name, _ in outcome.headers]
        assert "transfer-encoding" not in names
        assert "origin" not in names
        assert names.count("host") == 1
        assert names.count("content-length") <= 1
