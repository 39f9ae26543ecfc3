"""Dolly: instructions written by employees of one company.

The instructions are of eight kinds, from open questions to summaries.

The hub data set `databricks/databricks-dolly-15k` has 15,011 rows.  MiniLLM trains on about 14,000 of them and tests on 500
others.  These 500 rows are also in the hub data set. A run does not train on rows whose prompt is in the test set.

    {"instruction": "Why do ships float although steel is heavier than water?", "input": "", "output": "A ship is mostly air, so
     on the whole it is lighter than the water that it pushes aside.", "category": "open_qa"}

Source: Conover et al. 2023; CC BY-SA 3.0.  The test rows are those of MiniLLM (arXiv 2306.08543).

Example:
    >>> TASK.name, TASK.hub_name
    ('dolly', 'MiniLLM/dolly')
"""

from redistill.data.tasks.task import Task

TASK = Task(
    name="dolly",
    description="500 rows of databricks-dolly-15k; a run leaves them out of its training data",
    hub_name="MiniLLM/dolly",
)
