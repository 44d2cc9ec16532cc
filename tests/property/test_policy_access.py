"""What an auditor is told agrees with what is decided."""

from hypothesis import given

from portguard.policy.access import who_could
from portguard.policy.decide import Grant, Request, decide
from portguard.policy.ladder import named_subjects
from tests.property.test_policy_decisions import SERVICES, allows_source, policies, requests


@given(policies(), requests())
def test_whoever_is_let_in_is_told_and_by_that_role(policy, request):
    verdict = decide(policy, request)
    told = who_could(policy, somebody={request.identity, *request.groups}, at=request.at)
    roles = [row.rung.role for row in told if request.service in row.services]
    first = next((role for role in roles if allows_source(role, request)), None)
    assert (first.name if first else None) == (verdict.role if isinstance(verdict, Grant) else None)
    if isinstance(verdict, Grant):
        (until,) = (row.until for row in told if row.rung.role is first and request.service in row.services)
        assert until == verdict.until


@given(policies(), requests())
def test_without_a_time_it_is_told_too(policy, request):
    verdict = decide(policy, request)
    told = who_could(policy, somebody={request.identity, *request.groups})
    if isinstance(verdict, Grant):
        assert any(verdict.role == row.rung.terms.role and request.service in row.services for row in told)


@given(policies(), requests())
def test_whoever_is_named_and_let_in_alone_is_among_all_that_are_told(policy, request):
    if request.identity in named_subjects(policy):
        everybody = who_could(policy, at=request.at)
        for service in SERVICES:
            verdict = decide(policy, Request(request.identity, frozenset(), service.name, request.source, request.at))
            if isinstance(verdict, Grant):
                assert any(
                    request.identity in row.subjects
                    and service.name in row.services
                    and row.rung.terms.role == verdict.role
                    for row in everybody
                )
