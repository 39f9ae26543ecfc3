"""Output of `redistill compare`: HTML, Markdown, LaTeX, CSV and the terminal."""

import csv
import html
import io
import json
import re
from pathlib import Path

import pytest

from redistill.cli.main import main
from redistill.errors import CheckpointError, ConfigError
from redistill.reports.compare import build_comparison
from tests.reports.fabricated import write_json, write_method, write_sweep

ENDINGS = ("html", "md", "tex", "csv")
GAINS = {"sft": 0.0, "kd": 2.0, "gkd": 4.0, "mgsr": 9.0}
SCORES = {"dolly": {10: [20.0, 30.0], 20: [25.0, 35.0]}}


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sweep(tmp_path_factory.mktemp("compare") / "sweep", GAINS, prompts=15)


@pytest.fixture(scope="module")
def written(sweep: Path) -> dict[str, str]:
    """Suffix -> text of the sweep's comparison with one published table."""
    outputs = [sweep.parent / f"compare.{ending}" for ending in ENDINGS]
    build_comparison([sweep], outputs, published=["table1-gpt2"])
    return {path.suffix[1:]: path.read_text(encoding="utf-8") for path in outputs}


def records(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def averages(text: str) -> dict[str, dict[str, str]]:
    """Model -> its measured record in the average column."""
    return {line["model"]: line for line in records(text) if line["column"] == "average" and "published" not in line["role"]}


def test_best_is_bold_and_second_best_underlined_in_every_format(written):
    row = averages(written["csv"])
    best, second = (f"{float(row[name]['rouge_l']):.2f}" for name in ("mgsr", "gkd"))
    assert f"<b>{best}</b>" in written["html"] and f"<u>{second}</u>" in written["html"]
    assert f"**{best}**" in written["md"] and f"<u>{second}</u>" in written["md"]
    assert f"\\textbf{{{best}}}" in written["tex"] and f"\\underline{{{second}}}" in written["tex"]
    # Two data sets and their average: three marks of each kind, none in published tables.
    assert [written["html"].count(mark) for mark in ('<td class="best"><b>', '<td class="second"><u>')] == [3, 3]
    assert [written["tex"].count(mark) for mark in (r"\textbf", r"\underline")] == [3, 3]


def test_the_teacher_is_shown_separately_and_not_ranked_although_it_is_best(written):
    lines = averages(written["csv"])
    assert float(lines["teacher"]["rouge_l"]) > float(lines["mgsr"]["rouge_l"])
    teacher = next(line for line in written["md"].splitlines() if line.startswith("|teacher|"))
    assert "**" not in teacher and "<u>" not in teacher
    assert written["tex"].index("before training &") < written["tex"].index("\\midrule\nsft &")
    assert '<tr class="reference"><th scope="row">teacher</th>' in written["html"]


def test_every_format_contains_the_same_values(written):
    for line in records(written["csv"]):
        score = f"{float(line['rouge_l']):.2f}"
        assert all(score in written[ending] for ending in ("html", "md", "tex"))
        if line["difference"]:
            difference = f"{float(line['difference']):+.2f}".replace("-", "−")
            assert difference in written["html"] and difference in written["md"]


def test_the_caption_states_the_seeds_of_the_standard_deviation(written, tmp_path):
    assert "over 3 training seeds, each the mean of 2 evaluation seeds (sft, kd, gkd, mgsr)" in written["md"]
    assert "No standard deviation, because of a single seed: teacher." in written["md"]
    one = build_comparison([write_method(tmp_path / "a", SCORES, "sft")])
    assert "over 2 evaluation seeds (sft)" in one.tables[0].caption


def test_differences_to_the_baseline_of_the_sweep_have_interval_p_and_wins(written):
    found = averages(written["csv"])
    mgsr = found["mgsr"]
    assert mgsr["versus"] == "sft" and mgsr["paired_seeds"] == "3"
    assert 0 < float(mgsr["lower"]) < float(mgsr["difference"]) < float(mgsr["upper"])
    assert float(mgsr["p"]) <= float(mgsr["p_holm"]) < 0.01
    assert int(mgsr["wins"]) + int(mgsr["ties"]) + int(mgsr["losses"]) == 30
    assert found["sft"]["difference"] == found["teacher"]["difference"] == ""


def test_published_values_are_labelled_and_in_a_separate_table(written):
    assert "Published, not measured here: Table 1, GPT-2" in written["html"] and "arXiv 2407.10068" in written["tex"]
    assert '<div class="card published">' in written["html"]
    published = [line for line in records(written["csv"]) if line["role"] == "published table1-gpt2"]
    assert len(published) == 9 * 6 and all(line["p"] == line["updates"] == "" for line in published)


def test_unequal_budgets_are_reported_in_every_format(tmp_path, capsys):
    runs = [
        write_method(tmp_path / "a", SCORES, "sft"),
        write_method(tmp_path / "b", SCORES, "mgsr", change={"cost.updates": 300}),
    ]
    outputs = [tmp_path / f"c.{ending}" for ending in ENDINGS]
    assert main(["compare", *map(str, runs), *(word for path in outputs for word in ("-o", str(path)))]) == 0
    line = "updates: 150 (sft), 300 (mgsr)"
    printed = capsys.readouterr().out
    assert line in printed and all(str(path) in printed for path in outputs)
    page, markdown, latex = (path.read_text(encoding="utf-8") for path in outputs[:3])
    assert (
        re.search(r"Budgets and settings: 1 of \d+ are not equal in all runs: updates\.", page) and f"<li>{line}</li>" in page
    )
    assert f"- {line}" in markdown
    caption = latex[latex.index("\\caption") : latex.index("\\label{tab:scores}")]
    assert line in caption
    assert "<li>sequences per update 16</li>" in page
    assert re.search(r"All \d+ compared budgets and settings are equal in all runs;", build_page([runs[0]], tmp_path))


def build_page(runs: list[Path], folder: Path) -> str:
    build_comparison(runs, [folder / "page.html"])
    return re.sub(r"<style>.*?</style>", "", (folder / "page.html").read_text(encoding="utf-8"), flags=re.DOTALL)


def test_different_prompts_are_reported_and_not_tested(tmp_path):
    runs = [write_method(tmp_path / "a", SCORES, "sft"), write_method(tmp_path / "b", SCORES, "mgsr", text="different")]
    page = build_page(runs, tmp_path)
    assert "different prompts" in page and "prompts of dolly: 2 (" in page and "corrected over 0 methods" in page


def test_a_missing_cost_is_a_dash(tmp_path):
    comparison = build_comparison([write_method(tmp_path / "a", SCORES, "sft", change={"cost": None})])
    cost = next(table for table in comparison.tables if table.key == "cost")
    assert [cell.text for cell in cost.lines[0].cells] == ["27.50", *["–"] * 6, "120 M"]


def test_two_methods_have_no_second_best_and_ties_are_all_best(tmp_path):
    two = build_comparison([write_method(tmp_path / m, SCORES, m) for m in ("sft", "kd")])
    assert [line.cells[0].mark for line in two.tables[0].lines if line.kind == "method"] == ["best", "best"]
    more = {"dolly": {10: [90.0, 90.0], 20: [90.0, 90.0]}}
    winner = build_comparison([tmp_path / "sft", write_method(tmp_path / "mgsr", more, "mgsr")])
    assert [line.cells[0].mark for line in winner.tables[0].lines if line.kind == "method"] == ["", "best"]


HOSTILE = "<script>alert(1)</script> |[x](y) **b** \\input{/etc/passwd} $x$ & 5 % _ =1+1\n\x1b[31m"


def test_hostile_labels_are_shown_and_not_interpreted(tmp_path):
    run = write_method(tmp_path / "sweep" / "run", SCORES, "sft", change={"machine.cpu": HOSTILE, "commit": HOSTILE})
    other = write_method(tmp_path / "sweep" / "other", SCORES, "kd")
    runs = [{"label": f"={HOSTILE}", "seed": 10, "folder": run.name}, {"label": "[kd]", "seed": 10, "folder": other.name}]
    write_json(tmp_path / "sweep" / "sweep.json", {"schema": 1, "name": HOSTILE, "runs": runs, "baseline": "kd"})
    outputs = [tmp_path / f"c.{ending}" for ending in ENDINGS]
    build_comparison([tmp_path / "sweep"], outputs)
    page, markdown, latex, table = (path.read_text(encoding="utf-8") for path in outputs)
    assert page.count("<script") == 1 and "<script>alert(1)</script>" in html.unescape(page)
    assert "default-src 'none'" in page and not re.search(r"(?:src|href)=[\"'][^#]", page)
    assert all(link.startswith("#") for link in re.findall(r'href="([^"]*)"', page))
    assert "<script" not in markdown.replace("\\<", "") and "|[x]" not in markdown
    latex = re.sub(r"^%.*\n", "", latex, flags=re.MULTILINE)  # comments are not executed
    assert "\\input" not in latex and "\\textbackslash{}input" in latex and "\n[" not in latex
    assert not re.search(r"(?<!\\)[&%](?=\s*5)", latex)
    assert all(not line["model"].startswith("=") for line in records(table))
    assert all("\x1b" not in text for text in (page, markdown, latex, table))


def test_the_same_files_give_the_same_bytes(sweep, written, tmp_path):
    outputs = [tmp_path / f"again.{ending}" for ending in ENDINGS]
    build_comparison([sweep], outputs, published=["table1-gpt2"])
    assert {path.suffix[1:]: path.read_text(encoding="utf-8") for path in outputs} == written


def test_latex_is_balanced_and_every_row_has_all_its_columns(written):
    tables = re.findall(r"\\begin\{tabular\}\{(lr+)\}(.*?)\\end\{tabular\}", written["tex"], re.DOTALL)
    assert len(tables) == 7  # scores, three differences, other scores, cost, published
    for columns, body in tables:
        rows = [line for line in body.splitlines() if line.endswith(r"\\")]
        assert rows and all(len(re.findall(r"(?<!\\)&", row)) == len(columns) - 1 for row in rows)
    assert written["tex"].count(r"\begin{table}") == written["tex"].count(r"\end{table}") == written["tex"].count(r"\caption{")


def test_every_row_of_a_markdown_table_has_all_its_columns(written):
    for block in re.findall(r"(?:^\|.*\|$\n?)+", written["md"], re.MULTILINE):
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}) == 1


# --- the command --------------------------------------------------------------------------------------------------------


def test_tables_are_printed_without_an_output_file(sweep, capsys):
    assert main(["compare", str(sweep), "--rows", "mgsr", "kd", "--baseline", "kd"]) == 0
    printed = capsys.readouterr().out
    assert "ROUGE-L" in printed and "mgsr" in printed and "gkd" not in printed and "Difference to kd, average" in printed


def test_an_unfinished_run_of_a_sweep_is_named(tmp_path, capsys):
    sweep = write_sweep(tmp_path, {"sft": 0.0}, seeds=(10,), prompts=3)
    held = json.loads((sweep / "sweep.json").read_text())
    held["runs"].append({"label": "mgsr", "seed": 10, "folder": "mgsr-seed10"})
    write_json(sweep / "sweep.json", held)
    assert main(["compare", str(sweep), "-o", str(tmp_path / "c.md")]) == 0
    assert "not finished, omitted: mgsr, seed 10 (mgsr-seed10)" in capsys.readouterr().out
    assert "Not finished, omitted: mgsr, seed 10 (mgsr-seed10)." in (tmp_path / "c.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["-o", "compare.pdf"],
            "compare.pdf: unknown suffix '.pdf'; must be one of .html, .md, .tex, .csv; the suffix selects the format",
        ),
        (["--baseline", "nobody"], "--baseline nobody: must be one of sft, kd, gkd, mgsr"),
        (["--published", "table7"], "--published table7: unknown table"),
        (["--rows", "nobody"], "--rows nobody: no finished run has this label"),
    ],
)
def test_an_invalid_argument_gives_one_line_and_no_file(arguments, message, sweep, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert main(["compare", str(sweep), *arguments]) == 2
    printed = capsys.readouterr()
    assert message in printed.err and printed.err.count("\n") == 1 and printed.out == "" and not list(tmp_path.iterdir())


def test_runs_without_an_evaluation_are_rejected(tmp_path):
    with pytest.raises(CheckpointError, match=r"no test set was evaluated; list at least one in data\.tests of the recipe"):
        build_comparison([write_method(tmp_path / "a", {}, "sft")])
    with pytest.raises(ConfigError, match="unknown suffix ''"):
        build_comparison([tmp_path / "a"], [tmp_path / "page"])
