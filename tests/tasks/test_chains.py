from __future__ import annotations

import hashlib
import json
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from unspoken.errors import DataError, MissingExtraError
from unspoken.tasks._chains import (
    Chain,
    check_disjoint,
    digest,
    grade_word,
    load_chains,
    read_chains,
    write_splits,
)
from unspoken.tasks._data import DataWarning
from unspoken.tasks._validate import validate
from unspoken.tasks.gsm8k_aug import GSM8KAug, equations
from unspoken.tasks.modsum import ModSum
from unspoken.tasks.multiplication import Multiplication, line


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def test_text_lines_are_read_by_the_rules(tmp_path: Path) -> None:
    lines = [
        "  1 + 1||step #### 2  ",
        "",
        "no separator #### 2",
        "a||b||c #### 2",
        "no marker|| 1,234 ",
        "empty chain|| #### 1,000,000",
        "two markers||c #### 1 #### 2",
        "no answer||c ####",
    ]
    rows, report = read_chains(write(tmp_path / "x.txt", "\r\n".join(lines)))
    assert rows == [
        Chain("1 + 1", "step", "2"),
        Chain("no marker", "", "1234"),
        Chain("empty chain", "", "1000000"),
        Chain("two markers", "c", "1 #### 2"),
    ]
    assert report.dropped == {"no '||'": (3,), "more than one '||'": (4,), "no answer": (8,)}
    assert (report.rows, report.no_marker, report.empty_cot) == (4, (5,), 2)
    for said in ("x.txt: 4 rows", "no '||' (line 3)", "without #### (line 5)", "2 with an empty chain"):
        assert said in str(report)
    with pytest.warns(DataWarning, match="line 4"):
        report.warn()


def test_json_rows(tmp_path: Path) -> None:
    rows: list[Any] = [
        {"problem": "p", "cot": "c", "answer": "#### 1,2"},
        {"input": "p", "output": "c #### 3"},
        {"question": "p", "answer": "long c\n#### 4"},
        {"question": "p", "steps": ["<<1+1=2>>", " <<2+2=4>>"], "answer": 4},
        {"question": "p"},
        [1],
    ]
    want = [Chain("p", "c", "12"), Chain("p", "c", "3"), Chain("p", "long c", "4")]
    want.append(Chain("p", "<<1+1=2>> <<2+2=4>>", "4"))
    for name, text in (("a.jsonl", "\n".join(map(json.dumps, rows))), ("a.json", json.dumps(rows))):
        found = read_chains(write(tmp_path / name, text))
        assert found.rows == want
        assert sum(map(len, found.report.dropped.values())) == 2


def test_files_without_a_row_are_errors_that_name_file_and_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"bad\.txt.*no '\|\|' \(line 2\)"):
        read_chains(write(tmp_path / "bad.txt", "\nno separator"))
    with pytest.raises(DataError, match="empty"):
        read_chains(write(tmp_path / "bad.txt", ""))
    with pytest.raises(DataError, match="Cannot read"):
        read_chains(tmp_path / "missing.txt")
    (tmp_path / "bytes.txt").write_bytes(b"a||b #### 1\n\xff||b #### 1\n")
    assert read_chains(tmp_path / "bytes.txt").report.dropped == {"not valid UTF-8": (2,)}


def test_splits_of_a_folder(tmp_path: Path) -> None:
    for name in ("train.txt", "val.txt", "test_bigbench.txt", "sub/train.jsonl", "4_by_4_valid.txt"):
        text = json.dumps({"input": name, "output": "c #### 1"}) if "jsonl" in name else f"{name}||c #### 1"
        write(tmp_path / name, text)
    folder = str(tmp_path)

    def question(*args: Any) -> str:
        return load_chains(*args).rows[0].question

    assert question(folder) == "train.txt"
    assert question(folder, None, "valid") == question(folder, None, "validation") == "val.txt"
    assert question(folder, None, "test_bigbench") == "test_bigbench.txt"
    assert question(folder, "sub") == "sub/train.jsonl"
    assert question(folder, "4_by_4", "valid") == "4_by_4_valid.txt"
    assert question(f"{folder}/val.txt", None, "train") == "val.txt"
    with pytest.raises(DataError, match=r"No split 'test' .*train\.txt(.|\n)*Expected test\.txt"):
        load_chains(folder, None, "test")
    with pytest.raises(DataError, match="no file or folder"):
        load_chains(f"{folder}/nothing")


def test_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []

    def load(name: str, config: str | None, split: str) -> list[dict[str, str]]:
        asked.append((name, config, split))
        if split == "test":
            raise ConnectionError("no network")
        return [{"input": "q", "output": "c #### 1"}]

    module = types.ModuleType("datasets")
    module.load_dataset = load  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "datasets", module)
    assert load_chains("lintang/implicit-cot-math", "4_by_4_mult", "valid").rows == [Chain("q", "c", "1")]
    assert GSM8KAug(split="valid").chains("valid") == [Chain("q", "", "1")]
    assert asked == [
        ("lintang/implicit-cot-math", "4_by_4_mult", "valid"),
        ("whynlp/gsm8k-aug", None, "validation"),
    ]
    with pytest.raises(DataError, match="split test, from the hub: ConnectionError: no network"):
        load_chains("some/data", None, "test")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'unspoken\[train\]'"):
        load_chains("some/data")


def test_shared_questions_are_found() -> None:
    a, b = Chain("a", "", "1"), Chain("b", "", "1")
    check_disjoint({"train": [a], "test": [b]})
    with pytest.raises(DataError, match="1 questions are both in train and in test, such as 'b'"):
        check_disjoint({"train": [a, b], "valid": [], "test": [Chain("b", "other", "2")]})


def test_written_splits_are_those_of_the_manifest(tmp_path: Path) -> None:
    task = ModSum(n_train=30, n_valid=4, n_test=5)
    manifest = write_splits(task, tmp_path / "out")
    assert manifest == task.manifest() == json.loads((tmp_path / "out/manifest.json").read_text())
    assert manifest["counts"] == {"train": 30, "valid": 4, "test": 5}
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "manifest.json", "test.txt", "train.txt", "valid.txt"
    ]  # fmt: skip
    for split in ("train", "valid", "test"):
        path = tmp_path / f"out/{split}.txt"
        assert hashlib.sha256(path.read_bytes()).hexdigest() == manifest["sha256"][split]
        assert load_chains(str(tmp_path / "out"), None, split).rows == task.chains(split)
    write(tmp_path / "file", "")
    with pytest.raises(DataError, match="Cannot write"):
        write_splits(task, tmp_path / "file")


@pytest.mark.parametrize(
    ("text", "status", "rule"),
    [
        ("#### T", "correct", "hashes"),
        ("1 2 #### F", "wrong", "hashes"),
        ("T", "correct", "word"),
        ("\\boxed{T}", "correct", "boxed"),
        ("The answer is T.", "correct", "answer_is"),
        ("1 2 3", "unparsed", None),
    ],
)
def test_words_are_graded(text: str, status: str, rule: str | None) -> None:
    grade = grade_word("T", text)
    assert (grade.status, grade.rule) == (status, rule)


# multiplication as a task with chains


@pytest.mark.parametrize("digits", [4, 5, 7])
def test_published_files_are_reproduced_byte_for_byte(data_dir: Path, digits: int) -> None:
    published = data_dir / f"multiplication/{digits}_by_{digits}_valid.txt"
    chains = Multiplication(data=str(published), split="valid").chains("valid")
    assert digest(chains) == hashlib.sha256(published.read_bytes()).hexdigest()
    again = (
        line(*(int(f.replace(" ", "")[::-1]) for f in c.question.split("*")), digits, digits) for c in chains
    )
    assert "".join(f"{text}\n" for text in again).encode() == published.read_bytes()


def test_lengths_of_multiplication_chains() -> None:
    table = {2: 8, 3: 24, 4: 46, 5: 74, 6: 108, 7: 148, 8: 194, 9: 246, 10: 304, 11: 368, 20: 1214}
    for digits, length in table.items():
        (chain,) = Multiplication(digits=digits, n=1).chains("test")
        assert len(chain.cot.split()) == length


def test_multiplication_splits() -> None:
    task = Multiplication(digits=2, n=500, n_valid=500, n_train=7100)
    assert task.manifest()["counts"] == {
        "train": 7100,
        "valid": 500,
        "test": 500,
    }  # checks that they are disjoint
    assert Multiplication(digits=2, n_test=500).chains("test") == task.chains("test")
    assert {e.question for e in Multiplication(digits=2, n=500, split="valid").examples()} == {
        c.question for c in task.chains("valid")
    }
    assert Multiplication(digits=1, n=41).manifest()["counts"] == {"train": 36, "valid": 4, "test": 41}
    unequal = Multiplication(digits=3, digits_b=2, n=3, n_train=5).chains("train")
    assert len(unequal) == 5 and all(len(c.answer.split()) == 5 for c in unequal)


# gsm8k_aug


def test_gsm8k_aug_reads_its_files(data_dir: Path) -> None:
    task = GSM8KAug(data=str(data_dir / "gsm8k_icot/valid.txt"), split="valid")
    chains = task.chains("valid")
    assert len(chains) == 500 and sum(not chain.cot for chain in chains) == 6
    lines = (data_dir / "gsm8k_icot/valid.txt").read_text().splitlines()
    parts = (text.rpartition("####") for text in lines)  # four answers have a comma, which is dropped
    assert [c.line for c in chains] == [
        before + mark + after.replace(",", "") for before, mark, after in parts
    ]
    assert task.chains("train") == [] and validate(task).ok


def test_gsm8k_is_converted(data_dir: Path) -> None:
    first = GSM8KAug(data=str(data_dir / "gsm8k_train.jsonl"), split="train").chains("train")[0]
    assert first.question.startswith("Natalia") and first.answer == "72"
    assert first.cot == "<<48/2=24>> <<48+24=72>>"
    assert equations("no equation") == ""


def test_gsm8k_aug_of_a_folder_that_lacks_splits(tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text("q||<<1+1=2>> #### 2\n", encoding="utf-8")
    task = GSM8KAug(data=str(tmp_path))
    assert len(task.chains("train")) == 1 and task.chains("valid") == []
    with pytest.raises(DataError, match="No split 'test'") as caught:
        task.examples()
    assert "--split train" in str(caught.value)
    assert len(GSM8KAug(data=str(tmp_path), split="train").examples()) == 1


def test_lines_may_end_with_carriage_returns_alone(tmp_path: Path) -> None:
    rows = ["1 2||3 #### 4", "5 6||7 #### 8"]
    for ends in ("\n", "\r\n", "\r"):
        path = tmp_path / "rows.txt"
        path.write_bytes(ends.join([*rows, ""]).encode())
        assert [chain.line for chain in read_chains(path).rows] == rows
