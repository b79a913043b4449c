"""What libraries raise when they read models and tokenizers, as errors for the user."""

from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub.errors import HFValidationError, StrictDataclassError
from safetensors import SafetensorError

from s2l_ray.errors import ModelError, UserError

_LOADING_ERRORS = (
    OSError,
    ValueError,
    RuntimeError,
    ImportError,
    KeyError,
    SafetensorError,
    StrictDataclassError,
)


@contextmanager
def explained_loading(what: str) -> Iterator[None]:
    """Turn errors of the libraries that read models into a ModelError of one line."""
    try:
        yield
    except UserError:
        raise
    except HFValidationError:
        raise ModelError(
            f"{what} cannot be loaded: there is no such folder here, and no model on the hub has "
            "such a name (NAME or ORGANISATION/NAME)."
        ) from None
    except _LOADING_ERRORS as error:
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise ModelError(f"{what} cannot be loaded: {reason}") from error
