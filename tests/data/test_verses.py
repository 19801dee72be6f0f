"""Verses: what is written is read, chapters stay together, numbers in words."""

import pytest

from jaxnn import data
from jaxnn.data import verses


def table(tmp_path, *lines):
    (tmp_path / verses.FILE).write_text("\n".join([verses._HEADER, *lines]) + "\n", "utf-8")
    return tmp_path


def test_a_table_is_read_line_by_line(tmp_path):
    folder = table(tmp_path, "Gen 1:1\tIn the beginning\tEn el principio", "Song 2:1\tI am\tYo soy")
    read = data.read_verses(folder)
    assert read[0] == ("Gen 1:1", "In the beginning", "En el principio")
    assert [verse.chapter for verse in read] == ["Gen 1", "Song 2"]


def test_a_chapter_is_on_one_side_and_stays_there():
    learn, held_out = data.split_chapters(data.number_verses(2000), 0.2)
    assert not {v.chapter for v in learn} & {v.chapter for v in held_out}
    assert len(learn) + len(held_out) == 2000
    assert 200 < len(held_out) < 600
    fewer = data.split_chapters(data.number_verses(1000), 0.2)[1]
    assert fewer == [v for v in held_out if v in fewer]
    assert data.split_chapters(data.number_verses(2000), 0.2, seed=1)[1] != held_out


@pytest.mark.parametrize(
    ("number", "english", "spanish"),
    [
        (0, "zero", "cero"),
        (21, "twenty one", "veintiuno"),
        (45, "forty five", "cuarenta y cinco"),
        (100, "one hundred", "cien"),
        (108, "one hundred and eight", "ciento ocho"),
        (1000, "one thousand", "mil"),
        (5734, "five thousand seven hundred and thirty four", "cinco mil setecientos treinta y cuatro"),
        (9999, "nine thousand nine hundred and ninety nine", "nueve mil novecientos noventa y nueve"),
    ],
)
def test_numbers_in_words(number, english, spanish):
    assert data.number_verses()[number][1:] == (english, spanish)


def test_no_two_numbers_have_the_same_words():
    for side in (1, 2):
        assert len({verse[side] for verse in data.number_verses()}) == 10_000


def test_refusals(tmp_path):
    with pytest.raises(ValueError, match="make data"):
        data.read_verses(tmp_path)
    with pytest.raises(ValueError, match=r"line 3 .* has 2 fields"):
        data.read_verses(table(tmp_path, "Gen 1:1\ta\tb", "Gen 1:2\ta"))
    with pytest.raises(ValueError, match="has 0 verses"):
        data.read_verses(table(tmp_path))
    with pytest.raises(ValueError, match="held_out"):
        data.split_chapters(data.number_verses(10), 0.0)
    with pytest.raises(ValueError, match="count=0"):
        data.number_verses(0)


def test_marks_of_the_edition_are_left_out():
    assert verses._clean("¶ And God  [was] there\n") == "And God was there"
