"""`s2l init --fields`: what is told is taken, the rest is found, and no field gets two roles."""

import json

import pytest

from s2l_ray import cli, first_config
from s2l_ray.config import load
from s2l_ray.data.examples import read_example

NUM_ROWS = 20


def written(folder, rows):
    path = folder / "pool.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


FOREIGN = [
    {"frage": f"Q{i}", "antwort": f"A{i}", "hinweis": "H", "fach": f"f{i % 9}"}
    for i in range(NUM_ROWS)
]


@pytest.mark.parametrize(
    ("options", "fields"),
    [
        (["prompt=frage,response=antwort"], {"prompt": "frage", "response": "antwort"}),
        (
            ["prompt=frage", "response=antwort, context=hinweis,stratum=fach"],
            {
                "prompt": "frage",
                "context": "hinweis",
                "response": "antwort",
                "stratum": "fach",
            },
        ),
    ],
)
def test_fields_that_are_told_are_read(tmp_path, capsys, options, fields):
    file = written(tmp_path, FOREIGN)
    told = [word for option in options for word in ("--fields", option)]

    assert cli.main(["init", file, *told]) == 0

    (tmp_path / "mine.yaml").write_text(capsys.readouterr().out)
    config = load.load(tmp_path / "mine.yaml")
    assert {key: getattr(config.data.fields, key) for key in fields} == fields
    assert read_example(FOREIGN[3], config.data.fields).messages[-1].text == "A3"


def test_what_is_not_told_is_found(tmp_path):
    rows = [{"frage": f"Q{i}", "answer": f"A{i}", "topic": f"t{i % 2}"} for i in range(NUM_ROWS)]
    file = written(tmp_path, rows)

    text = first_config.text_of([file], fields={"prompt": "frage"})
    assert "fields: {prompt: frage, response: answer, stratum: topic}" in text
    text = first_config.text_of([file], fields={"prompt": "frage", "stratum": None})
    assert "fields: {prompt: frage, response: answer, stratum: null}" in text


def test_a_stratum_alone_may_be_told(tmp_path):
    rows = [{"question": "Q", "answer": "A", "topic": "t", "desk": f"d{i % 3}"} for i in range(30)]
    file = written(tmp_path, rows)

    text = first_config.text_of([file], fields={"stratum": "desk"})
    assert "fields: {prompt: question, response: answer, stratum: desk}" in text
    assert "have 3 strata, by desk" in text


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ("promt=frage", "data.fields.promt: unknown key; did you mean 'prompt'?"),
        ("frage", "'frage': expected KEY=FIELD"),
        ("prompt=", "'prompt=': expected KEY=FIELD"),
        ("prompt=Frage,response=antwort", "(first: missing field: "),
        ("prompt=frage,response=antwort,stratum=fuch", "'fuch' (did you mean 'fach'?)"),
        ("messages=frage,prompt=frage", "data.fields.prompt"),
        ("prompt=frage,response=null", "data.fields.response: "),
        ("prompt=frage", "cannot be told which fields"),
    ],
)
def test_fields_that_cannot_be_are_refused_as_in_a_configuration(tmp_path, capsys, told, message):
    file = written(tmp_path, FOREIGN)

    assert cli.main(["init", file, "--fields", told]) == 2
    assert message in capsys.readouterr().err


def talk(i):
    return [{"role": "user", "content": f"Q{i}"}, {"role": "assistant", "content": f"A{i}"}]


@pytest.mark.parametrize(
    ("row_of", "told", "fields"),
    [
        (
            lambda i: {"question": f"Q{i}", "answer": f"A{i}"},
            {"messages": None},
            "{prompt: question, response: answer}",
        ),
        (
            lambda i: {"talk": talk(i), "question": f"Q{i}", "answer": f"A{i}"},
            {"messages": None},
            "{prompt: question, response: answer}",
        ),
        (
            lambda i: {"prompt": talk(i)[:1], "completion": talk(i)[1:]},
            {"messages": None},
            "{prompt: prompt, response: completion}",
        ),
        (
            lambda i: {"prompt": f"Q{i}", "target": f"t{i % 2}", "text": f"A{i}"},
            {"stratum": "target", "response": "text"},
            "{prompt: prompt, response: text, stratum: target}",
        ),
        (
            lambda i: {"prompt": f"Q{i}", "context": f"t{i % 2}", "response": f"A{i}"},
            {"stratum": "context"},
            "{prompt: prompt, response: response, stratum: context}",
        ),
        (
            lambda i: {"prompt": f"Q{i}", "input": f"t{i % 2}", "response": f"A{i}"},
            {"stratum": "input"},
            "{prompt: prompt, context: null, response: response, stratum: input}",
        ),
        (
            lambda i: {"prompt": f"Q{i}", "answer": f"a{i}", "solution": f"A{i}"},
            {"id": "answer"},
            "{prompt: prompt, response: solution, id: answer, answer: null}",
        ),
        (
            lambda i: {"prompt": f"Q{i}", "source": f"t{i % 2}", "response": f"A{i}"},
            {"context": "source"},
            "{prompt: prompt, context: source, response: response, stratum: null}",
        ),
        (
            lambda i: {"prompt": f"Q{i}", "id": f"i{i % 2}", "response": f"A{i}"},
            {"stratum": "id"},
            "{prompt: prompt, response: response, stratum: id, id: null}",
        ),
        (
            lambda i: {"prompt": f"Q{i}", "system": f"t{i % 2}", "response": f"A{i}"},
            {"stratum": "system"},
            "{prompt: prompt, response: response, system: null, stratum: system}",
        ),
        (
            lambda i: {"messages": talk(i), "tools": f"t{i % 2}"},
            {"stratum": "tools"},
            "{messages: messages, tools: null, stratum: tools}",
        ),
        (
            lambda i: {"functions": [{"name": "f"}], "talk": talk(i)},
            {"tools": "functions"},
            "{messages: talk, tools: functions}",
        ),
        (
            lambda i: {"prompt": f"Q{i}", "input": f"t{i % 2}", "response": f"A{i}"},
            {"context": None},
            "{prompt: prompt, context: null, response: response, stratum: input}",
        ),
    ],
)
def test_no_field_gets_a_second_role(tmp_path, row_of, told, fields):
    file = written(tmp_path, [row_of(i) for i in range(NUM_ROWS)])

    text = first_config.text_of([file], fields=told)

    assert f"  fields: {fields}\n" in text
    assert "cannot be used" not in text


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"prompt": "Q", "target": "t", "text": "A"}, "stratum=target"),
        ({"question": "Q", "answer": "A"}, "id=answer"),
    ],
)
def test_a_response_whose_field_is_told_for_something_else_is_asked_for(
    tmp_path, capsys, row, told
):
    file = written(tmp_path, [row])

    assert cli.main(["init", file, "--fields", told]) == 2
    assert "cannot be told which fields" in capsys.readouterr().err
