"""Shapes of data as people have them, each with what a model should learn from its rows.

The expected texts are written by hand for `TEMPLATE` and for `ALPACA`: independent of our code.
`tests/test_preview.py` holds previews against them, and benchmarks/run_data_shapes.py whole runs.
"""

import gzip
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tests import tiny

END = tiny.EOS
TEMPLATE = (
    "{% if tools %}<|tools|>{{ tools | tojson }}<|end|>\n{% endif %}"
    "{% for m in messages %}<|{{ m.role }}|>\n"
    "{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% endif %}"
    "{{ m.content or '' }}"
    "{% for call in m.tool_calls or [] %}<call>{{ call.function.name }}"
    "{{ call.function.arguments | tojson }}</call>{% endfor %}"
    "<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)


@dataclass(frozen=True)
class Shape:
    """Files of one shape, the configuration that reads them, and what should come of them.

    Attributes:
        name: as the table of docs/data-shapes.md calls it.
        files: name -> bytes, or a function that writes the path.
        data: the section `data` beside `train`.
        learned: the texts that carry loss, for each usable row in order.
        read: texts that stand in what the model reads of the first usable row, without loss.
        rejected: file-independent beginnings of the reasons of rejected rows, in order.
        refused: what the message says if the pool is refused; "" if it is not.
        train: patterns below the folder; default: all files.
        outcome: what happens, for the table.
    """

    name: str
    files: dict[str, bytes | Callable[[Path], object]]
    data: dict[str, Any] = field(default_factory=dict)
    learned: list[list[str]] = field(default_factory=list)
    read: tuple[str, ...] = ()
    rejected: tuple[str, ...] = ()
    refused: str = ""
    train: tuple[str, ...] = ()
    outcome: str = ""

    def write(self, folder: Path) -> dict[str, Any]:
        """Write files and tokenizer below `folder`; return the section `data`."""
        for name, content in self.files.items():
            path = folder / "pool" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, bytes):
                path.write_bytes(content)
            else:
                content(path)
        tiny.tokenizer(chat_template=TEMPLATE).save_pretrained(folder / "tokenizer")
        patterns = self.train or tuple(self.files)
        return {
            "train": [str(folder / "pool" / pattern) for pattern in patterns],
            "tokenizer": str(folder / "tokenizer"),
            "max_rejected": 0.9,
            **self.data,
        }


def lines(*rows: Any) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def chat(*turns: tuple[str, str]) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


def parquet(rows: list[dict[str, Any]]) -> Callable[[Path], object]:
    return lambda path: pq.write_table(pa.Table.from_pylist(rows), path)


def saved_dataset(rows: list[dict[str, Any]]) -> Callable[[Path], object]:
    def write(path: Path) -> None:
        import datasets

        datasets.Dataset.from_list(rows).save_to_disk(str(path))

    return write


def weather(content: str | None, **keys: Any) -> dict[str, Any]:
    """A chat in which a tool is called and its result is used."""
    call = {"id": "c1", "type": "function", "function": {"name": "weather", **keys}}
    return {
        "messages": [
            {"role": "user", "content": "Rome?"},
            {"role": "assistant", "content": content, "tool_calls": [call]},
            {"role": "tool", "content": "sunny", "tool_call_id": "c1"},
            {"role": "assistant", "content": "It is sunny."},
        ]
    }


QA = [("user", "2 + 2?"), ("assistant", "4")]
TWO = [*QA, ("user", "and 3 + 3?"), ("assistant", "6")]
ASKED, ANSWER, *NEXT = chat(*TWO)["messages"]
PIECES = ("d", "end", "<", "|")
ALPACA = {"instruction": "Add", "input": "1 and 2", "output": "3"}
NAMED = ALPACA | {"id": "x"}
MESSAGES: dict[str, Any] = {"fields": {"messages": "messages"}}
FOUR, SIX = f"4{END}", f"6{END}"
SCHEMA = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}

SHAPES = [
    Shape("Alpaca, JSON lines", {"a.jsonl": lines(ALPACA)}, learned=[[f"3{END}"]]),
    Shape(
        "Alpaca, one JSON array",
        {"a.json": json.dumps([ALPACA, ALPACA | {"output": "4"}], indent=1).encode()},
        learned=[[f"3{END}"], [FOUR]],
    ),
    Shape("Alpaca, gzip", {"a.jsonl.gz": gzip.compress(lines(ALPACA))}, learned=[[f"3{END}"]]),
    Shape(
        "question and answer, CSV",
        {"a.csv": b'question,answer\n"Say ""a"", please","a\nb"\n'},
        {"fields": {"prompt": "question", "response": "answer"}},
        learned=[[f"a\nb{END}"]],
        read=('Say "a", please',),
    ),
    Shape(
        "prompt and completion, parquet",
        {"a.parquet": parquet([{"prompt": "Say a", "completion": "a", "n": 1}])},
        {"fields": {"prompt": "prompt", "response": "completion"}},
        learned=[[f"a{END}"]],
    ),
    Shape("OpenAI messages", {"a.jsonl": lines(chat(*QA))}, MESSAGES, learned=[[FOUR]]),
    Shape(
        "messages with a system prompt",
        {"a.jsonl": lines(chat(("system", "Be brief."), *QA))},
        MESSAGES,
        learned=[[FOUR]],
        read=("<|system|>\nBe brief.",),
    ),
    Shape(
        "an empty system message",
        {"a.jsonl": lines(chat(("system", " \n"), *QA))},
        MESSAGES,
        learned=[[FOUR]],
    ),
    Shape(
        "several turns, `turns: all`",
        {"a.jsonl": lines(chat(*TWO))},
        MESSAGES,
        learned=[[FOUR, SIX]],
    ),
    Shape(
        "several turns, `turns: last`",
        {"a.jsonl": lines(chat(*TWO))},
        {**MESSAGES, "turns": "last"},
        learned=[[SIX]],
        read=(f"4{END}",),
    ),
    Shape(
        "a chat that ends with the user",
        {"a.jsonl": lines(chat(*QA, ("user", "Thanks")))},
        MESSAGES,
        learned=[[FOUR]],
    ),
    Shape(
        "a chat without an answer",
        {"a.jsonl": lines(chat(*QA), chat(("user", "Hello?")))},
        MESSAGES,
        learned=[[FOUR]],
        rejected=("missing field",),
    ),
    Shape(
        "`weight: 0` on a turn",
        {"a.jsonl": lines({"messages": [ASKED, ANSWER | {"content": "5", "weight": 0}, *NEXT]})},
        MESSAGES,
        learned=[[SIX]],
        read=(f"5{END}",),
    ),
    Shape(
        "`train: false` on every turn",
        {"a.jsonl": lines(chat(*QA), {"messages": [ASKED, ANSWER | {"train": False}]})},
        MESSAGES,
        learned=[[FOUR]],
        rejected=("missing field",),
    ),
    Shape(
        "ShareGPT `conversations`",
        {
            "a.jsonl": lines(
                {
                    "conversations": [
                        {"from": "human", "value": "2 + 2?"},
                        {"from": "gpt", "value": "4"},
                    ]
                }
            )
        },
        {"fields": {"messages": "conversations"}},
        learned=[[FOUR]],
        read=("<|user|>\n2 + 2?",),
    ),
    Shape(
        "messages as JSON text in CSV",
        {
            "a.csv": b'messages\n"'
            + json.dumps([ASKED, ANSWER]).replace('"', '""').encode()
            + b'"\n'
        },
        MESSAGES,
        learned=[[FOUR]],
    ),
    Shape(
        "messages, parquet, with null keys",
        {
            "a.parquet": parquet(
                [
                    {"messages": [ASKED | {"name": None}, ANSWER | {"name": None}]},
                    {"messages": [ASKED | {"name": "Bo"}, ANSWER | {"content": "6", "name": None}]},
                ]
            )
        },
        MESSAGES,
        learned=[[FOUR], [SIX]],
    ),
    Shape(
        "content as text parts",
        {
            "a.jsonl": lines(
                {
                    "messages": [
                        ASKED | {"content": [{"type": "text", "text": "2 + 2?"}]},
                        ANSWER | {"content": [{"type": "text", "text": "4"}]},
                    ]
                }
            )
        },
        MESSAGES,
        learned=[[FOUR]],
        read=("2 + 2?",),
    ),
    Shape(
        "content with an image",
        {
            "a.jsonl": lines(
                chat(*QA),
                {"messages": [ASKED | {"content": [{"type": "image", "image": "a.png"}]}, ANSWER]},
            )
        },
        MESSAGES,
        learned=[[FOUR]],
        rejected=("",),
    ),
    Shape(
        "tool calls with null content",
        {"a.jsonl": lines(weather(None, arguments='{"city": "Rome"}'))},
        MESSAGES,
        learned=[[f'<call>weather{{"city": "Rome"}}</call>{END}', f"It is sunny.{END}"]],
        read=("<|tool|>\nsunny",),
    ),
    Shape(
        "tool calls, arguments as an object",
        {"a.jsonl": lines(weather("", arguments={"city": "Rome"}))},
        MESSAGES,
        learned=[[f'<call>weather{{"city": "Rome"}}</call>{END}', f"It is sunny.{END}"]],
    ),
    Shape(
        "`tools` beside messages",
        {"a.jsonl": lines({**weather(None, arguments="{}"), "tools": [SCHEMA]})},
        MESSAGES,
        learned=[[f"<call>weather{{}}</call>{END}", f"It is sunny.{END}"]],
        read=('<|tools|>[{"',),
    ),
    Shape(
        "`reasoning_content`",
        {"a.jsonl": lines({"messages": [ASKED, ANSWER | {"reasoning_content": "Two twos."}]})},
        MESSAGES,
        learned=[[f"<think>Two twos.</think>4{END}"]],
    ),
    Shape(
        "`developer` and other names of roles",
        {"a.jsonl": lines(chat(("developer", "Be brief."), ("human", "2 + 2?"), ("model", "4")))},
        MESSAGES,
        learned=[[FOUR]],
        read=("Be brief.", "<|user|>\n2 + 2?"),
    ),
    Shape(
        "a role that nobody knows",
        {"a.jsonl": lines(chat(*QA), chat(("wizard", "a"), ("assistant", "b")))},
        MESSAGES,
        learned=[[FOUR]],
        rejected=("wrong type",),
    ),
    Shape(
        "TRL: prompt and completion as messages",
        {"a.jsonl": lines({"prompt": [ASKED], "completion": [ANSWER]})},
        {"fields": {"prompt": "prompt", "response": "completion"}},
        learned=[[FOUR]],
        read=("<|user|>\n2 + 2?",),
    ),
    Shape(
        "an end marker in the data",
        {"a.jsonl": lines(chat(("user", "2 + 2?"), ("assistant", f"4{END}")))},
        MESSAGES,
        learned=[[FOUR]],
    ),
    Shape(
        "answers that are parts of the end marker",
        {"a.jsonl": lines(*({"messages": [ASKED, ANSWER | {"content": text}]} for text in PIECES))},
        MESSAGES,
        learned=[[f"{text}{END}"] for text in PIECES],
    ),
    Shape(
        "an answer longer than `max_tokens`",
        {"a.jsonl": lines(chat(("user", "q"), ("assistant", "x" * 60)))},
        {**MESSAGES, "max_tokens": 40},
        learned=[["x" * (40 - len("<|user|>\nq") - 1 - len("\n<|assistant|>\n"))]],
    ),
    Shape(
        "a prompt longer than `max_tokens`",
        {"a.jsonl": lines(chat(*QA), chat(("user", "q" * 60), ("assistant", "x")))},
        {**MESSAGES, "max_tokens": 60},
        learned=[[FOUR]],
        rejected=("no response tokens left",),
    ),
    Shape(
        "lines that are no JSON, rows that repeat an id",
        {"a.jsonl": lines(NAMED) + b"{oops\n" + lines(NAMED) + b'"text"\n'},
        learned=[[f"3{END}"]],
        rejected=("malformed JSON", "duplicate id", "wrong type"),
    ),
    Shape(
        "a misspelt field",
        {"a.jsonl": lines(ALPACA | {"topic": "sums"})},
        {"fields": {"stratum": "topc"}},
        refused="did you mean 'topic'?",
    ),
    Shape(
        "messages with `template: alpaca`",
        {"a.jsonl": lines(chat(*QA))},
        {**MESSAGES, "template": "alpaca"},
        refused="data.template",
    ),
    Shape(
        "train and test files in one directory",
        {"train.jsonl": lines(ALPACA), "test.jsonl": lines(ALPACA | {"output": "test"})},
        train=("",),
        learned=[[f"3{END}"]],
    ),
    Shape(
        "a folder of `save_to_disk`",
        {"set": saved_dataset([ALPACA])},
        learned=[[f"3{END}"]],
    ),
]
