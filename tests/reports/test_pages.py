"""Pages run only the scripts of the package."""

import base64
import hashlib
from pathlib import Path

import pytest

import redistill.reports
from redistill.reports.pages import policy

SCRIPTS = sorted((Path(redistill.reports.__file__).parent / "templates").glob("*.js"))


def test_a_policy_allows_exactly_the_given_scripts():
    assert "script-src" not in policy([])
    hashes = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in ("a()", "b()")]
    assert f"script-src 'sha256-{hashes[0]}' 'sha256-{hashes[1]}';" in policy(["a()", "b()"])
    assert policy(["a()"]).startswith("default-src 'none'; ")


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_a_script_can_be_inserted_into_a_page(path):
    """HTML ends a script at "</script", changes its state at "<!--", and replaces carriage returns."""
    text = path.read_text(encoding="utf-8")
    assert not any(part in text.lower() for part in ("</script", "<!--", "<script", "\r"))
    assert not any(name in text for name in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("))
