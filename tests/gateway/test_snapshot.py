"""A bundle as something to serve by: all problems of all files in one go, warnings, and nothing secret in sight."""

from datetime import timedelta

import pytest
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, PrivateFormat

from portguard.errors import ConfigurationError
from portguard.gateway.bundle import Bundle, read_bundle, read_policy_bundle
from portguard.gateway.snapshot import build, build_policy
from portguard.policy.addresses import ListenAddress
from tests.certificates import Authority, now
from tests.gateway_folder import NAME, GatewayFolder


@pytest.fixture
def folder(tmp_path):
    return GatewayFolder(tmp_path)


def snapshot_of(folder, at=None):
    return build(read_bundle(folder.configuration, at or now()))


def problems_of(folder, at=None):
    """What is wrong, as text with paths from the folder."""
    with pytest.raises(ConfigurationError) as caught:
        snapshot_of(folder, at)
    return [str(problem).removeprefix(f"{folder.path}/") for problem in caught.value.problems]


def warnings_of(folder, at=None):
    return [warning.removeprefix(f"{folder.path}/") for warning in snapshot_of(folder, at).warnings]


def with_tls(folder, keys, name="orders-tls"):
    folder.add("policy.toml", f'[services.{name}]\nupstream = ["db.internal:5432"]\ntls = {{ {keys} }}\n')


def test_a_right_folder_is_a_snapshot_without_warnings(folder):
    snapshot = snapshot_of(folder)
    assert snapshot.configuration.gateway.listen == (ListenAddress("127.0.0.1", 0),)
    assert list(snapshot.policy.services) == ["orders-db"]
    assert snapshot.policy.resolve_name(f"orders-db.{NAME}") is snapshot.policy.services["orders-db"]
    assert snapshot.trusts.anchors_pem.encode() == folder.authority.pem
    assert (snapshot.certificate, snapshot.key) == (folder.gateway.pem, folder.gateway.key_pem)
    assert snapshot.upstream_tls == {}
    assert snapshot.warnings == ()
    assert snapshot.revision == read_bundle(folder.configuration, now()).revision


def test_a_worker_builds_the_same_from_the_bytes_of_the_bundle(folder):
    folder.add("portguard.toml", '[ledger]\nurl = "sqlite"\n')
    bundle = read_bundle(folder.configuration, now())
    snapshot, again = build(bundle), build(Bundle.from_bytes(bundle.to_bytes()))
    assert again.configuration == snapshot.configuration
    assert (again.revision, again.warnings) == (snapshot.revision, snapshot.warnings)


def test_names_are_written_as_people_write_them(folder):
    snapshot = snapshot_of(folder)
    assert snapshot.written("local", "alice") == "alice"
    assert snapshot.written("corp", "alice") == "corp:alice"


def test_nothing_secret_is_in_the_repr(folder):
    with_tls(folder, 'certificate = "tls/gateway.crt", key = "tls/gateway.key"')
    snapshot = snapshot_of(folder)
    for text in (repr(snapshot), repr(snapshot.upstream_tls), *snapshot.warnings):
        assert "PRIVATE" not in text


def test_the_files_of_services_are_theirs(folder):
    other, client = Authority.root("Other"), Authority.root("Clients").issue("gateway")
    folder.write("up/ca.crt", other.pem)
    folder.write("up/gw.crt", client.pem)
    folder.write("up/gw.key", client.key_pem)
    with_tls(folder, 'ca = "up/ca.crt", certificate = "up/gw.crt", key = "up/gw.key", server_name = "db"', "one")
    with_tls(folder, 'ca = "up/ca.crt"', "two")
    with_tls(folder, 'server_name = "db"', "three")
    material = snapshot_of(folder).upstream_tls
    assert sorted(material) == ["one", "three", "two"]
    assert material["one"].ca.encode() == other.pem
    assert (material["one"].certificate, material["one"].key) == (client.pem, client.key_pem)
    assert material["two"].ca.encode() == other.pem
    assert (material["two"].certificate, material["two"].key) == (None, None)
    assert (material["three"].ca, material["three"].certificate, material["three"].key) == (None, None, None)


def test_files_of_services_that_cannot_be_used_are_problems(folder):
    one, two = Authority.root("One"), Authority.root("Two")
    folder.write("up/ca.crt", b"hello")
    folder.write("up/gw.crt", one.issue("gateway").pem)
    folder.write("up/gw.key", two.issue("gateway").key_pem)
    with_tls(folder, 'ca = "up/ca.crt", certificate = "up/gw.crt", key = "up/gw.key"', "one")
    with_tls(folder, 'ca = "up/ca.crt"', "two")
    assert problems_of(folder) == [
        'up/ca.crt: expected a certificate as DER or as PEM block "CERTIFICATE", got something else',
        "up/gw.key: expected the certificate's key, got the key of another certificate",
    ]


def test_that_the_gateway_s_own_certificate_is_revoked_is_a_warning(folder):
    revoked = folder.authority.crl(revoked=[folder.gateway.certificate.serial_number])
    folder.write("ca.crl", revoked.public_bytes(Encoding.PEM))
    folder.add("portguard.toml", 'crl = ["ca.crl"]\n')
    [warning] = warnings_of(folder)
    assert warning.startswith("tls/gateway.crt: the certificate is revoked by ")


def test_certificates_of_services_that_are_out_of_date_are_warned_of_once(folder):
    client = folder.authority.issue("gateway", not_before=now() - timedelta(9), not_after=now() - timedelta(1))
    folder.write("up/gw.crt", client.pem)
    folder.write("up/gw.key", client.key_pem)
    with_tls(folder, 'certificate = "up/gw.crt", key = "up/gw.key"', "one")
    with_tls(folder, 'certificate = "up/gw.crt", key = "up/gw.key"', "two")
    warnings = [warning for warning in warnings_of(folder) if "up/gw.crt" in warning]
    assert len(warnings) == 1
    assert warnings[0].startswith("up/gw.crt: expected a certificate that is valid at")


def test_problems_of_all_files_are_reported_in_one_go(folder):
    folder.add("portguard.toml", 'crl = ["a.crl"]\n[log]\nlevel = 1\n')
    folder.add("policy.toml", "[services.x]\n")
    folder.write("ca.crt", "hello")
    folder.write("tls/gateway.key", folder.issue(NAME).key_pem)
    problems = problems_of(folder)
    assert [problem.split(": expected")[0] for problem in problems] == [
        "a.crl",
        "ca.crt",
        "policy.toml: services.x.upstream",
        "portguard.toml: log.level",
        "tls/gateway.key",
    ]


def test_a_missing_configuration_is_one_problem(folder):
    (folder.path / "portguard.toml").unlink()
    (problem,) = problems_of(folder)
    assert problem.startswith("portguard.toml: expected a file that can be read")


@pytest.mark.parametrize(
    ("spoiled", "problem"),
    [
        ("[gateway\n", "portguard.toml: expected TOML, got an error at line 1"),
        ('# "\xe4"\n', "portguard.toml: expected UTF-8, got byte 0xe4 at line 1"),
        ("gateway = 1\n", "portguard.toml: gateway: expected a table, got 1"),
    ],
)
def test_a_configuration_that_cannot_be_read_names_no_files(folder, spoiled, problem):
    for name in ("policy.toml", "tls/gateway.crt", "tls/gateway.key"):
        (folder.path / name).unlink()
    _, _, trusts = (folder.path / "portguard.toml").read_text().partition("[trusts")
    folder.write("portguard.toml", f"{spoiled}[trusts{trusts}".encode("latin-1"))
    (found,) = problems_of(folder)
    assert found.startswith(problem)


def test_a_configuration_that_names_no_files_has_default_ones(folder):
    for name in ("policy.toml", "tls/gateway.crt", "tls/gateway.key"):
        (folder.path / name).unlink()
    assert [problem.partition(":")[0] for problem in problems_of(folder)] == [
        "policy.toml",
        "tls/gateway.crt",
        "tls/gateway.key",
    ]


def test_a_missing_policy_is_a_problem_beside_others(folder):
    (folder.path / "policy.toml").unlink()
    (folder.path / "ca.crt").unlink()
    assert [problem.split(":")[0] for problem in problems_of(folder)] == ["ca.crt", "policy.toml"]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda text: text.replace('identity = "spiffe"', 'identity = "mail"'),
        lambda text: text.replace('identity = "spiffe"', ""),
        lambda text: text.replace('trust_domain = "gateway.test"', 'trust_domain = "-/-"'),
        lambda text: text.replace("[trusts.local]", "[trusts.LOCAL]"),
        lambda text: text + "[trusts\n",
        lambda text: text.partition("[trusts")[0],
        lambda text: text + 'default = true\n[trusts.corp]\nca = "ca2.crt"\nidentity = "cn"\ndefault = true\n',
    ],
)
def test_where_trusts_are_in_doubt_members_are_not_blamed(folder, spoil):
    folder.add("policy.toml", '[[roles]]\nname = "x"\nmembers = ["corp:x"]\nservices = ["orders-db"]\n')
    folder.write("ca2.crt", Authority.root("Corp").pem)
    folder.write("portguard.toml", spoil((folder.path / "portguard.toml").read_text()))
    problems = problems_of(folder)
    assert [problem for problem in problems if "policy.toml" in problem] == []
    assert len(problems) == 1


def test_where_trusts_are_in_doubt_the_rest_of_the_policy_is_checked_all_the_same(folder):
    text = (folder.path / "portguard.toml").read_text()
    folder.write("portguard.toml", text.replace('identity = "spiffe"', 'identity = "mail"'))
    folder.add(
        "policy.toml",
        """
        [services.x]
        idle = "8 h"
        [[roles]]
        name = "x"
        members = ["corp:x", "@corp:y", "corp:*", "spiffe://z/z", "alice", "@nobody", 5]
        services = ["orders"]
        [[tests]]
        identity = "corp:x"
        groups = ["@corp:y"]
        service = "order"
        expect = "allow"
        at = 2026-03-02T07:00:00
        """,
    )
    assert [problem.split(": expected")[0] for problem in problems_of(folder)] == [
        "policy.toml: roles[1].members[5]",
        "policy.toml: roles[1].members[6]",
        "policy.toml: roles[1].services[0]",
        "policy.toml: services.x.idle",
        "policy.toml: services.x.upstream",
        "policy.toml: tests[0].at",
        "policy.toml: tests[0].service",
        "portguard.toml: trusts.local.identity",
    ]


def test_where_trusts_are_known_members_are_checked(folder):
    folder.add("portguard.toml", 'groups = "x"\ncrl_expired = "never"\n')
    folder.add("policy.toml", '[[roles]]\nname = "x"\nmembers = ["corp:x"]\nservices = ["orders-db"]\n')
    assert [problem.split(": expected")[0] for problem in problems_of(folder)] == [
        "policy.toml: roles[1].members[0]",
        "portguard.toml: trusts.local.crl_expired",
        "portguard.toml: trusts.local.groups",
    ]


def test_a_service_may_not_take_the_gateways_addresses(folder):
    folder.write(
        "portguard.toml", (folder.path / "portguard.toml").read_text().replace("127.0.0.1:0", "127.0.0.1:8443")
    )
    folder.add(
        "policy.toml",
        '[services.x]\nupstream = ["db:1"]\nlisten = ["0.0.0.0:8443", "127.0.0.1:9847", "127.0.0.1:9000"]\n',
    )
    assert [problem.partition(", got ")[2] for problem in problems_of(folder)] == [
        "0.0.0.0:8443, that of gateway.listen",
        "127.0.0.1:9847, that of metrics.listen",
    ]


def test_a_name_of_a_service_may_not_be_the_gateways(folder):
    folder.add("policy.toml", f'[services.x]\nupstream = ["db:1"]\naliases = ["{NAME}"]\n')
    (problem,) = problems_of(folder)
    assert problem.startswith("policy.toml: services.x.aliases[0]: expected a name that nothing else has")


def test_a_failing_test_of_the_policy_refuses_everything(folder):
    folder.add("policy.toml", '[[tests]]\nidentity = "bob"\nservice = "orders-db"\nexpect = "allow"\n')
    (problem,) = problems_of(folder)
    assert problem.startswith("policy.toml: tests[0]: expected allow")


def test_a_key_with_a_passphrase_is_refused(folder):
    key = folder.gateway.key
    folder.write("tls/gateway.key", key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"x")))
    assert problems_of(folder) == ["tls/gateway.key: expected a private key without a passphrase, got an encrypted one"]


def test_an_expired_gateway_certificate_is_refused_at_the_time_of_reading(folder):
    end = folder.gateway.certificate.not_valid_after_utc
    late = end + timedelta(seconds=1)
    (problem,) = problems_of(folder, late)
    assert problem.startswith("tls/gateway.crt: expected a certificate that is valid at")
    bundle = read_bundle(folder.configuration, end)
    assert build(Bundle.from_bytes(bundle.to_bytes())).certificate == folder.gateway.pem


def test_one_authority_in_two_trusts_is_refused(folder):
    folder.add("portguard.toml", 'default = true\n[trusts.corp]\nca = "ca.crt"\nidentity = "cn"\n')
    (problem,) = problems_of(folder)
    assert problem.startswith("portguard.toml: trusts.corp.ca: expected keys that no other trust has")


def test_warnings_of_all_parts_are_collected(folder):
    folder.write("tls/gateway.crt", (gateway := folder.issue("other.example.com")).pem)
    folder.write("tls/gateway.key", gateway.key_pem)
    folder.add("policy.toml", '[[roles]]\nname = "x"\nmembers = ["alice"]\nservices = ["orders-db"]\n')
    later = folder.authority.certificate.not_valid_after_utc - timedelta(minutes=1)
    warnings = "\n".join(warnings_of(folder, later))
    assert "role x can never decide" in warnings
    assert f"tls/gateway.crt: expected a certificate for {NAME}, *.{NAME}" in warnings
    assert "tls/gateway.crt: the certificate expires on" in warnings
    assert "portguard.toml: trusts.local.ca: CN=Test Root expires on" in warnings


def test_the_policy_alone_needs_nothing_secret(folder):
    (folder.path / "tls/gateway.key").unlink()
    (folder.path / "ca.crt").unlink()
    configuration, policy = build_policy(read_policy_bundle(folder.configuration, now()))
    assert configuration.gateway.name == NAME
    assert list(policy.services) == ["orders-db"]


def test_the_policy_alone_is_checked_with_its_configuration(folder):
    folder.add("portguard.toml", "[log]\nlevel = 1\n")
    folder.add("policy.toml", "[services.x]\n")
    with pytest.raises(ConfigurationError) as caught:
        build_policy(read_policy_bundle(folder.configuration, now()))
    assert [problem.key for problem in caught.value.problems] == ["services.x.upstream", "log.level"]
    (folder.path / "portguard.toml").unlink()
    with pytest.raises(ConfigurationError, match="expected a file that can be read"):
        build_policy(read_policy_bundle(folder.configuration, now()))
