"""What libraries raise when they read models and tokenizers, as errors for the user."""

from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub.errors import StrictDataclassError
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
    except _LOADING_ERRORS as error:
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise ModelError(f"{what} cannot be loaded: {reason}") from error
