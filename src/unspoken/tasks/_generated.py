"""Generated rows: dice that give the same numbers on every machine, and splits without a common row."""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

from unspoken.errors import ConfigError
from unspoken.tasks._chains import Chain, ChainTask, Split
from unspoken.tasks._numpy import np

if TYPE_CHECKING:
    from numpy.typing import NDArray

Ints: TypeAlias = "NDArray[np.int64]"
Draw: TypeAlias = "Callable[[Dice, int], tuple[Ints, Ints]]"

_BLOCK = 8192  # candidates drawn at a time; part of what a seed means
_PATIENCE = 64  # blocks without a new row before giving up
_SMALL_POOL = 1 << 20  # pools up to this size are shuffled whole
_MOST_TUPLES = 100_000
_MOST_TRAIN, _MOST_VALID = 100_000, 500


class Dice:
    """Random integers from a text, from a generator whose stream numpy keeps fixed.

    Args:
        key: Names the stream; neighbouring keys share nothing.
    """

    def __init__(self, key: str) -> None:
        self._bits = np.random.PCG64(int.from_bytes(hashlib.sha256(key.encode()).digest(), "big"))

    def raw(self, *shape: int) -> NDArray[np.uint64]:
        """Random 32-bit numbers, held in 64 bits."""
        count = int(np.prod(shape))
        return (np.asarray(self._bits.random_raw(count), dtype=np.uint64) >> np.uint64(32)).reshape(shape)

    def below(self, bound: int, *shape: int) -> Ints:
        """Integers from 0 to `bound` - 1; the bound is below 2**31."""
        return ((self.raw(*shape) * np.uint64(bound)) >> np.uint64(32)).astype(np.int64)

    def chance(self, p: float, *shape: int) -> NDArray[np.bool_]:
        """True with probability p."""
        return np.asarray(self.raw(*shape) < np.uint64(round(p * 2**32)))

    def order(self, *shape: int) -> Ints:
        """A random permutation of each last dimension."""
        return np.argsort(self.raw(*shape), axis=-1, kind="stable")


def distinct_rows(key: str, count: int, draw: Draw, *, balanced: bool = False) -> tuple[Ints, Ints]:
    """The first `count` rows of an endless sequence of different rows; the same for any larger count.

    Args:
        key: Seeds the sequence.
        count: How many rows.
        draw: Given dice and a number, draws so many candidates: rows [n, ...] and the class of each [n]; a
            class below 0 rejects one.
        balanced: Whether to keep as many rows of class 0 as of class 1 (of every block of candidates; those
            too many are left out at random).

    Returns:
        The rows [count, ...] and their classes [count].

    Raises:
        ConfigError: If there are not so many different rows.
    """
    seen: set[bytes] = set()
    kept_rows, kept_classes, have, block, idle = [], [], 0, 0, 0
    while have < count:
        dice = Dice(f"{key}/{block}")
        rows, classes = draw(dice, _BLOCK)
        fresh = np.array(
            [label >= 0 and _added(seen, row) for row, label in zip(rows, classes.tolist(), strict=True)]
        )
        if balanced:
            fresh &= _even(dice, classes, fresh)
        kept_rows.append(rows[fresh])
        kept_classes.append(classes[fresh])
        gained = int(fresh.sum())
        have, block, idle = have + gained, block + 1, 0 if gained else idle + 1
        if idle == _PATIENCE:
            raise ConfigError(
                f"Only {have} different rows were found with these settings; {count} are needed.",
                "Ask for fewer rows (--n-train N, --n-valid N, --n-test N), or for longer ones.",
            )
    return np.concatenate(kept_rows)[:count], np.concatenate(kept_classes)[:count]


def _added(seen: set[bytes], row: Ints) -> bool:
    code, before = row.tobytes(), len(seen)
    seen.add(code)
    return len(seen) > before


def _even(dice: Dice, classes: Ints, fresh: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Which rows to keep so that both classes are equally many."""
    priority = dice.raw(len(classes))
    keep = np.zeros(len(classes), dtype=bool)
    members = [np.flatnonzero(fresh & (classes == label)) for label in (0, 1)]
    fewest = min(map(len, members))
    for places in members:
        keep[places[np.argsort(priority[places], kind="stable")[:fewest]]] = True
    return keep


def small_pool(key: str, pool: int, count: int) -> Ints | None:
    """The first `count` numbers of a shuffled pool of so many, or None if the pool is too large for that."""
    return Dice(f"{key}/pool").order(pool)[:count] if pool <= _SMALL_POOL else None


def sentences(words: list[str], ids: Ints) -> list[str]:
    """Rows of word numbers [n, width] as texts; negative numbers stand for no word."""
    table = words.__getitem__
    if ids.size and ids.min() < 0:
        return [" ".join(map(table, (i for i in row if i >= 0))) for row in ids.tolist()]
    return [" ".join(map(table, row)) for row in ids.tolist()]


def tuple_words(m: int, d: int) -> list[str]:
    """The word of every tuple of d digits modulo m, by its code (most significant digit first)."""
    joint = "" if m <= 10 else ","
    return [joint.join(str(code // m**i % m) for i in reversed(range(d))) for code in range(m**d)]


def tuple_problems(n: tuple[int, int, int], d: tuple[int, int, int], m: int) -> list[str]:
    """What is wrong with the sizes of rows of tuples: n of them, of d digits modulo m.

    Args:
        n: The number of tuples, and the least and the most it may be.
        d: The digits of one, and the least and the most they may be.
        m: The modulus.
    """
    sizes = (("n", *n), ("d", *d), ("m", m, 2, 1000))
    found = [
        f"{k} must be from {low} to {high}, not {v}." for k, v, low, high in sizes if not low <= v <= high
    ]
    if not found and m ** d[0] > _MOST_TUPLES:
        found.append(f"m**d is {m ** d[0]}; at most {_MOST_TUPLES} different tuples are allowed.")
    return found


def tuple_codes(tuples: Ints, m: int) -> Ints:
    """[..., d] digits to [...] codes."""
    return np.asarray(tuples @ m ** np.arange(tuples.shape[-1])[::-1])


def middles(key: str, chains: list[str], fillers: str | list[str], mix: float, bare: float) -> list[str]:
    """What stands between question and answer: a share `mix` of the chains, `bare` nothing, else a filler."""
    if isinstance(fillers, str):
        fillers = [fillers] * len(chains)
    dice = Dice(f"{key}/forms")
    chain, empty = round(mix * 2**32), round((1 - bare) * 2**32)
    return [
        text if number < chain else "" if number >= empty else filler
        for text, filler, number in zip(chains, fillers, dice.raw(len(chains)).tolist(), strict=True)
    ]


def share_problems(mix: float, bare: float) -> list[str]:
    """What is wrong with the shares of chains and of empty middles."""
    found = [
        f"{n} must be from 0 to 1, not {v}." for n, v in (("mix", mix), ("bare", bare)) if not 0 <= v <= 1
    ]
    return found or ([f"mix and bare add up to {mix + bare}, more than 1."] if mix + bare > 1 else [])


def split_bounds(
    n_test: int, n_valid: int | None, n_train: int | None, pool: int | None
) -> dict[str, tuple[int, int]]:
    """Where each split lies in one sequence of different rows: test first, then valid, then train.

    Args:
        n_test: Rows of the test split.
        n_valid: Rows of the valid split; None is 500, or a tenth of what is left of a smaller pool.
        n_train: Rows of the train split; None is 100,000, or what is left of a smaller pool.
        pool: How many different rows there are; None for more than anyone asks for.
    """
    left = 2**62 if pool is None else pool - n_test
    valid = min(_MOST_VALID, left // 10) if n_valid is None else n_valid
    train = min(_MOST_TRAIN, left - valid) if n_train is None else n_train
    return {
        "test": (0, n_test),
        "valid": (n_test, n_test + valid),
        "train": (n_test + valid, n_test + valid + train),
    }


def size_problems(
    n_test: int, n_valid: int | None, n_train: int | None, pool: int | None, test_name: str = "n_test"
) -> list[str]:
    """What is wrong with the sizes of the splits."""
    found = []
    for name, value, least in ((test_name, n_test, 1), ("n_valid", n_valid, 0), ("n_train", n_train, 0)):
        if value is not None and value < least:
            found.append(f"{name} must be at least {least}, not {value}.")
    asked = n_test + (n_valid or 0) + (n_train or 0)
    if not found and pool is not None and asked > pool:
        found.append(f"There are only {pool} different rows; the splits ask for {asked}.")
    return found


@dataclass(frozen=True)
class GeneratedTask(ChainTask):
    """A task with generated rows.

    The splits are cut from one sequence of different rows: first test, then valid, then train. So they
    share nothing, and the test split does not depend on the sizes of the others.

    Attributes:
        n_train: Training rows; the default is 100,000, or what is left of a smaller pool.
        n_valid: Validation rows; the default is 500, or a tenth of what is left of a smaller pool.
        n_test: Test rows.
        data_seed: Seed of the generator.
    """

    n_train: int | None = field(default=None, kw_only=True)
    n_valid: int | None = field(default=None, kw_only=True)
    n_test: int = field(default=200, kw_only=True)
    data_seed: int = field(default=0, kw_only=True)

    @property
    def pool(self) -> int | None:
        """How many different rows there are; None for more than anyone asks for, or if it is not known."""
        return None

    def size_problems(self) -> list[str]:
        """What is wrong with the sizes of the splits, and with the sizes of the splits only."""
        return size_problems(self.n_test, self.n_valid, self.n_train, self.pool)

    @abstractmethod
    def rows(self, start: int, stop: int) -> list[Chain]:
        """Rows `start` to `stop` of the sequence."""

    def chains(self, split: Split) -> list[Chain]:
        return self.rows(*split_bounds(self.n_test, self.n_valid, self.n_train, self.pool)[split])

    @property
    def key(self) -> str:
        """What seeds the generator: the task and all fields but the split, its size, and the form of the middle.

        So the same questions are asked in all forms.
        """
        others = ("split", "n_train", "n_valid", "n_test", "data_seed", "cot", "mix", "bare")
        settings = [f"{k}={v}" for k, v in vars(self).items() if k not in others]
        return "/".join([self.name, *settings, f"s{self.data_seed}"])

    def example_ids(self, split: Split) -> str:
        return f"{'-'.join(self.key.split('/'))}-{split}"
