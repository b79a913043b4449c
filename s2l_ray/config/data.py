"""The section `data` of a run file: the pool, the held-out sets, and how a row becomes tokens."""

import datetime
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, PositiveInt, field_serializer, field_validator

from s2l_ray.config.section import Listed, Section

NAMED_TEMPLATES = ("alpaca", "alpaca-official", "radiology", "chat")
CHATML = "chatml"
"""The chat template that needs no file."""
TEXT_OF_A_TEMPLATE = ("\n", "{{", "{%", "{prompt}")
"""What no path of a template has in it, though it may have a brace."""
AUTO = "auto"
"""The template that follows from the fields."""


def _dated(value: Any) -> Any:
    """Return a date; text in the form 2025-01-31 is read, as JSON and quoted YAML hold it."""
    if not isinstance(value, str):
        return value
    try:
        return datetime.date.fromisoformat(value)
    except ValueError:
        raise ValueError(f"{value!r} is no date such as 2025-01-31") from None


class FieldNames(Section):
    """Names of the fields of an input row; only prompt and response must be in every row."""

    added: ClassVar[frozenset[str]] = frozenset(
        {"system", "history", "tools", "choices", "right_choice"}
    )

    prompt: str = "instruction"
    """The question or instruction. Prompt and response may also be lists of messages."""
    context: str | None = "input"
    """A text that the prompt refers to; may be absent or empty in a row."""
    response: str = "output"
    """The answer that the model learns to give; only its tokens count in losses."""
    messages: str | None = None
    """Chat rows: a list of {role, content} or {from, value}, instead of prompt and response."""
    system: str | None = "system"
    """A system text beside the prompt or the messages; may be absent or empty in a row."""
    history: str | None = "history"
    """Earlier turns beside the prompt: a list of pairs of a question and its answer; may be absent
    or empty in a row."""
    tools: str | None = "tools"
    """Schemas of the tools of a conversation, a list or its JSON text; may be absent or empty in a
    row."""
    stratum: str | None = "source"
    """The source or task of a row. Clusters are made inside each stratum, and the budget is spread
    over them."""
    id: str | None = "id"
    """The example_id, which must be unique; a row without one gets a hash of its content."""
    answer: str | None = "answer"
    """The final answer of an evaluation row, not read in the pool. If a row has none, or this is
    the field of the response, the answer is extracted from the response."""

    choices: str | None = None
    """The choices of an evaluation row, for multiple-choice: a list, or {text: ..., label: ...}. A
    row of choices needs no response: the right choice is one. Default: none."""
    right_choice: str = "answer"
    """Which of the `choices` is right: its label, its text, its letter, or its number from 0 on."""

    @property
    def of_pool(self) -> "FieldNames":
        """The fields that are read of rows of the pool, which have no answer to compare with."""
        return self.model_copy(update={"answer": None, "choices": None})


OF_EVALUATION = frozenset({"answer", "choices", "right_choice"})
"""Keys of the fields of rows that are evaluated, and never of the pool."""


class HeldOutSet(Section):
    """A held-out set whose rows have fields of other names."""

    files: Listed = Field(min_length=1)
    """Files, globs, directories or URIs."""
    fields: FieldNames = FieldNames()
    """Names of fields where they are others than those of data.fields."""

    @field_serializer("fields")
    def _that_are_given(self, fields: FieldNames) -> dict[str, Any]:
        return fields.model_dump(exclude_unset=True)


class DataConfig(Section):
    """The pool, the held-out sets, and the conversion of a row to tokens."""

    operational: ClassVar[frozenset[str]] = frozenset(
        {"max_rejected", "eval", "split", "decontaminate", "near_duplicates"}
    )
    indirect: ClassVar[frozenset[str]] = frozenset(
        {"eval", "split", "decontaminate", "near_duplicates"}
    )
    added: ClassVar[frozenset[str]] = frozenset({"turns", "date", "chat_template"})

    train: Listed = Field(min_length=1)
    """The pool: files, globs, directories, s3://, gs:// or abfs:// URIs, or hf://org/name, with
    :split or :config/split added. Formats: jsonl, json, csv and tsv, also compressed (.gz, .zst,
    .bz2); parquet and arrow. Of a directory whose names tell several splits, train alone is
    read."""
    split: str | None = None
    """The split to read of directories and data sets on the hub that have several; all: every
    split of a directory. Default: train."""
    eval: dict[str, str | HeldOutSet] = Field(default_factory=dict)
    """Held-out sets: name -> file, glob, directory or URI; or {files: [...], fields: {...}} with
    names of fields that differ from `fields`. Of a directory with several splits, test is read;
    without one, validation."""
    decontaminate: Literal["report", "drop", "off"] = "report"
    """Rows of the pool that hold a prompt of a held-out set: report lists and counts them, drop
    leaves them out. A changed held-out set makes a new list; with drop, a new pool."""
    near_duplicates: Literal["off", "report", "drop"] = "off"
    """Rows of the pool that repeat an earlier row but for a few words: report lists them, drop
    leaves them out."""
    fields: FieldNames = FieldNames()
    """Names of the fields of a row."""
    rows_per_part: PositiveInt = 4096
    """Input rows in one part. A part is the unit of work, of a retry and of a restart."""
    template: str = "auto"
    """The text around a prompt: alpaca, alpaca-official, radiology, chat (that of the tokenizer),
    or a text file with {prompt} and {context}. auto: chat for rows that hold messages or where
    there is a `chat_template`, alpaca for other rows."""
    chat_template: str | None = None
    """The chat template: chatml, or a Jinja file. Default: the tokenizer's own. A target that is
    trained with it has it in its tokenizer."""
    turns: Literal["all", "last"] = "all"
    """Turns of the assistant that carry loss in a chat: all of them, or the last. A row may exempt
    turns (`weight: 0` or `train: false` in the message)."""
    date: Annotated[datetime.date, BeforeValidator(_dated)] = datetime.date(2025, 1, 1)
    """The day that chat templates take for today (`strftime_now`). It does not follow the calendar:
    the same rows give the same tokens on any day."""
    tokenizer: str | None = None
    """A hub name or a directory. Default: the reference's; without a reference, rows are stored and
    not tokenised."""
    max_tokens: Annotated[int, Field(ge=2)] = 512
    """Most tokens of a row, prompt included; the end of a longer response is cut off."""
    max_rejected: Annotated[float, Field(ge=0, le=1)] = 0.01
    """Largest share of unusable rows; with more, the run stops. Rows that decontaminate or
    near_duplicates leaves out do not count."""

    @field_validator("template", "chat_template")
    @classmethod
    def _names_a_template(cls, value: str | None) -> str | None:
        if value is not None and any(mark in value for mark in TEXT_OF_A_TEMPLATE):
            raise ValueError("this is the text of a template: write it into a file, and name that")
        return value

    @property
    def of_pool(self) -> "DataConfig":
        """The section with the fields that are read of rows of the pool."""
        return self.model_copy(update={"fields": self.fields.of_pool})

    def files_of(self, name: str) -> list[str]:
        """Return the files of a held-out set, as they are given."""
        held_out = self.eval[name]
        return [held_out] if isinstance(held_out, str) else held_out.files

    def own_fields_of(self, name: str) -> dict[str, str | None]:
        """Return the names of fields that a held-out set has for itself."""
        held_out = self.eval.get(name)
        if not isinstance(held_out, HeldOutSet):
            return {}
        return held_out.fields.model_dump(exclude_unset=True)

    def of_set(self, name: str) -> "DataConfig":
        """Return the section with the names of fields of a held-out set."""
        fields = self.fields.model_copy(update=self.own_fields_of(name))
        return self.model_copy(update={"fields": fields})

    @property
    def template_files(self) -> dict[str, str]:
        """`template` and `chat_template`, as far as they are files."""
        names = {"template": self.template, "chat_template": self.chat_template}
        named = (*NAMED_TEMPLATES, AUTO, CHATML, None)
        return {key: name for key, name in names.items() if name is not None and name not in named}

    @property
    def template_name(self) -> str:
        """The name or file of the template; for auto, what the other keys stand for."""
        if self.template != AUTO:
            return self.template
        is_chat = self.fields.messages is not None or self.chat_template is not None
        return "chat" if is_chat else "alpaca"
