"""The general text: its size, its mixture, that its two parts are disjoint and that every source is named."""

from __future__ import annotations

import json
import re
import unicodedata
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from convert_attn.convert import samples
from convert_attn.convert.samples.making.general import (
    HELDOUT_LIMIT,
    LIMIT,
    check_notices,
    choose,
    cut,
    joined,
    licenses,
    long_paragraphs,
    manifest,
)
from convert_attn.convert.samples.making.general_reading import in_language, is_clean, read, tidy
from convert_attn.convert.samples.making.general_sources import (
    LICENSE_TEXTS,
    OTHER_TERMS,
    PICKS,
    SOURCES,
    Pick,
    TextSource,
)
from convert_attn.convert.text.documents import read_documents

FOLDER = samples.sample_path("gpt2").parent
PARTS = ("general.txt", "general-heldout.txt")


def documents(part: str) -> list[str]:
    return list(read_documents(FOLDER / part))


def rows(part: str) -> list[dict[str, Any]]:
    content: dict[str, list[dict[str, Any]]] = json.loads((FOLDER / "general.json").read_text(encoding="utf-8"))
    return content[part]


def test_sizes() -> None:
    assert 350_000 <= len(samples.general_text().encode()) <= LIMIT == 400_000
    assert 80_000 <= len(samples.general_heldout_text().encode()) <= HELDOUT_LIMIT == 130_000


@pytest.mark.parametrize("part", PARTS)
def test_manifest_has_a_row_for_each_document(part: str) -> None:
    sizes = [len(document.encode()) for document in documents(part)]
    assert sizes == [row["bytes"] for row in rows(part)]
    assert all(500 <= size <= 6000 for size in sizes)


def test_there_are_many_documents_from_many_sources() -> None:
    assert len(documents("general.txt")) >= 180
    assert len(documents("general-heldout.txt")) >= 50
    assert len({row["source"] for row in rows("general.txt")}) >= 45


def test_parts_share_no_paragraph_and_no_chunk() -> None:
    assert not long_paragraphs(samples.general_text()) & long_paragraphs(samples.general_heldout_text())
    places = [(row["source"], row["file"], row["chunk"]) for part in PARTS for row in rows(part)]
    assert len(places) == len(set(places))


@pytest.mark.parametrize("part", PARTS)
def test_mixture(part: str) -> None:
    total = sum(row["bytes"] for row in rows(part))

    def share(field: str, *values: str) -> float:
        return sum(row["bytes"] for row in rows(part) if row[field] in values) / total

    assert 0.4 < share("language", "en") < 0.65
    assert 0.15 < share("language", "code") < 0.3
    assert 1 - share("language", "en", "code") > 0.17
    assert share("kind", "prose", "encyclopaedia", "drama") > 0.2


@pytest.mark.parametrize(
    ("script", "least"),
    [
        ("CYRILLIC", 5000),
        ("CJK", 2000),
        ("HIRAGANA", 1000),
        ("HANGUL", 500),
        ("GREEK", 300),
        ("ARABIC", 500),
        ("DEVANAGARI", 100),
        ("HEBREW", 300),
        ("THAI", 200),
    ],
)
def test_scripts(script: str, least: int) -> None:
    letters = (character for character in samples.general_text() if ord(character) > 127 and character.isalpha())
    count = Counter(unicodedata.name(character, "").split(" ")[0] for character in letters)
    assert count[script] + count[f"{script} UNIFIED"] >= least


def test_every_source_is_on_the_page_of_licences() -> None:
    page = (FOLDER / "GENERAL-LICENSES.md").read_text(encoding="utf-8")
    named = set(re.findall(r"^### `(.+)`$", page, flags=re.MULTILINE))
    assert {row["source"] for part in PARTS for row in rows(part)} == named
    assert {source.name for source in SOURCES} == {pick.source for pick in PICKS} == named
    assert len(SOURCES) == len(named)
    assert not any(re.search(r"(?<!L)GPL|-SA", source.license) for source in SOURCES)


@pytest.mark.parametrize("part", PARTS)
def test_nothing_private_and_no_notice(part: str) -> None:
    text = (FOLDER / part).read_text(encoding="utf-8")
    assert set(re.findall(r"[\w.+-]+@[\w-]+\.[a-z]{2,}\b", text)) <= {"user@example.org"}
    assert "gutenberg" not in text.lower()
    assert "permission is hereby granted" not in text.lower()
    assert not re.search(r"[A-Za-z0-9+/=]{80}", text)


def small_pick(**changes: Any) -> Pick:
    values: dict[str, Any] = {
        "source": "made/up",
        "files": ("*.txt",),
        "form": "plain",
        "kind": "documentation",
        "language": "en",
        "general": 3,
        "heldout": 1,
        "size": 800,
    }
    return Pick(**{**values, **changes})


def story(name: str) -> str:
    sentence = f"The {name} is one of the things that are to be found in the house of the old man by the sea. "
    return "\n\n".join(f"{sentence} It was told in part {number}." * 2 for number in "abcdef")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in ("apple", "boat", "clock", "door", "engine"):
        (tmp_path / f"{name}.txt").write_text(story(name), encoding="utf-8")
    return tmp_path


def test_choosing_is_deterministic_and_disjoint(root: Path) -> None:
    chosen = choose([small_pick()], {"made/up": root})
    assert [len(chosen[part]) for part in ("general", "general-heldout")] == [3, 1]
    assert chosen == choose([small_pick()], {"made/up": root})
    files = [document.file for found in chosen.values() for document in found]
    assert len(set(files)) == 4
    text = joined(chosen["general"])
    assert text.count("<|endoftext|>\n") == 2
    assert [row["bytes"] for row in json.loads(manifest(chosen))["general.txt"]] == [
        len(document.encode()) for document in text.split("<|endoftext|>\n")
    ]


def test_what_is_said_twice_is_taken_once(root: Path) -> None:
    (root / "boat.txt").write_text(story("apple"), encoding="utf-8")
    (root / "clock.txt").write_text(story("apple"), encoding="utf-8")
    with pytest.raises(ValueError, match=r"made/up: \*\.txt hold 1 documents too few"):
        choose([small_pick(size=3000)], {"made/up": root})


def made_up_source() -> TextSource:
    return TextSource(
        name="made/up",
        registry="PyPI",
        package="up",
        version="1.0",
        license="MIT",
        notices=("LICENSE",),
        copyright=("2024 Somebody & others",),
        taken="stories",
    )


def test_page_names_only_what_was_taken(root: Path) -> None:
    taken = made_up_source()
    other = TextSource(
        name="made/down",
        registry="PyPI",
        package="down",
        version="1.0",
        license="MIT",
        notices=("LICENSE",),
        copyright=("2024 Nobody",),
        taken="nothing",
    )
    page = licenses(choose([small_pick()], {"made/up": root}), [taken, other], {"MIT": "Permission"})
    assert "- copyright, from `LICENSE`:\n  - `` 2024 Somebody & others ``\n" in page
    assert "Nobody" not in page
    assert page.endswith("### MIT\n\n> Permission\n")


@pytest.mark.parametrize(
    ("notice", "wrong"),
    [
        ("2024 Somebody &\n others\n\n * Permission is\n .\n 'given'.", ""),
        ('2023 Somebody & others\nPermission is "given".', "'2024 Somebody & others' is not in its notices"),
        ("2024 Somebody & others\nPermission is sold.", "the words of the licence MIT are not in its notices"),
    ],
)
def test_notices_are_those_of_the_packages(tmp_path: Path, notice: str, wrong: str) -> None:
    (tmp_path / "LICENSE").write_text(notice, encoding="utf-8")
    texts = {"MIT": 'Permission is\n\n"given".'}
    if not wrong:
        check_notices([made_up_source()], {"made/up": tmp_path}, texts)
        return
    with pytest.raises(ValueError, match=wrong):
        check_notices([made_up_source()], {"made/up": tmp_path}, texts)


def test_every_licence_is_on_the_page_of_licences() -> None:
    page = (FOLDER / "GENERAL-LICENSES.md").read_text(encoding="utf-8")
    headings = set(re.findall(r"^### ([^`\n]+)$", page, flags=re.MULTILINE))
    assert headings == {*LICENSE_TEXTS, *OTHER_TERMS}
    assert {name for source in SOURCES for name in source.license.split("; ")} == headings
    assert all(line in page for source in SOURCES for line in source.copyright)


def test_cutting_keeps_paragraphs_and_functions_whole() -> None:
    prose = "\n\n".join("word " * 60 for _ in range(9))
    assert {part for chunk in cut(prose, 700, False) for part in chunk.split("\n\n")} == {"word " * 60}
    function = "def f():\n    a = 1\n\n    return a  " + "#" * 400
    assert cut(f"{function}\n\n\n{function}", 500, True) == []  # each alone is too short
    assert cut(f"{function}\n\n\n{function}", 1000, True) == [f"{function}\n\n{function}"]


def test_reading_a_page(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text(
        "<html><head><title>t</title></head><body><div class='navheader'>skip</div><h2>Head</h2>"
        "<p>One\n two<br>three</p><ul><li>a</li><li>b</li></ul><pre>x\n  y</pre><table><tr><td>1</td></tr></table>",
        encoding="utf-8",
    )
    assert read(page, "html") == "## Head\n\nOne two\nthree\n\n- a\n\n- b\n\nx\n  y"


def test_reading_drops_the_notice_of_a_program(tmp_path: Path) -> None:
    program = tmp_path / "p.c"
    program.write_text("/*\n * Copyright 2020 X\n */\n\nint f(void);\n", encoding="utf-8")
    assert read(program, "code").strip() == "int f(void);"


def test_tidying_drops_addresses() -> None:
    assert tidy("By A. B. <a.b@c.org>  \n\n\n\nor b@d.net") == "By A. B.\n\nor user@example.org"


def test_junk_is_told_from_text() -> None:
    assert is_clean("Plain words in a plain sentence, and then some more of them.", "prose")
    assert not is_clean("0.12 0.34 0.56 0.78 0.91 0.23 0.45", "documentation")
    assert not is_clean("data = " + "QUJD" * 30, "code")
    assert not is_clean("Permission is hereby granted, free of charge", "documentation")


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("Der Hund ist auf dem Weg und die Katze ist nicht mit ihm.", "de"),
        ("El perro está en la casa y no se sabe por qué es así para los niños.", "es"),
        ("Собака идёт по дороге.", "ru"),
        ("犬は道を歩いています。", "ja"),
        ("狗在路上走。", "zh"),
    ],
)
def test_languages_are_told_apart(text: str, language: str) -> None:
    assert in_language(text, language)
    assert not any(in_language(text, other) for other in {"de", "es", "ru", "ja", "zh", "en"} - {language})
