"""What stays of a text without a name."""

import json

import pytest

from training.forgetting.names import Names
from training.forgetting.pages import UnwantedParts, without
from training.forgetting.texts import without_names

NAMES = Names(["a/1.png", "group P0", "<b>.png"])


@pytest.mark.parametrize(
    ("text", "has"),
    [
        ("left out a/1.png: it is damaged", True),
        ('["a/1.png"]', True),
        ("b/a/1.png", False),
        ("a/1.pngs", False),
        ("a/1.png.bak", False),
        ("a/1.png.", True),
        ("group P0: {}", True),
        ("group P01", False),
        ("&lt;b&gt;.png", True),
    ],
)
def test_a_name_is_no_part_of_a_longer_one(text: str, has: bool) -> None:
    assert (text in NAMES) is has


def test_rows_of_a_table_go_whole_and_the_others_keep_their_bytes() -> None:
    text = 'path,true\r\na/1.png,x\r\n"two\r\nlines",x\r\na/2.png,"of a/1.png"\r\n'
    left, what = without_names(".csv", text, NAMES)
    assert left == 'path,true\r\n"two\r\nlines",x\r\na/2.png,"of [forgotten]"\r\n'
    assert what == {"rows": 1, "names": 1}


def test_a_row_whose_name_is_quoted_goes_whole() -> None:
    left, what = without_names(".csv", 'path,true\n"a""b.png",x\na/2.png,x\n', Names(['a"b.png']))
    assert (left, what) == ("path,true\na/2.png,x\n", {"rows": 1})


def test_records_of_json_go_whole() -> None:
    facts = {
        "fault": "a/1.png  a/2.png  (near)",
        "pairs": [{"images": ["a/1.png", "a/2.png"]}, {"images": ["a/3.png", "a/2.png"]}],
        "unreadable": {"a/1.png": "damaged", "a/2.png": "empty"},
        "groups_in_two_splits": {"P0": {"train": 1}, "P01": {"train": 2}},
        "ignored": ["a/1.png", "notes.txt"],
        "score": 0.1,
    }
    text = json.dumps(facts, indent=1, ensure_ascii=False)
    left, what = without_names(".json", text, NAMES)
    assert json.loads(left) == {
        "fault": "[forgotten]  a/2.png  (near)",
        "pairs": [{"images": ["a/3.png", "a/2.png"]}],
        "unreadable": {"a/2.png": "empty"},
        "groups_in_two_splits": {"P01": {"train": 2}},
        "ignored": ["notes.txt"],
        "score": 0.1,
    }
    assert what.total() == 5
    assert without_names(".json", left, NAMES) == (left, {})


def test_lines_of_a_log_stay() -> None:
    text = '{"run": "x", "reason": "a/1.png was wrong"}\n{"run": "y", "reason": ""}\n'
    left, _ = without_names(".jsonl", text, NAMES)
    assert left == '{"run": "x", "reason": "[forgotten] was wrong"}\n{"run": "y", "reason": ""}\n'


def test_a_figure_goes_from_a_page_with_its_picture_and_its_words() -> None:
    figures = [
        f'<figure><img src="data:image/jpeg;base64,{name}" alt="{name}"><figcaption>{name}</figcaption></figure>'
        for name in ("a/1.png", "QUJD", "a/2.png")
    ]
    page = f"<h2>Mistakes</h2>{''.join(figures)}<ul><li>a/1.png: damaged</li><li>a/2.png: empty</li></ul>"
    left, what = without(page, UnwantedParts(names=NAMES, pictures=frozenset(["QUJD"])))
    assert left == f"<h2>Mistakes</h2>{figures[2]}<ul><li>a/2.png: empty</li></ul>"
    assert what == {"pictures": 2, "lines": 1}
