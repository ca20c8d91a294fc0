"""Counts the identifiers of the packages that say nothing about what they name.

`python -m tests.overloaded_words` prints the counts by word and by file.
"""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGES = ("alignment", "cluster", "jobs", "storage")
WORDS = {"place", "places", "each", "found", "wanted", "given", "told", "said", "made", "kept"}


def count_words(root: Path = ROOT) -> tuple[Counter[str], Counter[str]]:
    """Occurrences as identifiers, by word and by file: names, parameters, attributes, definitions."""
    by_word, by_file = Counter[str](), Counter[str]()
    for package in PACKAGES:
        for path in (root / package).rglob("*.py"):
            for name in _identifiers(ast.parse(path.read_text())):
                if name in WORDS:
                    by_word[name] += 1
                    by_file[str(path.relative_to(root))] += 1
    return by_word, by_file


def _identifiers(tree: ast.AST) -> Iterator[str | None]:
    for node in ast.walk(tree):
        match node:
            case (
                ast.Name(id=name) | ast.Attribute(attr=name) | ast.arg(arg=name) | ast.keyword(arg=name)
            ):
                yield name
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                yield name
            case ast.alias(name=name, asname=alias):
                yield alias or name.rpartition(".")[2]


if __name__ == "__main__":
    words, files = count_words()
    print(f"{words.total()} identifiers: {dict(words.most_common())}")
    for file, number in files.most_common(20):
        print(f"{number:5} {file}")
