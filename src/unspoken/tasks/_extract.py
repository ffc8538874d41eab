r"""Find the answer in the text of an answer phase: a fixed order of rules, each of them named.

The order: the last balanced `\boxed{}` or `\fbox{}`, then `<answer>..</answer>`, then the last
`#### x`, then the last "answer is x" or "answer: x", then the last number of the text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

BOXED = "boxed"
ANSWER_TAG = "answer_tag"
HASHES = "hashes"
ANSWER_IS = "answer_is"
LAST_NUMBER = "last_number"


class Candidate(NamedTuple):
    """A piece of text that may be the answer, and the rule that found it."""

    rule: str
    text: str


_BOX_START = re.compile(r"\\+(?:boxed|fbox)(?![a-zA-Z])")
_BOX_TOKEN = re.compile(r"(?P<box>\\+(?:boxed|fbox)(?![a-zA-Z])\s*(?P<brace>\{)?)|\\.|[{}]", re.DOTALL)
# `\boxed 5` boxes one token; a fraction is the only command that is worth reading there.
_BARE = re.compile(r"\\[dt]?frac\s*(?:\{[^{}]*\}|\d)\s*(?:\{[^{}]*\}|\d)|[^\s{}$\\]+")
_ANSWER_IS = re.compile(
    r"\banswers?\b(?:\s+(?:to|of|for)\s[^.\n:=]{0,80}?)?[\s*_]{0,4}"
    r"(?:(?:is|are|equals|will be|would be|should be|must be)\b|[:=])[\s*_:]*",
    re.IGNORECASE,
)
_SENTENCE_END = re.compile(r"(?<!\\)[.!?](?=[\s*]|$)|\n|$")
_MATH_SPAN = re.compile(r"\$\$?([^$]+)\$\$?|\\\((.+?)\\\)|\\\[(.+?)\\\]", re.DOTALL)
_NUMBER = re.compile(
    r"(?:(?<![\w)\]}])[-\u2212])?(?:\\?[$\u20ac\u00a3\u00a5])?(?:"
    r"\\[dt]?frac\s*(?:\{-?[\d,.]+\}|\d)\s*(?:\{-?[\d,.]+\}|\d)"
    r"|(?<![\w^])(?!\d+(?:st|nd|rd|th)\b)(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?(?:[eE][-+]?\d+)?"
    r"(?:\s?/\s?\d+(?![\d/]))?"
    r"|(?<!\w)\.\d+)"
)
_UP_TO_LAST_DIGIT = re.compile(r".*\d", re.DOTALL)
_LEAD_IN = re.compile(r"[\s*_:~(\"'`]*")
_WINDOW = 80  # characters before the last digit that are searched first
_PHRASE = 500  # longest phrase after "answer is" or `####`; keeps a repetitive text linear
_TRIES = 20  # statements of one kind that are looked at, from the last one back


def candidates(text: str) -> Iterator[Candidate]:
    """All candidates, best first. Lazy: later rules cost nothing when an earlier one is taken."""
    if "box" in text:
        for content in reversed(boxes(text)):
            yield Candidate(BOXED, content)
    close = text.rfind("</answer>")
    if close >= 0:
        # A forced opener is not part of the answer phase, so that a closing tag alone also counts.
        start = text.rfind("<answer>", 0, close)
        content = text[start + len("<answer>") if start >= 0 else 0 : close].strip()
        if content:
            yield Candidate(ANSWER_TAG, content)
    yield from _after_hashes(text)
    if "nswer" in text or "NSWER" in text:
        for match in list(_ANSWER_IS.finditer(text))[: -_TRIES - 1 : -1]:
            end = _SENTENCE_END.search(text, match.end(), match.end() + _PHRASE)
            phrase = text[match.end() : end.start() if end else match.end() + _PHRASE].strip(" \t*_")
            if phrase:
                yield Candidate(ANSWER_IS, phrase)
    number = last_number(text)
    if number is not None:
        yield Candidate(LAST_NUMBER, number)


def boxes(text: str) -> list[str]:
    """Contents of the outermost balanced boxes, in order, empty ones left out."""
    return [content for box in _raw_boxes(text) if (content := _unwrap(box))]


def _raw_boxes(text: str) -> list[str]:
    # One pass over the braces with a stack, so that a text full of unclosed boxes stays linear.
    first = _BOX_START.search(text)
    if first is None:
        return []
    found: list[tuple[int, int, str]] = []
    open_braces: list[tuple[int, int] | None] = []
    for token in _BOX_TOKEN.finditer(text, first.start()):
        if token["brace"]:
            open_braces.append((token.start(), token.end()))
        elif token["box"]:
            bare = _BARE.match(text, token.end())
            if bare:
                found.append((token.start(), bare.end(), bare.group().rstrip(".,;:!?")))
        elif token.group() == "{":
            open_braces.append(None)
        elif token.group() == "}" and open_braces:
            box = open_braces.pop()
            if box is not None:
                found.append((box[0], token.end(), text[box[1] : token.start()]))
    contents, reached = [], 0
    for start, end, content in sorted(found, key=lambda box: (box[0], -box[1])):
        if start >= reached:
            reached = end
            contents.append(content)
    return contents


def _unwrap(content: str) -> str:
    r"""Take off spare braces (`{5}`, as in prompts that show `\boxed{{}}`) and boxes inside a box."""
    content = content.strip()
    for _ in range(8):
        inner = _raw_boxes(content) if _BOX_START.match(content) else []
        if len(inner) == 1:
            content = inner[0].strip()
        elif content.startswith("{") and content.endswith("}") and _closes_at_end(content):
            content = content[1:-1].strip()
        else:
            break
    return content


def _closes_at_end(text: str) -> bool:
    depth = 0
    for token in re.finditer(r"\\.|[{}]", text, re.DOTALL):
        depth += {"{": 1, "}": -1}.get(token.group(), 0)
        if depth == 0 and token.end() < len(text) and token.group() == "}":
            return False
    return depth == 0


def _after_hashes(text: str) -> Iterator[Candidate]:
    at = len(text)
    for _ in range(_TRIES):
        at = text.rfind("####", 0, at)
        if at < 0:
            return
        line = text[at + 4 : at + 4 + _PHRASE].partition("\n")[0].strip(" \t*_")
        if line:
            yield Candidate(HASHES, line)


def math_part(phrase: str) -> str:
    """The formula of a phrase when it holds exactly one, else the whole phrase."""
    spans = [next(group for group in match.groups() if group) for match in _MATH_SPAN.finditer(phrase)]
    return spans[0].strip() if len(spans) == 1 else phrase.strip()


def last_number(text: str) -> str | None:
    """The last number written in a text, with its sign and currency, or None."""
    reach = _UP_TO_LAST_DIGIT.match(text)
    if reach is None:
        return None
    # The last number is nearly always within a few characters of the last digit: look there first.
    start = max(0, reach.end() - _WINDOW)
    while start > 0 and not text[start - 1].isspace():
        start -= 1
    for begin in (start, 0):
        found = _NUMBER.findall(text, begin)
        if found or begin == 0:
            return found[-1] if found else None
    return None


def number_in(phrase: str) -> str | None:
    """The number a phrase states: the one it starts with (after the last `=`), else its last number."""
    tail = phrase.rpartition("=")[2]
    lead = _LEAD_IN.match(tail)
    match = _NUMBER.match(tail, lead.end() if lead else 0)
    return match.group() if match else last_number(phrase)
