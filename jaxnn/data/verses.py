"""English and Spanish, verse by verse: the King James Version and the Reina-Valera of 1909, both public domain.

`make data` fetches two Debian packages and writes the verses that both have into one table; what is held out are
chapters, because neighbouring verses repeat each other.
"""

import hashlib
import os
from pathlib import Path
from typing import Any, NamedTuple

from jaxnn.data.given import check_path

FILE = "verses.en-es.tsv"
_MODULES = ("engKJV2006eb", "spaRV1909eb")
_HEADER = "verse\tEnglish\tSpanish"


class Verse(NamedTuple):
    """One pair; `place` is book, chapter and verse: "Gen 1:1"."""

    place: str
    source: str
    target: str

    @property
    def chapter(self) -> str:
        """Book and chapter: "Gen 1"."""
        return self.place.rpartition(":")[0]


def read_verses(folder: str | os.PathLike[str]) -> list[Verse]:
    """The verses that `make data` wrote into `folder`, in the order of the books.

    Raises:
        ValueError: If the file is not there, or a line is not three fields.
    """
    check_path("data.read_verses", folder)
    path = Path(folder).expanduser() / FILE
    try:
        lines = path.read_text("utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(
            f"data.read_verses: {str(path)!r} cannot be read ({getattr(error, 'strerror', None) or error}). "
            f"Tried: opening it. Write make data, which fetches them."
        ) from error
    verses = []
    for number, line in enumerate(lines[1:], 2):
        if not line:
            continue
        fields = line.split("\t")
        if len(fields) != 3 or not all(fields):
            raise ValueError(
                f"data.read_verses: line {number} of {str(path)!r} has {len(fields)} fields: {line!r:.80}. Tried: "
                f"{_HEADER!r}. Delete the file and write it anew: make data."
            )
        verses.append(Verse(*fields))
    if lines[0] != _HEADER or not verses:
        raise ValueError(
            f"data.read_verses: {str(path)!r} has {len(verses)} verses under {lines[0]!r:.80}. Tried: {_HEADER!r}. "
            f"Delete the file and write it anew: make data."
        )
    return verses


def split_chapters(verses: list[Verse], held_out: float = 0.05, seed: int = 0) -> tuple[list[Verse], list[Verse]]:
    """Verses to learn from and verses held out, by a hash of (seed, chapter): a chapter is on one side.

    Raises:
        ValueError: If a side would be empty.
    """

    def draw(verse: Verse) -> bool:
        digest = hashlib.blake2b(f"{seed}/{verse.chapter}".encode(), digest_size=8).digest()
        return int.from_bytes(digest, "big") < held_out * 2**64

    sides: tuple[list[Verse], list[Verse]] = ([], [])
    for verse in verses:
        sides[draw(verse)].append(verse)
    if not all(sides):
        raise ValueError(
            f"data.split_chapters: {len(verses)} verses give {len(sides[0])} and {len(sides[1])}. Tried: "
            f"held_out={held_out!r} of their chapters. Write another share, or seed."
        )
    return sides


def write_verses(sword: str | os.PathLike[str], folder: str | os.PathLike[str]) -> Path:
    """Reads both SWORD modules (some minutes) and writes the pairs, for `read_verses`; needs `pip install pysword`.

    Verses that a translation numbers otherwise hold several verses' text there; they are left out where one side is
    more than three times as long as the other.

    Args:
        sword: Folder with `mods.d` and `modules`, as in /usr/share/sword.
        folder: Where the table goes.

    Raises:
        ValueError: If a module is not there or no verse is in both.
    """
    from pysword.modules import SwordModules

    library: Any = SwordModules(str(sword))
    found = library.parse_modules()
    texts: list[dict[str, str]] = []
    for name in _MODULES:
        if name not in found:
            raise ValueError(
                f"data.write_verses: {str(sword)!r} has {sorted(found)}. Tried: {name}. Unpack the Debian packages "
                "sword-text-kjv and sword-text-sparv there."
            )
        bible = library.get_bible_from_module(name)
        text: dict[str, str] = {}
        for book in (book for books in bible.get_structure().get_books().values() for book in books):
            for chapter, verses in enumerate(book.chapter_lengths, 1):
                for verse in range(1, verses + 1):
                    words = bible.get(books=[book.name], chapters=[chapter], verses=[verse], clean=True, join=" ")
                    text[f"{book.osis_name} {chapter}:{verse}"] = _clean(words)
        texts.append(text)
    rows = [(place, source, texts[1].get(place, "")) for place, source in texts[0].items()]
    rows = [row for row in rows if all(row) and max(map(len, row[1:])) <= 3 * min(map(len, row[1:])) + 20]
    if not rows:
        raise ValueError(
            f"data.write_verses: no verse is in both of {_MODULES}. Tried: {str(sword)!r}. Fetch them anew."
        )
    path = Path(folder).expanduser() / FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text("\n".join([_HEADER, *("\t".join(row) for row in rows)]) + "\n", "utf-8")
    os.replace(part, path)
    return path


def _clean(text: str) -> str:
    """One line, without the marks of paragraphs and of words that the translators added."""
    return " ".join(text.translate(str.maketrans({"¶": " ", "[": "", "]": "", "\\": ""})).split())


# A space parts the words of a table, so that a line holds many.
_ENGLISH = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen twenty thirty forty fifty sixty seventy eighty ninety"
)
_SPANISH = (
    "cero uno dos tres cuatro cinco seis siete ocho nueve diez once doce trece catorce quince dieciséis diecisiete "
    "dieciocho diecinueve veinte veintiuno veintidós veintitrés veinticuatro veinticinco veintiséis veintisiete "
    "veintiocho veintinueve treinta cuarenta cincuenta sesenta setenta ochenta noventa ciento doscientos trescientos "
    "cuatrocientos quinientos seiscientos setecientos ochocientos novecientos"
)


def _english(n: int) -> str:
    if n < 20:
        return _ENGLISH.split()[n]
    if n < 100:
        return _ENGLISH.split()[18 + n // 10] + (f" {_english(n % 10)}" if n % 10 else "")
    for unit, name in ((1000, "thousand"), (100, "hundred")):
        if n >= unit:
            rest = n % unit
            return f"{_english(n // unit)} {name}" + (f" {'and ' * (rest < 100)}{_english(rest)}" if rest else "")
    raise AssertionError


def _spanish(n: int) -> str:
    if n < 30:
        return _SPANISH.split()[n]
    if n < 100:
        return _SPANISH.split()[27 + n // 10] + (f" y {_spanish(n % 10)}" if n % 10 else "")
    if n == 100:
        return "cien"
    if n < 1000:
        return _SPANISH.split()[36 + n // 100] + (f" {_spanish(n % 100)}" if n % 100 else "")
    thousands = "mil" if n < 2000 else f"{_spanish(n // 1000)} mil"
    return thousands + (f" {_spanish(n % 1000)}" if n % 1000 else "")


def number_verses(count: int = 10_000) -> list[Verse]:
    """Numbers from 0 below `count` in words of both languages, a "chapter" a score of numbers: always there.

    Raises:
        ValueError: If `count` is not from 1 to 10,000: from there on a thousand's form would depend on its number.
    """
    if not 1 <= count <= 10_000:
        raise ValueError(f"data.number_verses: count={count!r}. Tried: numbers in words. Write 1 to 10,000.")
    return [Verse(f"Numbers {n // 20}:{n % 20}", _english(n), _spanish(n)) for n in range(count)]
