"""From [trusts.*] and their files to trusts: what is read, what is wrong, what is out of date."""

from datetime import timedelta

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from portguard.errors import Problem
from portguard.gateway.configuration import read_configuration
from portguard.gateway.trust_files import read_trusts, trust_warnings
from portguard.pki import profiles
from tests.certificates import Authority, common_name, new_key, now

PATH = "/etc/portguard/portguard.toml"
GATEWAY = '[gateway]\nname = "bastion.example.com"\n'
LOCAL = '[trusts.local]\nca = "/ca.crt"\nidentity = "spiffe"\ntrust_domain = "gateway.test"\n'
CORP = '[trusts.corp]\nca = "/corp.crt"\nidentity = "email"\n'


def pem(crl):
    return crl.public_bytes(Encoding.PEM)


def read(content, files, problems=()):
    """Trusts that judge (or None), trusts that could be read, and problems as text."""
    found = list(problems)
    configuration = read_configuration(PATH, (GATEWAY + content).encode(), [])
    readable, trusts = read_trusts(configuration, files, found)
    return trusts, readable, [str(problem) for problem in found]


def warnings(content, files, at=None):
    _, readable, problems = read(content, files)
    assert problems == []
    return list(trust_warnings(PATH, readable, at or now()))


@pytest.fixture
def root():
    return Authority.root("Root")


def test_a_trust_is_what_its_table_and_its_files_say(root):
    second, issuing = Authority.root("Second"), root.intermediate()
    files = {
        "/ca.crt": root.pem + second.pem,
        "/a.crl": pem(root.crl()) + pem(second.crl()),
        "/b.crl": pem(issuing.crl()),
    }
    content = f'{LOCAL}groups = "ou"\ncrl = ["/a.crl", "/b.crl"]\ncrl_expired = "accept"\n'
    trusts, (trust,), problems = read(content, files)
    assert problems == []
    assert trusts.anchors_pem.encode() == root.pem + second.pem
    assert (trust.name, trust.source, trust.trust_domain, trust.default) == ("local", "spiffe", "gateway.test", True)
    assert (trust.groups, trust.crl_expired) == ("ou", "accept")
    assert [crl.issuer_name for crl in trust.crls] == ["CN=Root", "CN=Second", "CN=Test Issuing"]
    alice = root.issue("alice")
    assert trusts.identify([alice.der, root.der], [alice.der], now()).identity.name == "alice"


def test_a_certificate_that_a_list_revokes_is_refused(root):
    alice, bob = root.issue("alice"), root.issue("bob")
    files = {"/ca.crt": root.pem, "/a.crl": pem(root.crl([bob.certificate.serial_number]))}
    trusts, _, problems = read(f'{LOCAL}crl = ["/a.crl"]\n', files)
    assert problems == []
    assert trusts.identify([alice.der, root.der], [alice.der], now())
    with pytest.raises(Exception, match="certificate_revoked"):
        trusts.identify([bob.der, root.der], [bob.der], now())


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("/ca.crt", b"", "/ca.crt: expected a certificate, got an empty file"),
        (
            "/ca.crt",
            b"hello",
            '/ca.crt: expected a certificate as DER or as PEM block "CERTIFICATE", got something else',
        ),
        (
            "/a.crl",
            b"hello",
            '/a.crl: expected a revocation list as DER or as PEM block "X509 CRL", got something else',
        ),
    ],
)
def test_a_file_that_cannot_be_parsed_is_a_problem(root, name, content, problem):
    files = {"/ca.crt": root.pem, "/a.crl": pem(root.crl()), name: content}
    _, _, problems = read(f'{LOCAL}crl = ["/a.crl"]\n', files)
    assert problems == [problem]


def test_all_problems_of_all_trusts_are_reported_in_one_go(root):
    trusts, _, problems = read(f"{LOCAL}{CORP}", {"/ca.crt": b"", "/corp.crt": b""})
    assert trusts is None or problems
    assert [problem.partition(":")[0] for problem in problems] == ["/ca.crt", "/corp.crt"]


def test_a_certificate_that_is_no_authority_is_a_problem(root):
    _, _, problems = read(LOCAL, {"/ca.crt": root.issue("alice").pem})
    assert problems == [f"{PATH}: trusts.local.ca: expected certificates of authorities (CA true), got CN=alice"]


def test_one_key_in_two_trusts_is_a_problem(root):
    trusts, _, problems = read(f"{LOCAL}{CORP}", {"/ca.crt": root.pem, "/corp.crt": root.pem})
    assert trusts is None
    assert problems == [
        f"{PATH}: trusts.corp.ca: expected keys that no other trust has, got the key of CN=Root in local"
    ]
    other = Authority.root("Root")
    assert read(f"{LOCAL}{CORP}", {"/ca.crt": root.pem, "/corp.crt": other.pem})[2] == []


def test_a_list_that_somebody_else_signed_is_a_problem(root):
    forged = Authority.root("Other").crl(issuer=common_name("Root"))
    _, _, problems = read(f'{LOCAL}crl = ["/a.crl"]\n', {"/ca.crt": root.pem, "/a.crl": pem(forged)})
    assert problems == [f"{PATH}: trusts.local.crl: expected a list signed by CN=Root, got one with another signature"]


def test_what_the_configuration_was_blamed_for_is_not_told_twice(root):
    content = '[trusts.local]\nca = "/ca.crt"\nidentity = "spiffe"\n'
    told = Problem(PATH, "trusts.local.trust_domain", "a trust domain", "nothing")
    assert len(read(content, {"/ca.crt": root.pem}, [told])[2]) == 1
    assert len(read(content, {"/ca.crt": root.pem}, [])[2]) == 1
    of_table = Problem(PATH, "trusts.local", "another name", "x")
    assert len(read(content, {"/ca.crt": root.pem}, [of_table])[2]) == 1


def test_a_missing_file_is_told_elsewhere(root):
    assert read(f"{LOCAL}{CORP}", {"/ca.crt": root.pem})[2] == []
    assert [trust.name for trust in read(f"{LOCAL}{CORP}", {"/ca.crt": root.pem})[1]] == ["local"]


def test_authorities_out_of_date_are_warned_of(root):
    files = {"/ca.crt": root.pem}
    start, end = root.certificate.not_valid_before_utc, root.certificate.not_valid_after_utc
    second = timedelta(seconds=1)
    fifth = (end - start) / 5
    assert warnings(LOCAL, files, end - fifth) == []
    (soon,) = warnings(LOCAL, files, end - fifth + second)
    assert soon == f"{PATH}: trusts.local.ca: CN=Root expires on {end:%Y-%m-%d %H:%M:%S} UTC"
    assert warnings(LOCAL, files, end) == [soon]
    (over,) = warnings(LOCAL, files, end + second)
    assert over == f"{PATH}: trusts.local.ca: CN=Root expired on {end:%Y-%m-%d %H:%M:%S} UTC; its clients are refused"
    (early,) = warnings(LOCAL, files, start - second)
    assert early.startswith(f"{PATH}: trusts.local.ca: CN=Root is not valid before ")


@pytest.fixture
def spiffe_root():
    """The root of a portguard CA, which is of the trust domain `bastion.example.com` by its own SPIFFE ID."""
    validity = profiles.Validity.starting(now(), timedelta(days=30))
    certificate = profiles.root(new_key(), "bastion.example.com", validity, path_length=0)
    return certificate.public_bytes(Encoding.PEM)


def test_a_trust_domain_that_is_not_the_authoritys_own_is_warned_of(spiffe_root):
    at = now() + timedelta(hours=1)
    (warning,) = warnings(LOCAL, {"/ca.crt": spiffe_root}, at)
    assert warning.startswith(f"{PATH}: trusts.local.trust_domain: expected bastion.example.com, as CN=")
    assert warning.endswith(" has it, got gateway.test")


def test_a_trust_domain_that_is_its_own_or_that_nobody_says_is_none(spiffe_root, root):
    at = now() + timedelta(hours=1)
    assert warnings(LOCAL.replace("gateway.test", "bastion.example.com"), {"/ca.crt": spiffe_root}, at) == []
    assert warnings(LOCAL, {"/ca.crt": root.pem}, at) == []
    assert warnings(CORP, {"/corp.crt": spiffe_root}, at) == []


def test_lists_soon_out_of_date_are_warned_of(root):
    """Soon is in the last week, or in the last fifth of a short life."""

    def told(at, *crls):
        files = {"/ca.crt": root.pem} | {f"/{number}.crl": pem(crl) for number, crl in enumerate(crls)}
        names = ", ".join(f'"/{number}.crl"' for number in range(len(crls)))
        return [text for text in warnings(f"{LOCAL}crl = [{names}]\n", files, at) if ".crl:" in text]

    second = timedelta(seconds=1)
    for days, before in ((100, timedelta(days=7)), (10, timedelta(days=2))):
        crl = root.crl(this_update=now(), next_update=now() + timedelta(days=days))
        end = crl.next_update_utc
        assert told(end - before, crl) == []
        text = f"{PATH}: trusts.local.crl: the list of CN=Root is out of date from {end:%Y-%m-%d %H:%M:%S} UTC on"
        assert told(end - before + second, crl) == [text]
        later = root.crl(this_update=now(), next_update=end + timedelta(days=days))
        assert told(end - before + second, crl, later) == []
        of_another = Authority.root("Other").crl(next_update=end + timedelta(days=days))
        assert told(end - before + second, crl, of_another) == [text]


@pytest.mark.parametrize(
    ("when", "consequence"),
    [("refuse", "its clients are refused"), ("accept", "its clients are accepted unless an older list revokes them")],
)
def test_lists_out_of_date_are_warned_of(root, when, consequence):
    crl = root.crl(next_update=now() + timedelta(hours=1))
    files = {"/ca.crt": root.pem, "/a.crl": pem(crl)}
    content = f'{LOCAL}crl = ["/a.crl"]\ncrl_expired = "{when}"\n'
    end = crl.next_update_utc
    assert [text for text in warnings(content, files, end) if "; its clients" in text] == []
    late = [text for text in warnings(content, files, end + timedelta(seconds=1)) if ".crl:" in text]
    assert late == [
        f"{PATH}: trusts.local.crl: the list of CN=Root is out of date since {end:%Y-%m-%d %H:%M:%S} UTC; {consequence}"
    ]
    early = [text for text in warnings(content, files, now() - timedelta(days=1)) if ".crl:" in text]
    assert len(early) == 1
    assert "is not valid before" in early[0]
