"""Reading a page as a strict parser does."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from xml.etree.ElementTree import Element

import html5lib


@dataclass(frozen=True)
class Page:
    """A parsed page; making one fails if the HTML is not well-formed."""

    source: str

    @cached_property
    def root(self) -> Element:
        parser = html5lib.HTMLParser(strict=True, namespaceHTMLElements=False)
        root: Element = parser.parse(self.source)
        return root

    def all(self, name: str, **attributes: str) -> list[Element]:
        """Elements by name (any namespace) and attributes; ``class_`` matches one of several."""
        found = []
        for element in self.root.iter():
            if not isinstance(element.tag, str) or element.tag.rpartition("}")[2] != name:
                continue
            if all(_matches(element, key, value) for key, value in attributes.items()):
                found.append(element)
        return found

    def text(self, name: str = "body", **attributes: str) -> str:
        """What a reader sees of the elements, white space collapsed."""
        parts = [" ".join(e.itertext()) for e in self.all(name, **attributes)]
        return re.sub(r"\s+", " ", " ".join(parts)).strip()

    @cached_property
    def ids(self) -> list[str]:
        return [e.attrib["id"] for e in self.root.iter() if "id" in e.attrib]


def _matches(element: Element, key: str, value: str) -> bool:
    found = element.attrib.get(key.rstrip("_"), "")
    return value in found.split() if key == "class_" else found == value
