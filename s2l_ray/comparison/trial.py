"""One trial: train the target on one subset, in one process, and evaluate it in memory.

Workers stay for all trials of a comparison, so that only the first of each pays for its start.
A trial that is interrupted goes on from its last saved state.
"""

import json
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from safetensors import SafetensorError

from s2l_ray.artifacts.amounts import Amount
from s2l_ray.artifacts.tables import rows_name
from s2l_ray.artifacts.token_tables import RANGES, num_response_tokens
from s2l_ray.comparison.records import ITEMS, RESULT, Trial, failure
from s2l_ray.config.data import DataConfig
from s2l_ray.config.sections import EvaluationConfig
from s2l_ray.config.training import TargetConfig
from s2l_ray.data.chat_sources import jinja_source, read_chat_template
from s2l_ray.data.held_out_rows import check_usable
from s2l_ray.errors import DataError, ModelError
from s2l_ray.evaluation.stage import UnitEvaluator
from s2l_ray.models import causality, dimensions
from s2l_ray.models.checkpoints import DTYPES, device_for, load_model, load_tokenizer, set_precision
from s2l_ray.storage.failures import temporary_space
from s2l_ray.storage.location import Location
from s2l_ray.training import loop
from s2l_ray.training.batches import TrainingPlan
from s2l_ray.training.lora import add_adapters
from s2l_ray.training.target import tokenise
from s2l_ray.training.token_parts import TokenParts
from s2l_ray.training.work import training_work

RESUME, TOKENS = "resume", "tokens"

NOTHING_TRAINED: Mapping[str, Any] = {
    "rows": 0,
    "rejected": 0,
    "training_tokens": 0,
    "seconds_training": 0.0,
    "flops_training": 0.0,
    "loss_nats": None,
}


class TrialRunner:
    """A worker that trains and evaluates the target, one trial after the other."""

    def __init__(
        self,
        target: TargetConfig,
        data: DataConfig,
        evaluation: EvaluationConfig,
        staged: Location,
        folder: Location,
        gpus: float,
    ) -> None:
        """Keep the sections of the run.

        Args:
            target: the target; it trains in one process.
            data: how rows become tokens.
            evaluation: how the target is evaluated.
            staged: the folder of `evaluation_sets.staged_units`.
            folder: has a folder for each trial.
            gpus: share of a GPU; 0 trains on the CPU.
        """
        torch.set_num_threads(target.cpus_per_worker)
        self.target, self.data, self.evaluation = target, data, evaluation
        self.staged, self.folder = staged, folder
        self.plan = (staged / "plan.json").read_json()
        self.device = device_for(gpus)

    def __call__(self, unit: dict[str, Any]) -> dict[str, Any]:
        """Return the name of a trial whose result is then in its folder, or why it failed."""
        trial = Trial(**unit)
        out = self.folder / trial.name
        if not (out / RESULT).is_file():
            try:
                self._run(trial, out)
            except (DataError, ModelError) as error:
                return {"trial": trial.name, "error": failure(trial, error)}
        return {"trial": trial.name, "error": None}

    def _run(self, trial: Trial, out: Location) -> None:
        config = self.target.model_copy(update={"max_steps": max(trial.steps, 1)})
        precision = set_precision(config.precision, self.device)
        dtype, tokenizer = DTYPES[precision], load_tokenizer(config.model)
        model = load_model(config.model, seed=trial.seed)
        causality.check_causal(model)
        trained: Mapping[str, Any] = NOTHING_TRAINED
        if trial.steps:
            trained = self._train(trial, config, model, tokenizer, dtype, out)
        source = jinja_source(read_chat_template(self.data), tokenizer)
        if source is not None:
            tokenizer.chat_template = source
        started = time.monotonic()
        items = self._evaluated(model.to(self.device), tokenizer)
        seconds = time.monotonic() - started
        (out / ITEMS).write_table(items)
        settings = {"seed": trial.seed, "steps": trial.steps, "precision": precision}
        settings["seconds_evaluating"] = seconds
        (out / RESULT).write_json({**trained, **settings, "device": self.device.type})
        for name in (RESUME, TOKENS):
            (out / name).remove()

    def _train(
        self,
        trial: Trial,
        config: TargetConfig,
        model: Any,
        tokenizer: Any,
        dtype: torch.dtype,
        out: Location,
    ) -> dict[str, Any]:
        """Train `model` in place, and return what it cost."""
        shape = dimensions.shape_of(model)
        tokens = out / TOKENS
        num_rows, rejected = tokenise(Location(trial.rows), tokens, self.data, config.model)
        parts = TokenParts.of([tokens / name for name in tokens.names()])
        num_ids = dimensions.number_of_ids(tokenizer)
        longest = parts.num_tokens_of_longest
        dimensions.check_rows_fit(model, num_tokens=longest, num_ids=num_ids)
        if config.activation_checkpointing:
            kwargs = {"use_reentrant": False}
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=kwargs)
        if config.lora is not None:
            add_adapters(model, config.lora, seed=trial.seed)
        engine = loop.Replica(model, config, device=self.device, dtype=dtype)
        plan = TrainingPlan(parts, config, trial.seed, trial.steps)
        history, seconds = _trained(engine, plan, out / RESUME)
        work = training_work(config, _amount(parts), shape)
        return {
            "rows": num_rows - len(rejected),
            "rejected": len(rejected),
            "training_tokens": history.num_tokens,
            "seconds_training": seconds,
            "flops_training": work.flops,
            "loss_nats": history.loss_nats[-1],
        }

    def _evaluated(self, model: Any, tokenizer: Any) -> pa.Table:
        """Return the items of all sets. The weights stay in float32; bf16 is autocast."""
        precision = set_precision(self.evaluation.precision, self.device)
        dtype = torch.bfloat16 if DTYPES[precision] == torch.bfloat16 else torch.float32
        evaluator = UnitEvaluator(
            model, tokenizer, self.evaluation, self.data, device=self.device, dtype=dtype
        )
        tables, failures = (
            [],
            {name: list(of["failures"]) for name, of in self.plan["sets"].items()},
        )
        for unit in self.plan["units"]:
            done = evaluator(unit["set"], self.staged / rows_name(unit["unit"]))
            tables.append(done.items)
            failures[unit["set"]] += done.failures
        for name, of_set in self.plan["sets"].items():
            check_usable(name, of_set["rows"], failures[name], self.data.max_rejected)
        return pa.concat_tables(tables)


def _trained(
    engine: loop.Replica, plan: TrainingPlan, resume: Location
) -> tuple[loop.History, float]:
    """Train to the end, from the last saved state if there is one; return seconds of training."""
    history, before, last = loop.History(), 0.0, _last_state(resume)
    if last is not None:
        with last.local() as folder:
            engine.load(folder)
            history = loop.History.read(folder)
            before = json.loads((folder / "seconds.json").read_text())
    started = time.monotonic()
    for report in loop.steps(engine, plan, start=history.step):
        history.add(report)
        if report.step % plan.config.resume_every == 0 and report.step < plan.total_steps:
            _save(engine, history, before + time.monotonic() - started, resume)
    return history, before + time.monotonic() - started


def _last_state(resume: Location) -> Location | None:
    """Return the folder of the newest state that is whole."""
    # An object store gets the files of a folder in the order of their names, and this one last.
    whole = [name for name in resume.names() if (resume / name / loop.TENSORS).is_file()]
    return resume / max(whole) if whole else None


def _save(engine: loop.Replica, history: loop.History, seconds: float, resume: Location) -> None:
    """Save the state after the last step, then remove earlier ones."""
    # The same step may be there in part: an upload that was interrupted.
    name = f"step-{history.step:08d}"
    earlier = [other for other in resume.names() if other != name]
    with (
        tempfile.TemporaryDirectory(prefix="s2l-") as temporary,
        temporary_space(SafetensorError),
    ):
        folder = Path(temporary)
        engine.save(folder)
        (folder / "seconds.json").write_text(json.dumps(seconds))
        history.write(folder)
        (resume / name).upload(folder)
    for other in earlier:
        (resume / other).remove()


def _amount(parts: TokenParts) -> Amount:
    """Return rows, tokens and response tokens of a tokenised subset."""
    total = Amount(0, 0, 0)
    for file in parts.files:
        table = file.read_table(["num_tokens", "num_prompt_tokens"], optional=RANGES)
        lengths = table["num_tokens"].to_numpy()
        responses = int(num_response_tokens(table).sum())
        total += Amount(len(lengths), int(lengths.sum()), responses)
    return total
