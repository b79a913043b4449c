"""Tokenizers: those of models, and a small one for models that start from random weights.

Nothing here needs the code of models. Its import takes longer than that of torch, and workers that
only tokenise are spared it.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from s2l_ray.config.training import RandomModel
from s2l_ray.errors import ModelError
from s2l_ray.models import gguf_files
from s2l_ray.models.adapters import Adapter, Loadable, tokenizer_source
from s2l_ray.models.load_errors import explained_loading
from s2l_ray.models.model_files import has_tokenizer
from s2l_ray.models.origins import opened_source
from s2l_ray.storage.location import Location

EOS, PAD = "<|endoftext|>", "<|pad|>"


def load_tokenizer(spec: Loadable, *, offline: bool = False) -> PreTrainedTokenizerBase:
    """Return the tokenizer of `spec`; it has an end-of-sequence token.

    An adapter without a tokenizer has that of its base.

    Args:
        offline: look up a name on the hub in this machine's cache only.

    Raises:
        ModelError: the tokenizer is missing, cannot be read, or has no end-of-sequence token.
    """
    name = tokenizer_name(spec)
    with (
        explained_loading(f"tokenizer {name}"),
        opened_source(name, offline=offline) as (location, options),
    ):
        if "gguf_file" in options:
            tokenizer = gguf_files.tokenizer_of(Path(location, options["gguf_file"]))
        else:
            tokenizer = AutoTokenizer.from_pretrained(
                location, trust_remote_code=False, local_files_only=offline, **options
            )
    if tokenizer.eos_token_id is None:
        raise ModelError(
            f"tokenizer {name} has no end-of-sequence token, which closes every response; "
            f"set `eos_token` in its tokenizer_config.json"
        )
    return tokenizer


def tokenizer_name(spec: Loadable) -> str:
    """Return the name of the tokenizer that belongs to a model.

    Raises:
        ModelError: `spec` is an adapter whose base is not here.
    """
    if isinstance(spec, Adapter):
        own = has_tokenizer(Location.of(spec.folder))
        return spec.folder if own else tokenizer_source(spec.base)
    return tokenizer_source(spec.tokenizer if isinstance(spec, RandomModel) else spec)


def token_ids(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], *, special: bool
) -> list[list[int]]:
    """Return the whole token ids of every text, with the tokenizer's special tokens or without.

    They are those of `tokenizer(texts)`, which also finds the place of every token in its text: a
    tenth of its time.
    """
    if not texts:
        return []
    if not _is_plain(tokenizer):
        settings = {"padding": False, "truncation": False, "verbose": False}
        encoded = tokenizer(list(texts), add_special_tokens=special, **settings)
        ids: list[list[int]] = encoded["input_ids"]
        return ids
    backend = tokenizer.backend_tokenizer
    if backend.truncation is not None:
        backend.no_truncation()
    if backend.padding is not None:
        backend.no_padding()
    if backend.encode_special_tokens != tokenizer.split_special_tokens:
        backend.encode_special_tokens = tokenizer.split_special_tokens
    encodings = backend.encode_batch_fast(list(texts), add_special_tokens=special)
    return [encoding.ids for encoding in encodings]


def _is_plain(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Tell whether nothing but its backend makes the tokens: some models have code of their own."""
    plain = PreTrainedTokenizerFast
    return isinstance(tokenizer, plain) and all(
        getattr(type(tokenizer), name) is getattr(plain, name) for name in _MAKE_TOKENS
    )


_MAKE_TOKENS = ("__call__", "_encode_plus")
"""Methods of transformers between a text and the tokens of its backend."""


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Learn a byte-level BPE from `texts`: it encodes any text, and every digit is a token.

    The same texts in the same order give the same tokenizer. Ids 0 and 1 are end of sequence and
    padding.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[EOS, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=EOS, pad_token=PAD)
