"""Stages of runs: the same teacher and start for every method of a table."""

from typing import Any

from redistill.config.run import Run, decode_run, encode_run, without_outputs
from redistill.runs.stages import stages, student_source, teacher_source

TUNING = {"updates": "3 epochs", "learning_rate": 5e-4}


def run(method: str, **sections: Any) -> Run:
    tree = {
        "name": f"table-{method}",
        "method": method,
        "teacher": {"model": "t", "finetune": {**TUNING, "out": "stages/teacher"}},
        "student": {"model": "s", "finetune": {**TUNING, "out": "stages/start"}},
    }
    return decode_run({**tree, **sections}, "test")


def test_methods_that_train_differently_share_teacher_and_start() -> None:
    """Otherwise a table would compare teachers."""
    plain = stages(run("imitkd"))
    other = stages(
        run(
            "minillm",
            training={"updates": 7, "batch_size": 4, "micro_batch_size": 2, "evaluate_every": 3, "patience": 2},
            optimiser={"learning_rate": 1e-6, "warmup_updates": 5},
            data={"corpus": ["c.txt"]},
        )
    )
    assert list(plain) == list(other) == ["teacher", "start"]
    for name in plain:
        assert encode_run(plain[name]) == encode_run(other[name])


def test_all_training_seeds_have_the_same_teacher_and_a_start_each() -> None:
    one, two = (stages(run("mgsr", seed=seed)) for seed in (20, 30))
    assert (one["teacher"].seed, two["teacher"].seed) == (10, 10)
    assert (one["start"].seed, two["start"].seed) == (20, 30)


def test_the_teacher_is_chosen_by_its_answers_and_the_start_by_its_loss() -> None:
    found = stages(run("mgsr"))
    assert [stage.training.choose_by for stage in found.values()] == ["rouge_l", "cross_entropy"]
    assert [stage.training.evaluate_every for stage in found.values()] == ["1 epoch", "1 epoch"]


def test_methods_that_start_from_the_base_have_no_start_stage() -> None:
    assert [list(stages(run(method))) for method in ("sft", "kd", "seqkd")] == [["teacher"]] * 3
    student = {"model": "s", "finetune": TUNING, "start": "finetuned"}
    assert list(stages(run("kd", student=student))) == ["teacher", "start"], "unless the recipe says so"
    assert list(stages(run("mgsr", student={**student, "start": "base"}))) == ["teacher"]


def test_a_run_loads_the_models_of_its_stages() -> None:
    config = run("mgsr")
    source = teacher_source(config)
    assert source is not None and source.model == "stages/teacher/model"
    student = student_source(config)
    assert student.model == "stages/start/model" and student.finetune is None and student.initialise is None
    assert student_source(run("kd")).model == "s"


def test_a_start_of_teacher_layers_uses_the_fine_tuned_teacher() -> None:
    student = {"model": "teacher", "initialise": {"layers": 2}, "finetune": TUNING}
    start = stages(run("mgsr", student=student))["start"]
    assert start.teacher is not None and start.teacher.model == "stages/teacher/model" and start.teacher.finetune is None
    assert start.student.initialise is not None


def test_adapters_of_a_teacher_are_trained_over_its_weights_in_their_dtype() -> None:
    teacher = {"model": "t", "dtype": "bfloat16"}
    whole = stages(run("kd", teacher={**teacher, "finetune": TUNING}))["teacher"].student
    adapted = stages(run("kd", teacher={**teacher, "finetune": {**TUNING, "lora": {}}}))["teacher"].student
    assert (whole.dtype, adapted.dtype) == ("float32", "bfloat16") and adapted.lora is not None


def test_settings_exclude_folders_and_names() -> None:
    first, second = (run("mgsr", out=out) for out in ("here", "there"))
    assert encode_run(first) != encode_run(second)
    assert without_outputs(encode_run(first)) == without_outputs(encode_run(second))
