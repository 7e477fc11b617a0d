"""The documents of the task convert_attn_last_word: passages of prose without their last word, after LAMBADA.

LAMBADA (Paperno et al. 2016) has passages whose last word people guess from the whole and not from the last sentence.
Nobody was asked here: any passage of whole sentences will do, and figures are to be compared with the original's alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib import import_module
from typing import Any

from convert_attn.eval.measures import passages

_SEPARATOR = re.compile(r"^<\|endoftext\|>\n?", re.MULTILINE)
_FEWEST, _MOST = 60, 160  # words before the last one
_FUNCTION_WORDS = frozenset(
    "the of and to a in is that it was for as with on he his be at by had not but from they she her which you were "
    "this have or an all we there their".split()
)
_FUNCTION_SHARE = 0.25  # of the words of English prose, at least
_CODE = frozenset("{}[]<>=|\\#@^~`/+$%")  # no underscores: they stand for italics in books
_CODE_SHARE = 0.002  # of its characters, at most
_FOREIGN_SHARE = 0.01  # of its letters that are not a to z, at most
_SHORT_PARAGRAPH = 8  # words; what is shorter is a heading, or a line of a list
_SENTENCE_END = re.compile(r"""(?<=[.!?])["')\]”’]*\s+(?=["'(“‘]?[A-Z])""")
_ABBREVIATION = re.compile(
    r"(?:^|[\s(\"“])(?:[A-Z]|Mr|Mrs|Ms|Dr|St|Jr|Sr|Prof|Rev|Gen|Col|Capt|No|Vol|Fig|vs|cf|e\.g|i\.e)\.$"
)
_LAST_WORD = re.compile(r" ([a-z]{4,})[.!?][\"')”’]*$")


def last_word(**settings: Any) -> Any:
    """Give one row for each passage of the bundled held-out prose: `context` and `word`."""
    datasets = import_module("datasets")  # comes with lm-eval
    return datasets.DatasetDict({"test": datasets.Dataset.from_list(rows(passages.general_text()))})


def rows(text: str) -> list[dict[str, str]]:
    """Cut the English prose in a text into passages that end in a word of four small letters or more.

    Args:
        text: documents with lines `<|endoftext|>` between them; those that are no English prose are left out.

    Returns:
        for each passage `context`, whole sentences and the beginning of one, 60 to 160 words, and `word`, which comes
        next.
    """
    return [row for document in _SEPARATOR.split(text) if is_prose(document) for row in _passages(document)]


def is_prose(document: str) -> bool:
    """Tell English prose from code, tables and other languages, by its letters, its signs and its commonest words."""
    words = re.findall(r"[^\W\d_]+", document.lower())
    letters = "".join(words)
    if not words:
        return False
    common = sum(word in _FUNCTION_WORDS for word in words) / len(words)
    foreign = sum(not "a" <= letter <= "z" for letter in letters) / len(letters)
    code = sum(sign in _CODE for sign in document) / len(document)
    return common >= _FUNCTION_SHARE and foreign <= _FOREIGN_SHARE and code <= _CODE_SHARE


def _passages(document: str) -> Iterator[dict[str, str]]:
    """Sentence by sentence, each passage where the one before it ended."""
    begun: list[str] = []
    for paragraph in re.split(r"\n\s*\n", document):
        words = paragraph.split()
        if len(words) < _SHORT_PARAGRAPH or not re.search(r"""[.!?]["')\]”’]*$""", words[-1]):
            begun = []
            continue
        for sentence in sentences(" ".join(words)):
            begun.append(sentence)
            passage = " ".join(begun)
            found, size = _LAST_WORD.search(passage), len(passage.split()) - 1
            if size > _MOST:
                begun = []
            elif size >= _FEWEST and len(begun) > 1 and found:
                yield {"context": passage[: found.start()], "word": found[1]}
                begun = []


def sentences(paragraph: str) -> list[str]:
    """Split a paragraph of one line where a sentence ends; not after Mr. and the like, nor after an initial."""
    found: list[str] = []
    whole = True
    start = 0
    for end in [*_SENTENCE_END.finditer(paragraph), None]:
        stop = len(paragraph) if end is None else end.end()
        piece = paragraph[start:stop].strip()
        start = stop
        found = [*found, piece] if whole else [*found[:-1], f"{found[-1]} {piece}"]
        whole = not _ABBREVIATION.search(piece)
    return found
