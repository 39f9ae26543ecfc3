"""The licence of a model is the one that its card names; damaged cards are no error."""

import json

import pytest

from redistill.deploy.licences import UNKNOWN, licences_of
from redistill.deploy.source import Source


def licence(folder) -> str:
    return licences_of(Source(name=str(folder), model=str(folder), run=None))[str(folder)]


@pytest.mark.parametrize(
    ("card", "expected"),
    [
        ("---\nlicense: apache-2.0\n---\n# Model\n", "apache-2.0"),
        ("---\nlicense: [mit, other]\n---\n", UNKNOWN),
        ("---\nlicense: {\n---\n", UNKNOWN),
        ("---\n- a list\n---\n", UNKNOWN),
        ("# no metadata\n", UNKNOWN),
        ("---\nlicense: !!python/object/apply:os.system ['true']\n---\n", UNKNOWN),
    ],
)
def test_a_card_names_the_licence(card, expected, tmp_path):
    (tmp_path / "README.md").write_text(card)
    assert licence(tmp_path) == expected


def test_without_a_card_or_with_a_link_the_licence_is_unknown(tmp_path):
    assert licence(tmp_path / "missing") == UNKNOWN
    (tmp_path / "card.md").write_text("---\nlicense: mit\n---\n")
    (tmp_path / "README.md").symlink_to(tmp_path / "card.md")
    assert licence(tmp_path) == UNKNOWN


def test_teacher_and_base_of_a_run_are_listed(tmp_path):
    (tmp_path / "big").mkdir()
    (tmp_path / "big" / "README.md").write_text("---\nlicense: mit\n---\n")
    config = {"teacher": {"model": str(tmp_path / "big")}, "student": {"model": "~nobody-of-this-name/x"}}
    (tmp_path / "run.json").write_text(json.dumps({"config": config}))
    found = licences_of(Source(name="run", model="run/model", run=tmp_path))
    assert found == {str(tmp_path / "big"): "mit", "~nobody-of-this-name/x": UNKNOWN}
