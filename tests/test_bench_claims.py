"""The table of claims: it is that of the sections as they stand, and a verdict follows from the numbers."""

from pathlib import Path

import pytest

from benchmarks import claims, render
from warmstart.errors import InputError

DOCS = (Path(__file__).parents[1] / "docs" / "benchmarks.md").read_text(encoding="utf-8")


def test_the_table_is_the_one_of_the_sections(tmp_path):
    shown = DOCS.split("<!-- claims -->\n")[1].split("\n<!-- /claims -->")[0]
    assert shown == claims.table(render.sections(DOCS))
    (tmp_path / "benchmarks.md").write_text(DOCS.replace("| holds |", "| fails |"), encoding="utf-8")
    render.renew(tmp_path)
    assert (tmp_path / "benchmarks.md").read_text(encoding="utf-8") == DOCS
    assert DOCS.index("<!-- claims -->") < DOCS.index("<!-- contents -->") < DOCS.index("\n## ")


def test_sections_say_the_claim_that_they_measure():
    """Those of the benches that were made for a claim."""
    for section in {"mixed", "orders", "lengths", "tickets", "fast_weights", "near_shallow", "saturation"} & set(
        render.sections(DOCS)
    ):
        shown = DOCS.split(f"<!-- {section} -->")[1].split(f"<!-- /{section} -->")[0]
        assert claims.claimed(section) in " ".join(shown.split())


@pytest.mark.parametrize(
    ("section", "conclusion", "expected"),
    [
        ("little_data", "The warm start ends 0.30, 0.10 nats below the cold one with 1 k, 1 M", claims.HOLDS),
        ("little_data", "The warm start ends 0.10, 0.30 nats below the cold one with 1 k, 1 M", claims.PARTLY),
        ("little_data", "The warm start ends -0.16, 0.23 nats below the cold one with 1 k, 1 M", claims.FAILS),
        (
            "tickets",
            "magnitude cost the warm start -0.003, 0.02, 0.1 nats and the cold start 0.1, 0.1, 0.2, after",
            claims.HOLDS,
        ),
        (
            "tickets",
            "magnitude cost the warm start 0.03, 0.05, 0.1 nats and the cold start 0.1, 0.1, 0.2, after",
            claims.PARTLY,
        ),
        (
            "tickets",
            "magnitude cost the warm start 0.03, 0.02, 0.1 nats and the cold start 0.1, 0.1, 0.2, after",
            claims.FAILS,
        ),
        ("saturation", "in nats: mixture 0.1, n-grams 0.2, classes 0.1, network 0.1.", claims.FAILS),
        ("saturation", "in nats: mixture 0.1, n-grams 0.2, classes 0.1, network 0.01.", claims.HOLDS),
        ("near_shallow", "beside the radial context are 0.01, 0.02, 0.03 nats below it", claims.HOLDS),
        ("near_shallow", "beside the radial context are 0.02, 0.01, -0.03 nats below it", claims.PARTLY),
    ],
)
def test_a_verdict_follows_from_the_numbers(section, conclusion, expected):
    claim = next(claim for claim in claims.CLAIMS if claim.section == section)
    assert claims.verdict(claim, conclusion)[0] == expected


def test_other_sentences_are_an_error_and_absent_sections_are_open(tmp_path):
    with pytest.raises(InputError, match="expected a conclusion of the section memory like"):
        claims.table({"memory": ("[Memories](#memories)", "They are fast.")})
    table = claims.table({})
    assert table.count(claims.OPEN) == len(claims.CLAIMS)
    assert all(word in table for word in claims.NOT_BUILT)
