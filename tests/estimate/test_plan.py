"""The plan: what would run, how much there is, what it costs, and that looking changes nothing."""

import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from s2l_ray.artifacts.amounts import Quantities
from s2l_ray.clusters.declaration import CLUSTERS
from s2l_ray.config.clusters import FINDS_KINDS
from s2l_ray.config.load import from_tree
from s2l_ray.errors import ConfigError, DataError, ModelError, UserError
from s2l_ray.estimate import costs
from s2l_ray.estimate import plan as planning
from s2l_ray.progress import duration
from s2l_ray.selection.declaration import SELECTION
from tests import handmade, tiny
from tests.handmade import changed, finish

MODEL = {"model_type": "gpt_neox", **tiny.ARCHITECTURES["gpt_neox"]}


@pytest.fixture
def tree(tmp_path):
    """A configuration whose reference and target are two-layer models with one token per byte."""
    made = handmade.inputs(tmp_path)
    tiny.tokenizer().save_pretrained(tmp_path / "tokenizer")
    model = {"architecture": MODEL, "tokenizer": str(tmp_path / "tokenizer")}
    return changed(changed(made, "reference.model", model), "target.model", model)


def lines(tree, tflops=1e-6) -> list[str]:
    """A speed of a million operations per second, so that small models take their time."""
    return planning.lines(from_tree(tree, "test"), tflops)


def states(tree) -> dict[str, str]:
    """Stage -> what the plan says of it."""
    found = [line.split(maxsplit=1) for line in lines(tree)[2:10]]
    return {stage: state for stage, state in found}


def sized(tree) -> dict[str, str]:
    """Stage -> how much it has to do."""
    shown = "\n".join(lines(tree)).split("\n\n")[2]
    return {line.split()[0]: line.split(maxsplit=1)[1] for line in shown.splitlines()}


def cost(tree, tflops=1e-6) -> dict[str, list[str]]:
    """Step -> tokens, FLOPs, time and workers."""
    shown = "\n".join(lines(tree, tflops)).split("\n\n")[3].splitlines()[1:]
    fields = [[field for field in line.split("  ") if field] for line in shown]
    return {label: [field.strip() for field in rest] for label, *rest in fields}


BERT = {
    "model_type": "bert",
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}


@pytest.mark.parametrize("section", ["reference", "target"])
def test_a_model_that_looks_ahead_is_refused(tree, section):
    bert = changed(tree, f"{section}.model", tree[section]["model"] | {"architecture": BERT})
    with pytest.raises(ModelError, match=r"BertLMHeadModel \(bert\) is not causal"):
        lines(bert)


def test_states_are_those_of_a_run(tree):
    assert set(states(tree).values()) == {"to do"}
    finish(tree, until="clusters")
    found = states(changed(tree, "clusters.num_clusters", 9))

    assert [found[stage] for stage in ("prepare", "reference", "trajectories")] == ["finished"] * 3
    assert found["clusters"] == "to do again: clusters.num_clusters changed"
    assert found["selection"] == found["report"] == "to do"


def test_planning_leaves_no_trace(tree, tmp_path):
    before = sorted(path.name for path in tmp_path.rglob("*"))
    lines(tree)

    assert sorted(path.name for path in tmp_path.rglob("*")) == before


def test_a_pool_that_is_not_prepared_is_counted_by_its_tokenizer(tree):
    # A byte is a token: 14 in "Q: add 12 A: x", one less in ten rows, and one that ends each row.
    expected = "about 30 rows, about 440 tokens, 14% of them in responses"
    assert sized(tree)["pool"] == expected
    assert sized(tree)["strata"] == "2"


def test_a_misspelt_field_is_named_with_those_that_are_there(tree):
    misspelt = changed(tree, "data.fields", {"prompt": "quesion"})
    with pytest.raises(
        DataError, match=r"row 0 \(from 0\): missing field: no 'quesion'; the row's fields"
    ):
        lines(misspelt)


def test_the_size_of_every_stage_follows_from_the_pool(tree):
    finish(tree, until="prepare")

    assert sized(changed(tree, "selection.baselines", ["random"])) == {
        "pool": "30 rows, 1,234 tokens, 41% of them in responses",
        "strata": "0",
        "reference": "6 steps of 8",
        "trajectories": "3 checkpoints",
        "clusters": "3 in each of 0 strata, at most 0 clusters",
        "selection": "6 examples, by each of 2 methods",
        "target": "5 steps of 4",
        "evaluation": "1 rows of held; answers of at most 512 tokens",
    }


def test_clusters_are_no_more_than_rows_and_may_be_over_all(tree):
    assert sized(tree)["clusters"] == "3 in each of 2 strata, at most 6 clusters"
    many = changed(tree, "clusters.num_clusters", 20)
    assert sized(many)["clusters"] == "20 in each of 2 strata, at most 30 clusters"
    assert sized(changed(many, "clusters.per_stratum", False))["clusters"] == "20 over all"
    capped = changed(many, "clusters.rows_per_cluster", 6)
    assert (
        sized(capped)["clusters"]
        == "20 in each of 2 strata, at most 7 clusters, one for every 6 rows"
    )
    assert sized(changed(capped, "clusters.per_stratum", False))["clusters"] == "5 over all"
    auto = changed(tree, "clusters.num_clusters", "auto")
    assert sized(auto)["clusters"] == "up to 256 in each of 2 strata, at most 30 clusters"
    assert sized(changed(auto, "clusters.per_stratum", False))["clusters"] == "up to 256 over all"
    one = sized(changed(tree, "data.fields", {"stratum": None}))["clusters"]
    assert one == f"3 in each of 1 strata, at most 3 clusters; {FINDS_KINDS}"


@pytest.mark.parametrize(
    ("budget", "expected"),
    [
        (0.25, "about 7 examples, 0.25 of the pool rounded down"),
        (7, "7 examples"),
        # 440 tokens in 30 rows.
        ("150 tokens", "about 10 examples of average length, 150 tokens"),
    ],
)
def test_a_budget_is_shown_as_a_number_of_examples(tree, budget, expected):
    found = sized(changed(tree, "selection.budget", budget))["selection"]
    assert found.removesuffix(" to be") == expected.removesuffix(" to be")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("selection.budget", 31, r"31 examples are more than the pool has \(30\)"),
        ("selection.budget", "0.6K tokens", "600 tokens is more than the pool of 30 examples has"),
        ("selection.weights", {"maths": 2.0}, r"'maths'\); did you mean 'math'"),
        ("selection.minimum", {"code": 11}, "'code' has 10 of 11"),
        ("reference.checkpoints", 7, "7 checkpoints cannot come from 6 optimizer steps"),
    ],
)
def test_what_a_pool_that_is_read_to_its_end_cannot_give_is_refused(
    tree, monkeypatch, key, value, message
):
    tree = changed(tree, key, value)
    with pytest.raises(UserError, match=message):
        lines(tree)
    if key.startswith("selection"):
        monkeypatch.setattr("s2l_ray.data.first_rows.READ_ROWS", 10)
        monkeypatch.setattr("s2l_ray.data.first_rows.LEAST_READ", 10)
        lines(tree)  # the other rows are not known


@pytest.mark.parametrize(("num_bad", "most"), [(0, 30), (1, 33)], ids=["whole", "some rejected"])
def test_a_budget_above_all_rows_is_refused_where_their_tokens_are_not_known(
    tree, tmp_path, num_bad, most
):
    """With a tenth of the rows rejected at most, 30 usable rows are left of 33."""
    tree = changed(changed(tree, "data.tokenizer", "nobody/has-this"), "data.max_rejected", 0.1)
    with (tmp_path / "pool.jsonl").open("a") as pool:
        pool.write("{not JSON\n" * num_bad)

    lines(changed(tree, "selection.budget", most))
    with pytest.raises(DataError, match=rf"{most + 1} examples are more than the pool has"):
        lines(changed(tree, "selection.budget", most + 1))


def test_rows_that_cannot_be_used_are_counted_and_too_many_are_refused(tree, tmp_path, monkeypatch):
    bad = '{"instruction": "no answer", "source": "math"}\n{not JSON\n'
    pool = tmp_path / "pool.jsonl"
    pool.write_text(bad + pool.read_text())
    tree = changed(tree, "data.max_rejected", 0.1)

    expected = "2 of 32 rows cannot be used (6.25%): 1 missing field, 1 malformed JSON"
    assert sized(tree)["rejected"] == expected
    with pytest.raises(DataError, match=r"2 of 32 rows cannot be used \(6\.25%; .*\n.* row 0"):
        lines(changed(tree, "data.max_rejected", 0.05))
    monkeypatch.setattr("s2l_ray.data.first_rows.READ_ROWS", 10)
    monkeypatch.setattr("s2l_ray.data.first_rows.LEAST_READ", 10)
    with pytest.raises(DataError, match="2 of the first 10 rows cannot be used"):
        lines(tree)


def test_rows_that_leave_no_tokens_to_learn_are_counted_as_well(tree, tmp_path):
    tree = changed(changed(tree, "data.max_tokens", 13), "data.max_rejected", 1.0)
    # "Q: add 10 A: " has 13 tokens, and ten prompts one less.
    assert sized(tree)["rejected"].startswith("20 of 30 rows cannot be used (66.67%): 20 no resp")
    with pytest.raises(DataError, match="20 of 30 rows cannot be used") as caught:
        lines(changed(tree, "data.max_rejected", 0.5))
    # Which row, and what is wrong with it; the first ten have a token left.
    assert "pool.jsonl row 10 (from 0): the prompt alone has 13 tokens of 13 allowed" in str(
        caught.value
    )


def test_repeated_ids_named_fields_and_useless_files_are_refused_as_by_a_run(tree, tmp_path):
    pool = tmp_path / "pool.jsonl"
    with pytest.raises(DataError, match=r"data\.fields\.stratum: 'topic'"):
        lines(changed(tree, "data.fields", {"stratum": "topic"}))
    (tmp_path / "other.jsonl").write_text('{"instruction": "no answer"}\n')
    both = changed(tree, "data.train", [str(pool), str(tmp_path / "other.jsonl")])
    with pytest.raises(DataError, match=r"1 of 2 files have no usable row"):
        lines(changed(both, "data.max_rejected", 0.5))
    pool.write_text(pool.read_text() * 2)
    with pytest.raises(DataError, match=r"30 duplicate id \(first: .*pool\.jsonl row 30"):
        lines(tree)


def test_finished_training_that_would_be_lost_is_refused_as_by_a_run(tree):
    finish(tree)
    other = changed(tree, "reference.learning_rate", 0.5)
    with pytest.raises(ConfigError, match=r"reference\.learning_rate changed.*--from reference"):
        lines(other)
    shown = "\n".join(planning.lines(from_tree(other, "test"), 1e-6, from_stage="reference"))
    assert "to do again: reference.learning_rate changed" in shown
    again = planning.lines(from_tree(tree, "test"), 1e-6, from_stage="target")
    states = [line.split(maxsplit=1)[1] for line in again if "to do again" in line]
    assert states[:2] == [
        "to do again: asked for by --from",
        "to do again: target will be done again",
    ]


def test_a_budget_of_tokens_is_checked_against_a_counted_pool(tree):
    finish(tree, until="prepare")
    most = "about 30 examples of average length, 1234 tokens"
    assert sized(changed(tree, "selection.budget", "1234 tokens"))["selection"] == most
    with pytest.raises(DataError, match=r"1,235 tokens is more than the pool of 30 examples has"):
        lines(changed(tree, "selection.budget", "1235 tokens"))


def test_the_cost_follows_from_rows_steps_checkpoints_and_the_model(tree):
    finish(tree, until="prepare")
    found = cost(changed(tree, "selection.baselines", ["random"]))

    # Six steps of 8 are an epoch of 30 and 16 rows more, of 41.13 tokens, 16.67 of them responses:
    # 1,892 and 767. Layers have 4,096 weights, the output layer 4,128; attention is 32 wide.
    passed = 2 * 4_096 * 1_892 + 2 * 4_128 * 767 + 4 * 32 * 41.13 * 1_892
    assert found["reference"][:2] == ["1,892", f"{3 * passed / 1e6:.1f} MFLOP"]
    speed = costs.SPEEDS["reference"]
    seconds = speed.start_seconds + 3 * passed / (1e6 * speed.of_product)
    assert found["reference"][2:] == [duration(seconds), "1 x 1 MFLOP/s"]
    assert found["trajectories"][0] == "3,702"  # the pool at three checkpoints
    # Six rows have 247 tokens; an epoch is a step of 4 and one of 2, so five steps take 16 rows.
    assert found["target"][0] == found["target (random-6-42)"][0] == "659"
    assert list(found)[-1] == "all"


def test_measurements_in_a_training_cost_a_pass_over_their_rows(tree, tmp_path):
    row = json.loads((tmp_path / "held.jsonl").read_text().splitlines()[0])
    rows = [json.dumps({**row, "id": str(number)}) for number in range(3)]
    (tmp_path / "held.jsonl").write_text("\n".join(rows))
    finish(tree, until="prepare")
    plain = cost(tree)
    measured = changed(tree, "target.evaluate_every", 2)

    # Of five steps the second, the fourth and the last; the evaluation reads the rows once.
    assert sized(measured)["target"] == "5 steps of 4; loss of 3 held-out rows, 3 times"
    sizes = {name: int(cost(found)["target"][0].replace(",", "")) for name, found in (
        ("plain", tree), ("all", measured), ("one", changed(measured, "target.evaluate_rows", 1)),
    )}  # fmt: skip
    assert (sizes["all"] - sizes["plain"]) == 3 * (sizes["one"] - sizes["plain"]) > 0
    assert cost(measured)["evaluation"] == plain["evaluation"]
    without = changed(measured, "evaluation", None)
    assert sized(without)["target"] == sized(measured)["target"]


def test_only_what_is_to_do_costs_something(tree):
    finish(tree, until="trajectories")
    assert list(cost(tree)) == ["target", "evaluation", "all"]
    finish(tree)
    assert not any("FLOP" in line for line in lines(tree))


def test_the_speed_is_measured_unless_it_is_given(tree):
    measured, given = lines(tree, None), lines(tree, 0.5)

    assert any("measured here" in line for line in measured)
    assert any("speeds are given" in line for line in given)
    assert cost(tree, 0.5)["reference"][-1] == "1 x 500 GFLOP/s"


@pytest.mark.parametrize("tflops", [0.0, -1.0, float("inf"), float("nan")])
def test_a_speed_that_is_none_is_refused(tree, tflops):
    with pytest.raises(ConfigError, match=r"--tflops .*: give the speed of one worker"):
        lines(tree, tflops)


def test_a_model_of_the_hub_has_tokens_and_unknown_flops(tree):
    found = cost(changed(tree, "target.model", "nobody/large"))
    # 16 rows of the pool's 440 tokens in 30.
    assert found["target"] == ["235", "unknown", "unknown", "1 x 1 MFLOP/s"]
    assert found["evaluation"][1:3] == ["unknown", "unknown"]
    assert list(found)[-1] == "all of known time"

    shown = lines(changed(tree, "target.model", "nobody/large"))
    reason = "FLOPs unknown: not on this machine, and a plan downloads nothing: nobody/large."
    assert reason in shown


def test_without_the_tokenizer_tokens_are_characters(tree):
    shown = lines(changed(tree, "data.tokenizer", "nobody/tokens"))

    missing = "the tokenizer of nobody/tokens is not on this machine"
    assert f"Tokens are characters / 4: {missing}." in shown


def test_a_gpu_that_is_not_here_needs_a_given_speed(tree, monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    tree = changed(tree, "reference.gpus_per_worker", 1)
    shown = lines(tree, None)

    reason = "there is no GPU here. Give a speed with --tflops."
    assert f"Time of reference unknown: {reason}" in shown
    assert cost(tree, 1.0)["reference"][-1] == "1 x 1 TFLOP/s"


def test_an_architecture_that_cannot_be_built_is_refused(tree):
    odd = tree["target"]["model"] | {"architecture": MODEL | {"hidden_size": 15}}
    with pytest.raises(UserError, match="hidden size is not divisible"):
        lines(changed(tree, "target.model", odd))


def test_too_few_rows_for_the_checkpoints_are_refused_unless_they_are_estimated(
    tree, tmp_path, monkeypatch
):
    tree = changed(changed(tree, "reference.max_steps", None), "reference.epochs", 0.5)
    with pytest.raises(ConfigError, match="3 checkpoints cannot come from 2 optimizer steps"):
        lines(tree)

    monkeypatch.setattr("s2l_ray.data.first_rows.READ_ROWS", 10)
    monkeypatch.setattr("s2l_ray.data.first_rows.LEAST_READ", 10)
    rows = [{"instruction": f"add {number}", "output": "x"} for number in range(30)]
    text = "".join(f"{json.dumps(row)}\n" for row in rows)
    (tmp_path / "pool.jsonl.gz").write_bytes(gzip.compress(text.encode()))
    estimated = changed(tree, "data.train", [str(tmp_path / "pool.jsonl.gz")])
    assert sized(estimated)["trajectories"] == "0 checkpoints, more than there seem to be steps"


@pytest.fixture
def imported(tree, tmp_path):
    """A configuration with imported trajectories of 30 rows at 4 checkpoints."""
    losses = pa.array([[1.0, 0.5, 0.25, 0.1]] * 30, pa.list_(pa.float32()))
    table = pa.table({"example_id": handmade.IDS, "loss_nats": losses})
    pq.write_table(table, tmp_path / "losses.parquet")
    return changed(tree, "trajectories.path", str(tmp_path / "losses.parquet"))


def test_fewer_losses_than_rows_of_the_pool_are_refused(imported, tmp_path):
    table = pq.read_table(tmp_path / "losses.parquet")
    pq.write_table(table.slice(0, 15), tmp_path / "losses.parquet")
    with pytest.raises(DataError, match="there are 15 losses for 30 rows of the pool"):
        lines(imported)


def test_imported_trajectories_have_a_size_and_no_cost(imported):
    for section in ("data", "reference", "target", "evaluation"):
        imported = changed(imported, section, None)

    assert sized(changed(imported, "selection.budget", 0.5)) == {
        "trajectories": "4 checkpoints of 30 rows, computed elsewhere",
        "clusters": "3 in each stratum",
        "selection": "15 examples, 0.5 of the pool rounded down",
    }
    assert not any("FLOP" in line for line in lines(imported))
    for key, value in (("budget", "5 tokens"), ("method", "longest-responses")):
        with pytest.raises(DataError, match=r"there is no `data`\. Give `data` with"):
            lines(changed(imported, f"selection.{key}", value))


@pytest.mark.parametrize(
    ("rows", "memory", "ranking"),
    [
        (
            100_000_000,
            "about 6.8 GB of trajectories in the workers of `clusters`: 2.2 GB in each of 4 "
            "(clusters.workers)",
            "about 6.5 GB in one worker, or without a cluster in the program itself",
        ),
        (10_000_000, None, None),
    ],
)
def test_a_plan_for_a_large_pool_says_what_memory_it_takes(imported, rows, memory, ranking):
    config = from_tree(changed(imported, "clusters.workers", 4), "test")
    amounts = Quantities(imported=(rows, 12), num_checkpoints=12, num_selected=rows // 10)

    assert CLUSTERS.sizes(config, amounts).get("memory") == memory
    assert SELECTION.sizes(config, amounts).get("ranking") == ranking


def test_a_target_after_imported_trajectories_has_a_cost(imported):
    assert "reference" not in sized(imported)
    assert list(cost(imported)) == ["target", "evaluation", "all"]
    finish(imported, until="trajectories")
    assert sized(imported)["trajectories"] == "3 checkpoints of 30 rows, computed elsewhere"


def test_trajectories_that_are_no_parquet_are_refused(imported, tmp_path):
    (tmp_path / "losses.parquet").write_text("no parquet")
    with pytest.raises(DataError, match=r"losses\.parquet cannot be read as parquet"):
        lines(imported)


def test_existing_checkpoints_are_counted_and_only_scored(tree, tmp_path):
    for step in (10, 20):
        tiny.save(tmp_path / "checkpoints" / f"step-{step:06d}")
    found = {**tree, "reference": {"path": str(tmp_path / "checkpoints")}}

    assert sized(found)["trajectories"] == "2 checkpoints"
    assert list(cost(found)) == ["trajectories", "target", "evaluation", "all"]


def test_a_missing_file_is_refused(tree):
    with pytest.raises(DataError, match=r"nowhere\.jsonl"):
        lines(changed(tree, "data.train", ["/nowhere.jsonl"]))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("target.model", "/nowhere/model", "there is no /nowhere/model"),
        (
            "reference.model",
            {"architecture": {"model_type": "gpt_neox", "hiden_size": 8}, "tokenizer": "some/name"},
            "did you mean 'hidden_size'",
        ),
        ("data.template", "alpacca", "alpacca.*alpaca"),
    ],
)
def test_what_a_run_would_stumble_on_later_is_said_now(tree, key, value, message):
    with pytest.raises(UserError, match=message):
        lines(changed(tree, key, value))
