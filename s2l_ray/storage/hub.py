"""Whether the Hugging Face hub answers at all, asked once before its clients read files.

They ask for each file six times, which takes half a minute, and then give advice of their own.
"""

import time
from typing import Any, Literal

SECONDS = 4.0
"""Longest wait for an answer, and for a connection."""
PAUSES = (1.0, 2.0)
"""Seconds before the second and the third question: a single one may get lost."""


Kind = Literal["model", "dataset"]


def info(kind: Kind, name: str, revision: str | None = None) -> Any:
    """Return what the hub says of a model or a data set; what its client raises is passed on."""
    from huggingface_hub import HfApi

    ask = HfApi().model_info if kind == "model" else HfApi().dataset_info
    return ask(name, revision=revision, timeout=SECONDS)


def silence(kind: Kind, name: str) -> str:
    """Return why the hub does not answer, as a clause; "" if it answers, be it with a refusal."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set, so the hub was not asked"
    for pause in PAUSES:
        if not _failure(kind, name):
            return ""
        time.sleep(pause)
    failure = _failure(kind, name)
    return failure and f"no network answered for the hub, {constants.ENDPOINT} ({failure})"


def _failure(kind: Kind, name: str) -> str:
    """Return why one question gets no answer; "" if it gets one."""
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        info(kind, name)
    except (HfHubHTTPError, HFValidationError):
        return ""  # whoever reads the files says what it refuses
    except Exception as error:  # errors of the hub's transport, whichever library that is
        return " ".join(str(error).split())[:150] or type(error).__name__
    return ""
