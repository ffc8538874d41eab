from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import fake_loop
import pytest

from unspoken.evaluation import Run, evaluate


@pytest.fixture(autouse=True)
def _fake_loop(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr("unspoken.decoding.run", fake_loop.run)
    yield
    fake_loop.FAIL.clear()
    fake_loop.INTERRUPT_AFTER.clear()
    fake_loop.TAKEN.clear()
    fake_loop.TEXTS.clear()


@pytest.fixture
def toy() -> Callable[..., Run]:
    """`evaluate` on the toy task with the fake loop; strategy fields and options by name."""

    def run(
        *, size: int = 12, data: str | None = None, lm: dict[str, Any] | None = None, **options: Any
    ) -> Run:
        fields = fake_loop.Fake.__dataclass_fields__
        strategy = fake_loop.Fake(**{k: options.pop(k) for k in list(options) if k in fields})
        model: Any = fake_loop.FakeLM(**(lm or {}))
        return evaluate(model, fake_loop.Toy(size=size, data=data), strategy, **options)

    return run
