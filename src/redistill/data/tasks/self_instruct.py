"""Self-Instruct: 252 tasks for everyday programs, from e-mail to spreadsheets.

    {"instruction": "Turn the notes into one polite sentence for a customer.", "input": "parcel late, storm, arrives Friday",
     "output": "We are sorry that your parcel is late because of the storm; it will arrive on Friday.", "category": "Gmail"}

Source: the user-oriented evaluation of Wang et al. 2023 (arXiv 2212.10560); Apache-2.0.

Example:
    >>> TASK.name, TASK.hub_name
    ('self_instruct', 'MiniLLM/self-inst')
"""

from redistill.data.tasks.task import Task

TASK = Task(
    name="self_instruct",
    description="user-oriented instructions of Self-Instruct, 252 in the papers",
    hub_name="MiniLLM/self-inst",
)
