"""Notes on rows that a metric cannot score.

A metric gives such a row the worst score for any answer.  A note warns of this before the metric selects the best
checkpoint.
"""

from collections.abc import Iterator, Mapping, Sequence

from redistill.records import Metric, Record


def unscorable_notes(
    datasets: Mapping[str, Sequence[Record]], metrics: Mapping[str, Sequence[Metric]], *, limit: int | None = None
) -> Iterator[str]:
    """Yield notes on records that a metric cannot score.

    `Metric.can_score` returns False for such records.  There is one note for each pair of a data set and a metric with such
    records.

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
                    f"{name}: {metric.title} cannot score {affected}, since their references have nothing to compare with; "
                    "these rows always have the worst score; use another metric or remove the rows"
                )
