"""Metrics beside the loss: the libraries' own numbers, and only where they are asked for."""

from collections import Counter
from math import exp, log
from typing import get_args

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertModel, BertTokenizer

from s2l_ray.config.data import FieldNames
from s2l_ray.config.sections import BertScoreConfig, EvaluationConfig, MetricName
from s2l_ray.data.examples import read_example
from s2l_ray.errors import ConfigError
from s2l_ray.evaluation import bertscore, comparison, metrics, sandbox, text_overlap
from s2l_ray.evaluation.item_tables import ITEMS, items_table, schema
from s2l_ray.evaluation.items import Item

REFERENCES = [
    "No acute cardiopulmonary process.",
    "Small left pleural effusions, with adjacent atelectasis; no pneumothorax.",
    "Lines and tubes in standard position.",
    "Normal chest.",
]
COMPLETIONS = [
    "No acute cardiopulmonary processes are seen.",
    "There is a small left pleural effusion with atelectasis.",
    "",
    "Normal chest.",
]


def words(text):
    return "".join(c if c.isalnum() else " " for c in text.lower()).split()


def longest_common(a, b):
    best = np.zeros((len(a) + 1, len(b) + 1), int)
    for i, j in np.ndindex(len(a), len(b)):
        near = max(best[i, j + 1], best[i + 1, j])
        best[i + 1, j + 1] = best[i, j] + 1 if a[i] == b[j] else near
    return int(best[-1, -1])


def test_rouge_l_is_the_librarys_number():
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    pairs = zip(REFERENCES, COMPLETIONS, strict=True)
    expected = [scorer.score(reference, said)["rougeL"].fmeasure for reference, said in pairs]

    assert text_overlap.rouge_l(COMPLETIONS, REFERENCES) == expected


def test_rouge_l_is_the_harmonic_mean_of_the_two_shares_of_common_words():
    said, reference = "the cat sat on a mat", "a cat sat quite near a mat"
    common = longest_common(words(said), words(reference))
    precision, recall = common / 6, common / 7

    (found,) = text_overlap.rouge_l([said], [reference])

    assert found == pytest.approx(2 * precision * recall / (precision + recall))


def test_rouge_l_compares_stems():
    assert text_overlap.rouge_l(["effusions"], ["effusion"]) == [1.0]


def test_bleu_of_a_sentence_and_of_all_are_the_librarys_numbers():
    import sacrebleu

    pairs = list(zip(COMPLETIONS, REFERENCES, strict=True))
    expected = [sacrebleu.sentence_bleu(said, [reference]).score / 100 for said, reference in pairs]

    assert text_overlap.sentence_bleu(COMPLETIONS, REFERENCES) == expected
    assert text_overlap.corpus_bleu(COMPLETIONS, REFERENCES) == (
        sacrebleu.corpus_bleu(COMPLETIONS, [REFERENCES]).score / 100
    )


def test_bleu_of_all_adds_up_the_counts_of_n_grams():
    said = ["the cat sat on the mat today", "a dog ran far away now"]
    references = ["the cat sat on the red mat today", "a dog ran far away then"]
    precisions = []
    for n in range(1, 5):
        matched = total = 0
        for a, b in zip(said, references, strict=True):
            grams_a, grams_b = (
                Counter(zip(*(text.split()[i:] for i in range(n)), strict=False)) for text in (a, b)
            )
            matched += (grams_a & grams_b).total()
            total += grams_a.total()
        precisions.append(matched / total)
    brevity = exp(1 - (8 + 6) / (7 + 6))

    assert text_overlap.corpus_bleu(said, references) == pytest.approx(
        brevity * exp(sum(map(log, precisions)) / 4)
    )


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    """A two-layer model that reads in both directions, with a vocabulary of characters."""
    folder = tmp_path_factory.mktemp("bert")
    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)] + list(",.;")
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters]
    vocabulary += [f"##{letter}" for letter in letters]
    (folder / "vocab.txt").write_text("\n".join(vocabulary))
    BertTokenizer(str(folder / "vocab.txt"), model_max_length=64).save_pretrained(folder)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        config = BertConfig(
            vocab_size=len(vocabulary),
            hidden_size=16,
            num_hidden_layers=3,
            num_attention_heads=2,
            intermediate_size=32,
            max_position_embeddings=64,
        )
        BertModel(config).save_pretrained(folder)
    return str(folder)


def test_bertscore_is_the_librarys_number(bert):
    from bert_score import score

    told = [0, 1, 3]
    said, wanted = ([texts[i] for i in told] for texts in (COMPLETIONS, REFERENCES))
    _, _, expected_N = score(said, wanted, model_type=bert, num_layers=2, device="cpu", nthreads=0)

    found = bertscore.f1(COMPLETIONS, REFERENCES, BertScoreConfig(model=bert, layer=2), "cpu")

    assert [found[i] for i in told] == pytest.approx(expected_N.tolist(), abs=1e-6)
    assert found[2] == 0.0
    assert found[3] == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "./nowhere"}, "nowhere.*cannot be read here"),
        ({"layer": None}, "recommends no layer"),
        ({"layer": 9}, "has 3 layers, not 9"),
    ],
)
def test_a_bertscore_that_cannot_be_computed_is_refused_at_the_start(bert, changes, message):
    bertscore.check(BertScoreConfig(model=bert, layer=3))

    with pytest.raises(ConfigError, match=message):
        bertscore.check(BertScoreConfig(**{"model": bert, "layer": 3} | changes))


def test_a_missing_package_is_refused_at_the_start(bert, monkeypatch):
    monkeypatch.setattr(bertscore.importlib.util, "find_spec", lambda name: None)

    with pytest.raises(ConfigError, match=r"pip install 's2l-ray\[bertscore\]'"):
        bertscore.check(BertScoreConfig(model=bert, layer=3))


def answered(config, completions=COMPLETIONS):
    rows = [
        {"instruction": "?", "output": text, "source": f"kind {i % 2}"}
        for i, text in enumerate(REFERENCES)
    ]
    items = [Item("f", i, read_example(row, FieldNames()), None) for i, row in enumerate(rows)]
    return metrics.Answers(items, completions, None, config)


def test_a_set_has_the_columns_of_its_metrics_in_one_order():
    config = EvaluationConfig(sets=["a", "b"], metrics={"a": ["bleu", "rouge-l"]})
    table = items_table("a", answered(config), [1.0, 2.0, None, 4.0])
    other = items_table("b", answered(config), [1.0, 2.0, None, 4.0])

    assert table.schema.equals(schema(config)) and other.schema.equals(schema(config))
    assert table.column_names == [*ITEMS.names, "response", "rouge_l", "sentence_bleu"]
    assert table["rouge_l"].to_pylist() == text_overlap.rouge_l(COMPLETIONS, REFERENCES)
    assert table["sentence_bleu"].to_pylist() == text_overlap.sentence_bleu(COMPLETIONS, REFERENCES)
    assert table["correct"].null_count == 4
    assert other["correct"].to_pylist() == [False, False, False, True]
    assert other["rouge_l"].null_count == 4


def test_programs_are_marked_and_have_no_answer_unless_they_are_run():
    completions = ["a = 2\nprint(a)", "2", "print(1 / 0)", "The answer is 9."]
    table = items_table("a", answered(EvaluationConfig(sets=["a"]), completions), [1.0] * 4)

    assert table["program"].to_pylist() == ["not run", None, "not run", None]
    assert table["predicted"].to_pylist() == [None, "2", None, "9"]


@pytest.mark.parametrize("asked", [{"run_programs": True}, {"metrics": {"a": ["program"]}}])
def test_programs_are_run_on_request(asked):
    try:
        sandbox.check()
    except ConfigError as error:
        pytest.skip(str(error))
    completions = ["a = 2\nprint(a)", "2", "print(1 / 0)", "The answer is 9."]
    config = EvaluationConfig(sets=["a", "b"], **asked)
    table = items_table("a", answered(config, completions), [1.0] * 4)

    assert table["program"].to_pylist() == ["ran", None, "failed", None]
    assert table["predicted"].to_pylist() == ["2", "2", None, "9"]
    assert table["correct"].null_count == 0
    assert config.runs_some_programs and config.runs_programs_of("b") == config.run_programs


def test_an_evaluation_without_further_metrics_has_the_columns_of_old():
    assert schema(EvaluationConfig(sets=["a"])).equals(ITEMS)


def test_numbers_of_a_set_have_means_and_strata_and_no_exact_match_that_nobody_asked_for():
    config = EvaluationConfig(sets=["a"], metrics="rouge-l")
    found = comparison.measure(items_table("a", answered(config), [1.0, 2.0, None, 4.0]))
    scores = np.array(text_overlap.rouge_l(COMPLETIONS, REFERENCES))

    assert "exact_match" not in found
    assert found["rouge_l"]["mean"] == pytest.approx(scores.mean())
    assert found["rouge_l"]["low"] < scores.mean() < found["rouge_l"]["high"]
    assert found["macro"]["rouge_l"]["mean"] == pytest.approx(
        (scores[::2].mean() + scores[1::2].mean()) / 2
    )
    assert found["strata"]["kind 1"]["rouge_l"]["mean"] == pytest.approx(scores[1::2].mean())


def test_all_metrics_are_compared_in_pairs():
    config = EvaluationConfig(sets=["a"], metrics=["exact-match", "rouge-l"])
    one = items_table("a", answered(config), [1.0, 2.0, 3.0, 4.0])
    other = items_table("a", answered(config, ["Normal."] * 4), [1.0, 2.0, 3.0, 4.0])
    scores = [np.array(table["rouge_l"].to_pylist()) for table in (one, other)]

    found = {pair.metric: pair for pair in comparison.compare(one, other) if pair.over == "items"}

    assert list(found) == ["loss", "exact match", "ROUGE-L"]
    assert found["ROUGE-L"].difference == pytest.approx((scores[0] - scores[1]).mean())


def test_what_only_one_side_has_is_not_compared():
    one, other = (
        EvaluationConfig(sets=["a"], metrics=["exact-match", metric])
        for metric in ("bleu", "rouge-l")
    )
    tables = [items_table("a", answered(config), [1.0] * 4) for config in (one, other)]

    found = comparison.compare(*tables)

    assert {pair.metric for pair in found} == {"loss", "exact match"}


def test_every_metric_that_can_be_asked_for_has_a_row():
    assert list(get_args(MetricName)) == list(metrics.ASKED_FOR)
    columns = [metric.column for metric in metrics.METRICS]
    assert len(set(columns)) == len(columns)


@pytest.mark.parametrize(
    ("asked", "message"),
    [({"b": ["bleu"]}, "'b' is not one of `sets`"), (["blue"], "bleu")],
)
def test_unknown_metrics_and_sets_are_refused(asked, message):
    with pytest.raises(ValueError, match=message):
        EvaluationConfig(sets=["a"], metrics=asked)
