"""Rows that hold a prompt of an evaluation set are found, whoever quotes it and however."""

import random

import pyarrow as pa
import pytest

from s2l_ray.config.data import FieldNames
from s2l_ray.data.contamination import OVERLAP, PROMPTS, SAME_PROMPT, PromptIndex
from s2l_ray.data.examples import read_example
from s2l_ray.data.words import words

QUESTION = (
    "Janet's ducks lay 16 eggs per day. She eats three for breakfast every morning and sells the "
    "rest at the market for 2 dollars each. How much does she make every day?"
)
OTHER = (
    "A robe takes 2 bolts of blue fiber and half that much white fiber. How many bolts in total "
    "does it take to sew a dozen of them?"
)


def index(*prompts, name="gsm8k"):
    lines = [{"set": name, "file": "f", "row": n, "text": text} for n, text in enumerate(prompts)]
    return PromptIndex(pa.Table.from_pylist(lines, PROMPTS))


def row(prompt, answer="it is so", **fields):
    return read_example({"instruction": prompt, "output": answer} | fields, FieldNames())


def chat(*turns):
    roles = ("user", "assistant")
    messages = [{"role": roles[n % 2], "content": text} for n, text in enumerate(turns)]
    return read_example({"messages": messages}, FieldNames(messages="messages"))


def found(prompts, *rows):
    return [(item.position, item.prompt, item.kind) for item in index(*prompts).matches(rows)]


@pytest.mark.parametrize(
    "same",
    [
        row(QUESTION),
        row(QUESTION.upper().replace(". ", " ...\n\n")),
        chat("Hello!", "Hi.", QUESTION, "18"),
        chat(QUESTION, "18", "Are you sure?", "Yes."),
    ],
    ids=["as it is", "written otherwise", "a later turn", "an earlier turn"],
)
def test_the_same_prompt_is_found_in_any_turn_of_a_user(same):
    assert found([OTHER, QUESTION], row("Say hello."), same) == [(1, 1, SAME_PROMPT)]


def test_several_turns_of_a_user_may_be_one_prompt():
    turns = "Name a bird.\nAnd another one."
    assert found([turns], chat("Name a bird.", "Emu", "And another one.", "Kiwi")) == [
        (0, 0, SAME_PROMPT)
    ]
    assert found([turns], chat("Name a bird.", "Emu", "And a fish.", "Cod")) == []


@pytest.mark.parametrize(
    "quoting",
    [
        row(f"Solve this riddle for me, please: {QUESTION} Thanks a lot."),
        row("Read this.", input=QUESTION),
        row("Invent a problem.", f"Here is one. {QUESTION} The answer is 18."),
        row(QUESTION.replace("ducks", "hens")),
        row(QUESTION.rpartition(" How")[0] + " What does she earn in a week?"),
        chat("Hi", "Hello", f"A friend asks: {QUESTION}", "18"),
    ],
    ids=["with more around", "as context", "as answer", "one word", "its end", "in a chat"],
)
def test_a_quoted_or_slightly_changed_prompt_overlaps(quoting):
    assert found([OTHER, QUESTION], quoting) == [(0, 1, OVERLAP)]


@pytest.mark.parametrize(
    ("prompt", "other"),
    [
        ("What is 3 + 5?", "What is 3 - 5?"),
        ("Name a bird.", "Name a bird that cannot fly."),
        (QUESTION, QUESTION[: len(QUESTION) // 3] + " and then she went home by bus"),
        (QUESTION, " ".join(reversed(QUESTION.split()))),
    ],
    ids=["another sign", "short and quoted", "a third of it", "the same words"],
)
def test_other_prompts_are_no_match(prompt, other):
    assert found([prompt], row(other)) == []


def test_overlap_does_not_go_beyond_one_message():
    first, second = QUESTION[:75], QUESTION[75:]
    assert found([QUESTION], chat(first[-30:], second[:20], "so", "so")) == []


COMMON = "Solve the following problem step by step and put your final answer in a box at the end."


def test_an_instruction_that_all_prompts_share_is_no_overlap():
    names = ["Ann", "Ben", "Cleo", "Dan", "Eve"]
    prompts = [
        f"{COMMON} {name} has {n} red marbles, gives {n + 1} of them to a friend and loses the "
        f"others on way number {n}; what remains for {name}?"
        for n, name in enumerate(names)
    ]
    rows = [row(f"{COMMON} {text}") for text in (QUESTION, OTHER)]
    assert found(prompts, *rows) == []
    quoted = row(prompts[3].removeprefix(COMMON))
    assert found(prompts, *rows, quoted) == [(2, 3, OVERLAP)]
    # Alone it is the greater part of its prompt.
    assert found(prompts[3:4], row(f"{COMMON} {prompts[3][-60:]}")) == [(0, 0, OVERLAP)]


def test_equal_prompts_of_a_set_count_once():
    same = index(QUESTION, QUESTION.lower(), OTHER, "?!")
    assert [prompt.number for prompt in same.prompts] == [0, 2]
    assert [item.prompt for item in same.matches([row(QUESTION)])] == [0]


def test_without_usable_prompts_nothing_matches():
    assert found([], row(QUESTION)) == []
    assert found(["Hi"], row(QUESTION), row("hi!")) == [(1, 0, SAME_PROMPT)]


def share_by_hand(prompt, messages, common):
    """Words of the prompt in 8-grams that a message has, too, of those in no common 8-gram."""
    asked = words(prompt)
    grams = {tuple(w[k : k + 8]) for w in map(words, messages) for k in range(len(w) - 7)}
    counting, held = set(range(len(asked))), set()
    for place in range(len(asked) - 7):
        gram, places = tuple(asked[place : place + 8]), set(range(place, place + 8))
        if gram in common:
            counting -= places
        if gram in grams:
            held |= places
    return len(held & counting) / len(counting) if len(counting) >= 8 else 0.0


def test_shares_are_those_of_a_count_by_hand():
    rng = random.Random(3)  # noqa: S311
    vocabulary = ["ab", "cd", "ef", "gh", "ij"]
    prompts = [
        " ".join(rng.choices(vocabulary, k=rng.randrange(9, 30))) + f" end {n}" for n in range(4)
    ]
    rows = []
    for _ in range(200):
        source = rng.choice(prompts).split()
        start = rng.randrange(len(source))
        piece = source[start : start + rng.randrange(4, 30)]
        filler = rng.choices(vocabulary, k=rng.randrange(5))
        rows.append(row(" ".join([*filler, *piece, "z"]), " ".join(source[: rng.randrange(1, 20)])))
    counts = {}
    for text in map(words, prompts):
        for gram in {tuple(text[k : k + 8]) for k in range(len(text) - 7)}:
            counts[gram] = counts.get(gram, 0) + 1
    common = {gram for gram, number in counts.items() if number > 2}

    expected = {
        (position, number): pytest.approx(share)
        for position, item in enumerate(rows)
        for number, prompt in enumerate(prompts)
        if (share := share_by_hand(prompt, [m.content for m in item.messages], common)) > 0.5
    }
    matches = index(*prompts).matches(rows)
    assert 20 < len(expected) < 400
    assert {(item.position, item.prompt): item.share for item in matches} == expected


def test_what_matched_is_shown():
    [match] = index(QUESTION).matches([row(f"{QUESTION[:70]} or {QUESTION[100:]}")])
    assert match.matched.startswith("janet s ducks lay 16 eggs per day")
    assert " ... " in match.matched and match.share > 0.8
