"""Whether every link between the built pages leads somewhere: the page exists, and so does the place in it.

    python docs/check_links.py build/docs

Links that leave the site are listed with --external and not followed.
"""

import argparse
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit


class Page(HTMLParser):
    """The places of a page that can be linked to, and the links on it."""

    def __init__(self, text: str):
        super().__init__()
        self.places: set[str] = set()
        self.links: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.places.update(value for name in ("id", "name") if (value := given.get(name)))
        if link := given.get("href") or given.get("src"):
            self.links.append(link)


def broken(site: Path) -> tuple[list[str], set[str]]:
    """One line for each link that leads nowhere, and the addresses outside."""
    pages = {
        path.resolve(): Page(path.read_text(encoding="utf-8"))
        for path in site.rglob("*.html")
        if "_static" not in path.parts
    }
    lines, outside = [], set()
    for path, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                outside.add(link)
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            place = unquote(parts.fragment)
            if not target.exists():
                lines.append(f"{path.relative_to(site.resolve())}: {link} (no such page)")
            elif place and target in pages and place not in pages[target].places:
                lines.append(f"{path.relative_to(site.resolve())}: {link} (no such place on the page)")
    return sorted(set(lines)), outside


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("site", type=Path)
    parser.add_argument("--external", action="store_true")
    given = parser.parse_args()
    lines, outside = broken(given.site)
    if given.external:
        print(*sorted(outside), sep="\n")
    if lines:
        sys.exit("links that lead nowhere:\n" + "\n".join(lines))


if __name__ == "__main__":
    main()
