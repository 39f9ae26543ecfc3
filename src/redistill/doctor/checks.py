"""The table of the 20 checks of a recipe."""

from collections.abc import Callable
from dataclasses import dataclass

from redistill.doctor import learning, pair, texts
from redistill.doctor.findings import Findings
from redistill.doctor.subject import Subject


@dataclass(frozen=True)
class Check:
    """A silent failure of distillation, and the function that looks for it.

    Args:
        number: Number of the check in docs/doctor.md, from 1 to 20.
        name: Short description of the failure, such as "doubled BOS token".
        examines: Short description of the data, settings or tensors that the check examines.
        find: Function that returns the findings. It raises NotExamined if the check does not apply to the recipe.
        proof: Name of the test (path::function) which shows that redistill's own code cannot cause this failure; "" if there
            is no such test.
    """

    number: int
    name: str
    examines: str
    find: Callable[[Subject], Findings]
    proof: str = ""


_TOKENIZE, _LOAD = "tests/data/test_tokenize.py", "tests/models/test_load.py"
_WHOLE = "tests/models/test_vocabulary.py"

CHECKS = (
    Check(
        1,
        "template of training differs from that of evaluation or export",
        "token ids of the same rows in training, in evaluation and with the exported tokenizer",
        texts.template,
        f"{_TOKENIZE}::test_a_gold_sequence_begins_with_the_evaluation_prompt",
    ),
    Check(2, "end token not among the targets", "the last target of each row", texts.end_token),
    Check(
        3,
        "end token masked, because padding has its id",
        "end tokens among the targets of a batch",
        texts.end_masked,
        "tests/data/test_collate.py::test_a_pad_id_that_is_a_target_stays_a_target",
    ),
    Check(4, "a row without targets", "all rows of the data sources, and the targets of the sampled rows", texts.no_targets),
    Check(
        5,
        "prompt tokens among the targets",
        "the text before the targets, and the evaluation prompt",
        texts.prompt_targets,
        f"{_TOKENIZE}::test_targets_are_the_answer_and_the_end_token",
    ),
    Check(6, "doubled BOS token", "the first two tokens of sequences and prompts", texts.doubled_bos),
    Check(7, "special tokens in the text of a row", "rows whose text has special tokens", texts.special_tokens),
    Check(8, "response header lost when a prompt is cut", "the end of each prompt after it is cut", texts.header),
    Check(
        9,
        "token ids differ between teacher and student",
        "both tokenizers' maps from tokens to ids",
        pair.token_ids,
        f"{_WHOLE}::test_a_pair_with_different_maps_is_rejected_before_anything_is_written",
    ),
    Check(
        10,
        "padded vocabulary rows not cut",
        "number of classes of both models' logits",
        pair.padded_rows,
        f"{_WHOLE}::test_a_padded_teacher_or_student_trains_as_one_that_is_cut_by_hand",
    ),
    Check(
        11,
        "teacher in training mode",
        "the modes of the teacher's modules, and its logits in two passes over the same rows",
        pair.training_mode,
        "tests/teachers/test_local.py::test_the_teacher_is_frozen_in_eval_mode_and_has_all_capabilities",
    ),
    Check(12, "teacher no better than the student", "cross entropy of both models on gold answers", pair.weak_teacher),
    Check(13, "end tokens or chat templates of the models differ", "both tokenizers", pair.other_tokenizer),
    Check(14, "no gradient in the student or its adapters", "the gradient of one update, by layer", learning.no_gradient),
    Check(15, "a term has a weight, but its gradient is zero", "the gradient of each term alone", learning.zero_terms),
    Check(
        16,
        "loss changes with the micro-batch size",
        "the gradient of one update with two micro-batch sizes, without dropout",
        learning.micro_batches,
        "tests/training/test_loop.py::test_every_split_has_the_same_gradient",
    ),
    Check(
        17,
        "exported weights differ from the trained ones",
        "logits of the student and of the exported model",
        learning.exported_weights,
        "tests/models/test_lora.py::test_the_merged_model_is_an_ordinary_one_with_the_same_logits",
    ),
    Check(
        18,
        "weights initialised at random when a model is loaded",
        "the weights in the files of both models",
        pair.new_weights,
        f"{_LOAD}::test_missing_weights_are_rejected",
    ),
    Check(19, "logits not finite in the chosen precision", "logits of both models on gold answers", pair.not_finite),
    Check(
        20, "warm-up or intervals longer than the run", "the sections optimiser and training of the recipe", learning.schedule
    ),
)
"""All checks, sorted by number."""

LAST = (17, 1)
"""Numbers of the checks that run last, in this order.

Check 17 changes the student's weights in memory, and check 1 uses the changed student.
"""
