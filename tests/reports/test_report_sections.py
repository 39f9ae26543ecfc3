"""Categories, responses, sizes and sentences of a report, from their own numbers."""

import itertools
import re
from pathlib import Path

import numpy as np
import pytest

from redistill.reports import facts
from redistill.reports.answers import answers_section
from redistill.reports.categories import category_scores, category_table, weakest_sentence
from redistill.reports.compare import build_comparison
from redistill.reports.comparison import evaluations
from redistill.reports.folders import read_run
from redistill.reports.logs import read_log, read_revisions
from redistill.reports.plots import TRAINING_NAMES
from redistill.reports.report import build_report
from redistill.reports.sizes import ratios
from redistill.reports.statistics import paired_bootstrap
from redistill.reports.terminal import print_comparison
from redistill.reports.windows import windows_section
from redistill.storage import files
from tests.reports.fabricated import PROMPTS, write_json, write_lines, write_run, write_sweep
from tests.reports.page import Page


def change_answers(folder: Path, change) -> None:
    for path in sorted(folder.rglob("responses/*.jsonl")):
        write_lines(path, [change(line) for line in files.read_lines(path)])


# --- categories ---------------------------------------------------------------------------------------------------------


def test_the_interval_of_a_category_is_that_of_its_prompts(run_folder, baseline_folder):
    rng = np.random.default_rng(3)
    change_answers(run_folder, lambda line: {**line, "rouge_l": float(rng.uniform(0, 100))})
    models = evaluations(read_run(run_folder), [read_run(baseline_folder)])
    found = category_scores("dolly", models, "plain-sft")
    assert [each.scores["mine"] for each in found] == sorted(each.scores["mine"] for each in found)
    means = {
        model.label: {
            i: np.mean([seed[f"dolly:{i}"] for seed in model.prompt_scores("dolly", "rouge_l")]) for i in range(PROMPTS)
        }
        for model in models
    }
    chosen = range(1, PROMPTS, 3)  # closed_qa
    expected = paired_bootstrap([np.array([[means["mine"][i] - means["plain-sft"][i] for i in chosen]])])
    (closed,) = [each for each in found if each.name == "closed_qa"]
    assert closed.num_prompts == len(chosen)
    assert closed.interval.difference == pytest.approx(expected.difference)
    assert closed.interval.lower < closed.interval.difference < closed.interval.upper


@pytest.mark.parametrize("category", [None, "", 7, "one"])
def test_fewer_than_two_categories_give_no_table(run_folder, category):
    change_answers(run_folder, lambda line: {**line, "category": category})
    models = evaluations(read_run(run_folder), [])
    assert category_table("dolly", models, "before training") is None
    assert " on dolly: " in weakest_sentence(models, "before training")


def test_a_category_of_few_prompts_is_not_named_as_the_weakest(run_folder):
    def change(line):
        is_low = line["id"] in ("dolly:0", "dolly:1")
        return {
            **line,
            "category": "rare" if is_low else "even" if line["id"][-1] in "02468" else "odd",
            "rouge_l": 2.0 if is_low else 50.0,
        }

    change_answers(run_folder, change)
    sentence = weakest_sentence(evaluations(read_run(run_folder), []), "before training")
    assert "category even of dolly: 50.00" in sentence and "rare" not in sentence


def test_the_lowest_prompts_are_named_if_there_is_one_data_set_without_categories(run_folder):
    """The means over both seeds are 3, 1, 2 and then 50."""
    low = {"dolly:4": 3.0, "dolly:9": 1.0, "dolly:11": 2.0}
    change_answers(run_folder, lambda line: {**line, "category": None, "rouge_l": low.get(line["id"], 50.0)})
    for part in (run_folder, run_folder / "teacher", run_folder / "before"):
        scores = files.read_json(part / "scores.json")
        write_json(part / "scores.json", {**scores, "datasets": {"dolly": scores["datasets"]["dolly"]}})
    assert weakest_sentence(evaluations(read_run(run_folder), []), "before training") == (
        "The lowest scores (ROUGE-L) of mine are those of the prompts dolly:9 (1.00), dolly:11 (2.00) and dolly:4 (3.00) "
        "of dolly; it is worse than teacher on 0 of 20 prompts."
    )


def test_metrics_with_other_units_are_not_compared(run_folder):
    models = evaluations(read_run(run_folder), [])
    sentence = weakest_sentence(models, "before training")
    primaries = {models[-1].measures(name)[0].title for name in models[-1].datasets}
    assert len(re.findall("lowest|highest", sentence)) == len(primaries) and all(title in sentence for title in primaries)


def test_without_scores_it_is_unknown_where_the_student_fails():
    assert "unknown where the student fails" in weakest_sentence([], None)


# --- responses ----------------------------------------------------------------------------------------------------------


def test_all_prompts_are_shown_if_they_fit_and_evenly_spaced_ones_otherwise(run_folder):
    models = evaluations(read_run(run_folder), [])
    everything = answers_section(models, "before training")
    assert len(everything.prompts) == everything.num_prompts == 2 * PROMPTS
    some = answers_section(models, "before training", max_bytes=25_000)
    assert 4 < len(some.prompts) < 2 * PROMPTS and some.num_prompts == 2 * PROMPTS
    for dataset in ("dolly", "vicuna"):
        shown, ranked = ([each.id for each in section.prompts if each.dataset == dataset] for section in (some, everything))
        assert (shown[0], shown[-1]) == (ranked[0], ranked[-1])
        gaps = {ranked.index(after) - ranked.index(before) for before, after in itertools.pairwise(shown)}
        assert max(gaps) - min(gaps) <= 1
    assert some == answers_section(models, "before training", max_bytes=25_000)


def test_numbers_to_sort_by_are_higher_for_better_answers(run_folder):
    """The teacher's score is higher by 2 everywhere, and that of the student before training lower by 6."""
    section = answers_section(evaluations(read_run(run_folder), []), "before training")
    assert section.sort_keys == ["score", "teacher", "baseline", "length"]
    for prompt in section.prompts:
        assert prompt.sort_keys["teacher"] == pytest.approx(-2) and prompt.sort_keys["baseline"] == pytest.approx(6)
        assert prompt.sort_keys["score"] == prompt.line["rouge_l"] and prompt.sort_keys["length"] == 12
    assert section.categories == ["closed_qa", "open_qa", "summarization"]


# --- sizes and sentences ------------------------------------------------------------------------------------------------


def test_measured_figures_take_precedence_and_unknown_ones_are_left_out(run_folder):
    scores = files.read_json(run_folder / "scores.json")
    write_json(run_folder / "scores.json", {**scores, "parameters": None, "tokens_per_s": "fast", "latency": 7})
    described = files.read_json(run_folder / "run.json")
    described["models"]["student"] = {"parameters": 300_000_000, "bytes": 1}
    write_json(run_folder / "run.json", described)
    found = ratios(read_run(run_folder))
    assert found.keys() == {"parameters", "bytes", "peak_bytes"}
    assert found["parameters"] == pytest.approx(0.2) and found["bytes"] == pytest.approx(2.4e8 / 3e9)


def test_a_window_collapses_below_the_limit_of_the_recipe(run_folder):
    lines = [{"kind": "train", "step": step, "kept_mass": 0.9, "recovered": 0.3} for step in range(1, 21)]
    log = read_log(lines, TRAINING_NAMES)
    assert facts.dac_kl_sentence(log, read_run(run_folder)).startswith("DAC-KL did not collapse: ")
    described = files.read_json(run_folder / "run.json")
    write_json(run_folder / "run.json", {**described, "config": {"guards": {"min_recovered": 0.5}}})
    assert facts.dac_kl_sentence(log, read_run(run_folder)).startswith("DAC-KL collapsed: ")
    early = read_log([{"kind": "train", "step": 1, "kept_mass": 0.2, "target_only": 0.95}], TRAINING_NAMES)
    assert facts.dac_kl_sentence(early, read_run(run_folder)).startswith("DAC-KL collapsed: ")


@pytest.mark.parametrize("divergence", [{"fixed_interval": [1, 1]}, {"fixed_top": 3}, {"gate": "none"}])
def test_an_interval_that_is_not_learned_cannot_collapse(divergence, run_folder):
    lines = [{"kind": "train", "step": 1, "kept_mass": 0.2, "recovered": 0.05, "target_only": 1.0}]
    described = files.read_json(run_folder / "run.json")
    resolved = {"policy": {"kind": "fixed"}, "objective": {"divergence": {"kind": "dac_kl", **divergence}}}
    write_json(run_folder / "run.json", {**described, "resolved": resolved})
    assert facts.dac_kl_sentence(read_log(lines, TRAINING_NAMES), read_run(run_folder)) == (
        "The interval of DAC-KL is not learned and cannot collapse: in the last tenth of the updates it keeps 20.0 % of the "
        "teacher's probability mass and 5.0 % of the mass outside the arg max; only the arg max is kept for 100.0 % of the "
        "tokens."
    )


def test_the_recovered_mass_of_an_earlier_version_is_left_out_if_the_arg_max_is_not_always_kept(run_folder):
    """It was computed as if the arg max were kept, so it may be negative."""
    line = {"kind": "train", "step": 1, "kept_mass": 0.4, "recovered": -0.58, "target_only": 0.0}
    described = files.read_json(run_folder / "run.json")
    resolved = {"objective": {"divergence": {"kind": "dac_kl", "keep_target": False}}}
    write_json(run_folder / "run.json", {**described, "resolved": resolved})

    def sentence(line: dict) -> str:
        return facts.dac_kl_sentence(read_log([line], TRAINING_NAMES), read_run(run_folder))

    assert sentence(line) == (
        "DAC-KL did not collapse: in the last tenth of the updates it keeps 40.0 % of the teacher's probability mass; only the "
        "arg max is kept for 0.0 % of the tokens."
    )
    new = sentence({**line, "recovered": 0.02, "kept_top_mass": 0.1})
    assert new.startswith("DAC-KL collapsed: ") and "2.0 % of the mass outside the arg max" in new


def test_the_difference_to_a_baseline_leads_with_the_parts_that_differ(run_folder, baseline_folder):
    """The recipe sets the policy of one run; an earlier version has not recorded the objective that the method sets."""

    def change(folder: Path, method: str, **changed) -> None:
        described = files.read_json(folder / "run.json")
        write_json(folder / "run.json", {**described, "method": method, "resolved": None} | changed)

    def sentence() -> str:
        runs = [read_run(run_folder), read_run(baseline_folder)]
        return facts.changes_sentence(facts.lineup_of(runs, ["mine", "sft"]))

    objective = {"divergence": {"kind": "forward_kl"}, "span_weight": 0.0}
    change(baseline_folder, "kd", resolved={"policy": {"kind": "fixed"}, "objective": objective}, config={"updates": 1})
    change(run_folder, "kd", config={"updates": 2, "policy": {"kind": "fixed"}, "objective": {**objective, "sft_weight": 1}})
    assert sentence().startswith("Method, policy, divergence and span loss of mine and sft are the same; ")
    change(run_folder, "mgsr", config={"updates": 1})
    assert sentence() == (
        "mine uses the method mgsr (with the policy, divergence and span loss of this method); "
        "sft uses the method kd, the policy fixed, the divergence forward KL and no span loss; "
        "0 settings of the recipes differ."
    )


def test_the_first_baseline_is_the_one_that_settings_are_compared_with(run_folder, baseline_folder, tmp_path):
    """Scores, curves and costs are compared with the first baseline as well."""
    runs = [read_run(folder) for folder in (run_folder, baseline_folder, write_run(tmp_path / "other", "other"))]
    assert facts.lineup_of(runs, ["mine", "plain-sft", "other"]).baseline == "plain-sft"


@pytest.mark.parametrize(
    ("layers", "text"),
    [([0, 11], "initialised from the teacher (layers 0, 11)"), (4, "initialised from the teacher (4 of its layers)")],
)
def test_a_student_that_was_built_from_the_teacher_is_not_named_teacher(run_folder, layers, text):
    described = files.read_json(run_folder / "run.json")
    described["models"]["student"]["name"] = "teacher"
    described["config"]["student"] = {"model": "teacher", "initialise": {"layers": layers}}
    write_json(run_folder / "run.json", described)
    page = Page(build_report(run_folder).read_text(encoding="utf-8"))
    assert page.answer("^Models: ") == f"Models: teacher: big; student: {text}."


def test_means_of_corrections_ignore_damaged_lines():
    revisions = read_revisions([{"kl": 1.0, "position": 2}, {"kl": "x", "position": None}, {"kl": 2.0, "position": 5}])
    sentence = facts.scrg_sentence(read_log([], TRAINING_NAMES), revisions)
    assert "in the 3 logged corrections" in sentence and "position 3.5" in sentence and "1.50 nats" in sentence


# --- window of DAC-KL ---------------------------------------------------------------------------------------------------


def test_a_recorded_window_is_shown_with_the_numbers_of_the_file(run_folder):
    assert 'id="windows"' not in build_report(run_folder).read_text(encoding="utf-8")
    numbers = {"lower": 0.00123, "upper": 0.875, "kept_classes": 2, "kept_mass": 0.9, "recovered": 0.75, "divergence": 0.1234}
    classes = [
        {"token_id": 7, "text": " Paris", "rank": 1, "teacher": 0.6, "student": 0.25, "is_kept": True},
        {"token_id": 9, "text": "<b>", "rank": 2, "teacher": 0.3, "student": 0.125, "is_kept": True},
        {"token_id": 8, "text": "", "rank": 3, "teacher": 0.0004, "student": 0.0625, "is_kept": False},
    ]
    place = {"row": 4, "position": 2, "context": "The capital is", "target": " Paris", "mode": "value"}
    damaged = [{}, {**numbers, "classes": [7, {"rank": 0, "teacher": 1, "student": 1}]}, {**numbers, "kept_mass": "x"}]
    write_lines(run_folder / "windows.jsonl", [{**place, **numbers, "classes": classes}, *damaged])
    page = Page(build_report(run_folder).read_text(encoding="utf-8"))
    assert page.answer("^The window from") == (
        "The window from l = 0.00123 to u = 0.875 keeps 2 classes with 90.0 % of the teacher's probability mass, and 75.0 % of "
        "its mass outside the arg max. DAC-KL is 0.1234 nats here."
    )
    assert page.answer("^Training example 4, token 2")
    rows = page.table("rank", "teacher", "student", "kept")
    assert [list(row.values())[1:] for row in rows.values()] == [
        ["1", "0.6", "0.25", "yes"],
        ["2", "0.3", "0.125", "yes"],
        ["3", "0.0004", "0.0625", "no"],
    ]
    assert list(rows) == ["Paris", "<b>", "∅"]
    dropped = [{**classes[0], "is_kept": False}, *classes[1:]]
    earlier = {**place, **numbers, "classes": dropped, "kept_mass": 0.3, "recovered": -0.75}
    write_lines(run_folder / "windows.jsonl", [earlier])
    (window,) = windows_section(read_run(run_folder))
    assert "and 75.0 % of its mass outside the arg max" in window.sentence  # 0.3 / (1 - 0.6), whatever the file has
    assert ">l</text>" in window.svg and ">u</text>" in window.svg  # the names of the dotted lines


# --- judge --------------------------------------------------------------------------------------------------------------


def test_the_results_of_a_judge_are_a_table_of_the_report(run_folder):
    assert 'id="judge"' not in build_report(run_folder).read_text(encoding="utf-8")
    write_judgement(run_folder)
    page = Page(build_report(run_folder).read_text(encoding="utf-8"))
    assert page.table("judge", "wins, ties, losses")["mine"] == {"": "mine", **JUDGED, "test set": "vicuna"}
    assert page.table("judge", "requests") == {"mine": {"": "mine", **COST}}, "one line for both test sets"


@pytest.mark.parametrize("total", [None, {}, {"requests": "<b>"}])
def test_an_unknown_cost_of_the_judge_is_left_out(run_folder, total):
    write_judgement(run_folder)
    held = files.read_json(run_folder / "judge.json")
    write_json(run_folder / "judge.json", {**held, "comparisons": [{**held["comparisons"][0], "cost": {}, "total": total}]})
    assert "Cost of the judge" not in build_report(run_folder).read_text(encoding="utf-8")


def write_judgement(folder: Path) -> None:
    counts = {"prompts": 5, "wins": 2, "ties": 1, "losses": 1, "disagreements": 1, "unparsed": 2, "missing": 3}
    about = {**counts, "score": 0.625, "lower": 0.25, "upper": 0.875, "by_prompt": {}}
    settings = {"model": "judge-7b", "against": "<img src=x>", "seeds": ["10", "20"], "limit": 5}
    cost = {"requests": 4, "prompt_tokens": 900, "completion_tokens": 12, "price": 0.0005}
    costs = {"cost": cost, "total": {"requests": 10, "prompt_tokens": 4500, "completion_tokens": 31, "price": 0.00226}}
    datasets = {"dolly": about, "vicuna": about}
    files.write_json(folder / "judge.json", {"schema": 1, "comparisons": [{**settings, **costs, "datasets": datasets}]})


COST = {
    "against": "<img src=x>",
    "judge": "judge-7b",
    "requests": "10",
    "prompt tokens": "4,500",
    "generated tokens": "31",
    "price": "0.00226",
}


JUDGED = {
    "test set": "dolly",
    "against": "<img src=x>",
    "judge": "judge-7b",
    "prompts": "5 seeds 10, 20; first 5 prompts",
    "wins, ties, losses": "2, 1, 1",
    "score": "0.625 [0.250, 0.875]",
    "differ": "1",
    "unparsed": "2",
    "missing": "3",
}


def test_the_results_of_a_judge_are_in_a_comparison_and_are_printed(tmp_path, capsys):
    sweep = write_sweep(tmp_path / "sweep", {"sft": 0.0, "mgsr": 2.0}, seeds=(10, 20), prompts=5)
    write_judgement(sweep / "mgsr-seed20")
    outputs = [tmp_path / f"compare.{suffix}" for suffix in ("html", "md")]
    comparison = build_comparison([sweep], outputs)
    page, label = Page(outputs[0].read_text(encoding="utf-8")), "mgsr, training seed 20"
    assert page.table("judge", "wins, ties, losses")[label] == {"": label, **JUDGED, "test set": "vicuna"}
    assert page.table("judge", "requests")[label] == {"": label, **COST}
    assert "|judge-7b|5 seeds 10, 20; first 5 prompts|2, 1, 1|" in outputs[1].read_text(encoding="utf-8")
    print_comparison(comparison)
    assert "A chat model compared two answers to each prompt" in " ".join(capsys.readouterr().out.split())
