"""The plugin of vLLM that bans repeated n-grams, without a server."""

import subprocess
import sys
import tomllib
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import NoRepeatNGramLogitsProcessor

from redistill.generation.vllm_plugin import FIELD, NoRepeatNgram, RequestBan, _ban_of
from redistill.servers.completions import NGRAM_FIELD

ROOT = Path(__file__).parents[2]


def parameters(**extra: object) -> SimpleNamespace:
    return SimpleNamespace(extra_args=extra or None)


@pytest.mark.parametrize("size", [1, 2, 6])
def test_banned_tokens_are_those_of_transformers_while_the_text_grows(size: int) -> None:
    generator = torch.Generator().manual_seed(size)
    prompt, text = torch.randint(3, (20,), generator=generator).tolist(), torch.randint(3, (40,), generator=generator).tolist()
    output: list[int] = []
    ban = RequestBan(size, prompt, output)
    for token in text:
        scores = NoRepeatNGramLogitsProcessor(size)(torch.tensor([prompt + output]), torch.zeros(1, 3))
        assert set(ban.banned()) == set(torch.isinf(scores[0]).nonzero().flatten().tolist())
        output.append(token)


def test_only_the_rows_of_requests_with_a_ban_change() -> None:
    plugin = NoRepeatNgram(None, torch.device("cpu"), False)
    plugin._bans = {1: RequestBan(2, [0, 1, 0], [])}
    logits = plugin.apply(torch.zeros(3, 4))
    assert torch.isinf(logits).nonzero().tolist() == [[1, 1]]
    assert not plugin.is_argmax_invariant()


def test_arguments_of_requests() -> None:
    assert _ban_of(parameters(), [1], []) is None and _ban_of(parameters(**{FIELD: 0}), [1], []) is None
    assert _ban_of(parameters(**{FIELD: 2}), None, []) is not None
    NoRepeatNgram.validate_params(parameters())
    for wrong in (-1, True, "6", 1.5):
        with pytest.raises(ValueError, match="must be a whole number >= 0"):
            NoRepeatNgram.validate_params(parameters(**{FIELD: wrong}))
    assert FIELD == NGRAM_FIELD


def test_the_entry_point_names_the_class_and_loads_no_package_but_torch() -> None:
    points = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]["vllm.logits_processors"]
    (target,) = points.values()
    module, _, name = target.partition(":")
    assert getattr(import_module(module), name) is NoRepeatNgram
    code = f"import sys, {module}; print([m for m in ('transformers', 'accelerate', 'peft', 'datasets') if m in sys.modules])"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT / "src", check=True).stdout
    assert printed.strip() == "[]"
