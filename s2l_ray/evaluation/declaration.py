"""The stage `evaluation`: measure the target on held-out rows."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from s2l_ray.artifacts.amounts import Estimate, Quantities, Speed, Work
from s2l_ray.artifacts.manifest import StageDir, section_inputs, section_values
from s2l_ray.artifacts.stage import RunPlan, Stage, Task
from s2l_ray.config.data import DataConfig
from s2l_ray.config.sections import RunConfig
from s2l_ray.config.training import ModelSpec
from s2l_ray.data import kept_templates
from s2l_ray.data.cleaning import held_out_files
from s2l_ray.data.declaration import check_template, template_inputs
from s2l_ray.data.first_rows import check_held_out
from s2l_ray.errors import first
from s2l_ray.models.flops import Shape
from s2l_ray.progress import Progress
from s2l_ray.storage.input_files import InputFile
from s2l_ray.storage.location import Location
from s2l_ray.training.declaration import TARGET, target_model

BERTSCORE_CONTENTS = "evaluation.bertscore contents"


def _task(plan: RunPlan, arm: str) -> Task:
    section, data = plan.config.evaluation, plan.config.data
    assert section is not None and data is not None
    listings = {name: held_out_files(data, name, plan.run) for name in section.sets}
    sets = {name: listing.files for name, listing in listings.items()}
    notes = [note for listing in listings.values() for note in listing.notes]
    inputs: dict[str, Any] = {
        **section_inputs("evaluation", section),
        **{f"data.eval.{name}": plan.contents.file_hashes(files) for name, files in sets.items()},
        "data.fields": section_values(data.fields),
        **template_inputs(data, plan.contents),
        **plan.after(EVALUATION, arm),
    }
    own_fields = {name: data.own_fields_of(name) for name in section.sets}
    inputs |= {f"data.eval.{name} fields": own for name, own in own_fields.items() if own}
    if section.asks_for("bertscore"):
        inputs |= plan.contents.model_inputs(BERTSCORE_CONTENTS, section.bertscore.model)
    return Task(inputs, partial(_evaluate, plan, arm, sets, notes))


def _evaluate(
    plan: RunPlan,
    arm: str,
    sets: Mapping[str, Sequence[InputFile]],
    notes: Sequence[str],
    out: StageDir,
    progress: Progress,
) -> dict[str, Any]:
    from s2l_ray.evaluation import stage

    section, data = plan.config.evaluation, plan.config.data
    assert section is not None and data is not None
    model = plan.folder(TARGET, arm) / "model"
    data = kept_templates.keep(data, plan.run)
    summary = stage.run(section, data, sets, model, out, progress=progress)
    return {**summary, "notes": [*notes, *summary.get("notes", [])]} if notes else summary


def _check(config: RunConfig) -> None:
    """Refuse a template that cannot be used, and held-out sets whose first rows show no use."""
    section, data, model = config.evaluation, config.data, target_model(config)
    if section is None or data is None:
        return
    check_template(config)
    if section.engine == "vllm":
        from s2l_ray.evaluation import vllm_answers

        vllm_answers.check(config.run_dir)
    if section.asks_for("bertscore"):
        from s2l_ray.evaluation import bertscore

        bertscore.check(section.bertscore)
    if section.runs_some_programs:
        from s2l_ray.evaluation import sandbox

        sandbox.check()
    for name in dict.fromkeys(section.sets):
        files = held_out_files(data, name, Location.of(config.run_dir)).files
        check_held_out(name, data, files)
        if model is not None:
            _check_prompts(model, data.of_set(name), files, f"data.eval.{name}")


def _check_prompts(
    model: ModelSpec, data: DataConfig, files: Sequence[InputFile], where: str
) -> None:
    """Refuse held-out rows that the target cannot read, or has no position left to answer."""
    from s2l_ray.data.tried_rows import try_rows
    from s2l_ray.models import local_models
    from s2l_ray.models.suitability import check_answers

    tokenizer = local_models.tokenizer(model)
    if tokenizer is not None:
        longest = try_rows(files, data, tokenizer, where).longest_prompt
        check_answers(model, longest_prompt=longest, where=where)


def _sizes(config: RunConfig, quantities: Quantities) -> dict[str, str]:
    from s2l_ray.evaluation.metrics import need_completions

    section, sets = config.evaluation, quantities.held_out
    if section is None or not sets:
        return {}
    num_items = sum(amount.rows for amount in sets.values())
    rows = f"{num_items:,} rows of {first(list(sets))}"
    if not any(need_completions(section, name) for name in sets):
        return {"evaluation": f"{rows}; no answers"}
    return {"evaluation": f"{rows}; answers of at most {section.max_new_tokens:,} tokens"}


def _work(config: RunConfig, quantities: Quantities, shape: Shape | None) -> Work:
    from s2l_ray.evaluation.work import evaluation_work

    assert config.evaluation is not None
    return evaluation_work(config.evaluation, quantities.held_out, shape)


EVALUATION = Stage(
    name="evaluation",
    task=_task,
    folder="evaluation",
    section="evaluation",
    needs=(TARGET.name,),
    per_arm=True,
    advice_on_memory="Lower evaluation.rows_per_batch, or give each worker more memory.",
    check=_check,
    sizes=_sizes,
    estimate=Estimate(target_model, _work, Speed(0.38, 0.85, 4.0, 17.0)),
)
