"""A chat endpoint that answers well, unless it is told to misbehave."""

from __future__ import annotations

import json
from contextlib import AbstractContextManager
from typing import Any

from shared.endpoint import Endpoint, serving_endpoint


def serving() -> AbstractContextManager[Endpoint]:
    """A chat endpoint on a free port of this machine."""
    return serving_endpoint(lambda request: completion(written(request)))


def turns_of(request: dict[str, Any]) -> list[dict[str, Any]]:
    """The turns that are asked about."""
    turns: list[dict[str, Any]] = json.loads(request["messages"][-1]["content"])
    return turns


def written(request: dict[str, Any]) -> str:
    """A good answer: it depends on the question alone."""
    turns = turns_of(request)
    facts = [{"fact": f"Said: {turns[0]['text'][:100] or 'nothing'}", "turns": [1]}]
    return json.dumps({"summary": f"{len(turns)} turns of {turns[0]['speaker']}.", "facts": facts})


def completion(text: object, finish_reason: str = "stop") -> bytes:
    """What a chat endpoint wraps around an answer."""
    message = {"role": "assistant", "content": text}
    return json.dumps({"choices": [{"index": 0, "message": message, "finish_reason": finish_reason}]}).encode()
