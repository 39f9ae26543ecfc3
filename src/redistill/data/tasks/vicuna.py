"""Vicuna: 80 open questions, among them role play, estimates and code.

The references are the answers of a strong model.

    {"instruction": "How many piano tuners might work in a city of a million people? Explain how you estimate it.", "input": "",
     "output": "Suppose that one household in twenty owns a piano ..."}

Source: Chiang et al. 2023 (lm-sys/vicuna-blog-eval); Apache-2.0.

Example:
    >>> TASK.name, TASK.hub_name
    ('vicuna', 'MiniLLM/Vicuna')
"""

from redistill.data.tasks.task import Task

TASK = Task(name="vicuna", description="80 open questions, with long model-generated references", hub_name="MiniLLM/Vicuna")
