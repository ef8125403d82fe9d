"""What the site does to the pages: a link to a file outside docs/ becomes its path in words."""

from __future__ import annotations

import re
from pathlib import PurePosixPath
from typing import Any

_LINK = re.compile(r"\[([^\]]+)\]\(((?:\.\./)+[^)#\s]*)(#[^)\s]*)?\)")


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Return the page with its links out of docs/ put into words; other links stay."""
    folder = PurePosixPath(page.file.src_uri).parent

    def spelt(match: re.Match[str]) -> str:
        parts: list[str] = ["docs", *folder.parts]
        for part in PurePosixPath(match[2]).parts:
            if part == "..":
                parts.pop()
            else:
                parts.append(part)
        return match[0] if parts[:1] == ["docs"] else f"{match[1]} (`{'/'.join(parts)}`)"

    return _LINK.sub(spelt, markdown)
