"""The project keeps its own rules: citations, purity, no machine paths, public names, locked dependencies."""

import ast
import csv
import io
import re
import shutil
import subprocess
import tokenize
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

import anontls

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "src" / "anontls"

# --- citations --------------------------------------------------------------------------------------------------------

STATUSES = {"done", "partial", "not", "observed"}
CITATION = re.compile(r"\[([A-Z][A-Z0-9]+(?:-[A-Z0-9]+)*)(?: ([^\]\n]*))?\]")
SOURCE_KEY = re.compile(r"RFC\d+|(?:ARTICLE|MS|PS)-.+|FACT")
SECTION = re.compile(r"(?:\d+|[A-Z])(?:\.[0-9a-z]+)*|[a-z]+")
GRADED_SECTION = re.compile(r"([DOCBIR](?:/[DOCBIR])*) (\d+(?:\.\d+)*)")
FACT_HEADING = re.compile(r"^#{2,4} (\d+(?:\.\d+)*) ", re.MULTILINE)
FACT_GRADE = re.compile(r"\*\*([DOCBIR](?:/[DOCBIR])*)\*\*")


def prose(source: str) -> Iterator[str]:
    """The comments and docstrings of a Python source."""
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.string
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            yield node.value.value


def citations(source: str) -> set[tuple[str, str]]:
    """Key and section of each citation; a lone word in brackets counts only where it looks like a source."""
    found = {(match[1], match[2] or "") for text in prose(source) for match in CITATION.finditer(text)}
    return {(key, section) for key, section in found if section or SOURCE_KEY.fullmatch(key)}


def citation_faults(cited: set[tuple[str, str]], status_by_key: Mapping[str, str]) -> list[str]:
    """What is wrong between the citations of the whole package and the table of specifications."""
    faults = []
    for key, section in sorted(cited):
        if key not in status_by_key:
            faults.append(f"[{key} {section}]: no such row")
        elif key == "FACT":
            if not GRADED_SECTION.fullmatch(section):
                faults.append(f"[{key} {section}]: wants a grade and a section, like [FACT D 1.2]")
        elif not (SECTION.fullmatch(section) or (key.startswith("PS-") and not section)):
            faults.append(f"[{key} {section}]: wants a section")
    used = {key for key, _ in cited}
    for key, status in status_by_key.items():
        if status not in STATUSES:
            faults.append(f"{key}: no such status: {status}")
        elif status in {"done", "partial"} and key not in used:
            faults.append(f"{key}: {status}, but cited nowhere")
        elif status == "not" and key in used:
            faults.append(f"{key}: cited, so its status is no longer 'not'")
    return faults


def test_citations_and_specifications_agree() -> None:
    with (ROOT / "docs" / "specifications.tsv").open(encoding="utf-8", newline="") as file:
        header, *rows = csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
    assert header == ["key", "status", "title", "where"]
    assert [row for row in rows if len(row) != 4 or not all(row)] == []
    keys = [row[0] for row in rows]
    assert keys == sorted(set(keys))

    sources = sorted(PACKAGE.rglob("*.py"))
    assert sources
    cited = set().union(*(citations(path.read_text(encoding="utf-8")) for path in sources))
    assert citation_faults(cited, {row[0]: row[1] for row in rows}) == []


@pytest.mark.parametrize(
    "source",
    [
        "x = 1  # [RFC5280 4.1.2.5] NotAfter itself is valid",
        '"""Seen in real logs [FACT O 3.2], [FACT D/C 5.3]."""\n# [RFC5280 A.1]',
        "# [PS-EXPORT-CLIXML] and [PS-EXPORT-CLIXML 2], [RFC5280 note]",
        "code = rows[RFC5280 if old else FACT]  # usage: [ORG] [--server NAME]",
    ],
)
def test_good_citations_pass(source: str) -> None:
    used = {key for key, _ in citations(source)}
    known = {"RFC5280", "FACT", "PS-EXPORT-CLIXML"}
    assert citation_faults(citations(source), {key: "done" if key in used else "not" for key in known}) == []


@pytest.mark.parametrize(
    ("source", "status_by_key", "fault"),
    [
        ("# [RFC9999 4.1]", {}, "no such row"),
        ("# [RFX5280 4.1]", {}, "no such row"),
        ('def f():\n    """Obeys [RFC9999]."""', {}, "no such row"),
        ("# [RFC5280]", {"RFC5280": "done"}, "wants a section"),
        ("# [RFC5280 ?]", {"RFC5280": "done"}, "wants a section"),
        ("# [FACT 1.2]", {"FACT": "partial"}, "wants a grade"),
        ("# [FACT X 1.2]", {"FACT": "partial"}, "wants a grade"),
        ("text = '[RFC5280 4.1]'", {"RFC5280": "done"}, "cited nowhere"),
        ("# [RFC5280 4.1]", {"RFC5280": "not"}, "no longer 'not'"),
        ("# [RFC5280 4.1]", {"RFC5280": "finished"}, "no such status"),
    ],
)
def test_bad_citations_are_found(source: str, status_by_key: dict[str, str], fault: str) -> None:
    assert fault in "\n".join(citation_faults(citations(source), status_by_key))


def fact_sections(document: str) -> dict[str, set[str]]:
    """Each numbered section of the facts, with the grades (in bold) that its own text gives."""
    _, *parts = FACT_HEADING.split(document)
    return {
        number: {grade for match in FACT_GRADE.finditer(text) for grade in match[1].split("/")}
        for number, text in zip(parts[::2], parts[1::2], strict=True)
    }


def fact_faults(cited: set[tuple[str, str]], grades_by_section: Mapping[str, set[str]]) -> list[str]:
    """Citations of facts that do not resolve; how one is written is the work of ``citation_faults``."""
    faults = []
    for key, section in sorted(cited):
        if key != "FACT" or not (match := GRADED_SECTION.fullmatch(section)):
            continue
        grades, number = match.groups()
        if number not in grades_by_section:
            faults.append(f"[{key} {section}]: no section {number}")
        elif absent := set(grades.split("/")) - grades_by_section[number]:
            faults.append(f"[{key} {section}]: section {number} has no fact of grade {', '.join(sorted(absent))}")
    return faults


def test_cited_facts_are_in_the_document() -> None:
    headings = FACT_HEADING.findall(document := (ROOT / "docs" / "facts.md").read_text(encoding="utf-8"))
    assert len(headings) == len(set(headings))
    cited = set().union(*(citations(path.read_text(encoding="utf-8")) for path in PACKAGE.rglob("*.py")))
    assert fact_faults(cited, fact_sections(document)) == []


@pytest.mark.parametrize(
    ("source", "fault"),
    [
        ("# [FACT D 1.2] and [FACT O/C 2], [RFC5280 9.9]", ""),
        ("# [FACT D 1.20]", "no section 1.20"),
        ("# [FACT D 3]", "no section 3"),
        ("# [FACT I 1.2]", "no fact of grade I"),
        ("# [FACT D/O 1.2]", "no fact of grade O"),
        ("# [FACT D 1]", "no fact of grade D"),
    ],
)
def test_facts_that_do_not_resolve_are_found(source: str, fault: str) -> None:
    document = "# Facts\n\n## 1 A\n\n### 1.2 B\n\nSo `<I>`. **D** (article 3)\n\n## 2 C\n\n| x | **C/O** |\n"
    faults = fact_faults(citations(source), fact_sections(document))
    assert fault in "\n".join(faults) if fault else faults == []


# --- what is decided touches nothing ----------------------------------------------------------------------------------

PURE = ("errors.py", "events.py", "facts/**/*.py", "selection/**/*.py", "smtp/**/*.py", "delivery/**/*.py")
IMPURE_FUNCTIONS = {"__import__", "breakpoint", "eval", "exec", "input", "open", "print"}
IMPURE_METHODS = {"now", "open", "read_bytes", "read_text", "today", "utcnow", "write_bytes", "write_text"}


def impure_calls(source: str) -> list[str]:
    """Calls that read the clock, touch a file or talk to somebody. Imports are import-linter's work."""
    found = []
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Call(func=ast.Name(id=name)) if name in IMPURE_FUNCTIONS:
                found.append(f"line {node.lineno}: {name}()")
            case ast.Attribute(attr=name, value=ast.Name(id="datetime" | "date" | "Path")) if name in IMPURE_METHODS:
                found.append(f"line {node.lineno}: {ast.unparse(node)}")
            case ast.Call(func=ast.Attribute(attr=name)) if name in IMPURE_METHODS:
                found.append(f"line {node.lineno}: .{name}()")
    return found


def test_what_is_decided_touches_nothing() -> None:
    sources = sorted(path for pattern in PURE for path in PACKAGE.glob(pattern))
    faults = {str(path.relative_to(ROOT)): impure_calls(path.read_text(encoding="utf-8")) for path in sources}
    assert {path: calls for path, calls in faults.items() if calls} == {}


@pytest.mark.parametrize(
    "snippet",
    [
        "open('x')",
        "print(1)",
        "def f(now=None):\n    return now or datetime.now(UTC)",
        "import datetime\ndatetime.datetime.utcnow()",
        "date.today()",
        "clock = datetime.now",
        "Path('x').read_text()",
    ],
)
def test_impure_calls_are_found(snippet: str) -> None:
    assert impure_calls(snippet)


def test_pure_code_passes() -> None:
    assert impure_calls("def valid(now: datetime) -> bool:\n    return now <= facts.now.opened") == []


# --- nothing of one machine, no registry ------------------------------------------------------------------------------

FORBIDDEN = re.compile(
    r"(?<![\w.])/(?:work|root|home/\w+)[/]"
    r"|\b(?:pypi|pythonhosted|debian|npmjs)[.](?:org|com)\b"
    r"|https?[:]//[^\s/]*(?:/[^\s/]+)*/simple\b"
)


def test_no_machine_paths_or_registries_in_the_files() -> None:
    if not shutil.which("git") or not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    listing = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listing, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split("\0")
    paths = [ROOT / name for name in names if (ROOT / name).is_file()]
    assert Path(__file__).resolve() in paths
    found = {
        str(path.relative_to(ROOT)): match[0]
        for path in paths
        if (match := FORBIDDEN.search(path.read_text(encoding="utf-8", errors="replace")))
    }
    assert found == {}


@pytest.mark.parametrize(
    "parts", [("/work", "/main"), ("https://pypi", ".org/project/x"), ("files.pythonhosted", ".org")]
)
def test_machine_paths_and_registries_are_found(parts: tuple[str, str]) -> None:
    assert FORBIDDEN.search("see " + "".join(parts))


@pytest.mark.parametrize("text", ["docs/framework/plan", "https://learn.microsoft.com/exchange", "../shared", "Debian"])
def test_other_paths_and_links_pass(text: str) -> None:
    assert not FORBIDDEN.search(text)


# --- public names, lock, changelog ------------------------------------------------------------------------------------


def test_public_names_are_sorted_and_importable() -> None:
    assert list(anontls.__all__) == sorted(set(anontls.__all__))
    assert [name for name in anontls.__all__ if not hasattr(anontls, name)] == []


def lock_faults(lock: str) -> list[str]:
    """Requirements without an exact version or a hash, and anything that names a place."""
    lines = lock.replace("\\\n", "").splitlines()
    requirements = [line for line in lines if line.strip() and not line.lstrip().startswith("#")]
    faults = [line for line in lines if "://" in line or line.lstrip().startswith("-")]
    faults += [line for line in requirements if not re.match(r"[\w.-]+==\S+.*--hash=sha256:[0-9a-f]{64}", line)]
    return faults if requirements else ["nothing locked"]


def test_lock_has_hashes_and_names_no_place() -> None:
    assert lock_faults((ROOT / "requirements.lock").read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "lock",
    [
        "",
        "click==8.2.0\n",
        "click>=8 \\\n    --hash=sha256:" + "0" * 64,
        "--index-url https://registry.example/\nclick==8.2.0 \\\n    --hash=sha256:" + "0" * 64,
    ],
)
def test_bad_locks_are_found(lock: str) -> None:
    assert lock_faults(lock)


def test_changelog_has_this_version() -> None:
    headings = re.findall(r"^## (.+)$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert headings
    assert headings[0] == "Unreleased" or headings[0].startswith(anontls.__version__)
