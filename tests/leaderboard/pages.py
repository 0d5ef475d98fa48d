"""A page with everything that a page can show, and a reader of HTML."""

from __future__ import annotations

from dataclasses import replace
from html.parser import HTMLParser

from robustbench_lite.leaderboard import Leaderboard
from robustbench_lite.verdict import Verdict

VOID = {"meta", "link", "br", "img", "input", "wbr", "line", "rect", "circle", "path", "hr"}

VERDICTS = (
    Verdict(
        check="zero-gradients",
        outcome="fail",
        evidence="the gradient is zero on 212 of 500 examples",
        advice="attack it through a surrogate",
        value=0.424,
        threshold=0.01,
    ),
    Verdict(check="more-steps-help", outcome="warn", evidence="400 steps beat 9 examples more than 40 do", advice="more steps"),
    Verdict(check="one-step", outcome="pass", evidence="one step beats fewer than many"),
)


def with_verdicts(table: Leaderboard, defense: str, verdicts=VERDICTS) -> Leaderboard:
    """The table with verdicts on one of its defenses, which are among its flags and notes as in a built table."""
    rows = [
        replace(
            row,
            verdicts=verdicts,
            flags=row.flags + tuple(f"{v.check}: {v.evidence}" for v in verdicts if v.outcome == "fail"),
            notes=row.notes + tuple(f"{v.check}: {v.evidence}" for v in verdicts if v.outcome == "warn"),
        )
        if row.defense == defense
        else row
        for row in table.rows
    ]
    return replace(table, rows=tuple(rows))


class Page(HTMLParser):
    """What is on a page: tags with attributes, ids, texts by tag. Fails where tags are not closed in order."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.texts: dict[str, list[str]] = {}
        self.text = ""
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names)), f"{tag} has an attribute twice"
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)
            self.texts.setdefault(tag, []).append("")

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag):
        assert self.open, f"</{tag}> closes nothing"
        assert self.open[-1] == tag, f"</{tag}> where {self.open[-1]} is open"
        self.open.pop()

    def handle_data(self, data):
        for tag in set(self.open):
            self.texts[tag][-1] += data
        if not {"script", "style"} & set(self.open):
            self.text += data

    def all(self, tag: str) -> list[dict[str, str]]:
        """The attributes of all tags of that name."""
        return [attrs for name, attrs in self.tags if name == tag]

    def values(self, attribute: str) -> list[str]:
        """All values of an attribute."""
        return [attrs[attribute] for _, attrs in self.tags if attribute in attrs]
