"""CPU seconds of finding strata in embeddings (`clusters.strata: auto`), without the reading.

    python benchmarks/bench_found_strata.py

The sample is fitted once, and then every row gets its nearest centroid; synthetic embeddings of
unit length around as many centres as there are strata.
"""

import time

import numpy as np

from s2l_ray.clusters import found_strata

NUM_STRATA, NUM_COMPONENTS, NUM_ROWS = 24, 576, found_strata.ROWS_IN_SAMPLE


def main() -> None:
    rng = np.random.default_rng(0)
    centre_GH = rng.normal(size=(NUM_STRATA, NUM_COMPONENTS))
    vector_SH = centre_GH[rng.integers(NUM_STRATA, size=NUM_ROWS)]
    vector_SH = vector_SH + rng.normal(size=vector_SH.shape)
    vector_SH = (vector_SH / np.linalg.norm(vector_SH, axis=1, keepdims=True)).astype(np.float32)
    found_strata._nearest(vector_SH[:100], vector_SH[:NUM_STRATA])  # compiles
    started = time.process_time()
    centroid_GH = found_strata._fitted(vector_SH, NUM_STRATA, 0)
    fitted = time.process_time()
    found_strata._nearest(vector_SH.astype(np.float16), centroid_GH)
    labelled = time.process_time()
    rows = f"{NUM_ROWS:,} rows of {NUM_COMPONENTS} components, {NUM_STRATA} strata"
    print(f"{rows}: fit {fitted - started:.1f} s, labels {labelled - fitted:.2f} s of CPU time")


if __name__ == "__main__":
    main()
