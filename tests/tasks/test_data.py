from __future__ import annotations

import json
import sys
import types
import warnings
from pathlib import Path
from typing import Any

import pytest

from unspoken.errors import ConfigError, DataError, MissingExtraError
from unspoken.tasks._data import DataWarning, read_rows, text_field
from unspoken.tasks.gsm8k import GSM8K
from unspoken.tasks.math500 import Math500
from unspoken.tasks.multiplication import Multiplication, line


def write(path: Path, content: str | bytes) -> str:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


GOOD = json.dumps({"question": "2 + 3?", "answer": "2 + 3 = <<2+3=5>>5\n#### 5"})


def test_broken_rows_are_named_and_good_rows_go_on(tmp_path: Path) -> None:
    rows = [GOOD, "{broken", "", "[1]", '{"question": "q"}', '{"question": " ", "answer": "1"}', GOOD]
    content = "\n".join(rows).encode() + b'\n{"question": "\xff", "answer": "#### 1"}\n'
    with pytest.warns(DataWarning) as caught:
        examples = GSM8K(data=write(tmp_path / "mine.jsonl", content)).examples()
    assert [e.id for e in examples] == ["mine-00000", "mine-00005"]
    assert len(caught) == 1 and caught[0].filename == __file__
    message = str(caught[0].message)
    assert message.startswith("5 of 7 rows of ")
    for part in (
        "line 2: not valid JSON",
        "line 4: an object is needed, not a list",
        "line 5: no field 'answer' (fields: 'question')",
        "line 6: the field 'question' is empty",
        "line 8: not valid UTF-8",
    ):
        assert part in message


def test_many_broken_rows_are_counted(tmp_path: Path) -> None:
    with pytest.warns(DataWarning, match="15 of 16 rows .* and 5 more"):
        GSM8K(data=write(tmp_path / "a.jsonl", "\n".join([*["{"] * 15, GOOD]))).examples()


@pytest.mark.parametrize("content", ["", "\n\n", "{", "[]", '{"a": 1}'])
def test_a_file_without_good_rows_is_an_error(tmp_path: Path, content: str) -> None:
    with pytest.raises(DataError, match="No usable row in .*a.jsonl"):
        GSM8K(data=write(tmp_path / "a.jsonl", content)).examples()


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    for task in (
        GSM8K(data=str(tmp_path / "no")),
        Math500(data=str(tmp_path / "no")),
        Multiplication(data=str(tmp_path / "no")),
    ):
        with pytest.raises(DataError, match="Cannot read the data file"):
            task.examples()


def test_a_name_that_is_not_here_is_looked_up_in_the_folder_of_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, here = tmp_path / "data", tmp_path / "here"
    folder.mkdir(), here.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setenv("UNSPOKEN_DATA", str(folder))
    write(folder / "m.jsonl", '{"question": "q", "answer": "#### 1"}\n')
    assert GSM8K(data="m.jsonl").examples()[0].answer == "1"
    write(here / "m.jsonl", '{"question": "q", "answer": "#### 2"}\n')
    assert GSM8K(data="m.jsonl").examples()[0].answer == "2"  # what is here goes first
    with pytest.raises(DataError) as error:
        GSM8K(data="other.jsonl").examples()
    assert str(here) in str(error.value) and str(folder) in str(error.value)
    (folder / "two").mkdir()
    write(folder / "two" / "test.txt", "1 2 * 3||3 6 #### 3 6\n")
    assert len(Multiplication(data="two").chains("test")) == 1
    assert Multiplication(data="two").example_ids("test") == "two-test"


def test_broken_items_of_a_json_list_are_named_by_line(tmp_path: Path) -> None:
    content = (
        '\ufeff[\n{"problem": "p", "answer": "1"},\n\n5,\n{"prompt": "q",\n "answer": 2, "id": "x"}\n]\n'
    )
    with pytest.warns(DataWarning, match="1 of 3 .*line 4: an object is needed, not a number"):
        examples = Math500(data=write(tmp_path / "m.json", content)).examples()
    assert [(e.id, e.question, e.answer) for e in examples] == [("m-00000", "p", "1"), ("x", "q", "2")]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (
            '[{"prompt": "p", "answer": "1"}\n{"prompt": "q", "answer": "1"}]',
            "line 2: .*a comma or ] is missing",
        ),
        (
            '[{"prompt": "p", "answer": "1"},\n{"prompt": ]',
            "line 2: not valid JSON .*nothing after it was read",
        ),
        ('[{"prompt": "p", "answer": "1"}', "line 1: .*missing"),
    ],
)
def test_a_list_that_breaks_off_keeps_what_came_before(tmp_path: Path, content: str, reason: str) -> None:
    with pytest.warns(DataWarning, match=reason):
        assert len(Math500(data=write(tmp_path / "m.json", content)).examples()) == 1


def test_ids_are_unique(tmp_path: Path) -> None:
    row = json.dumps({"prompt": "p", "answer": "1", "id": "same"})
    with pytest.warns(DataWarning, match="line 2: the id 'same' is already taken"):
        Math500(data=write(tmp_path / "m.jsonl", f"{row}\n{row}")).examples()


def test_json_text_may_hold_any_line_separator(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", json.dumps({"t": "a\u2028b"}, ensure_ascii=False))
    assert read_rows(path, lambda row, index: text_field(row, "t")) == ["a\u2028b"]


def test_gold_that_is_no_number_is_none(tmp_path: Path) -> None:
    rows = [{"question": "q", "answer": "#### 1,234"}, {"question": "q", "answer": "so #### many"}]
    rows += [{"question": "q", "answer": 7}]
    examples = GSM8K(data=write(tmp_path / "a.jsonl", "\n".join(map(json.dumps, rows)))).examples()
    assert [e.answer for e in examples] == ["1234", None, "7"]
    with pytest.raises(ValueError, match="no gold answer"):
        GSM8K().grade(examples[1], "5")


def test_broken_multiplication_lines(tmp_path: Path) -> None:
    good = line(12, 34, 2, 2)
    lines = [
        good,
        "1 2 * 3 4",
        "1 2 x 3 4||1 #### 1",
        "1 * 1||1 #### 2",
        "1 * 1||#### one",
        "1 * 2||2",
        "a||b||c",
    ]
    with pytest.warns(DataWarning, match="5 of 7") as caught:
        examples = Multiplication(data=write(tmp_path / "x.txt", "\n".join(lines))).examples()
    message = str(caught[0].message)
    assert "line 2: one '||' is needed" in message and "line 4: the answer is not 1 times 1" in message
    assert [(e.id, e.answer) for e in examples] == [("x-00000", "8 0 4 0"), ("x-00005", "2")]


def test_without_datasets_the_error_names_both_ways_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    for task in (GSM8K(), Math500()):
        with pytest.raises(MissingExtraError) as caught:
            task.examples()
        assert "pip install 'unspoken[eval]'" in str(caught.value) and "--data FILE" in str(caught.value)


def _hub(monkeypatch: pytest.MonkeyPatch, load: Any) -> None:
    module = types.ModuleType("datasets")
    module.load_dataset = load  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "datasets", module)


def test_rows_of_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []

    def load(name: str, config: str | None, split: str) -> list[dict[str, str]]:
        asked.append((name, config, split))
        if config is None:
            return [{"problem": "p", "answer": "x", "unique_id": "test/1", "subject": "Algebra"}]
        return [json.loads(GOOD)]

    _hub(monkeypatch, load)
    (grade_school,) = GSM8K(split="train").examples()
    (competition,) = Math500().examples()
    assert asked == [("openai/gsm8k", "main", "train"), ("HuggingFaceH4/MATH-500", None, "test")]
    assert (grade_school.id, grade_school.answer) == ("gsm8k-train-00000", "5")
    assert grade_school.meta == {"solution": "2 + 3 = <<2+3=5>>5"}
    assert (competition.id, competition.meta) == ("test/1", {"subject": "Algebra"})


def test_a_hub_that_fails_is_one_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*args: object, **kwargs: object) -> None:
        raise ConnectionError("no network")

    _hub(monkeypatch, load)
    with pytest.raises(DataError, match="Cannot load openai/gsm8k .*no network(.|\n)*--data FILE"):
        GSM8K().examples()


def test_good_files_give_no_warning(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(GSM8K(data=write(tmp_path / "a.jsonl", GOOD + "\n")).examples()) == 1


@pytest.mark.parametrize(
    ("make", "count"),
    [
        (lambda: GSM8K(split="dev", prompt_style="x"), 2),  # type: ignore[arg-type]
        (lambda: Math500(prompt_style="x", braces="y"), 2),  # type: ignore[arg-type]
        (lambda: Multiplication(digits=0, digits_b=101, n=0), 3),
        (lambda: Multiplication(digits=1, n=82), 1),
    ],
)
def test_all_mistakes_of_a_task_come_at_once(make: Any, count: int) -> None:
    with pytest.raises(ConfigError) as caught:
        make()
    assert len(caught.value.problems) == count
