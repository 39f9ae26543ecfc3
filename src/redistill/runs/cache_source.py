"""Hashes and settings on which the stored states of a cached teacher depend."""

import hashlib
import json
from collections.abc import Callable, Sequence
from functools import partial

from redistill.config.run import Run
from redistill.config.sections import TeacherConfig
from redistill.contracts import TokenSequence
from redistill.data.examples import digest_of
from redistill.errors import ConfigError
from redistill.interfaces import Tokenizer
from redistill.models.model_hashes import model_hashes
from redistill.policies import Paired, TeacherGenerated
from redistill.processes import signals
from redistill.records import Json
from redistill.runs.load import DataSets
from redistill.runs.stages import teacher_source
from redistill.storage.file_hash import file_hash
from redistill.teachers.cached import CachedTeacherConfig
from redistill.teachers.forms import label

Report = Callable[[str], None]


def source_of(
    config: Run,
    tokenizer: Tokenizer,
    end_ids: Sequence[int],
    data: DataSets,
    corpus: Sequence[TokenSequence],
    note: Report,
) -> dict[str, Json]:
    """Return hashes and settings on which the states of a cached teacher depend.

    Args:
        config: The run.
        tokenizer: The tokenizer of the student.
        end_ids: End tokens of the student.
        data: The data of the run.
        corpus: Blocks of text for the pre-training term.
        note: Function that is called with one line if a cached hash of a file is damaged or cannot be written.

    Returns:
        Hashes and settings by name.  The hashes of the teacher's files are included if the recipe names the teacher's
        model. The hash of the tokenizer is before those of the data: an error names only the first difference, and another
        tokenizer also changes the hashes of the data.
    """
    found: dict[str, Json] = {}
    teacher, tokens = teacher_source(config), config.data.tokens
    if teacher is not None:
        hashes = model_hashes(teacher, partial(file_hash, report=note, poll=signals.poll))
        found |= {f"teacher {part}": sha256 for part, sha256 in hashes.items()}
        found |= {"teacher revision": teacher.revision, "teacher dtype": teacher.dtype, "cache_dtype": teacher.cache_dtype}
    if isinstance(config.teacher, TeacherConfig | CachedTeacherConfig):
        form = config.teacher.cache_form if isinstance(config.teacher, TeacherConfig) else config.teacher.form
        found["cache_form"] = label(form)
    template: Json = "alpaca"
    if "chat" in data.templates:
        template = _hash([tokenizer.chat_template, dict(tokens.template_arguments)])
        found["template_date"] = tokens.template_date
    found |= {"tokenizer": _hash(tokenizer.get_vocab()), "template": template}
    found |= {"training data": digest_of(data.train), "validation data": digest_of(data.validation_examples)}
    if distils_corpus(config):
        found["corpus"] = digest_of(corpus)
    if (node := text_node(config)) is not None:
        settings = [node.temperature, node.top_p, tokens.response_tokens, config.seed, list(end_ids)]
        found["teacher_generated"] = _hash(settings)
    return found


def distils_corpus(config: Run) -> bool:
    """Return whether the pre-training term of a run's loss uses the teacher."""
    pretraining = config.resolved_method.objective.pretraining
    return pretraining is not None and pretraining.divergence_share > 0 and bool(config.data.corpus)


def text_node(config: Run) -> TeacherGenerated | None:
    """Return the policy of a run that trains on answers of the teacher, if any.

    Raises:
        ConfigError: an external policy uses the teacher's text.
    """
    policy: object = config.resolved_method.policy
    if not config.resolved_method.policy.needs.teacher_text:
        return None
    while not isinstance(policy, TeacherGenerated):
        policy = policy.teacher if isinstance(policy, Paired) else getattr(policy, "source", None)
        if policy is None:
            raise ConfigError(
                "policy: uses text that the teacher generates, which is stored only for the policy teacher_generated; use this "
                "policy, or a teacher that is not cached"
            )
    return policy


def _hash(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode("utf-8", "surrogatepass")).hexdigest()
