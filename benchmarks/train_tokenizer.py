"""Learn a small tokenizer from a pool, for a reference that starts from random weights.

    python benchmarks/train_tokenizer.py POOL.jsonl OUT --vocab-size 4096

made configs/tokenizers/math-4k from the pool of configs/math-mix-cpu.yaml.
"""

import argparse
from collections.abc import Iterator

from s2l_ray.config.data import DataConfig, FieldNames
from s2l_ray.data import sources
from s2l_ray.data.examples import read_example
from s2l_ray.data.templates import load_template
from s2l_ray.models.tokenizers import train_tokenizer
from s2l_ray.storage import input_files


def rendered(pool: str) -> Iterator[str]:
    """Prompt and response of every usable row, as the `alpaca` template has them."""
    template = load_template(DataConfig(train=[pool], template="alpaca"))
    for file in input_files.expand([pool]):
        for row in sources.read_rows(file):
            if row.fields is not None:
                example = read_example(row.fields, FieldNames())
                yield template.render_prompt(example) + example.response


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pool")
    parser.add_argument("out")
    parser.add_argument("--vocab-size", type=int, default=4096)
    arguments = parser.parse_args()
    train_tokenizer(rendered(arguments.pool), arguments.vocab_size).save_pretrained(arguments.out)


if __name__ == "__main__":
    main()
