"""Builds a comparison of finished runs, independent of the output format."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass

from redistill.records import ACCEPTANCE
from redistill.reports.budgets import Budgets, check_budgets
from redistill.reports.comparison import (
    GENERATED,
    TEACHER_FORCED,
    Column,
    Entrant,
    Row,
    by_primary,
)
from redistill.reports.costs import PEAK, SUMMED, Cost, machines, teacher_cost
from redistill.reports.decodings import (
    Decoded,
    decoded_contrast_table,
    decoded_rows,
    decoding_table,
    decodings_of,
)
from redistill.reports.inference import Contrast
from redistill.reports.judgements import judge_cost_table, judge_table, read_judgements
from redistill.reports.lineup import Lineup
from redistill.reports.measured import Measured
from redistill.reports.published import Published
from redistill.reports.ranking import conclusions
from redistill.reports.statistics import FLIPS, RESAMPLES, TIE
from redistill.reports.tables import (
    Table,
    acceptance_table,
    contrast_table,
    cost_table,
    other_scores_table,
    published_table,
    score_table,
)

TESTS = (
    "Differences are paired by prompt; the score of a prompt is its mean over evaluation seeds. If a method shares two or more "
    "training seeds with the baseline, interval and p are about the methods: training seeds and prompts are both random "
    "samples in a crossed model, with a t distribution and Satterthwaite's degrees of freedom. Otherwise they are about the "
    f"trained students alone: a percentile bootstrap over prompts ({RESAMPLES:,} resamples), and a two-sided sign-flip "
    f"permutation test over prompts ({FLIPS:,} flips). Detectable is the smallest true difference that a comparison with these "
    "seeds and prompts finds at the 5 % level with a probability of 80 %. Holm's correction is over the methods of a table. "
    f"Better, equal and worse count prompts; equal means a difference of at most {TIE:g}. The average gives every data set "
    "the same weight."
)

_TESTED = ("p", "p_holm", "detectable", "about", "wins", "ties", "losses")  # fields of `Contrast`


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A comparison of finished runs, ready to be written in any format.

    Args:
        name: Title of the comparison.
        baseline: Label of the runs that the others are compared with.
        verdict: The main results as sentences, one list for each primary metric.
        tables: Tables of scores, differences, decodings, other scores, acceptance, judges, costs and published values, in this
            order.  Scores, other scores and acceptance have one table per primary metric.  Differences have one table per
            column.  Decodings have two: scores, and differences to the baseline.
        budgets: Budgets and settings that are equal in all runs, and budgets and settings that differ.
        tests: Text that explains how confidence intervals and p-values of the differences were computed.
        left_out: One phrase for each unfinished run of the sweeps.
        records: Lines of the CSV file, with numbers in full precision.  There is one line per model and table column.  There is
            also one per method, column and further decoding, and one per published value.
        fields: Field names of the records, in the order of the columns of a CSV file.
    """

    name: str
    baseline: str
    verdict: Sequence[Sequence[str]]
    tables: Sequence[Table]
    budgets: Budgets
    tests: str
    left_out: Sequence[str]
    records: Sequence[Mapping[str, object]]
    fields: Sequence[str]


def comparison_of(measured: Measured, published: Mapping[str, Published] | None = None) -> Comparison:
    """Build the comparison of runs, independent of the output format.

    Args:
        measured: The runs, as `read_measured` returns them.
        published: Published tables of the MGSR paper (arXiv 2407.10068) to include, by name.
    """
    lineup, models, over, rows = measured.lineup, measured.models, measured.columns, measured.rows
    tables, groups = published or {}, by_primary(over)
    contrasts = [
        contrast_table(column, rows, lineup.baseline, is_detail=column is not group[-1])
        for group in groups
        for column in (group[-1], *group[:-1])
    ]
    decoded = {column.name: decoded_rows(column, models, lineup.baseline, rows) for column in over}
    decodings = [
        table
        for group in groups
        for column in (group[-1], *group[:-1])
        for table in _decoding_tables(column, decoded[column.name], lineup.baseline, is_detail=column is not group[-1])
    ]
    drafts = [acceptance_table(group[-1], rows, apart=index > 0) for index, group in enumerate(groups)]
    used = machines(lineup.entries)
    return Comparison(
        name=lineup.name,
        baseline=lineup.baseline,
        verdict=conclusions(measured),
        tables=[
            *(score_table(models, group, rows, apart=index > 0) for index, group in enumerate(groups)),
            *(table for table in contrasts if table is not None),
            *decodings,
            *(other_scores_table(group[-1], rows, apart=index > 0) for index, group in enumerate(groups)),
            *(table for table in drafts if table is not None),
            *_judged(lineup),
            cost_table(measured.costs, teacher_cost(lineup.entries), groups[0][-1], rows, used),
            *(published_table(name, table) for name, table in tables.items()),
        ],
        budgets=check_budgets(lineup),
        tests=TESTS,
        left_out=lineup.left_out,
        records=[
            *_records(rows, measured.costs),
            *_decoding_records(decoded),
            *(line for name, table in tables.items() for line in _published_records(name, table)),
        ],
        fields=_fields(models, over, rows, tables.values()),
    )


def _decoding_tables(column: Column, decoded: Sequence[Decoded], baseline: str, *, is_detail: bool) -> Iterator[Table]:
    """Yield the table of scores by decoding, and that of differences; none without further decodings."""
    tables = (
        decoding_table(column, decoded, is_detail=is_detail),
        decoded_contrast_table(column, decoded, baseline, is_detail=is_detail),
    )
    yield from (table for table in tables if table is not None)


def _judged(lineup: Lineup) -> list[Table]:
    """Return the tables of the results of judges and of their cost; [] if no run was judged."""
    several = {label for label in lineup.labels if len(lineup.of(label)) > 1}
    judged = [
        (f"{entry.label}, training seed {entry.seed}" if entry.label in several else entry.label, found)
        for label in lineup.labels
        for entry in lineup.of(label)
        for found in read_judgements(entry.run.path)
    ]
    return [table for table in (judge_table(judged), judge_cost_table(judged)) if table is not None]


def _fields(
    models: Sequence[Entrant], over: Sequence[Column], rows: Sequence[Row], published: Iterable[Published]
) -> list[str]:
    """Return the field names of the records, in the order of CSV columns.

    Primary metrics with their standard deviations come first, then differences, other metrics and costs.  The field "decoding"
    exists only if a method was evaluated with further decodings.  The scores in `ACCEPTANCE` exist only if they were measured.
    """
    drafted = any(row.scores["acceptance"] is not None for row in rows)
    decoded = any(decodings_of(models, column.datasets) for column in over)
    primary = dict.fromkeys([*(column.primary.name for column in over), *(table.metric for table in published)])
    others = dict.fromkeys(measure.name for column in over for measure in column.measures if measure.name not in primary)
    return [
        *("model", "role", "column", *(["decoding"] if decoded else [])),
        *(field for name in primary for field in (name, f"{name}_sd")),
        *("sd_over", "training_seeds", "evaluation_seeds", "prompts"),
        *("versus", "difference", "lower", "upper", *_TESTED, "paired_seeds", "note"),
        *(*others, *GENERATED, *TEACHER_FORCED, *(ACCEPTANCE if drafted else ()), *SUMMED, PEAK, "parameters"),
    ]


def _records(rows: Sequence[Row], costs: Mapping[str, Cost]) -> Iterator[dict[str, object]]:
    """Yield one record per row, that is, per model and column of the tables.

    The costs of a method do not depend on the column, so all its records have the same costs.
    """
    for row in rows:
        cost = costs.get(row.model)
        yield {
            **_row_record(row),
            **row.scores,
            **(cost.figures if cost is not None and row.is_method else {}),
        }


def _decoding_records(decoded: Mapping[str, Sequence[Decoded]]) -> Iterator[dict[str, object]]:
    """Yield one record per method, column and further decoding.

    The field "decoding" of a record has the title of the decoding.

    Args:
        decoded: Rows by decoding for each column, as `decoded_rows` returns them.
    """
    for found in decoded.values():
        for each in found:
            for row in each.rows if each.name is not None else ():
                if row.primary.mean is not None:
                    yield {**_row_record(row), "decoding": each.title}


def _row_record(row: Row) -> dict[str, object]:
    """Return the fields of a row that are common to all decodings."""
    metric, found = row.measures[0].name, row.primary
    return {
        **{"model": row.model, "role": row.role, "column": row.column, metric: found.mean, f"{metric}_sd": found.deviation},
        "sd_over": None if found.deviation is None else found.over,
        **{"training_seeds": found.num_trainings, "evaluation_seeds": found.num_seeds},
        **{"prompts": row.num_prompts, "note": row.note},
        **(_difference(row, row.contrast) if row.contrast is not None and row.is_method else {}),
    }


def _published_records(name: str, table: Published) -> Iterator[dict[str, object]]:
    """Yield one record per value of a published table.

    The field "role" of a record is "published", followed by the name of the table.
    """
    for label, figures in table.rows.items():
        for column, figure in zip(table.columns, figures, strict=True):
            yield {"model": label, "role": f"published {name}", "column": column, table.metric: figure}


def _difference(row: Row, found: Contrast) -> dict[str, object]:
    figures = {"versus": row.versus, **asdict(found.interval), **{name: getattr(found, name) for name in _TESTED}}
    return {**figures, "paired_seeds": found.num_seeds}
