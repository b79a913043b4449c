"""What a .gguf file says of its model and its tokenizer, read once: each takes seconds to read."""

import copy
from functools import lru_cache
from pathlib import Path

from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig, PreTrainedTokenizerBase

MOST_FILES = 4
"""Files whose contents a process keeps."""


def config_of(file: Path) -> PreTrainedConfig:
    """Return the configuration of the model; it is the caller's own."""
    return copy.deepcopy(_config(file, *_version(file)))


def tokenizer_of(file: Path) -> PreTrainedTokenizerBase:
    """Return the tokenizer; it is the caller's own."""
    return copy.deepcopy(_tokenizer(file, *_version(file)))


def _version(file: Path) -> tuple[int, int]:
    """Return what changes when the file is written again."""
    stat = file.stat()
    return stat.st_size, stat.st_mtime_ns


@lru_cache(MOST_FILES)
def _config(file: Path, _size: int, _written: int) -> PreTrainedConfig:
    return AutoConfig.from_pretrained(
        file.parent, gguf_file=file.name, trust_remote_code=False, local_files_only=True
    )


@lru_cache(MOST_FILES)
def _tokenizer(file: Path, _size: int, _written: int) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(
        file.parent, gguf_file=file.name, trust_remote_code=False, local_files_only=True
    )
