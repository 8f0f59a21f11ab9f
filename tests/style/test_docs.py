"""The documents are true where a program can tell: links, licence, changelog, generated pages."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LINK = re.compile(r"(?<!!)\[[^\]]+\]\(([^)\s]+)\)")
GENERATORS = (
    "scripts/unasync.py",
    "scripts/gen-errors.py",
    "scripts/gen-protobuf.py",
    "scripts/gen-capabilities.py",
    "scripts/gen-compat.py",
    "scripts/gen-hypervisors.py",
)


def documents() -> list[Path]:
    """Every Markdown file of the project."""
    skipped = {".venv", "target", ".git", ".pytest_cache", "results"}
    return [p for p in sorted(ROOT.rglob("*.md")) if not skipped & set(p.relative_to(ROOT).parts)]


def prose(path: Path) -> str:
    """The text without code blocks and code spans."""
    text = re.sub(r"^```.*?^```", "", path.read_text(), flags=re.DOTALL | re.MULTILINE)
    return re.sub(r"`[^`\n]*`", "", text)


def anchors(path: Path) -> set[str]:
    """The fragment of each heading, as GitHub makes them."""
    headings = re.findall(r"^#+\s+(.*)$", path.read_text(), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def is_broken(source: Path, link: str) -> bool:
    """Whether a relative link of `source` leads nowhere."""
    target, _, fragment = link.partition("#")
    path = (source.parent / target).resolve() if target else source
    return not path.exists() or bool(fragment and path.suffix == ".md" and fragment not in anchors(path))


def test_links_resolve() -> None:
    """Each relative link leads to a file that exists, and to a heading that exists."""
    broken = [
        f"{path.relative_to(ROOT)}: {link}"
        for path in documents()
        for link in LINK.findall(prose(path))
        if not link.startswith(("http://", "https://", "mailto:")) and is_broken(path, link)
    ]
    assert broken == []


def test_paths_named_in_documents_exist() -> None:
    """A document that names a file of this project in code spans (`src/…`, `scripts/…`) names one that is there."""
    wrong = [
        f"{path.relative_to(ROOT)}: {named}"
        for path in documents()
        for named in re.findall(
            r"`((?:src|tests|scripts|benchmarks|native|docs|examples|packaging)/[\w./-]+)`", path.read_text()
        )
        if not (ROOT / named).exists()
        and not named.startswith(("src/drupe/_bin", "benchmarks/results", "native/target"))
    ]
    assert wrong == []


def test_licence_is_apache_2() -> None:
    """LICENSE is the whole Apache-2.0 text and pyproject.toml says the same."""
    text = (ROOT / "LICENSE").read_text()
    assert "Apache License" in text and "Version 2.0, January 2004" in text and "END OF TERMS AND CONDITIONS" in text
    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["license"] == "Apache-2.0"


def test_changelog_has_an_unreleased_section() -> None:
    """A change always has a place to be written down (Keep a Changelog)."""
    assert re.search(r"^## \[Unreleased\]", (ROOT / "CHANGELOG.md").read_text(), flags=re.MULTILINE)


def test_decisions_are_numbered_and_say_what_was_refused() -> None:
    """docs/decisions/NNNN-*.md: consecutive numbers; each has the decision and the alternatives."""
    decisions = sorted((ROOT / "docs/decisions").glob("[0-9]*.md"))
    assert [int(p.name[:4]) for p in decisions] == list(range(1, len(decisions) + 1))
    for path in decisions:
        text = path.read_text()
        assert "## Decision" in text and "## Refused" in text, path.name


@pytest.mark.parametrize("script", GENERATORS)
def test_generated_files_are_current(script: str) -> None:
    """`SCRIPT --check` finds nothing to write."""
    done = subprocess.run([sys.executable, script, "--check"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_make_help_names_every_target() -> None:
    """The Makefile documents itself: no phony target without its line."""
    makefile = (ROOT / "Makefile").read_text()
    phony = " ".join(re.findall(r"^\.PHONY: (.*)$", makefile, flags=re.MULTILINE))
    documented = set(re.findall(r"^([a-z0-9-]+):[^#\n]*## ", makefile, flags=re.MULTILINE))
    assert set(phony.split()) == documented
