"""Can the documents be read? Lengths of sentences and paragraphs, and how many numbers they hold.

Code, tables and headings are left out: numbers belong there.
"""

from __future__ import annotations

import re
import statistics
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MOST = {
    "words of the median sentence": 15,
    "share of sentences over 35 words": 0.06,
    "words of the longest paragraph": 130,
    "numbers in 100 words": 6.0,
}
DOCUMENTS = sorted(
    str(path.relative_to(ROOT))
    for pattern in ("*.md", "docs/**/*.md", "examples/**/*.md")
    for path in ROOT.glob(pattern)
    if path.name != "CHANGELOG.md"
)


def paragraphs(text: str) -> list[str]:
    """Running text, an item of a list being a paragraph; links by their words, code by one word."""
    text = re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S)
    text = re.sub(r"<!--.*?-->|<[^>]+>", "", text, flags=re.S)
    found: list[list[str]] = [[]]
    for line in text.splitlines():
        item = re.match(r"\s*(?:[-*]|\d+\.) (.*)", line)
        if item or not line.strip() or re.match(r"\s*[|#]", line):
            found.append([item[1]] if item else [])
        else:
            found[-1].append(line.strip())
    joined = (re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", " ".join(lines)) for lines in found)
    told = [re.sub(r"`[^`]*`", "CODE", text) for text in joined]
    return [text for text in told if len(text.split()) > 2]


def measured(text: str) -> dict[str, float]:
    """What MOST bounds, of one document."""
    parts = paragraphs(text)
    ends = r"(?<=[.!?:;])\s+(?=[A-Z\"(*])"
    sentences = [len(s.split()) for part in parts for s in re.split(ends, part)]
    lengths = [n for n in sentences if n > 2]
    words = sum(len(part.split()) for part in parts)
    numbers = sum(len(re.findall(r"\d+[\d.,]*%?", part)) for part in parts)
    values = (
        statistics.median(lengths),
        sum(n > 35 for n in lengths) / len(lengths),
        max(len(part.split()) for part in parts),
        100 * numbers / words,
    )
    return dict(zip(MOST, values, strict=True))


@pytest.mark.parametrize("document", DOCUMENTS)
def test_a_document_can_be_read(document):
    found = measured((ROOT / document).read_text("utf-8"))
    assert {name: value for name, value in found.items() if value > MOST[name]} == {}


def test_what_is_measured():
    text = (
        "# A heading of 9 words that is left out here\n\nOne two three. Four five 6, 7 seven\n"
        "and [eight](docs/nine.md).\n\n```\nno word of 1 2 3 code\n```\n- `a b c` is one\n"
        "| 1 | 2 |\n"
    )
    assert paragraphs(text) == ["One two three. Four five 6, 7 seven and eight.", "CODE is one"]
    found = measured(text + "\n\n" + " ".join(["word"] * 36) + ".\n")
    assert [*found.values()] == [5, 0.25, 36, pytest.approx(100 * 2 / 49)]
