"""Dialects of chat templates: names of roles and of reasoning, and the form of arguments.

Rows and templates come from different hands. What a template calls otherwise than the row does,
reaches it by the name that it knows.
"""

import json
from dataclasses import dataclass, replace
from typing import Any

from s2l_ray.data.messages import REASONING_KEYS, Message


@dataclass(frozen=True)
class Dialect:
    """The names that a chat template knows."""

    source: str
    """The text of the template."""
    takes_text_arguments: bool
    """Arguments of tool calls are JSON text for it, not objects."""

    def adapted(self, message: Message) -> Message:
        """Return the message with names and arguments as the template knows them."""
        role = message.role
        if message.named and self._knows(message.named):
            role = message.named
        fields = self._with_known_reasoning(message.fields)
        is_call = message.role == "assistant" and "tool_calls" in fields
        if self.takes_text_arguments and is_call:  # another role's key of that name is its own
            fields = fields | {
                "tool_calls": [_with_text_arguments(c) for c in fields["tool_calls"]]
            }
        if role == message.role and fields == message.fields:
            return message
        return replace(message, role=role, fields=fields)

    def _knows(self, name: str) -> bool:
        return f"'{name}'" in self.source or f'"{name}"' in self.source

    def _with_known_reasoning(self, fields: dict[str, Any]) -> dict[str, Any]:
        """Return the fields with the reasoning under the name that the template reads."""
        known = [key for key in REASONING_KEYS if key in self.source]
        given = next((key for key in REASONING_KEYS if key in fields), None)
        if given is None or not known or given in known:
            return fields
        return {known[0] if key == given else key: value for key, value in fields.items()}


def _with_text_arguments(call: dict[str, Any]) -> dict[str, Any]:
    function = call["function"]
    if isinstance(function["arguments"], str):
        return call
    text = json.dumps(function["arguments"], ensure_ascii=False)
    return call | {"function": function | {"arguments": text}}
