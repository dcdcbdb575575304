import base64
import hashlib
import json
import re
import shutil
import subprocess
from collections import Counter
from html.parser import HTMLParser
from importlib.resources import files

import pytest
from evaluation_rows import annotations_of, detections_of

from ahernet.errors import UserError
from ahernet.reporting.content import ReportSettings, report_content
from ahernet.reporting.page import page, write_page

VOID = {"meta", "br", "link", "img", "input", "hr"}
HOSTILE = (
    "</script><script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "<!--<script>",
    "]]>&lt;b&gt;",
    "' onmouseover='alert(1)",
    "\u2028\u2029line",
    "\u202eright to left",
    "\x00\x1b[31m",
    "javascript:alert(1)",
    "${alert(1)}",
    "__proto__",
)


class Page(HTMLParser):
    """Elements of a page; fails where one is closed that is not open."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.open, self.elements, self.texts = [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append((self.open[-1] if self.open else "", data))

    def text_of(self, tag):
        return [text for own, text in self.texts if own == tag]

    @property
    def content(self):
        return json.loads(self.text_of("script")[0])


def page_of(truths, found, title="Report", losses=None):
    settings = ReportSettings(title, {"detections": title}, draws=10)
    content, _ = report_content(detections_of(found), annotations_of(truths), settings, losses)
    return page(content)


@pytest.fixture(scope="module")
def plain():
    truths = [("u", "run", 0.0, 10.0), ("v", "jump", 5.0, 20.0)]
    found = [("u", "run", 0.0, 9.0, 0.9), ("v", "jump", 5.0, 20.0, 0.8), ("v", "run", 0.0, 3.0, 0.1)]
    losses = [{"iteration": 1, "total": 2.0, "learning_rate": 0.1}]
    return page_of(truths, found, losses=losses)


def test_the_page_is_well_formed_and_has_every_section(plain):
    parsed = Page(plain)
    assert plain.startswith("<!doctype html>")
    counts = Counter(tag for tag, _ in parsed.elements)
    assert (counts["html"], counts["head"], counts["body"], counts["h1"], counts["title"]) == (1, 1, 1, 1, 1)
    ids = [attributes["id"] for _, attributes in parsed.elements if "id" in attributes]
    assert len(set(ids)) == len(ids)
    links = [attributes["href"] for tag, attributes in parsed.elements if tag == "a"]
    assert links == [f"#{name}" for name in ("classes", "recall", "errors", "sensitivity", "losses", "timelines")]
    assert {link[1:] for link in links} | {"precision", "content"} == set(ids)


def test_the_table_has_the_numbers_of_the_content(plain):
    parsed = Page(plain)
    precision = parsed.content["precision"]
    expected = [f"{100 * value:.2f}" for value in [precision["mean"], *precision["mean_per_threshold"]]]
    assert parsed.text_of("td")[: len(expected)] == expected


def test_a_report_without_a_run_has_no_section_of_losses():
    text = page_of([("u", "a", 0.0, 5.0)], [("u", "a", 0.0, 5.0, 1.0)])
    assert 'id="losses"' not in text
    assert "#losses" not in text


def test_the_page_names_no_address_and_loads_nothing(plain):
    assert set(re.findall(r"https?://[^\s\"']*", plain)) == {"http://www.w3.org/2000/svg"}  # a name, never fetched
    parsed = Page(plain)
    for _, attributes in parsed.elements:
        assert not {"src", "srcset", "action", "data", "poster", "style"} & attributes.keys()
        assert not any(name.startswith("on") for name in attributes)
    assert not re.search(r"@import|url\(", plain)


def test_the_policy_allows_the_own_script_and_style_alone(plain):
    parsed = Page(plain)
    policy = next(
        attributes["content"]
        for _, attributes in parsed.elements
        if attributes.get("http-equiv") == "Content-Security-Policy"
    )
    assert policy.startswith("default-src 'none'; ")
    assert "unsafe" not in policy
    (style,), script = parsed.text_of("style"), parsed.text_of("script")[1]
    for text in (style, script):
        assert base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() in policy


@pytest.mark.parametrize("name", HOSTILE)
def test_names_of_strangers_stay_text(name):
    text = page_of([(name, name, 0.0, 10.0)], [(name, name, 0.0, 9.0, 0.9), (f"{name}2", name, 0.0, 9.0, 0.4)], name)
    parsed = Page(text)
    counts = Counter(tag for tag, _ in parsed.elements)
    assert counts["script"] == 2
    assert counts["img"] == 0
    assert not any(attribute.startswith("on") for _, attributes in parsed.elements for attribute in attributes)
    assert not re.search("[\x00-\x09\x0b-\x1f\u2028\u2029\u202e]", text)
    shown = parsed.content["names"][0]
    assert parsed.content["timelines"]["videos"][0]["id"] == shown
    assert parsed.text_of("h1") == [shown]
    if name.isprintable():
        assert shown == name


def test_the_block_of_numbers_holds_no_sign_of_html():
    text = page_of([(name, name, 0.0, 10.0) for name in HOSTILE], [])
    block = text.split('id="content">')[1].split("</script>")[0]
    assert not set("<>&") & set(block)
    assert block.isascii()


def test_the_script_makes_no_markup_of_text():
    script = files("ahernet.reporting").joinpath("page.js").read_text(encoding="utf-8")
    for word in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "Function(", "fetch("):
        assert word not in script


@pytest.mark.skipif(shutil.which("node") is None, reason="no node to parse JavaScript with")
def test_the_script_is_valid():
    with_path = files("ahernet.reporting").joinpath("page.js")
    result = subprocess.run(["node", "--check", str(with_path)], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_a_page_of_thousands_of_videos_stays_small():
    label = "a label of some length, number"
    truths = [(f"video {n:05}", f"{label} {n % 700}", 1.0, 50.0) for n in range(3000)]
    found = [(*row[:2], 1.0 + m, 50.0 + m, 1 / (m + 1)) for row in truths for m in range(3)]
    longest = [("x" * 3000, "y" * 3000, 0.0, 1.0)]
    text = page_of(truths + longest, found)
    assert len(text) < 500_000
    assert Page(text).content["timelines"]["of"] == 3001


def test_a_page_is_written_whole_or_not_at_all(tmp_path):
    content, _ = report_content(
        detections_of([("u", "a", 0.0, 5.0, 1.0)]),
        annotations_of([("u", "a", 0.0, 5.0)]),
        ReportSettings("t", {}, draws=2),
    )
    write_page(tmp_path / "report.html", content)
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == page(content)
    with pytest.raises(UserError, match="cannot write there"):
        write_page(tmp_path / "missing" / "report.html", content)
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
