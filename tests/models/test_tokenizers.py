"""Tokens from the backend of a tokenizer are those of the tokenizer."""

import random

import pytest
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast

from s2l_ray.models import tokenizers
from s2l_ray.models.tokenizers import EOS, PAD, token_ids

WORDS = [
    "der",
    "Käse",
    "naïve",
    "日本語",
    "x = 3\n",
    "  ",
    "\t\t",
    "1024",
    "🙂",
    EOS,
    "a" * 300,
    "[CLS]",
]
UNKNOWN = "[UNK]"
RANDOM = random.Random(5)  # noqa: S311
TEXTS = [
    "",
    " ",
    *(" ".join(RANDOM.choices(WORDS, k=RANDOM.randrange(40))) for _ in range(200)),
]


def _trained(model, trainer, **parts):
    inner = Tokenizer(model)
    for name, part in parts.items():
        setattr(inner, name, part)
    inner.train_from_iterator([text for text in TEXTS if "a" * 300 not in text], trainer)
    return inner


def bytes_of_words():
    return tokenizers.train_tokenizer(TEXTS, 400)._tokenizer


def word_pieces():
    special = [UNKNOWN, "[CLS]", "[SEP]", PAD, EOS]
    inner = _trained(
        models.WordPiece(unk_token=UNKNOWN),
        trainers.WordPieceTrainer(vocab_size=90, special_tokens=special, show_progress=False),
        normalizer=normalizers.BertNormalizer(),
        pre_tokenizer=pre_tokenizers.BertPreTokenizer(),
    )
    ids = [(name, inner.token_to_id(name)) for name in ("[CLS]", "[SEP]")]
    inner.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=ids
    )
    return inner


def unigrams():
    return _trained(
        models.Unigram(),
        trainers.UnigramTrainer(
            vocab_size=90,
            special_tokens=[UNKNOWN, PAD, EOS],
            unk_token=UNKNOWN,
            show_progress=False,
        ),
        normalizer=normalizers.NFKC(),
        pre_tokenizer=pre_tokenizers.Metaspace(),
        decoder=decoders.Metaspace(),
    )


@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("special", [True, False])
@pytest.mark.parametrize("made", [bytes_of_words, word_pieces, unigrams])
def test_tokens_of_the_backend_are_those_of_the_tokenizer(made, special, split):
    inner = made()
    ours, theirs = (
        PreTrainedTokenizerFast(
            tokenizer_object=Tokenizer.from_str(inner.to_str()), eos_token=EOS, pad_token=PAD
        )
        for _ in range(2)
    )
    ours.split_special_tokens = theirs.split_special_tokens = split
    # A file of a tokenizer may hold both.
    ours.backend_tokenizer.enable_truncation(5)
    ours.backend_tokenizer.enable_padding(length=50)

    found = token_ids(ours, TEXTS, special=special)

    assert found == theirs(TEXTS, add_special_tokens=special, verbose=False)["input_ids"]
    assert token_ids(ours, [], special=special) == []


class Shouting(PreTrainedTokenizerFast):
    """Has code of its own between a text and its backend, as those of some models do."""

    def _encode_plus(self, text, **settings):
        return super()._encode_plus([one.upper() for one in text], **settings)


def test_a_tokenizer_with_code_of_its_own_makes_its_tokens_itself():
    inner, texts = bytes_of_words(), ["x = 3", "der Käse"]
    shouting, plain = (
        kind(tokenizer_object=inner, eos_token=EOS) for kind in (Shouting, PreTrainedTokenizerFast)
    )

    found = token_ids(shouting, texts, special=False)

    assert found == token_ids(plain, ["X = 3", "DER KÄSE"], special=False)
    assert not tokenizers._is_plain(shouting) and tokenizers._is_plain(plain)
