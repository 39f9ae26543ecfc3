"""Model x data sets x seeds -> responses and scores in files; and the scores that choose a checkpoint.

Answers are on disk as soon as a batch of them is written, so an interrupted evaluation goes on where it stopped.  An answer's
randomness belongs to (evaluation seed, data set, record), hence no answer depends on batches, processes or interruptions.
Nothing here knows how the model was trained.
"""
