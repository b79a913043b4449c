"""The stage `prepare` against `datasets.map` with the same tokenizer, on the whole machine.

    python benchmarks/bench_prepare.py POOL.jsonl --rows 240000 \\
        --tokenizer configs/tokenizers/math-4k

One file of JSON lines (fields instruction and output), its rows repeated up to `--rows` with a
number added to each, so that none repeats another. Both tokenise with two processes. `datasets.map`
does what a training script does: read, fill the template, tokenise, cut; nothing is checked, and no
row has an id. Whole commands, from their start to their end, in turns. Seconds are right only where
nothing else runs; CPU seconds are those of all processes of a command. Medians count.
"""

import argparse
import json
import shutil
import statistics
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml
from bench_scoring import HERE, machine
from cpu_time import measured

MAX_TOKENS = 512
PEER = """
import sys
from datasets import load_dataset
from transformers import AutoTokenizer

pool, tokenizer, cache, template, max_tokens = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(tokenizer)
eos = tokenizer.eos_token_id

def tokens(rows):
    prompts = [template.replace("{prompt}", text) for text in rows["instruction"]]
    prompts = tokenizer(prompts)["input_ids"]
    answers = tokenizer(rows["output"], add_special_tokens=False)["input_ids"]
    both = [[*p, *a, eos][: int(max_tokens)] for p, a in zip(prompts, answers)]
    return {"input_ids": both, "num_prompt_tokens": [len(p) for p in prompts]}

rows = load_dataset("json", data_files=pool, split="train", cache_dir=cache)
rows = rows.map(tokens, batched=True, num_proc=2)
print(sum(map(len, rows["input_ids"])))
"""
TEMPLATE = "Question: {prompt}\n\nAnswer: "


def write_pool(source: Path, num_rows: int, out: Path) -> None:
    """Write rows of the source, again and again, each with a number of its own."""
    with source.open(encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    with out.open("w", encoding="utf-8") as file:
        for number in range(num_rows):
            row = rows[number % len(rows)]
            kept = {key: row[key] for key in ("output", "source") if key in row}
            line = {"instruction": f"{row['instruction']} ({number})", **kept}
            file.write(json.dumps(line, ensure_ascii=False) + "\n")


def commands(folder: Path, tokenizer: str) -> dict[str, list[str]]:
    """Return the commands of both sides, each with a folder of its own for results."""
    (folder / "template.txt").write_text(TEMPLATE, encoding="utf-8")
    config = {
        "run_dir": str(folder / "run"),
        "data": {
            "train": [str(folder / "pool.jsonl")],
            "template": str(folder / "template.txt"),
            "max_tokens": MAX_TOKENS,
        },
        "reference": {"model": {"architecture": {"model_type": "gpt2"}, "tokenizer": tokenizer}},
    }
    (folder / "prepare.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    pool, cache = str(folder / "pool.jsonl"), str(folder / "cache")
    s2l = str(Path(sys.executable).with_name("s2l"))
    return {
        "prepare": [s2l, "run", str(folder / "prepare.yaml"), "--until", "prepare"],
        "datasets.map": [
            sys.executable, "-c", PEER, pool, tokenizer, cache, TEMPLATE, str(MAX_TOKENS)
        ],
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("pool", type=Path)
    parser.add_argument("--rows", type=int, default=240_000)
    parser.add_argument("--tokenizer", required=True)
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    seconds: dict[str, list[tuple[float, float]]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_pool(given.pool, given.rows, folder / "pool.jsonl")
        size = (folder / "pool.jsonl").stat().st_size
        for _ in range(given.repeats):
            for side, command in commands(folder, str(Path(given.tokenizer).resolve())).items():
                seconds.setdefault(side, []).append(measured(command))
                for left in ("run", "cache"):
                    shutil.rmtree(folder / left, ignore_errors=True)
                print(side, *(round(s, 1) for s in seconds[side][-1]), flush=True)
    medians = {
        side: {"seconds": statistics.median(s for s, _ in found),
               "cpu_seconds": statistics.median(c for _, c in found)}
        for side, found in seconds.items()
    }  # fmt: skip
    ours, peer = medians["prepare"], medians["datasets.map"]
    result: dict[str, Any] = {
        "when": datetime.now(UTC).isoformat(timespec="seconds"), "machine": machine("cpu"),
        "rows": given.rows, "bytes": size, "all": seconds, "medians": medians,
        "ratio": {key: ours[key] / peer[key] for key in peer},
    }  # fmt: skip
    print(json.dumps(result["ratio"]))
    out = HERE / "results" / f"prepare-{given.rows}.json"
    out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
