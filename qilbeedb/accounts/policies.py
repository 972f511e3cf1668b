"""Rate-limit policies as administrators see and change them. They are one row: all are read for each request."""

from __future__ import annotations

import uuid

from msgspec import UNSET, UnsetType
from msgspec.structs import replace

from qilbee_core import ConflictError, InvalidError, NotFoundError
from qilbeedb.account_wire import EndpointType, PolicyInfo
from qilbeedb.accounts.audit import event_of, moment
from qilbeedb.accounts.caller import Caller
from qilbeedb.accounts.rates import ENDPOINT_TYPES
from qilbeedb.accounts.tables import POLICIES, Change, Policy, Tables

__all__ = ["Policies"]

POLICIES_MAX = 100
REQUESTS_MAX = 1_000_000_000
WINDOW_S_MAX = 31 * 24 * 3600
_NAME_CHARACTERS_MAX = 100
_FIRST = (("Login", 120), ("ApiKeyCreation", 60), ("UserManagement", 300))
"""What a new store begins with: requests in a minute."""


class Policies:
    """Makes, shows, changes and removes policies. Each change counts for the next request, and is in the audit log."""

    def __init__(self, tables: Tables) -> None:
        self._tables = tables

    def begin(self) -> None:
        """Make those that a new store begins with, if there were never any."""

        def plan(change: Change) -> None:
            if change.get(POLICIES) is None:
                now_us = change.now_us
                first = tuple(
                    Policy(str(uuid.uuid4()), kind, kind, None, requests, 60, True, now_us, now_us, None)
                    for kind, requests in _FIRST
                )
                change.put(POLICIES, "", first)

        self._tables.change(plan)

    def create(
        self,
        caller: Caller,
        *,
        name: str,
        endpoint_type: EndpointType,
        max_requests: int,
        window_secs: int,
        enabled: bool = True,
    ) -> PolicyInfo:
        """A new policy."""
        kind, path = _endpoint(endpoint_type)
        _check(name, max_requests, window_secs)
        policy_id = str(uuid.uuid4())
        creator = None if caller.principal is None else caller.principal.user_id

        def plan(change: Change) -> Policy:
            policies = change.get(POLICIES) or ()
            if len(policies) >= POLICIES_MAX:
                raise ConflictError(f"there are {POLICIES_MAX} policies", remedy="delete those not in use")
            now_us = change.now_us
            policy = Policy(policy_id, name, kind, path, max_requests, window_secs, enabled, now_us, now_us, creator)
            change.put(POLICIES, "", (*policies, policy))
            _record(change, caller, "rate_limit_created", policy)
            return policy

        return _info(self._tables.change(plan, durable=True))

    def all(self) -> list[PolicyInfo]:
        """All policies, the oldest first."""
        return [_info(policy) for policy in self._tables.get(POLICIES) or ()]

    def get(self, policy_id: str) -> PolicyInfo:
        """One policy, or NotFoundError."""
        return _info(_find(self._tables.get(POLICIES), policy_id))

    def update(
        self,
        caller: Caller,
        policy_id: str,
        *,
        name: str | UnsetType = UNSET,
        endpoint_type: EndpointType | UnsetType = UNSET,
        max_requests: int | UnsetType = UNSET,
        window_secs: int | UnsetType = UNSET,
        enabled: bool | UnsetType = UNSET,
    ) -> PolicyInfo:
        """Change what is given."""
        given: dict[str, object] = {
            key: value
            for key, value in (
                ("name", name),
                ("max_requests", max_requests),
                ("window_s", window_secs),
                ("enabled", enabled),
            )
            if value is not UNSET
        }
        if endpoint_type is not UNSET:
            given["endpoint_type"], given["path"] = _endpoint(endpoint_type)

        def plan(change: Change) -> Policy:
            policies = change.get(POLICIES) or ()
            policy = replace(_find(policies, policy_id), **given, updated_us=change.now_us)
            _check(policy.name, policy.max_requests, policy.window_s)
            change.put(POLICIES, "", tuple(policy if each.id == policy_id else each for each in policies))
            _record(change, caller, "rate_limit_updated", policy)
            return policy

        return _info(self._tables.change(plan, durable=True))

    def delete(self, caller: Caller, policy_id: str) -> None:
        """Remove a policy; NotFoundError."""

        def plan(change: Change) -> None:
            policies = change.get(POLICIES) or ()
            policy = _find(policies, policy_id)
            change.put(POLICIES, "", tuple(each for each in policies if each.id != policy_id))
            _record(change, caller, "rate_limit_deleted", policy)

        self._tables.change(plan, durable=True)


def _find(policies: tuple[Policy, ...] | None, policy_id: str) -> Policy:
    for policy in policies or ():
        if policy.id == policy_id:
            return policy
    raise NotFoundError("there is no such rate limit", remedy="GET /api/v1/rate-limits lists them with their ids")


def _endpoint(endpoint_type: EndpointType) -> tuple[str, str | None]:
    if isinstance(endpoint_type, str) and endpoint_type in ENDPOINT_TYPES:
        return endpoint_type, None
    if isinstance(endpoint_type, dict) and list(endpoint_type) == ["Custom"]:
        path = endpoint_type["Custom"]
        if path.startswith("/") and len(path) <= 1024 and path.isprintable():
            return "Custom", path
    raise InvalidError(
        "that is no endpoint_type", remedy=f'use one of {", ".join(ENDPOINT_TYPES)}, or {{"Custom": "/a/path"}}'
    )


def _check(name: str, max_requests: int, window_s: int) -> None:
    if not 1 <= len(name) <= _NAME_CHARACTERS_MAX or not name.isprintable():
        raise InvalidError("that is no name for a policy", remedy=f"use 1 to {_NAME_CHARACTERS_MAX} characters of text")
    if not 1 <= max_requests <= REQUESTS_MAX:
        raise InvalidError(f"max_requests is {max_requests}", remedy=f"use 1 to {REQUESTS_MAX}")
    if not 1 <= window_s <= WINDOW_S_MAX:
        raise InvalidError(f"window_secs is {window_s}", remedy=f"use 1 to {WINDOW_S_MAX}")


def _info(policy: Policy) -> PolicyInfo:
    return PolicyInfo(
        id=policy.id,
        name=policy.name,
        endpoint_type=policy.endpoint_type if policy.path is None else {"Custom": policy.path},
        max_requests=policy.max_requests,
        window_secs=policy.window_s,
        enabled=policy.enabled,
        created_at=moment(policy.created_us),
        updated_at=moment(policy.updated_us),
        created_by=policy.created_by,
    )


def _record(change: Change, caller: Caller, event_type: str, policy: Policy) -> None:
    change.record(
        event_of(
            event_type,
            caller,
            change.now_us,
            action=event_type.replace("_", " "),
            resource=f"rate-limit/{policy.id}",
            metadata={"name": policy.name, "max_requests": policy.max_requests, "window_secs": policy.window_s},
        )
    )
