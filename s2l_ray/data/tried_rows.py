"""A few rows of the input, tokenised for a model before anything is computed from them."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

from s2l_ray.config.data import DataConfig
from s2l_ray.data.examples import Example, RowError, read_example
from s2l_ray.data.row_errors import NO_ROOM
from s2l_ray.data.sources import read_rows
from s2l_ray.data.templates import load_template
from s2l_ray.data.tokenise import prompt_ids, tokenise
from s2l_ray.errors import DataError
from s2l_ray.storage.input_files import InputFile

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MOST_ROWS, MOST_FILES = 100, 3
"""Rows that are read of a file, and files that are read."""


@dataclass(frozen=True)
class TriedRows:
    """Sizes of the rows that were tried.

    Attributes:
        longest: tokens of the longest row; 0 without rows.
        longest_prompt: tokens of the longest prompt; 0 without rows.
    """

    longest: int
    longest_prompt: int


def try_rows(
    files: Sequence[InputFile], data: DataConfig, tokenizer: "PreTrainedTokenizerBase", where: str
) -> TriedRows:
    """Tokenise the first rows of the first files; files on the hub are left out.

    Args:
        files: the files.
        data: the section of the configuration.
        tokenizer: of the model that is to read them.
        where: the key of the files.

    Raises:
        ConfigError: the template is `chat`, and the tokenizer has no chat template.
        DataError: a file cannot be read, or the tokenizer can render none of the rows.
    """
    examples = _examples(files, data)
    template = load_template(data)
    outcomes = tokenise(examples, template, tokenizer, data.max_tokens)
    errors = [item for item in outcomes if isinstance(item, RowError)]
    # A row without room for its response is still a prompt to answer.
    answerable = [
        example
        for example, item in zip(examples, outcomes, strict=True)
        if not isinstance(item, RowError) or item.reason == NO_ROOM
    ]
    if examples and not answerable:
        raise DataError(
            f"{where}: none of the first {len(examples):,} rows can be used with the tokenizer "
            f"{tokenizer.name_or_path} (first: {errors[0]}). Use another template or tokenizer."
        )
    prompts = prompt_ids(answerable, template, tokenizer)
    usable = (len(item.input_ids) for item in outcomes if not isinstance(item, RowError))
    return TriedRows(max(usable, default=0), max(map(len, prompts), default=0))


def _examples(files: Sequence[InputFile], data: DataConfig) -> list[Example]:
    """Return the first rows that have the fields of the configuration."""
    examples = []
    for file in [file for file in files if not file.uri.startswith("hf://")][:MOST_FILES]:
        for row in islice(read_rows(file), MOST_ROWS):
            try:
                if row.fields is not None:
                    examples.append(read_example(row.fields, data.fields))
            except RowError:
                continue  # counted by `first_rows.Survey`
    return examples
