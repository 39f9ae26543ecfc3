"""The demo: a tiny teacher, and smaller students trained by MGSR and by SFT.

MGSR is the distillation method of arXiv 2407.10068; SFT is supervised fine-tuning.  Both students have the same number of
updates, batch size, data and learning rate.  Three learning rates were compared; the one that is used has the best
validation score for both methods.  docs/results/toy-world.md has the results, and the commands that reproduce them.
"""

import hashlib
from pathlib import Path

from redistill import __version__
from redistill.config.run import Run, decode_run
from redistill.errors import ConfigError
from redistill.models.initialise import fresh_model
from redistill.records import Instruction, Json, Record
from redistill.reports.terminal import print_summary
from redistill.runs.folder import RUN_FILE
from redistill.runs.run import RunResult, distill, train_student
from redistill.storage import files, folders
from redistill.storage.user_cache import cache_folder
from redistill.toy import world as toy
from redistill.toy.world import Split, toy_records, toy_tokenizer

SEED = 10
# Few gold rows for the students and many for the teacher, so that distillation has an advantage over SFT.
ROWS: dict[Split, int] = {"teacher": 16000, "train": 120, "validation": 64, "test": 300}
TEST_PROMPTS = 120  # of the test rows; tables use all of them
VOCABULARY = 1536
TEACHER = {"hidden_size": 192, "intermediate_size": 576, "num_hidden_layers": 3, "num_attention_heads": 4}
STUDENT_LAYERS = [0]
# The paper's template has 35 tokens, more than most toy prompts; this one has 4.
CHAT_TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'user' %}Q: {{ m.content }}\nA: "
    "{% else %}{{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
)
TOKENS: dict[str, Json] = {"prompt_tokens": 96, "response_tokens": 32, "template": "chat"}
TEACHER_OPTIMISER = {"learning_rate": 3e-3, "warmup_updates": 40}
TEACHER_UPDATES, UPDATES = 400, 150
LEARNING_RATE = 1e-3  # the best of three values on validation, both for SFT and for MGSR


def demo(out: Path, *, fresh: bool = False) -> RunResult:
    """Train a student by SFT and one by MGSR; print a table that compares them.

    The teacher is trained by the first call and cached for later calls.

    Args:
        out: Folder to which a run folder for each method is written; the folder of MGSR contains the report.
        fresh: If True, the teacher and the students are trained again, even if trained ones exist.

    Returns:
        The result of the MGSR run.

    Raises:
        OutputError: `out` cannot be written; it is checked before the teacher is trained.
    """
    files.make_folder(out)
    world = toy_world(fresh=fresh)
    sft = _distilled("sft", world, out, [], fresh=fresh)
    mgsr = _distilled("mgsr", world, out, [sft.folder], fresh=fresh)
    print_summary(mgsr.folder, [sft.folder])
    print(f"report: {mgsr.report}")  # noqa: T201 - the last line of the output
    return mgsr


def _distilled(method: str, world: Path, out: Path, baselines: list[Path], *, fresh: bool) -> RunResult:
    """Train, evaluate and report the student of one method.

    A run folder that another version of the demo wrote is replaced.

    Args:
        method: "sft" or "mgsr".
        world: Folder that contains the data and the teacher.
        out: Folder that contains the run folder.
        baselines: Run folders to compare with in the report.
        fresh: If True, an existing run folder is removed first.
    """
    named = {"name": f"toy-{method}", "method": method, "seed": SEED, "out": str(out / method)}
    config = decode_run({**named, **student_tree(world)}, "demo")
    if fresh and config.folder.exists():
        folders.remove_folder(config.folder)
    try:
        return distill(config, baselines=baselines)
    except ConfigError:
        if not (config.folder / RUN_FILE).exists():
            raise
        folders.remove_folder(config.folder)
        return distill(config, baselines=baselines)


def student_tree(world: Path) -> dict[str, Json]:
    """Return the settings, as in a recipe, that all runs in the toy world share.

    The toy world is the generated data and the tiny teacher of the demo, in the folder `world`.  The demo adds the method
    to these settings.  A sweep replaces some of them by its own settings.
    """
    return {
        "teacher": {"model": str(world / "teacher" / "model")},
        "student": {"model": "teacher", "initialise": {"layers": STUDENT_LAYERS}},
        "data": {
            "train": [str(world / "train.jsonl")],
            "validation": str(world / "validation.jsonl"),
            "validation_rows": ROWS["validation"],
            "tests": {"toy": str(world / "test.jsonl")},
            "tokens": TOKENS,
        },
        "optimiser": {"learning_rate": LEARNING_RATE},
        "training": {"updates": UPDATES, "batch_size": 16, "evaluate_every": UPDATES // 3, "log_every": 50},
        "evaluation": {"batch_size": 128, "limit": TEST_PROMPTS},
    }


def world_folder() -> Path:
    """Return the path of the toy world's folder, which may not exist yet.

    The toy world is the generated data and the tiny teacher of the demo.  The folder is in $REDISTILL_CACHE (default
    ~/.cache/redistill).  Its name contains a hash of the settings and the code from which the toy world is generated.
    """
    teacher = (TEACHER, TEACHER_OPTIMISER, TEACHER_UPDATES)
    described = repr((__version__, SEED, ROWS, VOCABULARY, *teacher, TOKENS, CHAT_TEMPLATE, _source_digest()))
    return cache_folder() / f"toy-{hashlib.sha256(described.encode()).hexdigest()[:12]}"


def toy_world(*, fresh: bool = False) -> Path:
    """Return the folder of the toy world: the generated data and the trained teacher.

    The data and the teacher are created if the cache does not contain them, or if `fresh` is True.
    """
    world = world_folder()
    if fresh and world.exists():
        folders.remove_folder(world)
    if not (world / "start" / "config.json").exists():
        with folders.new_folder(world) as folder:
            _write_data(folder)
            _write_model(folder / "start")
    train_student(_teacher_run(world))
    return world


def _teacher_run(world: Path) -> Run:
    tree: dict[str, Json] = {
        "name": "toy-teacher",
        "method": "sft",
        "seed": SEED,
        "out": str(world / "teacher"),
        "student": {"model": str(world / "start")},
        "data": {"train": [str(world / "teacher.jsonl")], "validation": str(world / "validation.jsonl"), "tokens": TOKENS},
        "optimiser": dict(TEACHER_OPTIMISER),
        "training": {"updates": TEACHER_UPDATES, "batch_size": 48, "log_every": 50},
        "evaluation": {"compare": []},
    }
    return decode_run(tree, "demo teacher")


def _write_data(folder: Path) -> None:
    for split, count in ROWS.items():  # the names of toy_records' splits
        files.rewrite_lines(folder / f"{split}.jsonl", [_row(record) for record in toy_records(count, SEED, split)])


def _row(record: Record) -> dict[str, Json]:
    output = list(record.references) if len(record.references) > 1 else record.references[0]
    prompt = record.prompt
    assert isinstance(prompt, Instruction), "every row of the toy data must be an instruction"
    return {"instruction": prompt.instruction, "input": prompt.input, "output": output}


def _write_model(folder: Path) -> None:
    tokenizer = toy_tokenizer(VOCABULARY, SEED)
    tokenizer.chat_template = CHAT_TEMPLATE
    config = {
        "model_type": "llama",
        "vocab_size": len(tokenizer),
        "max_position_embeddings": 512,
        "tie_word_embeddings": True,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        **TEACHER,
    }
    fresh_model(config, SEED).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _source_digest() -> str:
    """Return a hash of the code and word lists that generate the toy data."""
    sources = [path for path in Path(toy.__file__).parent.iterdir() if path.suffix in {".py", ".yaml"}]
    return "".join(files.digest(path) for path in sorted(sources))
