"""The Debian Administrator's Handbook as plain text, in two parts.

In:  the folder of its HTML pages, as the Debian package `debian-handbook` holds them.
Out: `evaluate.txt` and `choose.txt` in a folder: the first and the second half of the book, in its order,
     without what stands before the first chapter.
"""

import pathlib
import re
import sys
from html.parser import HTMLParser

# Each begins and ends a line.
BLOCKS = {*"div p pre ul ol dl li dt dd table tr br h1 h2 h3 h4 h5 h6".split()}
VOID = {"link", "meta", "img", "br", "hr", "col"}
# What belongs to the site and not to the book.
SITE = [("id", "banner"), ("id", "title"), ("class", "docnav"), ("class", "docnav top"), ("class", "toc")]


class Page(HTMLParser):
    """The lines of a page, and the name of the page that follows."""

    def __init__(self, html):
        super().__init__()
        self.lines, self.next = [""], None
        self.open = []  # tags, each with whether what it holds is left out
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attributes):
        if tag == "link" and ("rel", "next") in attributes:
            self.next = dict(attributes)["href"]
        if tag in BLOCKS:
            self.lines.append("")
        if tag not in VOID:
            left_out = tag == "head" or any(name in SITE for name in attributes)
            self.open.append((tag, left_out or self.leaves_out()))

    def handle_endtag(self, tag):
        if tag in VOID:
            return
        while self.open.pop()[0] != tag:
            pass
        if tag in BLOCKS:
            self.lines.append("")

    def handle_data(self, text):
        if self.leaves_out():
            return
        if ("pre", False) in self.open:
            first, *more = text.split("\n")
            self.lines[-1] += first
            self.lines += more
        else:
            # Blanks as a browser shows them: one between words, none at the begin of a line.
            line = self.lines[-1] + re.sub(r"\s+", " ", text)
            self.lines[-1] = line.replace("  ", " ").lstrip()

    def leaves_out(self):
        return bool(self.open) and self.open[-1][1]

    def text(self):
        lines = (line.rstrip() for line in self.lines)
        return "\n".join(line for line in lines if line) + "\n"


def pages(folder):
    """The texts of the pages after the table of contents, in the order of the book."""
    page = Page((folder / "index.html").read_text(encoding="utf-8"))
    seen = {"index.html"}
    while page.next and page.next not in seen:
        seen.add(page.next)
        page = Page((folder / page.next).read_text(encoding="utf-8"))
        yield page.text()


def main(folder, output):
    texts = list(pages(pathlib.Path(folder)))
    while not texts[0].startswith("Chapter 1."):
        texts.pop(0)
    half, before, first = sum(map(len, texts)) / 2, 0, []
    while before < half:
        first.append(texts.pop(0))
        before += len(first[-1])
    output = pathlib.Path(output)
    for name, part in [("evaluate", first), ("choose", texts)]:
        (output / f"{name}.txt").write_text("\n".join(part), encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: handbook.py FOLDER-OF-PAGES FOLDER-FOR-TEXTS")
    main(*sys.argv[1:])
