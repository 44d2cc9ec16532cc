import pytest

from portguard.identity.names import Identity, parse_identity
from portguard.policy.assumed import assumed_namespace
from portguard.policy.read import read_policy

POLICY = b"""
[groups]
all = ["corp:x", "@vendors:y"]

[services.db]
upstream = ["10.0.0.1:1"]

[[deny]]
members = ["bad:*"]
services = ["*"]

[[roles]]
name = "r"
members = ["alice", "lab:a", "spiffe://example.org/ns/web", "@all"]
services = ["*"]

[[tests]]
identity = "guests:x"
service = "db"
expect = "deny"
groups = ["@guests:g"]
"""


def test_every_trust_that_a_policy_mentions_is_taken_to_exist():
    namespace = assumed_namespace([("p.toml", POLICY)])
    assert set(namespace.sources) == {"local", "corp", "vendors", "bad", "lab", "guests", "example.org"}
    assert namespace.default == "local"
    assert len(read_policy([("p.toml", POLICY)], namespace).tests) == 1


def test_names_without_a_prefix_are_those_of_local():
    namespace = assumed_namespace([("p.toml", POLICY)])
    assert parse_identity("alice", namespace) == parse_identity("local:alice", namespace) == Identity("local", "alice")


def test_trust_domains_stay_apart():
    text = b'[groups]\nall = ["spiffe://a.org/x", "spiffe://b.org/x"]'
    namespace = assumed_namespace([("p.toml", text)])
    assert parse_identity("spiffe://a.org/x", namespace) != parse_identity("spiffe://b.org/x", namespace)


def test_all_files_are_looked_at():
    files = [("a.toml", b'[groups]\na = ["one:x"]'), ("b.toml", b'[groups]\nb = ["two:x"]')]
    assert set(assumed_namespace(files).sources) == {"local", "one", "two"}


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"=",
        b"\xff",
        b"groups = 1",
        b"roles = 1",
        b"roles = [1]",
        b"[[roles]]\nmembers = 1",
        b"[[tests]]\nidentity = 1",
        b'[groups]\na = ["BAD:x", ":x", "@:x", "spiffe://", "spiffe://A B/x", "spiffe:x"]',
    ],
)
def test_what_makes_no_sense_names_no_trust(text):
    assert set(assumed_namespace([("p.toml", text)]).sources) == {"local"}
