"""Unnatural Instructions: rows that a language model generated.

The model generated the instructions, the inputs and the answers.

    {"instruction": "You are given a list of cities. Name the one that is furthest north.", "input": "Cities: Lima, Oslo,
     Rome.", "output": "Oslo"}

MiniLLM evaluates the first 10,000 rows of the hub folder `11_`, whose answers have a length of at least 11.  The module
`super_natural` explains this length.

Source: Honovich et al. 2023 (arXiv 2212.09689), core set; MIT.

Example:
    >>> TASK.hub_name, TASK.hub_rows
    ('MiniLLM/uinst', 10000)
"""

from redistill.data.tasks.task import Task

TASK = Task(
    name="unnatural",
    description="10,000 rows of Unnatural Instructions with long answers",
    hub_name="MiniLLM/uinst",
    hub_file="11_/valid.jsonl",
    hub_rows=10_000,
)
