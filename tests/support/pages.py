"""Pages that gpukit makes: read, and searched for what could act."""

import html.parser
import json
import re
from typing import Any

# No end tag belongs to these.
VOID = {"meta", "link", "br"}
# Characters that act on what stands around them.
ACTING = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufeff]"
)
# What a text, a vocabulary or a name may hold.
HOSTILE = (
    "</script><script>alert(1)</script>",
    "<img src=http://evil.test/x onerror=alert(1)>",
    "\"'><svg/onload=alert(1)>",
    "<!--<script>",
    "]]>&amp;&#60;b&#62;",
    "{{ 7 * 7 }}{% raw %}",
    "\u202eright to left\u2066\u2069\u200f",
    "\x00\x07\x1b[31m\x7f\x85\u2028\u2029\ufeff",
    "\ud800\udfff",
    "e" + "\u0301" * 400,
    "W" * 5000,
    "</style><style>@import url(//evil.test)</style>",
)


class Reader(html.parser.HTMLParser):
    """Elements of a page; an end tag that ends another than the last fails."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        assert len({name for name, _ in attrs}) == len(attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("script", "style"):
            self.text += data


def data_of(text: str, name: str = "gpukit-report") -> Any:
    """The JSON in a page."""
    pattern = rf'<script type="application/json" id="{name}">(.*?)</script>'
    (found,) = re.findall(pattern, text, re.S)
    return json.loads(found)


def check_harmless(text: str, name: str = "gpukit-report") -> Reader:
    """That a page holds nothing that runs and nothing that is fetched."""
    found = Reader(text)
    assert [attrs for tag, attrs in found.tags if tag == "script"] == [
        {"type": "application/json", "id": name}
    ]
    tags = {tag for tag, _ in found.tags}
    assert not tags & {"img", "iframe", "object", "embed", "base", "form", "a", "image", "use"}
    for _, attrs in found.tags:
        assert not any(name.startswith("on") or name in ("src", "srcset") for name in attrs)
        assert attrs.get("href") in (None, "data:,")
    (style,) = re.findall(r"<style>(.*?)</style>", text, re.S)
    assert "url(" not in style
    assert "@import" not in style
    outside = re.sub(r"<script.*?</script>", "", text, flags=re.S)
    assert not ACTING.search(outside)
    return found
