"""docs/models.md is what its rows are: a sample in every change, all of them with REDISTILL_FAMILIES=whole."""

import os
import re

import pytest

from tests.models import family_page
from tests.models.family_configs import FAMILIES

TEXT = family_page.PAGE.read_text(encoding="utf-8")
SAMPLE = ("Gemma 4", "DeepSeek-V3", "Qwen3.5", "Mamba 2")


def test_the_page_has_a_row_for_each_family():
    assert family_page.INTRODUCTION in TEXT and family_page.table_head() in TEXT
    assert re.search(
        r"^Tried on \d{4}-\d\d-\d\d with transformers \d[\d.]+ and torch \d[\d.]+, on a CPU\.$", TEXT, re.MULTILINE
    )
    shown = [line.split(" | ")[0].removeprefix("| ") for line in TEXT.splitlines() if line.startswith("| ")][1:]
    assert shown == list(FAMILIES)


@pytest.mark.parametrize("family", FAMILIES if os.environ.get("REDISTILL_FAMILIES") == "whole" else SAMPLE)
def test_a_row_is_what_is_found_again(family, tmp_path):
    assert family_page.row(family, tmp_path) in TEXT.splitlines()
