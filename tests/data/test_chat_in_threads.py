"""Threads render one chat template at a time: they share what transformers compiles."""

import datetime
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from s2l_ray.data.chat_templates import ChatTemplateOfTokenizer
from tests import tiny
from tests.data import chat_templates as families

CONVERSATIONS = [
    [
        {"role": role, "content": f"{role} {number} {turn} " * (1 + number % 7)}
        for turn in range(1 + number % 4)
        for role in ("user", "assistant")
    ]
    for number in range(300)
]


@pytest.fixture(autouse=True)
def threads_that_take_turns_often():
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def rendered(template: str) -> list:
    tokenizer = tiny.tokenizer(chat_template=template)
    own = ChatTemplateOfTokenizer(tokenizer, None, datetime.date(2026, 1, 2))
    return [own.text_and_spans(turns, None) for turns in CONVERSATIONS]


@pytest.mark.parametrize("family", ["MARKED", "CHATML"])
def test_threads_find_what_one_finds(family):
    template = getattr(families, family)
    expected = rendered(template)
    if family == "MARKED":  # an oracle without the template's own marks
        for turns, (text, spans) in zip(CONVERSATIONS, expected, strict=True):
            answers = [turn["content"] + "<|im_end|>" for turn in turns[1::2]]
            assert [text[start:end] for start, end in spans] == answers

    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(rendered, [template] * 4)) == [expected] * 4
