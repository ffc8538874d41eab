"""Python functions to complete (HumanEval, Chen et al. 2021): the code is generated, and never run here.

A file has one object a row, as JSONL, JSON list or CSV, with `prompt` (imports, signature and docstring, kept to the
letter), and optionally `task_id` and `entry_point`. To find out whether a function is right it must be run, which
takes a sandbox that is no part of this package, so that every answer is `ungraded`. The body that was read is the
answer of the row: `jq -c '{task_id: .example, completion: .answer}' rows.jsonl > samples.jsonl` gives the file that
the published evaluation runs.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from unspoken.errors import ConfigError
from unspoken.tasks._base import Task
from unspoken.tasks._data import read_rows
from unspoken.types import Example, Grade, Message, RawText


@dataclass(frozen=True)
class HumanEval(Task):
    """HumanEval from a file; generation only, nothing is executed.

    Attributes:
        data: A JSONL, JSON or CSV file with `prompt`, and optionally `task_id` and `entry_point`.
        prompt_style: `raw`, the prompt as it stands; `phi`, the wording of the power-sampling original (arXiv
            2510.14901) for Phi: an instruction with the signature, the docstring, and the prompt.
        chat: Whether the prompt is a user's turn in the model's chat template, or plain text as in the original.
    """

    gradable: ClassVar[bool] = False

    data: str | None = None
    prompt_style: Literal["raw", "phi"] = "raw"
    chat: bool = False

    def examples(self) -> list[Example]:
        """All functions of the file; with `phi` those without a docstring are left out."""
        if self.data is None:
            raise ConfigError(
                "The task 'humaneval' needs a file of functions.",
                "Add --data FILE: JSONL with prompt and task_id.",
            )
        return read_rows(self.data, self._example)

    def prompt(self, example: Example) -> list[Message] | RawText:
        """The beginning of the function, in the chosen style."""
        content = example.question
        if self.prompt_style == "phi":
            content = phi_prompt(content, example.meta.get("entry_point"))
        return [{"role": "user", "content": content}] if self.chat else RawText(content)

    def grade(self, example: Example, text: str, *, truncated: bool = False) -> Grade:
        """Read the body of the function; nothing is run."""
        found = read_body(text, example.meta.get("entry_point"))
        return Grade("ungraded") if found is None else Grade("ungraded", found[1], found[0])

    def _example(self, row: dict[str, Any], index: int) -> Example:
        assert self.data is not None
        prompt = row.get("prompt")
        if not isinstance(prompt, str) or not prompt.strip():
            raise ValueError("no text in the field 'prompt'")
        entry = row.get("entry_point") or (re.findall(r"^def\s+(\w+)", prompt, re.MULTILINE) or [None])[-1]
        if self.prompt_style == "phi":
            phi_prompt(prompt, entry)
        named = row.get("task_id")
        return Example(
            id=str(named) if named else f"{Path(self.data).stem}-{index:05d}",
            question=prompt,
            answer=None,
            meta={"entry_point": entry} if entry else {},
        )


def phi_prompt(prompt: str, entry_point: str | None) -> str:
    """The three parts of the `phi` style, one below the other.

    Raises:
        ValueError: If the function has no signature or docstring.
    """
    name = re.escape(entry_point) if entry_point else r"\w+"
    header = re.search(rf"^\s*def\s+({name}\s*\(.*?):[ \t]*\n", prompt, re.MULTILINE | re.DOTALL)
    if header is None:
        raise ValueError("no signature: the phi style needs `def NAME(...):`")
    docstring = re.compile(r"\s*[rR]?(\"\"\"|''')(.*?)\1", re.DOTALL).match(prompt, header.end())
    if docstring is None:
        raise ValueError("no docstring: the phi style needs one")
    lines = [line.strip() for line in docstring.group(2).split("\n")]
    ask = f"Write a Python function `{header.group(1)}` to solve the following problem:"
    return "\n".join([ask, *lines, prompt])


_FENCE = re.compile(r"```[ \t]*(?:[Pp]ython3?|py)?[ \t]*\n(.*?)(?:\n[ \t]*```|\Z)", re.DOTALL)


def read_body(text: str, entry_point: str | None = None) -> tuple[str, str] | None:
    """The body of the function that a text defines or completes, and the rule that found it.

    In this order: a text that goes on where the prompt ended (indented lines up to the first that is not); the
    wanted function in a fenced block, then anywhere; any function in a block, then anywhere; a block of
    indented lines. A docstring is taken off, for the prompt has it already. The body is text: it is never run.
    """
    body = _indented(text)
    if body is not None:
        return "continuation", body
    blocks = [match.group(1) for match in _FENCE.finditer(text)]
    wanted = re.escape(entry_point) if entry_point else None
    for rule, name, places in (
        ("fenced", wanted, blocks),
        ("def", wanted, [text]),
        ("fenced_any", r"\w+", blocks),
        ("any_def", r"\w+", [text]),
    ):
        for place in places if name else []:
            body = _defined(place, str(name))
            if body is not None:
                return rule, body
    bodies = [body for block in blocks if (body := _indented(block)) is not None]
    return ("fenced_any", bodies[0]) if bodies else None


_DOCSTRING = re.compile(r"\s*[rR]?(\"\"\"|''').*?\1[ \t]*(?:\n|\Z)", re.DOTALL)


def _defined(text: str, name: str) -> str | None:
    """The body of the first function of this name."""
    header = re.compile(
        rf"^([ \t]*)(?:async[ \t]+)?def[ \t]+{name}[ \t]*\(.*?\)\s*(?:->[^\n:]*)?:([^\n]*)(?:\n|\Z)",
        re.MULTILINE | re.DOTALL,
    ).search(text)
    if header is None:
        return None
    on_line = header.group(2).partition("#")[0].strip()
    body = f"    {on_line}\n" if on_line else _deeper(text[header.end() :], header.group(1))
    return _without_docstring(body)


def _indented(text: str) -> str | None:
    """A text that starts with indented lines, up to the first line that is not indented."""
    start = re.match(r"(?:[ \t]*\n)*(?=[ \t]+\S)", text)
    return _without_docstring(_deeper(text[start.end() :], "")) if start else None


def _deeper(text: str, indent: str) -> str:
    """The leading lines that are blank or indented more than this."""
    lines = []
    for line in text.split("\n"):
        if line.strip() and len(line) - len(line.lstrip()) <= len(indent):
            break
        lines.append(line)
    return "\n".join(lines).rstrip() + "\n"


def _without_docstring(body: str) -> str | None:
    docstring = _DOCSTRING.match(body)
    body = body[docstring.end() :] if docstring else body
    return body if body.strip() else None
