"""Stage 6: fine-tune the large model on the selected examples alone."""

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from s2l_ray import collector
from s2l_ray.artifacts import column_types
from s2l_ray.artifacts.manifest import StageDir
from s2l_ray.artifacts.tables import EXAMPLE_ID, part_name, row_of_subset
from s2l_ray.artifacts.token_tables import token_table
from s2l_ray.config.data import DataConfig
from s2l_ray.config.training import ModelSpec, TargetConfig
from s2l_ray.data.chat_sources import jinja_source, read_chat_template
from s2l_ray.data.examples import RowError, read_example
from s2l_ray.data.held_out_rows import Chosen, check_usable
from s2l_ray.data.row_errors import NO_ROOM
from s2l_ray.data.templates import Template, load_template
from s2l_ray.data.tokenise import tokenise as tokenise_examples
from s2l_ray.errors import DataError, first
from s2l_ray.models import checkpoints
from s2l_ray.progress import Progress
from s2l_ray.storage.location import Location
from s2l_ray.training import ray_train, schedule
from s2l_ray.training.batches import TrainingPlan
from s2l_ray.training.held_out import HeldOut
from s2l_ray.training.token_parts import TokenParts

TOKENS, HELD_OUT, MODEL = "tokens", "held-out", "model"


def run(
    config: TargetConfig,
    data: DataConfig,
    selected: Location,
    out: StageDir,
    *,
    seed: int,
    progress: Progress,
    held_out: Mapping[str, Chosen] = MappingProxyType({}),
) -> dict[str, Any]:
    """Train the target on the rows of `selected`; `model` appears once all of it is written.

    Reads   selected            rows as they came and example_id: .jsonl, or .parquet
            held_out            the rows whose loss is measured every `config.evaluate_every` steps
    Writes  target/model/       a Hugging Face directory, adapters merged
    Returns the number of rows trained on, the ids of rows left out, and the course of the training,
            with the mean loss of each set of `held_out` after the steps that were measured.
    Raises  DataError if more rows than data.max_rejected have no response token left under the
            target's own tokenizer, ModelError if the model cannot be used.
    """
    model = ray_train.absolute_model(config.model)
    tokens = out.location / TOKENS
    progress.doing("tokenising the subset")
    num_rows, rejected = tokenise(selected, tokens, data, model)
    parts = TokenParts.of([tokens / name for name in tokens.names()])
    total_steps = schedule.num_steps(sum(parts.num_rows), config)
    if held_out:
        progress.doing("tokenising the held-out rows")
    sets = tokenise_held_out(held_out, out.location / HELD_OUT, data, model)
    settings = {
        "num_tokens_of_longest": parts.num_tokens_of_longest,
        "held_out": HeldOut(sets, config.evaluate_every, config.micro_batch_size)
        if config.evaluate_every and sets
        else None,
        "plan": TrainingPlan(parts, config.model_copy(update={"model": model}), seed, total_steps),
        "model_directory": out.location / MODEL,
        "chat_template": read_chat_template(data),
    }
    trained = ray_train.fit(
        _train_on_worker, settings, config, out, total_steps=total_steps, progress=progress
    )
    tokens.remove()
    (out.location / HELD_OUT).remove()
    return {
        "num_rows": num_rows - len(rejected),
        "num_rejected": len(rejected),
        "rejected": rejected[:100],
        "num_steps": total_steps,
        "workers": config.workers,
        **trained,
    }


def tokenise(
    selected: Location, tokens: Location, data: DataConfig, model: ModelSpec
) -> tuple[int, list[str]]:
    """Write the selected rows as tokens, part by part.

    Returns:
        The number of rows, and the ids of those left out because the target's tokenizer leaves
        them no response token, or its template refuses or changes them.

    Raises:
        DataError: more rows are left out than `data.max_rejected` allows, or no row remains.
    """
    template = load_template(data)
    tokenizer = checkpoints.load_tokenizer(model)
    tokens.remove()
    num_rows = 0
    rejected: list[tuple[str, RowError]] = []
    rows = selected_rows(selected)
    for part in itertools.count():
        chunk = list(itertools.islice(rows, data.rows_per_part))
        if not chunk:
            break
        table, left_out = _tokenised(chunk, data.of_pool, template, tokenizer)
        (tokens / part_name(part)).write_table(table)
        num_rows += len(chunk)
        rejected += left_out
    if len(rejected) > data.max_rejected * num_rows or len(rejected) == num_rows:
        raise DataError(_why_rejected(rejected, num_rows, data))
    return num_rows, [example_id for example_id, _ in rejected]


def _why_rejected(rejected: Sequence[tuple[str, RowError]], num_rows: int, data: DataConfig) -> str:
    """Return how many rows the target cannot use, with the first of each reason in its words."""
    of_reason: dict[str, list[tuple[str, RowError]]] = {}
    for example_id, error in rejected:
        of_reason.setdefault(error.reason, []).append((example_id, error))
    reasons = "; ".join(
        f"{len(rows):,} {reason}: {rows[0][1].detail} ({first([name for name, _ in rows])})"
        for reason, rows in of_reason.items()
    )
    return (
        f"target: {len(rejected):,} of {num_rows:,} selected rows cannot be used with the target's "
        f"tokenizer: {reasons}. Raise data.max_tokens (now {data.max_tokens:,}) or "
        f"data.max_rejected, or take another template."
    )


def selected_rows(selected: Location) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (example id, row as it came) for every row of a subset."""
    with selected.local() as file:
        if selected.name.endswith(".jsonl"):
            with file.open(encoding="utf-8") as lines:
                for line in lines:
                    row = json.loads(line)
                    yield row[EXAMPLE_ID], row_of_subset(row)
            return
        parquet = pq.ParquetFile(file)
        for batch in parquet.iter_batches(batch_size=1024):
            for row in column_types.python_rows(batch):
                assert row is not None, "a subset holds only text that is UTF-8"
                yield row[EXAMPLE_ID], row_of_subset(row)


def _tokenised(
    rows: Sequence[tuple[str, dict[str, Any]]],
    data: DataConfig,
    template: Template,
    tokenizer: Any,
) -> tuple[pa.Table, list[tuple[str, RowError]]]:
    examples = [read_example(row, data.fields) for _, row in rows]
    outcomes = tokenise_examples(examples, template, tokenizer, data.max_tokens)
    kept, rejected = [], []
    for (example_id, _), example, item in zip(rows, examples, outcomes, strict=True):
        if isinstance(item, RowError):
            rejected.append((example_id, item))
        else:
            kept.append((example_id, example.stratum, item.input_ids, item.response_ranges))
    ids, strata, input_ids, ranges = zip(*kept, strict=True) if kept else ((), (), (), ())
    return token_table(ids, strata, input_ids, ranges), rejected


def tokenise_held_out(
    sets: Mapping[str, Chosen], tokens: Location, data: DataConfig, model: ModelSpec
) -> dict[str, TokenParts]:
    """Write the rows of held-out sets as tokens, as the evaluation reads them; return their parts.

    Rows of which no response token fits have no loss, and are left out.

    Raises:
        DataError: too many rows of a set cannot be used, or none of them has a loss.
    """
    template, tokenizer = load_template(data), checkpoints.load_tokenizer(model)
    tokens.remove()
    parts = {}
    for number, (name, found) in enumerate(sets.items()):
        folder, of_set = tokens / f"{number:03d}", data.of_set(name)
        failures = list(found.failures)
        for part in itertools.count():
            chunk = list(itertools.islice(found.rows, data.rows_per_part))
            if not chunk:
                break
            rows = [(row.location, row.fields) for row in chunk]
            table, left_out = _tokenised(rows, of_set, template, tokenizer)
            (folder / part_name(part)).write_table(table)
            failures += [
                (error.reason, where) for where, error in left_out if error.reason != NO_ROOM
            ]
        check_usable(name, found.num_rows, failures, data.max_rejected)
        parts[name] = TokenParts.of([folder / file for file in folder.names()])
        if not parts[name].files:
            raise DataError(
                f"data.eval.{name}: no row has a response token within data.max_tokens "
                f"({data.max_tokens:,}), so there is no loss to measure. Raise it, or leave out "
                "target.evaluate_every."
            )
    return parts


def _train_on_worker(worker: ray_train.Worker, settings: dict[str, Any]) -> dict[str, Any]:
    """Train one shard; rank 0 writes the model that all shards make up."""
    # DeepSpeed takes seconds to import, and only a worker needs it.
    with collector.paused():
        from s2l_ray.models import causality, dimensions
        from s2l_ray.training import zero

    plan: TrainingPlan = settings["plan"]
    config = plan.config
    assert isinstance(config, TargetConfig)
    worker.doing("loading the model")
    with ray_train.shared_errors():
        precision = checkpoints.set_precision(config.precision, worker.device)
        dtype = checkpoints.DTYPES[precision]
        tokenizer = checkpoints.load_tokenizer(config.model)
        model = zero.load_target(config, dtype=dtype, seed=plan.seed)
        dimensions.check_rows_fit(
            model,
            num_tokens=settings["num_tokens_of_longest"],
            num_ids=dimensions.number_of_ids(tokenizer),
        )
        if settings["held_out"] is not None:
            settings["held_out"].check_fits(model)
    worker.doing(f"preparing ZeRO stage {config.zero_stage}")
    engine = zero.ZeroEngine(
        model, config, device=worker.device, dtype=dtype, num_ranks=worker.num_ranks
    )
    with ray_train.shared_errors():
        causality.check_causal(model)
    shard = f"shard-{worker.rank:05d}.safetensors"
    history = ray_train.train(
        worker,
        engine,
        plan,
        state=ray_train.State(
            save=lambda folder: engine.save_shard(folder / shard),
            load=lambda folder: engine.load_shard(folder / shard),
            on_every_rank=True,
        ),
        held_out=settings["held_out"],
    )
    weights = engine.gather_weights(worker.rank)
    with ray_train.shared_errors():
        if worker.rank == 0:
            source = jinja_source(settings["chat_template"], tokenizer)
            if source is not None:
                tokenizer.chat_template = source  # whoever asks the model writes as it was taught
            _write_model(model, weights, tokenizer, settings["model_directory"])
    return {
        "num_tokens": history.num_tokens,
        "loss_nats": history.loss_nats[-1],
        "curve": history.curve(),
        **({"held_out": history.held_out} if history.held_out else {}),
        "precision": precision,
        "device": worker.device.type,
    }


def _write_model(model: Any, weights: dict[str, Any], tokenizer: Any, directory: Location) -> None:
    with ray_train.temporary_folder() as folder:
        model.save_pretrained(folder, state_dict=weights)
        tokenizer.save_pretrained(folder)
        directory.upload(folder)
