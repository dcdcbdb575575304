"""A report as one HTML page that needs nothing else: style, script and numbers are inside, and no address of anything.

Ids and labels are text of strangers. They reach the page in two ways: escaped in the few lines that are written here,
and in the JSON block, from which the script makes text nodes alone. A policy in the page forbids every script and style
but the two that belong to it (named by their hashes), and every connection.
"""

import base64
import hashlib
import json
from collections.abc import Iterable, Mapping
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

from ahernet.files import replace_when_complete

# Of the page, from top to bottom: id, heading.
SECTIONS = (
    ("classes", "Classes"),
    ("recall", "Recall of proposals"),
    ("errors", "Error analysis"),
    ("sensitivity", "Sensitivity"),
    ("losses", "Training loss"),
    ("timelines", "Timelines"),
)


def write_page(path: Path, content: Mapping[str, Any]) -> None:
    """Write what `report_content` returned as one HTML file.

    Raises:
        UserError: the file cannot be written.
    """
    text = page(content)
    with replace_when_complete(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def page(content: Mapping[str, Any]) -> str:
    """Return the HTML of what `report_content` returned."""
    style, script = (_part(name) for name in ("page.css", "page.js"))
    policy = (
        f"default-src 'none'; style-src '{_digest(style)}'; script-src '{_digest(script)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    title = escape(content["title"])
    sections = [entry for entry in SECTIONS if entry[0] != "losses" or content["losses"] is not None]
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en">',
            "<head>",
            '<meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<meta name="color-scheme" content="light dark">',
            f"<title>{title}</title>",
            f"<style>{style}</style>",
            "</head>",
            "<body>",
            "<header>",
            f"<h1>{title}</h1>",
            _sources(content),
            "<nav>",
            *(f'<a href="#{name}">{escape(heading)}</a>' for name, heading in sections),
            "</nav>",
            "</header>",
            "<main>",
            "<noscript><p>Tables of classes, curves and timelines need JavaScript.</p></noscript>",
            *_precision(content),
            *(f'<section id="{name}"><h2>{escape(heading)}</h2></section>' for name, heading in sections),
            "</main>",
            f"<footer>Made by ahernet {escape(content['version'])}</footer>",
            f'<script type="application/json" id="content">{_embedded(content)}</script>',
            f"<script>{script}</script>",
            "</body>",
            "</html>",
            "",
        ]
    )


def _part(name: str) -> str:
    return files("ahernet.reporting").joinpath(name).read_text(encoding="utf-8")


def _digest(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _embedded(content: Mapping[str, Any]) -> str:
    """Return JSON that no text in it can end: without the signs that HTML knows, and ASCII alone."""
    text = json.dumps(content, allow_nan=False, separators=(",", ":"))
    for sign in "<>&":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return text


def _sources(content: Mapping[str, Any]) -> str:
    named = [f"{escape(kind)} <b>{escape(name)}</b>" for kind, name in content["sources"].items()]
    counts = [f"{content[kind]:,} {kind}" for kind in ("videos", "instances", "detections")]
    return f"<p>{', '.join(named)}<br>{', '.join(counts)}; {escape(content['coverage'])}</p>"


def _precision(content: Mapping[str, Any]) -> list[str]:
    precision = content["precision"]
    interval = precision["interval"]
    heads = ["average", *(f"{threshold:.2f}" for threshold in precision["thresholds"])]
    means = [precision["mean"], *precision["mean_per_threshold"]]
    ends = [interval["mean"], *interval["per_threshold"]]
    percent = f"{100 * interval['level']:g} %"
    groups = ", and over those of each group (how many occur)" if precision["groups"] else ""
    return [
        '<section id="precision"><h2>Mean average precision</h2>',
        '<div class="wide"><table>',
        _row("th", ["tIoU", *heads]),
        _row("td", ["mAP, %", *(_percent(mean) for mean in means)]),
        *(
            _row("td", [f"{percent} interval, {end}", *(_percent(interval[number]) for interval in ends)])
            for number, end in enumerate(("from", "to"))
        ),
        *(_group(group) for group in precision["groups"]),
        "</table></div>",
        f'<p class="note">Mean over the classes{groups}. The interval comes from '
        f"{interval['draws']:,} draws of the videos with replacement (bootstrap): how far the score depends on which "
        "videos are in the set.</p></section>",
    ]


def _group(group: Mapping[str, Any]) -> str:
    means = [group["mean"], *group["mean_per_threshold"]]
    return _row("td", [f"{group['name']} ({group['classes']:,}), %", *(_percent(mean) for mean in means)])


def _row(tag: str, cells: Iterable[str]) -> str:
    first, *others = (escape(cell) for cell in cells)
    return f'<tr><th scope="row">{first}</th>' + "".join(f"<{tag}>{cell}</{tag}>" for cell in others) + "</tr>"


def _percent(fraction: float | None) -> str:
    return "n/a" if fraction is None else f"{100 * fraction:.2f}"
