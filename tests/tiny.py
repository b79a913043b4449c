"""Small real fakes: a tokenizer with one token per byte, and two-layer models of many kinds."""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

EOS, PAD = "<|end|>", "<|pad|>"
NUM_TOKENS = 256 + 2

_LLAMA = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 512,
}
_FULL_HEADS = _LLAMA | {"num_key_value_heads": 2}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "gpt_neox": {key: value for key, value in _LLAMA.items() if key != "num_key_value_heads"},
    "llama": _LLAMA,
    "qwen2": _LLAMA,
    "gemma2": _LLAMA | {"head_dim": 8, "final_logit_softcapping": 2.0, "sliding_window": 8},
    "phi": _FULL_HEADS,
    "mistral": _LLAMA | {"sliding_window": 8},
    "gpt2": {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 512},
    "olmo": _FULL_HEADS,
    "granite": _LLAMA | {"logits_scaling": 4.0},
    "cohere": _LLAMA | {"logit_scale": 0.25},
    "gptj": {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 512, "rotary_dim": 4},
    "codegen": {"n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": 512, "rotary_dim": 4},
    "opt": {
        "hidden_size": 16,
        "ffn_dim": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "word_embed_proj_dim": 16,
        "max_position_embeddings": 512,
        "init_std": 0.3,
    },
    "mixtral": _LLAMA | {"num_local_experts": 4, "num_experts_per_tok": 2},
}


def tokenizer(
    *, eos: str | None = EOS, chat_template: str | None = None
) -> PreTrainedTokenizerFast:
    """A token's number is its UTF-8 byte; end-of-sequence is 256 and padding 257."""
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in visible]
    # What byte-level tokenizers write for a byte that has no visible character.
    vocabulary = {chr(byte): byte for byte in visible}
    vocabulary |= {chr(256 + place): byte for place, byte in enumerate(hidden)}
    byte_level = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    byte_level.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    byte_level.decoder = decoders.ByteLevel()
    byte_level.add_special_tokens([EOS, PAD])
    return PreTrainedTokenizerFast(
        tokenizer_object=byte_level, eos_token=eos, pad_token=PAD, chat_template=chat_template
    )


def model(architecture: str = "gpt_neox", *, seed: int = 0, **changes: Any) -> PreTrainedModel:
    """A float32 model in eval mode; `changes` are arguments of its configuration.

    Its weights are larger than usual, so that its predictions are far from uniform.
    """
    return made(architecture, ARCHITECTURES[architecture] | changes, seed=seed)


def made(architecture: str, arguments: dict[str, Any], *, seed: int = 0) -> PreTrainedModel:
    """A float32 model in eval mode, of any architecture, that `arguments` make small."""
    usual = {"vocab_size": NUM_TOKENS, "initializer_range": 0.3}
    tokens = {"bos_token_id": None, "eos_token_id": 256, "pad_token_id": 257}
    config = AutoConfig.for_model(architecture, **usual | tokens | arguments)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return AutoModelForCausalLM.from_config(config).eval()


def save(directory: Path, architecture: str = "gpt_neox", **changes: Any) -> Path:
    """A Hugging Face directory with a model and the tokenizer."""
    model(architecture, **changes).save_pretrained(directory)
    tokenizer().save_pretrained(directory)
    return directory
