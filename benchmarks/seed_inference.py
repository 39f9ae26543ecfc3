"""Error rates and power of comparisons of methods with a few training seeds, by simulation.

    python -m benchmarks.seed_inference

Each comparison has 120 prompts and 3 or 5 training seeds.  The difference of a prompt has a standard deviation of 20 ROUGE-L.
A fraction of its variance (`shared`) is the same for all training seeds.  A training seed changes the difference on all
prompts.
"""

from dataclasses import dataclass

import numpy as np

from redistill.reports.inference import crossed

COMPARISONS, PROMPTS, OF_PROMPTS = 4000, 120, 20.0
NONE, TRUE = 0.0, 2.0
DETECTED = 2.822 * OF_PROMPTS / PROMPTS**0.5  # (t_0.975 + t_0.8) standard errors, where the prompts alone vary
SEED_EFFECTS, SHARED = (0.0, 0.3, 0.6, 2.0), (0.0, 0.5, 1.0)


@dataclass(frozen=True)
class Cell:
    """Fractions of simulated comparisons with p below 5 %, and whose 95 % interval contains the true difference."""

    rejected: float
    covered: float


def simulate(num_seeds: int, of_seeds: float, shared: float, difference: float) -> Cell:
    """Simulate comparisons.

    Args:
        num_seeds: Number of training seeds.
        of_seeds: Standard deviation of the effect of a training seed, in ROUGE-L.
        shared: Fraction of the variance of a prompt's difference that all training seeds share, in [0, 1].
        difference: The true difference.
    """
    rng = np.random.default_rng([num_seeds, int(10 * of_seeds), int(10 * shared), int(1000 * difference)])
    rejected = covered = 0
    for _ in range(COMPARISONS):
        seeds = rng.normal(0, of_seeds, (num_seeds, 1))
        prompts = rng.normal(0, OF_PROMPTS * shared**0.5, (1, PROMPTS))
        rest = rng.normal(0, OF_PROMPTS * (1 - shared) ** 0.5, (num_seeds, PROMPTS))
        interval, p, _ = crossed([difference + seeds + prompts + rest])
        rejected += p < 0.05
        covered += interval.lower <= difference <= interval.upper
    return Cell(rejected / COMPARISONS, covered / COMPARISONS)


def main() -> None:
    print(f"{COMPARISONS} comparisons a row, {PROMPTS} prompts, s.d. of a prompt's difference {OF_PROMPTS:g}")
    print("seeds  s.d. of seeds  shared  rejected without difference  coverage  power for 2")
    for num_seeds in (3, 5):
        for of_seeds in SEED_EFFECTS:
            for shared in SHARED:
                none, true = (simulate(num_seeds, of_seeds, shared, value) for value in (NONE, TRUE))
                figures = f"{none.rejected:27.1%}  {none.covered:8.1%}  {true.rejected:11.1%}"
                print(f"{num_seeds:5}  {of_seeds:13.1f}  {shared:6.1f}  {figures}")


if __name__ == "__main__":
    main()
