"""Super-NaturalInstructions: the test tasks of a collection of 1,600 tasks.

Each task has a definition.  A row may have several references.

    {"instruction": "In this task, you are given a sentence and must write a question that it answers.", "input": "The lake
     froze on the third of January.", "output": ["When did the lake freeze?", "On which day did the lake freeze?"]}

MiniLLM evaluates the 1,694 rows of the hub folder `11_`, whose references have a length of at least 11.  This length is not a
number of words: in a quarter of the rows, the references have fewer than 11 words.  The setting `min_reference_words` counts
words, so it cannot select the same rows.

Source: Wang et al. 2022 (arXiv 2204.07705); Apache-2.0.

Example:
    >>> TASK.hub_name, TASK.hub_file
    ('MiniLLM/sinst', '11_/valid.jsonl')
"""

from redistill.data.tasks.task import Task

TASK = Task(
    name="super_natural",
    description="1,694 rows of Super-NaturalInstructions with long references",
    hub_name="MiniLLM/sinst",
    hub_file="11_/valid.jsonl",
)
