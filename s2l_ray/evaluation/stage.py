"""Stage 7: the trained target is evaluated on held-out rows, by loss and by final answers.

The driver writes every set as units of a few batches of rows (evaluation_sets.py). Each unit is
scored and answered by itself, so its results do not depend on other units, and a finished unit is
never redone.

Shapes: N items.
"""

import contextlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch

from s2l_ray.artifacts.manifest import StageDir
from s2l_ray.artifacts.tables import Parts, part_name, rows_name
from s2l_ray.config.data import DataConfig
from s2l_ray.config.sections import EvaluationConfig
from s2l_ray.data.held_out_rows import Failure, check_usable
from s2l_ray.data.templates import load_template
from s2l_ray.distributed import resources
from s2l_ray.distributed.map_units import map_units
from s2l_ray.errors import DataError, first
from s2l_ray.evaluation import comparison, metrics, sandbox, vllm_answers
from s2l_ray.evaluation.evaluation_sets import staged_units
from s2l_ray.evaluation.item_tables import RESPONSE, items_table, schema
from s2l_ray.evaluation.items import Item, Target, read_items
from s2l_ray.evaluation.text_overlap import corpus_bleu
from s2l_ray.models.checkpoints import (
    DTYPES,
    Loadable,
    device_for,
    load_model,
    load_tokenizer,
    set_precision,
)
from s2l_ray.progress import Progress
from s2l_ray.storage.input_files import InputFile
from s2l_ray.storage.location import Location


def run(
    config: EvaluationConfig,
    data: DataConfig,
    sets: Mapping[str, Sequence[InputFile]],
    model: Location | Loadable,
    out: StageDir,
    *,
    progress: Progress,
) -> dict[str, Any]:
    """Score and answer the held-out rows of every set.

    Args:
        sets: the files of each of `config.sets`.
        model: a Hugging Face directory with its tokenizer, or what `load_model` accepts.

    Writes  items.parquet   set, file, stratum, prompt, gold, completion, program (null, or what
                            became of the one in the completion), predicted: string, item: int64
                            (row in the file), correct: bool (null in a set that is not asked for
                            exact match), loss_nats: float32 (null where no response token fits),
                            num_response_tokens: int32; a float64 for each further metric, and
                            response: string if one compares texts
            metrics.json    means with intervals by set, over strata equally, and by stratum
    Raises  DataError when too many rows of a set cannot be used, a loss is not finite, or a unit
            killed its worker too often.
    """
    staged, metrics_file = out.location / "staged", out.location / "metrics.json"
    if not metrics_file.is_file():
        progress.doing("reading the held-out rows")
        plan = staged_units(config, data, sets, staged)
        workers = resources.workers(
            out.stage,
            config.workers,
            cpus=config.cpus_per_worker,
            gpus=config.gpus_per_worker,
            advice=out.advice_on_memory,
        )
        if config.engine == "vllm":
            assert isinstance(model, Location), "comparisons with vLLM are refused"
            progress.doing("vLLM answers the prompts")
            vllm_answers.answer_units(config, data, model, plan["units"], staged, workers)
        results = _evaluated(config, data, model, plan["units"], out, workers, progress)
        for name, counts in plan["sets"].items():
            failures = counts["failures"] + _failures(results, name)
            check_usable(name, counts["rows"], failures, data.max_rejected)
        numbers = _merge_items(config, staged, len(results), out.location / "items.parquet")
        metrics_file.write_json(_metrics(config, plan["sets"], results, numbers))
    return _summary(metrics_file.read_json())


def _evaluated(
    config: EvaluationConfig,
    data: DataConfig,
    model: Location | Loadable,
    units: Sequence[Mapping[str, Any]],
    out: StageDir,
    workers: resources.Workers,
    progress: Progress,
) -> list[dict[str, Any]]:
    """Evaluate every unit; return their results in the order of the units."""
    progress.start(sum(unit["rows"] for unit in units), "items")
    progress.doing("loading the model")
    results: list[dict[str, Any]] = [{} for _ in units]
    for result in map_units(
        Evaluator,
        units,
        workers,
        out.location / "attempts",
        model=model,
        config=config,
        data=data,
        staged=out.location / "staged",
        gpus=workers.gpus,
    ):
        progress.update(result["rows"], result["tokens"] if result["fresh"] else 0)
        results[result["unit"]] = result
    return results


class Evaluator:
    """A worker that holds the trained target, and scores and answers the rows of units."""

    def __init__(
        self,
        model: Location | Loadable,
        config: EvaluationConfig,
        data: DataConfig,
        staged: Location,
        gpus: float,
    ) -> None:
        torch.set_num_threads(config.cpus_per_worker)
        self.staged = staged
        device = device_for(gpus)
        self.precision = set_precision(config.precision, device)
        with contextlib.ExitStack() as stack:
            local = (
                str(stack.enter_context(model.local())) if isinstance(model, Location) else model
            )
            loaded = load_model(local, dtype=DTYPES[self.precision])
            tokenizer = load_tokenizer(local)
        dtype = loaded.dtype
        self.evaluator = UnitEvaluator(loaded, tokenizer, config, data, device=device, dtype=dtype)

    def __call__(self, unit: dict[str, Any]) -> dict[str, Any]:
        done = self.staged / f"done-{unit['unit']:06d}.json"
        fresh = not done.is_file()
        if fresh:
            done.write_json(self._evaluate(unit))
        return {**done.read_json(), "fresh": fresh}

    def _evaluate(self, unit: Mapping[str, Any]) -> dict[str, Any]:
        texts = vllm_answers.texts_file(self.staged, unit)
        completions = texts.read_json() if texts.is_file() else None
        evaluated = self.evaluator(unit["set"], self.staged / rows_name(unit["unit"]), completions)
        (self.staged / part_name(unit["unit"])).write_table(evaluated.items)
        return {
            **unit,
            "failures": evaluated.failures,
            "tokens": evaluated.tokens,
            "cut": evaluated.cut,
            "precision": self.precision,
        }


@dataclass(frozen=True)
class EvaluatedUnit:
    """The items of one unit.

    Attributes:
        items: one row for each, with the columns of `item_tables.schema`.
        failures: rows that the tokenizer's chat template refuses.
        tokens: all tokens that were scored.
        cut: items that lose a part of the response, but not all of it, because of `max_tokens`.
    """

    items: pa.Table
    failures: list[Failure]
    tokens: int
    cut: int


class UnitEvaluator:
    """A model in memory that scores and answers the rows of units."""

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        config: EvaluationConfig,
        data: DataConfig,
        *,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        """Hold `model`; `dtype` is its own, or bfloat16 to run float32 weights under autocast."""
        if config.runs_some_programs:
            sandbox.check()
        self.config, self.data = config, data
        template, rows_per_batch = load_template(data), config.rows_per_batch
        self.target = Target(
            model, tokenizer, template, device, dtype, data.max_tokens, rows_per_batch
        )

    def __call__(
        self, name: str, rows: Location, completions: Sequence[str] | None = None
    ) -> EvaluatedUnit:
        """Evaluate the rows in a file of `staged_units`, which are of the set `name`.

        Args:
            completions: what the target says to them, if it is known.
        """
        target = self.target
        items, failures = read_items(
            rows, self.data.of_set(name), target.template, target.tokenizer
        )
        losses = self._losses(name, items)
        if completions is None:
            completions = self._completions(name, items)
        answered = metrics.Answers(items, completions, self.target, self.config)
        scored = [item.tokens for item in items if item.tokens]
        return EvaluatedUnit(
            items_table(name, answered, losses),
            failures,
            tokens=sum(len(tokens.input_ids) for tokens in scored),
            cut=sum(tokens.is_cut for tokens in scored),
        )

    def _losses(self, name: str, items: Sequence[Item]) -> list[float | None]:
        """Return the mean loss of each item's response; None if no response token fits.

        Raises:
            DataError: a loss is not finite.
        """
        scored = [item for item in items if item.tokens]
        loss_N = self.target.losses([item.tokens for item in scored if item.tokens])
        bad = [
            item.location for item, loss in zip(scored, loss_N, strict=True) if not _finite(loss)
        ]
        if bad:
            raise DataError(
                f"evaluation: {len(bad):,} items of set {name} have no finite loss (first: "
                f"{first(bad)}). The target diverged, or bf16 overflows: lower "
                "target.learning_rate, or set evaluation.precision=fp32."
            )
        losses = iter(loss_N.tolist())
        return [next(losses) if item.tokens else None for item in items]

    def _completions(self, name: str, items: Sequence[Item]) -> list[str]:
        """Return what the target says to each prompt; nothing if no metric of the set needs it."""
        if not metrics.need_completions(self.config, name):
            return [""] * len(items)
        examples = [item.example for item in items]
        return self.target.completions(examples, self.config.max_new_tokens)


def _finite(loss: float) -> bool:
    return bool(np.isfinite(loss))


def _failures(results: Sequence[Mapping[str, Any]], name: str) -> list[Any]:
    return [failure for r in results if r["set"] == name for failure in r["failures"]]


def _merge_items(
    config: EvaluationConfig, staged: Location, num_units: int, file: Location
) -> pa.Table:
    """Write all items to `file` in order; return the columns that the metrics are made from."""
    parts, columns = Parts(staged), schema(config)
    assert len(parts.files()) == num_units, "every unit leaves one part"
    measured = [
        "set",
        "stratum",
        "program",
        *(metric.column for metric in metrics.of_columns(columns.names)),
    ]
    if config.asks_for("bleu"):
        measured += ["completion", RESPONSE]
    numbers = []
    with (
        file.open_atomic() as stream,
        pq.ParquetWriter(stream, columns, compression="zstd") as writer,
    ):
        for table in parts.tables():
            writer.write_table(table)
            numbers.append(table.select(measured))
    return pa.concat_tables(numbers)


def _metrics(
    config: EvaluationConfig,
    counts: Mapping[str, Any],
    results: Sequence[Mapping[str, Any]],
    numbers: pa.Table,
) -> dict[str, Any]:
    return {
        "confidence": comparison.CONFIDENCE,
        "method": comparison.methods(metrics.of_columns(numbers.column_names)),
        "precision": results[0]["precision"],
        "tokens": sum(result["tokens"] for result in results),
        "sets": {
            name: {
                "rows": of_set["rows"],
                "unusable": Counter(
                    reason for reason, _ in of_set["failures"] + _failures(results, name)
                ),
                "cut": sum(result["cut"] for result in results if result["set"] == name),
                **comparison.measure(items := numbers.filter(pc.equal(numbers["set"], name))),
                "programs": Counter(items["program"].drop_null().to_pylist()),
                **_of_all_texts(config, name, items),
            }
            for name, of_set in counts.items()
        },
    }


def _of_all_texts(config: EvaluationConfig, name: str, items: pa.Table) -> dict[str, float]:
    """Return the numbers that all texts of a set have together, and no item has alone."""
    if "bleu" not in config.metrics_of(name):
        return {}
    completions, references = (items[text].to_pylist() for text in ("completion", RESPONSE))
    return {"corpus_bleu": corpus_bleu(completions, references)}


def _summary(found: Mapping[str, Any]) -> dict[str, Any]:
    """Return the summary for the manifest: one number of each kind for every set."""
    sets = found["sets"]
    unusable = sum(sum(of_set["unusable"].values()) for of_set in sets.values())
    return {
        "rows": sum(of_set["items"] for of_set in sets.values()),
        **({"unusable": unusable} if unusable else {}),
        "tokens": found["tokens"],
        "precision": found["precision"],
        "sets": {
            name: {
                "items": of_set["items"],
                "unusable": sum(of_set["unusable"].values()),
                "programs": sum(of_set.get("programs", {}).values()),
                **_estimates(of_set),
                **{f"macro_{key}": value for key, value in _estimates(of_set["macro"]).items()},
            }
            for name, of_set in sets.items()
        },
    }


def _estimates(measured: Mapping[str, Any]) -> dict[str, float | None]:
    """Return the mean or the rate of every metric."""
    return {
        metric.key: measured[metric.key][metric.statistic]
        for metric in metrics.METRICS
        if metric.key in measured
    }
