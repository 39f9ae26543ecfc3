"""Writes revisions.jsonl, the log of corrections of student text.

SCRG (sequence correction and re-generation) makes the corrections.  It replaces the token at which student and teacher
disagree most, and the student generates the text after this token again.
"""

from redistill.config.run import Run
from redistill.interfaces import Tokenizer
from redistill.policies import Revision
from redistill.storage import files

FILE = "revisions.jsonl"


def log_revision(config: Run, tokenizer: Tokenizer, revision: Revision) -> None:
    """Append a correction of student text to revisions.jsonl in the run folder.

    Corrections are appended only if the number of earlier updates is a multiple of `training.log_every`.  Only the main
    process calls this function, and logs the corrections of its own texts.

    Args:
        config: The run.
        tokenizer: The student's tokenizer.
        revision: The correction.
    """
    if revision.step % config.training.log_every:
        return
    before, after, position = revision.before, revision.after, revision.position
    texts = {
        "prompt": before.prompt_ids,
        "kept": before.response_ids[:position],
        "student_token": before.response_ids[position : position + 1],
        "teacher_token": after.response_ids[position : position + 1],
        "student_tail": before.response_ids[position + 1 :],
        "new_tail": after.response_ids[position + 1 :],
    }
    line = {"step": revision.step + 1, "sample": revision.sample, "position": position, "kl": revision.kl}
    verbatim = {"skip_special_tokens": False, "clean_up_tokenization_spaces": False}
    files.append_line(config.folder / FILE, line | {name: tokenizer.decode(ids, **verbatim) for name, ids in texts.items()})
