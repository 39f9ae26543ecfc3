"""Super-NaturalInstructions: the test part of 1,600 tasks, each with a definition.

A row may have several references.

    {"instruction": "In this task, you are given a sentence and must write a question that it answers.", "input": "The lake
     froze on the third of January.", "output": ["When did the lake freeze?", "On which day did the lake freeze?"]}

The papers evaluate 1,694 rows, which are in the hub folder `11_`: the rows whose references have a length of 11 or more.  This
length is not counted in words: in a quarter of these rows, the references have fewer than 11 words.  So `min_reference_words`
cannot select these rows.

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
