"""HTML from plain text: every cell and sentence goes through here and is escaped."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape


def element(name: str, text: str, **attributes: str) -> str:
    """One element with text in it. `kind` stands for the class."""
    return f"<{name}{_attributes(attributes)}>{escape(text)}</{name}>"


def around(name: str, parts: Iterable[str], **attributes: str) -> str:
    """An element around others, which are HTML already."""
    return f"<{name}{_attributes(attributes)}>{''.join(parts)}</{name}>"


def table(caption: str, head: Sequence[str], rows: Iterable[Sequence[str]], *, words: bool = False) -> str:
    """A table whose first column names the row. Figures are set to the right, `words` to the left.

    A row whose first cell begins with '≠ ' is one in which columns differ, and is set apart.
    """
    body = []
    for first, *cells in rows:
        differs = first.startswith("≠ ")
        name = element("th", first, scope="row")
        body.append(around("tr", [name, *(element("td", cell) for cell in cells)], kind="differs" if differs else ""))
    columns = around("tr", [element("th", name, scope="col") for name in head])
    content = [element("caption", caption), around("thead", [columns]), around("tbody", body)]
    inner = around("table", content, kind="words" if words else "figures")
    return around("div", [inner], kind="wide", tabindex="0", role="region", aria_label=caption)


def _attributes(attributes: dict[str, str]) -> str:
    return "".join(
        f' {"class" if name == "kind" else name.replace("_", "-")}="{escape(value)}"'
        for name, value in attributes.items()
        if value
    )
