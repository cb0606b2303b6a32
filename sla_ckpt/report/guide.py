"""The rules' pages as HTML, so that the report explains its findings without a network.

Knows the Markdown that docs/rules/ is written in: headings, paragraphs, lists, fenced code,
tables, ``code``, **bold**, *emphasis* and links. Anything else stays as text.
"""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Iterable, Iterator

from sla_ckpt.checks.pages import rule_page
from sla_ckpt.errors import TargetNotFoundError
from sla_ckpt.report.markup import Child, Markup, el, join, text

_INLINE = re.compile(
    r"`(?P<code>[^`]+)`"
    r"|\*\*(?P<bold>[^*]+)\*\*"
    r"|(?<![\w*])\*(?P<emphasis>[^*\s][^*]*)\*"
    r"|\[(?P<label>[^\]]+)\]\((?P<url>[^)\s]+)\)"
)
_ITEM = re.compile(r"(?:[-*]|\d+\.) +(.*)")
_RULE_LINK = re.compile(r"(?:.*/)?(SLA\d{3})(?:\.md|/)?")


def explain(codes: Iterable[str], *, level: int) -> Iterator[Markup]:
    """An article for each rule whose page this installation has; its id is ``rule-CODE``.

    Args:
        codes: Rule codes.
        level: Heading level of a rule's title.
    """
    wanted = tuple(codes)
    for code in wanted:
        try:
            page = rule_page(code)
        except TargetNotFoundError:
            continue
        title, body = _split_title(page)
        yield el(
            "article",
            el(f"h{level}", title or code),
            render(body, level=level, known=wanted),
            id=f"rule-{code}",
            class_="rule",
        )


def has_page(code: str) -> bool:
    """Whether :func:`explain` has something to say about a rule."""
    try:
        rule_page(code)
    except TargetNotFoundError:
        return False
    return True


def _split_title(page: str) -> tuple[str, str]:
    first, _, rest = page.partition("\n")
    return (first[2:].strip(), rest) if first.startswith("# ") else ("", page)


def render(markdown: str, *, level: int = 1, known: Iterable[str] = ()) -> Markup:
    """Markdown as HTML.

    Args:
        markdown: The text.
        level: Heading level that ``#`` becomes.
        known: Rules that have an article on the page; links to others become their code.
    """
    rules = frozenset(known)
    lines = markdown.splitlines()
    blocks: list[Markup] = []
    position = 0
    while position < len(lines):
        line = lines[position].rstrip()
        if not line or (line.startswith("<!--") and line.endswith("-->")):
            position += 1
            continue
        if line.startswith("```"):
            end = _find(lines, position + 1, lambda item: item.startswith("```"))
            code = Markup(html.escape("\n".join(lines[position + 1 : end])))
            blocks.append(el("pre", el("code", code), tabindex=0))
            position = end + 1
        elif match := re.match(r"(#{1,5}) +(.*)", line):
            rank = min(level + len(match[1]) - 1, 6)
            blocks.append(el(f"h{rank}", _inline(match[2], rules)))
            position += 1
        elif line.startswith("|"):
            end = _find(lines, position, lambda item: not item.startswith("|"))
            blocks.append(_table(lines[position:end], rules))
            position = end
        elif _ITEM.match(line):
            end = _find(lines, position, lambda item: not item.strip())
            blocks.append(_list(lines[position:end], rules))
            position = end
        else:
            end = _find(lines, position, lambda item: not item.strip() or item.startswith("```"))
            blocks.append(el("p", _inline(" ".join(lines[position:end]), rules)))
            position = end
    return Markup("\n".join(blocks))


def _find(lines: list[str], start: int, stop: Callable[[str], bool]) -> int:
    return next((i for i in range(start, len(lines)) if stop(lines[i])), len(lines))


def _list(lines: list[str], rules: frozenset[str]) -> Markup:
    items: list[str] = []
    for line in lines:
        match = _ITEM.match(line)
        if match:
            items.append(match[1])
        elif items:
            items[-1] += f" {line.strip()}"
    tag = "ol" if lines[0][0].isdigit() else "ul"
    return el(tag, [el("li", _inline(item, rules)) for item in items])


def _table(lines: list[str], rules: frozenset[str]) -> Markup:
    rows = [[cell.strip() for cell in line.strip().strip("|").split("|")] for line in lines]
    body = [row for row in rows[1:] if not all(re.fullmatch(r":?-+:?", cell) for cell in row)]
    head = el("thead", el("tr", [el("th", _inline(c, rules), scope="col") for c in rows[0]]))
    cells = [el("tr", [el("td", _inline(cell, rules)) for cell in row]) for row in body]
    return el("div", el("table", head, el("tbody", cells)), class_="scroll", tabindex=0)


def _inline(source: str, rules: frozenset[str]) -> Markup:
    parts: list[Child] = []
    position = 0
    for match in _INLINE.finditer(source):
        parts.append(text(source[position : match.start()], limit=4000))
        position = match.end()
        if match["code"]:
            parts.append(el("code", match["code"]))
        elif match["bold"]:
            parts.append(el("strong", match["bold"]))
        elif match["emphasis"]:
            parts.append(el("em", match["emphasis"]))
        else:
            parts.append(_link(match["label"], match["url"], rules))
    parts.append(text(source[position:], limit=4000))
    return join(parts)


def _link(label: str, url: str, rules: frozenset[str]) -> Markup:
    if url.startswith("https://"):
        return el("a", label, href=url, rel="noreferrer")
    rule = _RULE_LINK.fullmatch(url)
    if rule and rule[1] in rules:
        return el("a", label, href=f"#rule-{rule[1]}")
    return text(label)
