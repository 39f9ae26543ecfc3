"""GSM8K: word problems of grade school mathematics, with solutions in steps.

The hub data set `openai/gsm8k` has 7,473 training rows and 1,319 test rows.  A solution ends with "####" and the final number.
The metric `final_number` compares only this number.  It is not a default metric; a recipe or `--metric` must name it.

    {"question": "A baker fills 3 trays with 12 rolls each and sells 20 rolls. How many are left?", "answer": "There are 3 * 12
     = <<3*12=36>>36 rolls.\\nSo 36 - 20 = <<36-20=16>>16 are left.\\n#### 16"}

A local file may also have the columns "instruction" and "output".  Source: Cobbe et al. 2021 (arXiv 2110.14168); MIT licence.

Example:
    >>> TASK.hub_name, dict(TASK.columns)
    ('openai/gsm8k', {'instruction': 'question', 'output': 'answer'})
"""

from redistill.data.tasks.task import Task

TASK = Task(
    name="gsm8k",
    description="1,319 word problems of GSM8K; score them with the metric final_number",
    hub_name="openai/gsm8k",
    hub_file="main/test-00000-of-00001.parquet",
    columns=(("instruction", "question"), ("output", "answer")),
)
