"""Model x data sets x seeds -> responses and scores in files; and the scores that choose a checkpoint.

Answers are on disk as soon as a batch of them is written, so an interrupted evaluation goes on where it stopped.  An answer's
randomness belongs to (evaluation seed, data set, record), hence no answer depends on batches, processes or interruptions.
Nothing here knows how the model was trained.
"""

from redistill.evaluation.answers import response_scores
from redistill.evaluation.gold import teacher_forced
from redistill.evaluation.scores import EvaluationConfig, evaluate, validation_scores

__all__ = ["EvaluationConfig", "evaluate", "response_scores", "teacher_forced", "validation_scores"]
