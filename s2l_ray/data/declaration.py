"""The stage `prepare`: turn input rows into numbered parts of tokens."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from s2l_ray.artifacts.amounts import Quantities
from s2l_ray.artifacts.extensions import PREPARED, BaseRun, Extension
from s2l_ray.artifacts.identity import CONTENTS
from s2l_ray.artifacts.inputs import Contents
from s2l_ray.artifacts.manifest import StageDir, section_inputs, section_values
from s2l_ray.artifacts.pool_types import check_columns, pool_types
from s2l_ray.artifacts.stage import Extending, ExtensionPlan, RunPlan, Stage, Task
from s2l_ray.artifacts.tables import Parts
from s2l_ray.config.clusters import FINDS_KINDS
from s2l_ray.config.data import CHATML, OF_EVALUATION, DataConfig
from s2l_ray.config.section import default_of
from s2l_ray.config.sections import RunConfig
from s2l_ray.config.training import RandomModel
from s2l_ray.data import cleaning, kept_templates
from s2l_ray.data.chat_sources import jinja_source, read_chat_template
from s2l_ray.errors import ModelError, first
from s2l_ray.models.adapters import tokenizer_source
from s2l_ray.models.model_files import first_checkpoint
from s2l_ray.models.origins import is_hub_name, local_path
from s2l_ray.progress import Progress
from s2l_ray.storage.input_files import InputFile, Listing, list_files
from s2l_ray.storage.location import Location, absolute, absolute_if_file, is_uri


def pool_tokenizer(config: RunConfig) -> str | None:
    """Return the tokenizer of the pool; None if nothing needs its tokens."""
    data, reference = config.data, config.reference
    if data is not None and data.tokenizer is not None:
        return data.tokenizer
    if reference is None or config.imports_trajectories:
        return None
    if reference.path is not None:
        return tokenizer_source(f"{reference.path.rstrip('/')}/{first_checkpoint(reference.path)}")
    model = reference.model
    assert model is not None, "a section with neither model nor path is refused"
    return tokenizer_source(model.tokenizer if isinstance(model, RandomModel) else model)


MOVED = (
    "If the project was moved, `s2l run` of the same configuration, once, tells the run where its "
    "files are."
)


def own_chat_template(config: RunConfig, inputs: Mapping[str, Any]) -> str | None:
    """Return the Jinja text of the `data.chat_template` that the rows of a run were made with.

    None without one, for a file with another content by now, of which a run of an older version has
    no copy, and for ChatML where the tokenizer, which decides how a turn of it ends, is not on this
    machine.

    Args:
        config: of the run.
        inputs: of its rows.

    Raises:
        ModelError: the tokenizer, a folder or a file, is no longer there.
    """
    data, key = config.data, "chat_template"
    if data is None:
        return None
    contents = f"data.{key}{CONTENTS}"
    if key in data.template_files and (
        Contents().template_inputs(data).get(contents) != inputs.get(contents)
    ):
        return None
    template = read_chat_template(data)
    name = pool_tokenizer(config) if template == CHATML else None
    if name is None:
        return template if template != CHATML else None
    from s2l_ray.models import local_models

    try:
        tokenizer = local_models.tokenizer(name)
    except ModelError as error:
        raise ModelError(f"{error}. {MOVED}") from None
    return None if tokenizer is None else jinja_source(template, tokenizer)


def template_inputs(data: DataConfig, contents: Contents) -> dict[str, Any]:
    """Return what shapes the tokens of a row besides its fields and the tokenizer."""
    inputs = {
        "data.template": data.template_name,
        "data.max_tokens": data.max_tokens,
        **contents.template_inputs(data),
        **chat_inputs(data),
    }
    if data.chat_template is not None:
        inputs["data.chat_template"] = data.chat_template
    return inputs


def chat_inputs(data: DataConfig) -> dict[str, Any]:
    """Return the turns that are learned and the date; for other rows than chats if they are set.

    Older versions learned the last turn of a chat alone: what they prepared is another result.
    """
    values = {"turns": data.turns, "date": data.date.isoformat()}
    is_chat = data.fields.messages is not None
    return {
        f"data.{key}": value
        for key, value in values.items()
        if is_chat or getattr(data, key) != default_of(data, key)
    }


def pool_files(data: DataConfig, run: Location | None = None) -> Listing:
    """Return the files of the pool; those of the run that reads them are left out."""
    patterns = [absolute(pattern) for pattern in data.train]
    return list_files(patterns, "data.train", run=run, split=data.split)


def check_template(config: RunConfig) -> None:
    """Refuse a template that cannot be used."""
    if config.data is not None:
        from s2l_ray.data.templates import check_fields, load_template

        check_fields(config.data)
        load_template(config.data)


def _task(plan: RunPlan, _: str) -> Task:
    data = plan.config.data
    assert data is not None
    listing = pool_files(data, plan.run)
    files = listing.files
    tokenizer = pool_tokenizer(plan.config)
    named = section_values(data.fields)
    fields = {key: name for key, name in named.items() if key not in OF_EVALUATION}
    inputs = {
        **section_inputs("data", data),
        "data.fields": fields,
        "data.template": data.template_name,
        "data.train": plan.contents.file_hashes(files),
        "data.tokenizer": tokenizer,
        **plan.contents.model_inputs("data.tokenizer contents", tokenizer),
        **plan.contents.template_inputs(data),
        **chat_inputs(data),
        **cleaning.dropping_inputs(data, plan.run, plan.contents),
    }
    asked_for = cleaning.is_list_asked_for(data)
    lists = cleaning.lists(data, plan.run, plan.contents, lambda: files, is_asked_for=asked_for)
    work = partial(_prepare, plan, data, listing)
    return Task(inputs, work, is_checked=True, supplement=lists, fits_here=_fits_here)


def _fits_here() -> bool:
    """Tell whether no cluster was joined: this machine then prepares any pool by itself."""
    from s2l_ray.distributed import session

    return not session.is_shared()


def _prepare(
    plan: RunPlan,
    data: DataConfig,
    listing: Listing,
    out: StageDir,
    progress: Progress,
) -> dict[str, Any]:
    from s2l_ray.data import prepare

    tokenizer = absolute_if_file(plan.contents.pinned(pool_tokenizer(plan.config)))
    data, held_out = kept_templates.keep(data, plan.run), cleaning.compared_sets(data, plan.run)
    summary = prepare.run(data, listing.files, tokenizer, out, progress=progress, held_out=held_out)
    selection = plan.config.selection
    notes = _notes(summary) if selection is None or selection.format == "jsonl" else []
    notes += note_on_kinds(plan.config, len(summary["strata"]))
    return {**summary, "notes": [*listing.notes, *summary.get("notes", []), *notes]}


def note_on_kinds(config: RunConfig, num_strata: int) -> list[str]:
    """Say what to do where all rows would be clustered as one stratum, while it costs nothing."""
    clusters = config.clusters
    if clusters is None or config.imports_trajectories or num_strata > 1:
        return []
    return [] if clusters.strata == "auto" else [f"all rows are of one stratum: {FINDS_KINDS}"]


def _notes(summary: Mapping[str, Any]) -> list[str]:
    """Say which fields a subset in JSON lines does not hold in their own type."""
    forms: dict[str, list[str]] = {}
    for name, form in summary["text_in_jsonl"].items():
        forms.setdefault(form, []).append(name)
    if not forms:
        return []
    fields = "; ".join(f"{first(names)}: {form} text" for form, names in forms.items())
    return [f"in selected.jsonl some fields become text ({fields}); parquet keeps their types"]


def _extension_task(plan: ExtensionPlan, extension: Extension) -> Task:
    inputs = {
        "data": list(extension.file_hashes),
        "prepare of the run": plan.fingerprint_of_run(PREPARE),
        "earlier": plan.fingerprints(PREPARE, plan.before(extension)),
    }
    base, earlier = plan.base, plan.before(extension)
    assert base.config.data is not None
    pool = Parts(base.run / PREPARED, more=tuple(item.folder(PREPARED) for item in earlier))
    data, contents = base.config.data, Contents.load(base.run)
    reachable, gone = cleaning.with_reachable_sets(data, base.run)
    gone = gone if data.decontaminate == "report" else []
    files = partial(_files_of, plan, extension)
    lists = cleaning.lists(reachable, base.run, contents, files, pool=pool, gone=gone)
    work = partial(_prepare_new, base, pool, plan.files)
    return Task(inputs, work, supplement=lists, fits_here=_fits_here)


def _files_of(plan: ExtensionPlan, extension: Extension) -> Sequence[InputFile]:
    """Return the files that an extension is to be prepared from, or its prepared rows."""
    prepared = extension.folder(PREPARED)
    is_prepared = extension.summary(PREPARED) is not None
    return Parts(prepared, "rows").stored() if is_prepared else plan.files


def data_of(base: BaseRun) -> DataConfig:
    """Return the section as the pool of a run was prepared: older versions learned last turns."""
    data = base.config.data
    assert data is not None
    if data.fields.messages and "data.turns" not in base.manifests[PREPARE.name].inputs:
        return data.model_copy(update={"turns": "last"})
    return data


def tokenizer_of(base: BaseRun) -> str | None:
    """Return the tokenizer of the rows of a run; if the project was moved, where it is now."""
    known: str | None = base.summary(PREPARE.name)["tokenizer"]
    if known is None or is_uri(known) or is_hub_name(known) or local_path(known).exists():
        return known
    return absolute_if_file(pool_tokenizer(base.config))  # type: ignore[no-any-return]


def _prepare_new(
    base: BaseRun,
    pool: Parts,
    files: Sequence[InputFile],
    out: StageDir,
    progress: Progress,
) -> dict[str, Any]:
    """Prepare the rows that neither the run nor an earlier extension has, and check their ids."""
    from s2l_ray.data import duplicates, prepare

    data, tokenizer = kept_templates.keep(data_of(base), base.run), tokenizer_of(base)
    drops = data.decontaminate == "drop"
    held_out = cleaning.compared_sets(data, base.run) if drops else {}
    summary = prepare.run(
        data, files, tokenizer, out, progress=progress, held_out=held_out, pool=pool
    )
    rows = Parts(pool.folder, "rows", pool.more)
    if base.config.selection is not None and base.config.selection.format == "parquet":
        _, faults = pool_types(Parts(pool.folder, "rows", (*pool.more, out.location)))
        check_columns(faults)
    if not summary["known"]:
        return summary
    notes = duplicates.check_ids(out.location / "staged", rows, data.fields.of_pool)
    return {**summary, "notes": [*summary.get("notes", []), *notes]} if notes else summary


def _sizes(_: RunConfig, quantities: Quantities) -> dict[str, str]:
    pool, about = quantities.pool, quantities.about
    if pool is None:
        return {}
    amount, where = pool.amount, "" if pool.whole else " among the first rows"
    share = amount.responses / max(amount.tokens, 1)
    tokens = f"{about}{amount.tokens:,} tokens, {share:.0%} of them in responses"
    cut = f", {about}{amount.cut:,} rows cut at data.max_tokens" if amount.cut else ""
    lines = {
        "pool": f"{about}{amount.rows:,} rows, {tokens}{cut}",
        "rejected": pool.rejected,
        "strata": f"{pool.strata:,}{where}",
    }
    return {name: text for name, text in lines.items() if text}


PREPARE = Stage(
    name="prepare",
    task=_task,
    folder=PREPARED,
    section="data",
    needed_to_extend=True,
    advice_on_memory="Lower data.rows_per_part, or use machines with more memory for each CPU.",
    check=check_template,
    sizes=_sizes,
    extending=Extending(_extension_task, refuses_redoing=True),
)
