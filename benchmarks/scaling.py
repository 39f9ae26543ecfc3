"""How time and memory of the Jensen-Shannon divergence, forward and backward, grow with rows and with the vocabulary."""

from functools import partial

from benchmarks import measuring
from benchmarks.loss import RIVALS, Case, Shape
from benchmarks.memory import prepare

STUDENT, TEACHER = 576, 1024
LENGTHS = [Shape(rows, 50257, STUDENT, TEACHER) for rows in (256, 1024, 2048, 4096, 8192)]
VOCABULARIES = [Shape(1024, classes, STUDENT, TEACHER) for classes in (32000, 151936)]
QUICK = [Shape(32, 20000, 32, 48), Shape(96, 20000, 32, 48)]
NAMES = ("floor", "redistill", "liger, chunks of 256")


def main() -> None:
    options = measuring.arguments(__doc__ or "")
    results = {}
    for shape in QUICK if options.quick else LENGTHS + VOCABULARIES:
        print(shape, flush=True)
        case = Case(shape)
        rivals = {name: partial(RIVALS[name], case, "jsd") for name in NAMES}
        found = measuring.interleaved(rivals, 1 if options.quick else options.repetitions or 3)
        del case, rivals
        results[str(shape)] = {
            "seconds": found,
            "over the floor": measuring.ratios(found, "floor"),
            "megabytes": {name: measuring.peak_of(prepare, name, "jsd", shape) / 1e6 for name in NAMES[1:]},
        }
    measuring.write("scaling", results, quick=options.quick)


if __name__ == "__main__":
    main()
