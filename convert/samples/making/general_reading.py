"""Plain text out of the files of other packages: their formats read, junk told from text, one language from another."""

from __future__ import annotations

import gzip
import json
import re
import unicodedata
import zlib
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path

ADDRESS = re.compile(r"[\w.+-]+(?:@| at )[\w-]+(?:\.[\w-]+)*\.[a-z]{2,}\b", re.IGNORECASE)
_ADDRESS_SIGNED = re.compile(r"\s*[<(\[]" + ADDRESS.pattern + r"[>)\]]", re.IGNORECASE)
# Words that a text shown to anyone should not hold, and those that mark a notice or a credit instead of text.
_UNWANTED = re.compile(
    r"\b(?:nigg|negro|injun|fuck|shit|bitch|whore|slut|rape[ds]?\b|rapist|fag+ot|cunt|savages?\b|cannibal|heathen|genocid|"
    r"suicid|terroris|massacre|slave|bastard|strumpet|harlot|bawd|porn|sexual)",
    re.IGNORECASE,
)
_NOTICE = re.compile(
    r"gutenberg|all rights reserved|warranties|permission is hereby|redistribution and use|spdx-license|"
    r"licensed under|do not edit|automatically generated|copyright (?:\(c\)|©|\d{4})|@license|public domain",
    re.IGNORECASE,
)
_BLOB = re.compile(r"[A-Za-z0-9+/=]{70,}|(?:0x[0-9a-f]+,\s*){8,}|(?:\\x[0-9a-f]{2}){6,}", re.IGNORECASE)


def paragraphs(text: str) -> list[str]:
    """Tell what blank lines part."""
    return [part.strip("\n") for part in re.split(r"\n[ \t]*\n", text) if part.strip()]


def blocks(text: str) -> list[str]:
    """Give parts of a program: cut at blank lines after which a line starts at the margin and closes nothing."""
    parts = re.split(r"\n(?:[ \t]*\n)+(?=[^\s)}\]])", text)
    return [part.strip("\n") for part in parts if part.strip()]


def tidy(text: str) -> str:
    """Drop e-mail addresses, trailing blanks and surplus blank lines."""
    text = ADDRESS.sub("user@example.org", _ADDRESS_SIGNED.sub("", text))
    text = "\n".join(line.rstrip() for line in text.expandtabs(8).splitlines()) if "\t" not in text else text
    text = re.sub(r"[ \t]+$", "", text, flags=re.MULTILINE)
    return re.sub(r"\n{3,}", "\n\n", text).strip("\n")


def is_clean(text: str, kind: str) -> bool:
    """Tell whether this is text to learn from: no notice, no table of numbers, no packed data, nothing offensive."""
    if _UNWANTED.search(text) or _NOTICE.search(text) or _BLOB.search(text) or "<|" in text:
        return False
    if any(len(line) > (300 if kind == "code" else 6000) for line in text.splitlines()):
        return False
    dense = [character for character in text if not character.isspace()]
    if any(unicodedata.category(character) in ("Co", "Cn", "Cc") or character == "\ufffd" for character in dense):
        return False
    letters = sum(character.isalpha() or unicodedata.combining(character) > 0 for character in dense) / len(dense)
    digits = sum(character.isdigit() for character in dense) / len(dense)
    if kind == "prose":
        return letters > 0.9 and digits < 0.03
    return letters > (0.55 if kind in ("code", "mathematics") else 0.7) and digits < 0.12


_SCRIPTS = {
    "ru": ("CYRILLIC",),
    "uk": ("CYRILLIC",),
    "el": ("GREEK",),
    "zh": ("CJK",),
    "ja": ("HIRAGANA", "KATAKANA", "CJK"),
    "ko": ("HANGUL",),
    "ar": ("ARABIC",),
    "fa": ("ARABIC",),
    "he": ("HEBREW",),
    "hi": ("DEVANAGARI",),
    "th": ("THAI",),
}
_WORDS = {
    "en": "the and of to is that with this are for be it was as",
    "de": "der die das und ist nicht ein eine zu den mit von auf für wird werden oder im",
    "fr": "le la les des et est une un du que pour dans qui sur par au ou pas",
    "es": "el la los las de y que en un una es para por con se del no al",
    "it": "il la le di e che un una è per con non del della si in dei da",
    "pt": "o a os as de e que em um uma é para com não do da se no ou",
}


def in_language(text: str, language: str) -> bool:
    """Whether the text is, in its greater part, in the language; True for languages that are not told apart here."""
    if language in _SCRIPTS:
        names = [unicodedata.name(character, "") for character in text if character.isalpha()]
        share = sum(name.startswith(_SCRIPTS[language]) for name in names) / max(1, len(names))
        kana = sum(name.startswith(("HIRAGANA", "KATAKANA")) for name in names) / max(1, len(names))
        return share > 0.6 and (kana > 0.2 if language == "ja" else kana < 0.05)
    if language not in _WORDS:
        return True
    words = re.findall(r"[^\W\d_]+", text.lower())
    counts = {
        name: sum(word in known for word in words) / max(1, len(words))
        for name, known in ((name, set(known.split())) for name, known in _WORDS.items())
    }
    others = max(share for name, share in counts.items() if name != language)
    return counts[language] > 0.12 and counts[language] > others


class _Page(HTMLParser):
    """Text of a page: headings, paragraphs, lists and preformatted parts; no navigation, no tables."""

    SKIPPED = frozenset({"script", "style", "nav", "head", "table", "svg", "button", "form", "footer", "header", "dl"})
    APART = re.compile(
        r"\b(?:nosearch|toc\w*|gtoc|navheader|navfooter|quickview|toplang|bottomlang|page-header|top|up|path|picker|"
        r"sidebar|menu-bar|column2|intro|footer|copyright|contributors|feedback|publication_date|translation|"
        r"seealso|directive-reference|comments_section|nav-\w+|hidden|details|innertoc|src|editor-area|fancy)\b"
    )
    VOID = frozenset({"br", "img", "hr", "meta", "link", "input", "col", "wbr", "source", "area"})
    BLOCKS = frozenset(
        {"p", "div", "h1", "h2", "h3", "h4", "h5", "h6", "li", "ul", "ol", "pre", "section", "blockquote", "main"}
    )

    def __init__(self) -> None:
        super().__init__()
        self.parts: list[str] = []
        self.line = ""
        self.open: list[tuple[str, bool]] = []  # tag, whether it starts something skipped
        self.skipping = 0
        self.literal = 0
        self.prefix = ""

    def finish(self) -> None:
        lines = [" ".join(line.split()) for line in self.line.split("\v")]
        text = self.line.strip("\n") if self.literal else "\n".join(line for line in lines if line)
        if text.strip():
            self.parts.append(text if self.literal else self.prefix + text)
            self.prefix = ""
        self.line = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "br":
            self.line += "\n" if self.literal else "\v"
        if tag in self.VOID:
            return
        marks = " ".join(value or "" for name, value in attrs if name in ("id", "class"))
        code = tag in ("code", "pre", "span", "html", "body", "main", "a")
        skipped = tag in self.SKIPPED or (not code and bool(self.APART.search(marks)))
        if tag in self.BLOCKS:
            self.finish()
        if tag == "p" and self.open and self.open[-1][0] == "p":
            self.handle_endtag("p")
        if tag == "li":
            while self.open and self.open[-1][0] in ("li", "p"):
                self.handle_endtag(self.open[-1][0])
            self.prefix = "- "
        elif re.fullmatch(r"h[1-6]", tag):
            self.prefix = "#" * int(tag[1]) + " "
        self.open.append((tag, skipped))
        self.skipping += skipped
        self.literal += tag == "pre"

    def handle_endtag(self, tag: str) -> None:
        if tag not in (name for name, _ in self.open):
            return
        if tag in self.BLOCKS:
            self.finish()
        while self.open:
            name, skipped = self.open.pop()
            self.skipping -= skipped
            self.literal -= name == "pre"
            if name == tag:
                break

    def handle_data(self, data: str) -> None:
        if not self.skipping:
            self.line += data


def _html(text: str) -> str:
    page = _Page()
    page.feed(re.sub(r"<script type=\"text/(?:html|x-red)\"[^>]*>|<!--.*?-->", "", text, flags=re.DOTALL))
    page.finish()
    return re.sub(r"[¶#]+$", "", "\n\n".join(page.parts), flags=re.MULTILINE).replace("\u00b6", "")


def _code(text: str) -> str:
    """Drop a notice at the head of a program."""
    text = text.lstrip("\ufeff")
    head = re.match(r"(?:#!.*\n)?\s*(?:/\*.*?\*/|<!--.*?-->|(?:(?://|#|--|;)[^\n]*\n)+)\s*\n", text, flags=re.DOTALL)
    if head and re.search(r"copyright|licen[cs]e|author", head.group(), re.IGNORECASE):
        text = text[head.end() :]
    return text


def _markdown(text: str) -> str:
    """Drop badges, pictures, comments and tags."""
    text = re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)
    text = re.sub(r"^\[[^\]]+\]: .*\n?", "", text, flags=re.MULTILINE)
    text = re.sub(r"\[?!\[[^\]]*\](?:\([^)]*\)|\[[^\]]*\])(?:\](?:\([^)]*\)|\[[^\]]*\]))?", "", text)
    text = re.sub(
        r"^\s*</?(?:p|div|span|img|a|h1|h2|br|source|picture|sup|table|tr|td|details|summary)\b.*\n?",
        "",
        text,
        flags=re.MULTILINE,
    )
    return re.sub(r"\(\[?[`#]?[0-9a-f]{7,40}[`]?\]?(?:\([^)]*\))?\)", "", text)


def _prose(text: str) -> str:
    """Make one line of each paragraph of hard-wrapped prose; verse and short lines stay as they are."""
    parts = []
    for part in paragraphs(text.replace("\r\n", "\n").lstrip("\ufeff")):
        lines = part.split("\n")
        wrapped = len(lines) > 1 and sum(map(len, lines[:-1])) / (len(lines) - 1) > 55
        parts.append(" ".join(line.strip() for line in lines) if wrapped else part)
    return "\n\n".join(parts)


def _encyclopaedia(text: str) -> str:
    """Prose between the marks of scanned pages."""
    kept = [line for line in text.split("\n") if not re.match(r"#|p\.\d+", line)]
    return _prose(re.sub(r"\n{4,}", "\n", "\n".join(kept)))


def _factbook(text: str) -> str:
    """A country's profile: the items that are told in sentences, as headings and paragraphs."""

    def told(value: object, title: str) -> Iterator[str]:
        if not isinstance(value, dict):
            return
        words = value.get("text")
        if isinstance(words, str) and len(words) > 120 and ". " in words:
            plain = re.sub(r"<[^>]+>|\+{2,}", " ", words)
            if title and not re.search(r"note|suffrage|nationality|party", title, re.IGNORECASE):
                yield f"{title}\n{' '.join(plain.split())}"
        for name, inner in value.items():
            if name != "text":
                yield from told(inner, name.capitalize())

    content = json.loads(text)
    country = content.get("Government", {}).get("Country name", {}).get("conventional short form", {}).get("text", "")
    kept = [name for name in ("Introduction", "Geography", "Environment", "Economy") if name in content]
    return "\n\n".join([country, *(part for name in kept for part in told(content[name], ""))])


def _poems(text: str) -> str:
    """Poems with their titles and poets, a paragraph each."""
    return "\n\n".join(
        "\n".join([f"{poem['title']}　{poem['author']}", *poem["paragraphs"]]) for poem in json.loads(text)
    )


def _declaration(text: str) -> str:
    """The articles of the declaration: a heading and its text as one paragraph."""
    parts: list[str] = []
    for part in paragraphs(_html(text)):
        bare = re.sub(r"^#+ ", "", part)
        if parts and parts[-1].startswith("\0"):
            parts[-1] = parts[-1][1:] + "\n" + bare
        else:
            parts.append("\0" + bare if part.startswith("#") else bare)
    return "\n\n".join(part.lstrip("\0") for part in parts)


def _r_books(data: bytes) -> str:
    """The lines of the character vectors in a data base of R (`.rdb`), which holds them serialized and packed."""
    lines: list[str] = []
    at = 0
    while at < len(data):
        engine = zlib.decompressobj()
        content = engine.decompress(data[at + 4 :])
        at = len(data) - len(engine.unused_data)
        place = 0
        while True:
            found = re.compile(rb"\x00[\x04\x00][\x00-\xff]\x09(?=[\x00\xff])").search(content, place)
            if not found:
                break
            length = int.from_bytes(content[found.end() : found.end() + 4], "big", signed=True)
            place = found.end() + 4 + max(0, length)
            lines.append(content[found.end() + 4 : place].decode("utf-8", "replace") if length > 0 else "")
        lines.append("")
    return _prose("\n".join(lines))


_FORMS: dict[str, Callable[[str], str]] = {
    "code": _code,
    "declaration": _declaration,
    "encyclopaedia": _encyclopaedia,
    "factbook": _factbook,
    "html": _html,
    "markdown": _markdown,
    "plain": str,
    "poems": _poems,
    "prose": _prose,
}
FORMS = frozenset(_FORMS) | {"r-books"}


def read(path: Path, form: str, start: str = "", stop: str = "") -> str:
    """Give the text of a file in one of the `FORMS`, from the first `start` in it to the next `stop`."""
    data = path.read_bytes()
    if form == "r-books":
        return _r_books(data)
    if path.suffix == ".gz":
        data = gzip.decompress(data)
    named = re.search(rb"charset=[\"']?([\w-]+)", data[:1000]) if form == "html" else None
    text = data.decode(named[1].decode() if named else "utf-8", "replace").replace("\r\n", "\n")
    if start:
        text = text[text.index(start) :]
    if stop:
        text = text[: text.index(stop)]
    return _FORMS[form](text)
