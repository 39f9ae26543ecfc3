"""revisions.jsonl: SCRG's corrections as text."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from redistill.config.run import Run
from redistill.policies import Revision
from redistill.storage import files

FILE = "revisions.jsonl"


def log_revision(config: Run, tokenizer: Any, revision: Revision) -> None:
    """Append a correction to revisions.jsonl if its step is logged; only the main process calls this, for its own part."""
    if revision.step % config.training.log_every:
        return
    before, after, position = revision.before, revision.after, revision.position

    def text(ids: Sequence[int]) -> str:
        return str(tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))

    line = {
        "step": revision.step + 1,
        "sample": revision.sample,
        "position": position,
        "kl": revision.kl,
        "prompt": text(before.prompt_ids),
        "kept": text(before.response_ids[:position]),
        "student_token": text(before.response_ids[position : position + 1]),
        "teacher_token": text(after.response_ids[position : position + 1]),
        "student_tail": text(before.response_ids[position + 1 :]),
        "new_tail": text(after.response_ids[position + 1 :]),
    }
    files.append_line(config.folder / FILE, line)


def truncate_revisions(folder: Path, step: int) -> None:
    """Remove the lines after `step`, the checkpoint from which a run resumes: those steps are repeated."""
    lines = files.read_lines(folder / FILE)
    kept = [line for line in lines if line["step"] <= step]
    if len(kept) < len(lines):
        files.rewrite_lines(folder / FILE, kept)
