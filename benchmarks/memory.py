"""Peak memory of a divergence, forward and backward, above weights and inputs; each rival in a fresh process."""

from collections.abc import Callable
from functools import partial

from benchmarks import measuring
from benchmarks.loss import RIVALS, SHAPES, Case, Shape

ROWS = (1024, 2048, 8192)
LONG = ("redistill", "liger, chunks of 256", "trl chunked")  # the others' memory grows with the rows: gigabytes at 8192


def prepare(rival: str, divergence: str, shape: Shape) -> Callable[[], object]:
    """The rival's work; compiled code is made before, on few rows."""
    few = Case(Shape(min(shape.rows, 64), shape.classes, shape.student, shape.teacher))
    RIVALS[rival](few, divergence)
    del few
    return partial(RIVALS[rival], Case(shape), divergence)


def main() -> None:
    options = measuring.arguments(__doc__ or "", only={"nargs": "*", "help": "rivals; all where left out"})
    rivals = [name for name in RIVALS if name != "floor" and name in (options.only or RIVALS)]
    first = Shape(128, 20000, 64, 96) if options.quick else SHAPES[0]
    megabytes: dict[str, dict[str, float]] = {}
    for divergence in ("jsd", "forward_kl"):
        for rows in (first.rows, first.rows * 2) if options.quick else ROWS:
            shape = Shape(rows, first.classes, first.student, first.teacher)
            for rival in rivals if rows == first.rows else [name for name in LONG if name in rivals]:
                if rows > first.rows and divergence != "jsd":
                    continue
                peak = measuring.peak_of(prepare, rival, divergence, shape) / 1e6
                megabytes.setdefault(f"{shape}, {divergence}", {})[rival] = round(peak, 1)
                print(f"{shape}, {divergence}, {rival}: {peak:.0f} MB", flush=True)
    inputs = 4e-6 * first.student * (first.classes + first.rows)
    measuring.write("memory", {"megabytes": megabytes, "of which gradients": round(inputs, 1)}, quick=options.quick)


if __name__ == "__main__":
    main()
