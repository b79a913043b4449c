"""The commands about a run file, before it is run: `init`, `keys` and `preview`."""

import difflib
import textwrap
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from s2l_ray.display import at_work
from s2l_ray.options import Config, Overrides

if TYPE_CHECKING:
    from s2l_ray.config.keys import Key

INIT_EXAMPLES = """\b
example: s2l init pool.jsonl > mine.yaml
example: s2l init 'pool/*.parquet' --model EleutherAI/pythia-70m-deduped
example: s2l init mails.csv --fields prompt=mail,response=reply,stratum=desk
"""
PREVIEW_EXAMPLES = """\b
examples:
  s2l preview mine.yaml                  three rows, and what would be rejected
  s2l preview mine.yaml --rows 100 --json | jq .segments
"""
KEYS_EXAMPLES = """\b
example: s2l keys                             all of them, by section
example: s2l keys clusters data.fields.tools  what they mean
"""
WIDTH = 80


def init(
    files: Annotated[
        list[str],
        typer.Argument(
            metavar="FILES",
            help="Files, globs, directories, URIs, or hf://org/name[:split], as in data.train.",
        ),
    ],
    model: Annotated[
        str | None,
        typer.Option(metavar="M", help="The reference, a small model. Default: one is proposed."),
    ] = None,
    fields: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=FIELD,...",
            help="Fields that hold prompt, response, messages, stratum and others, as in "
            "data.fields; null for none. Default: they are looked for.",
        ),
    ] = None,
) -> None:
    """Look at the first rows of files, and print the shortest configuration that reads them, with
    comments: which fields hold questions, answers or messages, strata and ids, and numbers of
    clusters and checkpoints that fit the number of rows. Nothing is run and nothing is written.
    """
    with at_work("init"):
        from s2l_ray import first_config

        named = first_config.parse_fields(fields or [])
        text = first_config.text_of(files, model, named)
    print(text, end="")


def preview(
    config: Config,
    rows: Annotated[
        int, typer.Option(metavar="N", min=1, help="How many of the first rows to show.")
    ] = 3,
    as_json: Annotated[
        bool,
        typer.Option(
            "--json",
            help="A line of JSON for each row: {example_id, segments: [{text, loss}]}, or {file, "
            "row, rejected}.",
        ),
    ] = False,
    overrides: Overrides = None,
) -> None:
    """Show the first rows of the pool as a model reads them, with the tokens that carry loss
    marked, and what would be rejected among the first 1,000 rows. Rows of a file are numbered
    from 0. It starts no Ray and reads no weights; only the tokenizer is loaded.
    """
    from rich.console import Console

    with at_work("preview"):
        from s2l_ray import preview as previewing
        from s2l_ray.config.load import load

        previewer = previewing.Previewer(load(config, overrides or []))
    if not as_json:
        return previewing.show(previewer, rows, Console(soft_wrap=True, highlight=False))
    for line in previewing.json_lines(previewer, rows):
        print(line)


def keys(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY", help="Sections or keys, such as clusters or data.train."),
    ] = None,
) -> None:
    """List the keys of a run file; of those that are named, and all below them, show type, default
    and meaning. Keys stand below each other in YAML, and are joined with dots for --set.
    """
    print("\n".join(_explained(names) if names else _overview()))


def _overview() -> Iterator[str]:
    from s2l_ray.config.keys import all_keys
    from s2l_ray.config.sections import RunConfig

    of_section: dict[str, list[str]] = {}
    for key in all_keys(RunConfig):
        section, _, name = key.path.rpartition(".")
        if not key.sections:
            of_section.setdefault(section, []).append(name)
    for section, names in of_section.items():
        yield section or "at the top"
        indented = textwrap.TextWrapper(
            WIDTH, initial_indent=" " * 4, subsequent_indent=" " * 4, break_on_hyphens=False
        )
        yield from indented.wrap(", ".join(dict.fromkeys(names)))


def _explained(names: Sequence[str]) -> Iterator[str]:
    from s2l_ray.config.keys import all_keys
    from s2l_ray.config.sections import RunConfig
    from s2l_ray.errors import ConfigError

    known = list(all_keys(RunConfig))
    for name in names:
        chosen = [key for key in known if f"{key.path}.".startswith(f"{name}.")]
        # Keys of one line, such as {min: ..., max: ...}, are told by the one that holds them.
        chosen = chosen or [
            key for key in known if name.startswith(f"{key.path}.") and "{" in key.kind
        ]
        if not chosen:
            near = difflib.get_close_matches(name, [key.path for key in known], n=1, cutoff=0.5)
            hint = f"did you mean {near[0]!r}?" if near else "`s2l keys` lists all of them"
            raise ConfigError(f"{name!r} is no key of a run file; {hint}")
        for key in chosen:
            yield from _lines(key)


def _lines(key: "Key") -> Iterator[str]:
    from s2l_ray.config.keys import meaning_of

    default = "required" if key.default is None else key.default and f"default {key.default}"
    redone = "" if key.changes_results else "changing it redoes nothing"
    facts = [key.kind.replace("`", ""), default, redone]
    yield f"{key.path}: {'; '.join(fact for fact in facts if fact)}"
    meaning = key.meaning or " ".join(meaning_of(section) for section in key.sections)
    yield from textwrap.wrap(
        meaning.replace("`", ""), WIDTH, initial_indent=" " * 4, subsequent_indent=" " * 4
    )
