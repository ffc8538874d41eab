from __future__ import annotations

from itertools import combinations

import pytest

from unspoken.errors import ConfigError
from unspoken.tasks._chains import Chain
from unspoken.tasks._generated import Dice, GeneratedTask
from unspoken.tasks.match3 import Match3
from unspoken.tasks.modsum import ModSum
from unspoken.tasks.sum3lite import Sum3Lite
from unspoken.tasks.twosum import TwoSum

SMALL = {"n_train": 1500, "n_valid": 100, "n_test": 200}
TASKS: list[GeneratedTask] = [
    ModSum(**SMALL),  # type: ignore[arg-type]
    ModSum(n=12, p=2, **SMALL),  # type: ignore[arg-type]
    Sum3Lite(**SMALL),  # type: ignore[arg-type]
    Match3(n=5, d=2, **SMALL),  # type: ignore[arg-type]
    TwoSum(**SMALL),  # type: ignore[arg-type]
]


# Numbers and rows that must stay what they are: a change of rows goes with a change of the task's `version`.
GOLDEN = [[498, 865, 942], [783, 505, 252]]
HASHES = {
    "modsum/n=8/p=10/s0": "a11a89dff460",
    "modsum/n=12/p=2/s0": "5df80e927f06",
    "sum3lite/n=6/m=32/s0": "6254596589fa",
    "match3/n=5/d=2/m=10/s0": "58855d34fe0e",
    "twosum/n=10/d=4/m=10/true_rate=0.1/s0": "3f10b2c2c7aa",
}


def rows(task: GeneratedTask) -> list[Chain]:
    return task.chains("train") + task.chains("valid") + task.chains("test")


def test_dice_give_the_same_numbers_everywhere() -> None:
    assert Dice("a").below(1000, 2, 3).tolist() == GOLDEN
    assert Dice("a").below(1000, 9)[:6].tolist() == sum(GOLDEN, [])
    assert Dice("b").below(1000, 2, 3).tolist() != GOLDEN
    assert sorted(Dice("a").order(50).tolist()) == list(range(50))
    assert abs(Dice("a").chance(0.25, 40_000).mean() - 0.25) < 0.01


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.key)
def test_splits_share_nothing_and_repeat_nothing(task: GeneratedTask) -> None:
    assert len({chain.question for chain in rows(task)}) == 1800
    manifest = task.manifest()
    assert manifest["counts"] == {"train": 1500, "valid": 100, "test": 200}
    assert manifest == type(task)(**{**vars(task), "split": "train"}).manifest()
    assert manifest["sha256"] != type(task)(**{**vars(task), "data_seed": 1}).manifest()["sha256"]
    # The test split does not depend on the sizes of the others.
    assert type(task)(**{**vars(task), "n_train": 9, "n_valid": 9}).chains("test") == task.chains("test")
    assert task.chains("test") != type(task)(**{**vars(task), "data_seed": 1}).chains("test")


def test_generated_data_stay_what_they_are() -> None:
    assert {task.key: task.manifest()["sha256"]["test"][:12] for task in TASKS} == HASHES


@pytest.mark.parametrize(("n", "p"), [(8, 10), (16, 2), (2, 50), (40, 7)])
def test_modsum_by_hand(n: int, p: int) -> None:
    for chain in ModSum(n=n, p=p).chains("test"):
        numbers = [int(word) for word in chain.question.split()]
        sums = [str(sum(numbers[:k]) % p) for k in range(2, n + 1)]
        assert len(numbers) == n and chain.cot.split() == sums[:-1] and chain.answer == sums[-1]


def test_a_whole_pool_is_used_once() -> None:
    task = ModSum(n=3, p=4, n_test=64)
    assert len({chain.question for chain in task.chains("test")}) == 64 and task.chains("train") == []


def balance(chains: list[Chain], word: str) -> float:
    return sum(chain.answer == word for chain in chains) / len(chains)


def test_sum3lite_by_hand() -> None:
    task = Sum3Lite(n_train=2000)
    for chain in rows(task):
        numbers = [int(word) for word in chain.question.split()]
        assert chain.answer == "FT"[any(sum(triple) % 32 == 0 for triple in combinations(numbers, 3))]
        assert chain.cot.split() == [str(sum(pair) % 32) for pair in combinations(numbers, 2)]
    assert len(chain.question.split()) == 6 and len(chain.cot.split()) == 15
    assert abs(balance(rows(task), "T") - 0.5) < 3 * 0.5 / 2700**0.5


@pytest.mark.parametrize(("n", "d", "m"), [(5, 2, 10), (10, 3, 10), (4, 1, 12)])
def test_match3_by_hand(n: int, d: int, m: int) -> None:
    task = Match3(n=n, d=d, m=m, n_train=600)
    serial = Match3(n=n, d=d, m=m, n_train=600, cot="serial").chains("train")
    chains = task.chains("train")
    assert abs(balance(chains, "True") - 0.5) < 3 * 0.5 / 600**0.5
    for chain, other in zip(chains, serial, strict=True):
        assert (other.question, other.answer) == (chain.question, chain.answer)  # forms share their rows
        joint = None if m <= 10 else ","
        tuples = [[int(x) for x in (w.split(joint) if joint else w)] for w in chain.question.split()]
        assert len(tuples) == n and all(len(t) == d for t in tuples)
        triples = [
            t
            for t in combinations(range(n), 3)
            if all(sum(tuples[i][c] for i in t) % m == 0 for c in range(d))
        ]
        assert chain.answer == str(bool(triples))
        _check_dense(chain.cot.split(), tuples, triples, m)
        assert other.cot.split() == _serial(tuples, m)


def _check_dense(words: list[str], tuples: list[list[int]], triples: list[tuple[int, ...]], m: int) -> None:
    n = len(tuples)
    assert len(words) == n * (n - 1) + 2 and words[-2:] == ["=", "="]
    for (i, j), name, shown in zip(combinations(range(n), 2), words[:-2:2], words[1:-2:2], strict=True):
        assert name in (f"{i}-", f"{j}-")
        completing = [t[2] for t in triples if t[:2] == (i, j)]
        sums = {str((a + b) % m) for a, b in zip(tuples[i], tuples[j], strict=True)}
        assert shown == f"{min(completing)}-" if completing else shown in sums


def _serial(tuples: list[list[int]], m: int) -> list[str]:
    words: list[str] = []
    for triple in combinations(range(len(tuples)), 3):
        sums = [sum(tuples[i][c] for i in triple) % m for c in range(len(tuples[0]))]
        if sums[0] == 0:
            words += [f"{i}-" for i in triple] + [str(tuples[i][0]) for i in triple]
            wrong = next((c for c, total in enumerate(sums) if total), len(sums))
            words += [str(total) for total in sums[1 : wrong + 1]]
            if wrong == len(sums):
                break
    return words


def test_forms_are_mixed() -> None:
    chains = Match3(n=5, d=2, mix=0.5, bare=0.2, n_train=2000).chains("train")
    dots = [c.cot.split() for c in chains if c.cot.startswith(".")]
    assert all(words == ["."] * 25 for words in dots)
    assert abs(len(dots) / 2000 - 0.3) < 0.04 and abs(sum(not c.cot for c in chains) / 2000 - 0.2) < 0.04
    fillers = TwoSum(mix=0.0).chains("test")
    assert all(c.cot.split() == [w for t in c.question.split()[:10] for w in (t, "A")] for c in fillers)


def test_twosum_by_hand() -> None:
    chains = TwoSum(n=4, d=2, m=6, true_rate=0.4, n_train=900).chains("train")
    offsets: dict[str, list[list[int]]] = {}
    for chain in chains:
        *hidden, marker, index = chain.question.split()
        words = chain.cot.split()
        assert marker == "T" and words[:-1:2] == hidden and len(words) == 9
        shown = [[int(x) for x in w] for w in words[1::2]]

        def inverse(a: list[int]) -> list[int]:
            return [-x % 6 for x in a]

        # Shown inverted or not: up to that, a tuple is matched if it is its own inverse or another one is alike.
        alike = [sum(b in (a, inverse(a)) for b in shown) for a in shown]
        count = int(chain.answer[1:])
        assert count >= sum(a == inverse(a) for a in shown)
        if max(alike) == 1:  # nothing can be inverted: the chain tells the true tuples
            assert count == sum(a == inverse(a) for a in shown)
            assert words[-1] == "".join(str((a + b) % 6) for a, b in zip(*shown[:2], strict=True))
            true = offsets.setdefault(index, [])
            offset = [
                [(int(h) - x) % 6 for h, x in zip(w, t, strict=True)]
                for w, t in zip(hidden, shown, strict=True)
            ]
            true[:] = true or offset
            assert offset == true  # ten sequences, the same in all rows
    assert len(offsets) == 10 and {c.answer for c in chains} > {"L0", "L2"}


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: ModSum(n=1, p=1), "n must be.*(.|\n)*p must be"),
        (lambda: ModSum(n=2, p=2), "only 4 different rows; the splits ask for 200"),
        (lambda: ModSum(n_test=0, n_train=-1), "n_test must be at least 1(.|\n)*n_train must be at least 0"),
        (lambda: Sum3Lite(n=6, m=3), "m must be from 4 to 1280 for n = 6"),
        (lambda: Sum3Lite(n=3, m=5, n_test=100).chains("test"), "Only [2-5]. different rows were found"),
        (lambda: Match3(n=10, d=1), "12.0 triples(.|\n)*larger m or d"),
        (lambda: Match3(mix=0.8, bare=0.5), "more than 1"),
        (lambda: TwoSum(d=9, true_rate=2.0), "at most 100000 different tuples(.|\n)*true_rate"),
    ],
)
def test_impossible_settings(make: object, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        make()  # type: ignore[operator]
