"""Conformance kits: subclass one, say how to open yours, and get every test of the contract."""

import pytest

# Before they are imported, so that a failed assert of a kit shows its values.
pytest.register_assert_rewrite(
    "qilbee_core.testing._backend_processes",
    "qilbee_core.testing._backend_uses",
    "qilbee_core.testing.backend_machine",
    "qilbee_core.testing.backends",
    "qilbee_core.testing.codecs",
    "qilbee_core.testing.embedders",
    "qilbee_core.testing.persistent_backends",
    "qilbee_core.testing.policies",
    "qilbee_core.testing.serializers",
)

from qilbee_core.testing.backend_machine import backend_state_machine  # noqa: E402
from qilbee_core.testing.backends import BackendContract  # noqa: E402
from qilbee_core.testing.codecs import CodecContract  # noqa: E402
from qilbee_core.testing.embedders import EmbedderContract  # noqa: E402
from qilbee_core.testing.persistent_backends import PersistentBackendContract  # noqa: E402
from qilbee_core.testing.policies import PolicyContract, offered_episodes  # noqa: E402
from qilbee_core.testing.serializers import SerializerContract, documents  # noqa: E402

__all__ = [
    "BackendContract",
    "CodecContract",
    "EmbedderContract",
    "PersistentBackendContract",
    "PolicyContract",
    "SerializerContract",
    "backend_state_machine",
    "documents",
    "offered_episodes",
]
