import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
import torch.nn.functional as F

from s2l_ray.artifacts.manifest import StageDir
from s2l_ray.artifacts.tables import part_name
from s2l_ray.config.data import DataConfig
from s2l_ray.config.sections import EvaluationConfig
from s2l_ray.errors import DataError, UserError
from s2l_ray.evaluation import answers, text_overlap
from s2l_ray.evaluation import stage as evaluation
from s2l_ray.evaluation.evaluation_sets import staged_units
from s2l_ray.evaluation.item_tables import ITEMS
from s2l_ray.progress import Progress
from s2l_ray.storage.input_files import InputFile, expand
from s2l_ray.storage.location import Location
from tests import tiny

MAX_NEW_TOKENS = 6
MAX_TOKENS = 64
TEMPLATE = "Q: {prompt}\nA:"
SHORT = [
    {"instruction": f"{n} + {n % 7}?", "output": f"It is {n + n % 7}", "source": f"kind {n % 3}"}
    for n in range(19)
]
WITH_ANSWER = {"instruction": "2 * 21?", "output": "Forty-two.", "answer": 42, "source": "kind 0"}
ROWS = [*SHORT, WITH_ANSWER]


@pytest.fixture
def model(tmp_path) -> Location:
    return Location.of(tiny.save(tmp_path / "model"))


def settings(folder: Path, sets: list[str], **data: Any) -> tuple[EvaluationConfig, DataConfig]:
    template = folder / "template.txt"
    template.write_text(TEMPLATE)
    config = EvaluationConfig(
        sets=sets,
        max_new_tokens=MAX_NEW_TOKENS,
        rows_per_batch=2,
        precision="fp32",
        workers=2,
        gpus_per_worker=0,
    )
    common = {"train": ["unused"], "template": str(template), "max_tokens": MAX_TOKENS}
    return config, DataConfig(**common | data)


def write_set(folder: Path, name: str, rows: list) -> list[InputFile]:
    path = folder / f"{name}.jsonl"
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return expand([str(path)])


def evaluator(folder: Path, model: Location, rows: list, **data: Any) -> evaluation.Evaluator:
    """A worker for `rows` as the set `sums`, in whose folder their units are staged."""
    config, data_config = settings(folder, ["sums"], **data)
    staged = Location.of(folder / "staged")
    staged_units(config, data_config, {"sums": write_set(folder, "sums", rows)}, staged)
    return evaluation.Evaluator(model, config, data_config, staged, 0)


def evaluate_all(worker: evaluation.Evaluator) -> tuple[list[dict[str, Any]], pa.Table]:
    units = (worker.staged / "plan.json").read_json()["units"]
    results = [worker(unit) for unit in units]
    parts = [(worker.staged / part_name(unit["unit"])).read_table() for unit in units]
    return results, pa.concat_tables(parts)


def expected_loss(prompt: str, response: str, max_tokens: int = MAX_TOKENS) -> float:
    """Mean cross-entropy of response and end-of-sequence, from all logits of one example."""
    text = TEMPLATE.replace("{prompt}", prompt).encode()
    ids = tiny.tokenizer()(text.decode() + response)["input_ids"] + [256]
    ids = torch.tensor(ids[:max_tokens])
    logits = tiny.model()(ids[None]).logits[0]
    return F.cross_entropy(logits[len(text) - 1 : -1], ids[len(text) :]).item()


def expected_completion(prompt: str) -> str:
    """The most likely next token, again and again."""
    tokenizer, network = tiny.tokenizer(), tiny.model()
    ids = tokenizer(TEMPLATE.replace("{prompt}", prompt))["input_ids"]
    start = len(ids)
    while len(ids) < start + MAX_NEW_TOKENS:
        token = int(network(torch.tensor([ids])).logits[0, -1].argmax())
        if token == tokenizer.eos_token_id:
            break
        ids.append(token)
    return tokenizer.decode(ids[start:], skip_special_tokens=True)


def test_every_item_has_the_loss_and_the_greedy_answer_of_the_target(tmp_path, model):
    _, items = evaluate_all(evaluator(tmp_path, model, ROWS))

    assert items.schema.equals(ITEMS)
    assert items["item"].to_pylist() == list(range(20))
    assert items["stratum"].to_pylist() == [row["source"] for row in ROWS]
    for item, row in zip(items.to_pylist(), ROWS, strict=True):
        prompt, response = row["instruction"], row["output"]
        assert item["prompt"] == prompt
        assert item["loss_nats"] == pytest.approx(expected_loss(prompt, response), rel=1e-4)
        assert item["num_response_tokens"] == len(response) + 1
        assert item["completion"] == expected_completion(prompt)
        assert item["predicted"] == answers.extract(item["completion"])
        assert item["correct"] == answers.equal(item["predicted"], item["gold"])


def test_the_right_answer_is_the_answer_field_or_else_read_off_the_response(tmp_path, model):
    _, items = evaluate_all(evaluator(tmp_path, model, [SHORT[4], WITH_ANSWER]))

    assert items["gold"].to_pylist() == ["8", "42"]


def test_an_answer_that_the_target_gives_is_right(tmp_path, model):
    said = expected_completion("2 * 21?")
    rows = [WITH_ANSWER | {"answer": answers.extract(said)}, WITH_ANSWER | {"answer": "no such"}]
    _, items = evaluate_all(evaluator(tmp_path, model, rows))

    assert items["correct"].to_pylist() == [True, False]


def test_an_item_whose_response_does_not_fit_is_answered_but_has_no_loss(tmp_path, model):
    long = {"instruction": "?" * MAX_TOKENS, "output": "no room", "source": "kind 0"}
    _, items = evaluate_all(evaluator(tmp_path, model, [SHORT[0], long, SHORT[1]]))

    assert items["loss_nats"].is_null().to_pylist() == [False, True, False]
    assert items["num_response_tokens"].to_pylist()[1] == 0
    assert items["completion"][1].as_py() == expected_completion(long["instruction"])


def test_a_response_that_is_cut_is_scored_as_far_as_it_goes_and_counted(tmp_path, model):
    worker = evaluator(tmp_path, model, [SHORT[0] | {"output": "3" * 200}, SHORT[1]])
    ((result,), items) = evaluate_all(worker)

    assert result["cut"] == 1
    assert items["loss_nats"][0].as_py() == pytest.approx(
        expected_loss(SHORT[0]["instruction"], "3" * 200), rel=1e-4
    )


def test_a_row_that_the_chat_template_refuses_is_a_failure_with_its_place(tmp_path):
    chat_template = (
        "{% if messages[0]['content'] == 'bad' %}{{ raise_exception('refused') }}{% endif %}"
        "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}<|end|>{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    folder = tiny.save(tmp_path / "chat")
    tiny.tokenizer(chat_template=chat_template).save_pretrained(folder)
    rows = [SHORT[0], SHORT[1] | {"instruction": "bad"}, SHORT[2]]
    worker = evaluator(tmp_path, Location.of(folder), rows, template="chat")
    ((result,), items) = evaluate_all(worker)

    assert result["failures"] == [
        ["refused by the template", f"{tmp_path}/sums.jsonl row 1 (from 0)"]
    ]
    assert items["item"].to_pylist() == [0, 2]


def test_a_finished_unit_is_not_done_again(tmp_path, model):
    worker = evaluator(tmp_path, model, ROWS)
    results, items = evaluate_all(worker)
    worker.model = None  # whoever needs it again fails

    results_again, items_again = evaluate_all(worker)

    assert [result["fresh"] for result in results] == [True] * 3
    assert [result["fresh"] for result in results_again] == [False] * 3
    assert items_again.equals(items)


def test_a_loss_that_is_not_finite_names_the_item(tmp_path):
    network = tiny.model()
    network.get_output_embeddings().weight.data[0] = torch.nan
    network.save_pretrained(tmp_path / "model")
    tiny.tokenizer().save_pretrained(tmp_path / "model")
    worker = evaluator(tmp_path, Location.of(tmp_path / "model"), SHORT[:2])

    with pytest.raises(DataError, match=r"2 items of set sums .*/sums\.jsonl row 0"):
        evaluate_all(worker)


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_a_run_leaves_all_items_in_order_and_metrics_and_repeats_nothing(tmp_path, model):
    config, data = settings(tmp_path, ["words", "sums"], max_rejected=0.1)
    config = config.model_copy(update={"metrics": {"words": ["rouge-l", "bleu"]}})
    words = [{"instruction": "say hi", "output": "hi"}, {"instruction": "say ho", "output": "ho"}]
    bad = [{"instruction": "no answer"}]
    sets = {
        "sums": write_set(tmp_path, "sums", ROWS + bad),
        "words": write_set(tmp_path, "words", words),
    }
    out = StageDir(Location.of(tmp_path / "run" / "evaluation"), "evaluation", {})

    def run() -> dict[str, Any]:
        with Progress("evaluation") as progress:
            return evaluation.run(config, data, sets, model, out, progress=progress)

    summary = run()
    again = run()

    items = (out.location / "items.parquet").read_table()
    metrics = (out.location / "metrics.json").read_json()
    _, alone = evaluate_all(evaluator(tmp_path / "model", model, ROWS))
    assert items["set"].to_pylist() == ["words"] * 2 + ["sums"] * 20
    assert items["item"].to_pylist() == [0, 1, *range(20)]
    assert items["loss_nats"][2:].to_pylist() == alone["loss_nats"].to_pylist()
    assert items["completion"][2:].to_pylist() == alone["completion"].to_pylist()
    assert metrics["sets"]["sums"]["unusable"] == {"missing field": 1}
    assert metrics["sets"]["sums"]["rows"] == 21
    assert metrics["sets"]["sums"]["programs"] == {}
    assert metrics["sets"]["sums"]["loss_nats"]["mean"] == pytest.approx(
        np.mean(items["loss_nats"][2:].to_numpy())
    )
    assert sorted(metrics["sets"]["sums"]["strata"]) == ["kind 0", "kind 1", "kind 2"]
    assert summary["sets"]["words"]["items"] == 2
    told, wanted = (items[name][:2].to_pylist() for name in ("completion", "response"))
    assert items["rouge_l"][:2].to_pylist() == text_overlap.rouge_l(told, wanted)
    assert items["rouge_l"][2:].null_count == 20 and items["correct"].null_count == 2
    assert metrics["sets"]["words"]["corpus_bleu"] == text_overlap.corpus_bleu(told, wanted)
    assert "exact_match" not in metrics["sets"]["words"]
    assert "rouge_l" in metrics["method"] and "corpus_bleu" not in metrics["sets"]["sums"]
    assert summary["sets"]["words"]["macro_sentence_bleu"] is not None
    assert summary["sets"]["sums"]["exact_match"] is not None
    assert (summary["rows"], summary["unusable"]) == (22, 1)
    assert summary == again
    out.finish(summary, seconds=1.0)
    assert out.location.names() == ["_manifest.json", "items.parquet", "metrics.json"]


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_a_target_that_is_missing_is_told_to_the_user(tmp_path):
    config, data = settings(tmp_path, ["sums"])
    sets = {"sums": write_set(tmp_path, "sums", SHORT[:2])}
    out = StageDir(Location.of(tmp_path / "evaluation"), "evaluation", {})

    with pytest.raises(UserError, match="nowhere"), Progress("evaluation") as progress:
        evaluation.run(
            config, data, sets, Location.of(tmp_path / "nowhere"), out, progress=progress
        )
