"""Values and code inside a page: JSON that no text can break out of, and hashes for its policy."""

import base64
import hashlib
import json
import math
from typing import Any

_ESCAPED = {ord(char): f"\\u{ord(char):04x}" for char in "<>&\u2028\u2029"}


def as_json(value: Any) -> str:
    """Return JSON that can stand inside <script>: without <, > and &, and with finite numbers.

    Floats have five significant digits; those that are not finite become null.
    """
    text = json.dumps(_finite(value), ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.translate(_ESCAPED)


def source_hash(text: str) -> str:
    """Return what a Content-Security-Policy calls an inline script or style with this text.

    Source:
        Content Security Policy Level 3, https://www.w3.org/TR/CSP3, section 2.3.1 (hash-source).
    """
    digest = hashlib.sha256(text.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.5g}") if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
