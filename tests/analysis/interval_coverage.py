"""How often 95 % intervals hold the true difference, when problems and seeds both vary.

    python -m tests.analysis.interval_coverage

Differences between two models are drawn anew 2,000 times: each seed, each problem and each of their pairs
adds normal noise. The shares that the intervals should have are 95 %.
"""

import numpy as np

from sdistill.analysis.statistics import bootstrap_mean, paired_bootstrap
from tests.analysis.test_statistics import crossed

DRAWS = 2_000
PROBLEMS = 128
NOISE = ((0.0, 0.3, 0.3), (0.03, 0.3, 0.3), (0.1, 0.3, 0.3))  # of seed, problem, and both


def main() -> None:
    print(f"{PROBLEMS} problems, {DRAWS} draws a line")
    print("seeds  noise of seed, problem, both   within seeds   over problems and seeds")
    for seeds in (3, 5, 10):
        for noise in NOISE:
            rng, within, across = np.random.default_rng(0), 0, 0
            for _ in range(DRAWS):
                table = crossed(rng, seeds, PROBLEMS, *noise)
                low, high = bootstrap_mean(list(table))[1:]
                within += low <= 0 <= high
                low, high = paired_bootstrap(table)[1:]
                across += low <= 0 <= high
            print(f"{seeds:5}  {noise!s:28}  {within / DRAWS:13.3f}  {across / DRAWS:24.3f}")


if __name__ == "__main__":
    main()
