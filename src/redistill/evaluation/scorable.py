"""Notes on rows that a metric cannot score.

Without a note, the best checkpoint could be chosen by a score that is always the worst.
"""

from collections.abc import Iterator, Mapping, Sequence

from redistill.records import Metric, Record


def unscorable_notes(
    datasets: Mapping[str, Sequence[Record]], metrics: Mapping[str, Sequence[Metric]], *, limit: int | None = None
) -> Iterator[str]:
    """Yield notes on records that a metric cannot score.

    There is one note for each data set and metric with such records: those for which `Metric.can_score` returns False.

    Args:
        datasets: Records by name of the data set.
        metrics: Metrics by name of the data set.
        limit: Number of records of each data set that are examined, >= 1; if None, all are.

    Raises:
        DataError: the function `can_score` of a metric fails.
    """
    for name, records in datasets.items():
        examined = records[:limit]
        for metric in metrics[name]:
            without = [record.record_id for record in examined if not metric.can_score_record(record)]
            if without:
                affected = f"{len(without)} of {len(examined)} rows (the first is {without[0]})"
                yield (
                    f"{name}: {metric.title} has nothing to compare with in the references of {affected}, "
                    "which always have the worst score; use another metric or remove the rows"
                )
