"""Whatever fits our OpenAPI description, or does not, is answered without a failure of the server."""

from __future__ import annotations

from collections.abc import Iterator

import hypothesis
import pytest
from serving import serving

from unspoken.lm.model import CausalLM
from unspoken.web._settings import Settings
from unspoken.web.app import create_app
from unspoken.web.jobs import Engine

schemathesis = pytest.importorskip("schemathesis")
pytestmark = pytest.mark.filterwarnings("default")  # of the tool, not of the project

HEADERS = {"Host": "127.0.0.1"}


@pytest.fixture(scope="module")
def served(lm: CausalLM, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    settings = Settings(name="tiny", history=tmp_path_factory.mktemp("fuzz"), max_new_tokens=24, max_rows=8)
    with serving(Engine(lm, batch_size=4), settings) as address:
        yield address


def _schema(lm: CausalLM) -> object:
    return create_app(Engine(lm), Settings(name="tiny")).openapi()


def _paths() -> list[tuple[str, str]]:
    return [
        ("/api/stream", "POST"),
        ("/api/generate", "POST"),
        ("/api/cancel", "POST"),
        ("/api/cancel/{name}", "POST"),
        ("/api/runs", "GET"),
        ("/api/run/{run}", "GET"),
        ("/api/run/{run}", "DELETE"),
        ("/api/lens", "POST"),
        ("/api/token-text/{token}", "GET"),
        ("/v1/models/{model}", "GET"),
        ("/v1/chat/completions", "POST"),
        ("/v1/completions", "POST"),
    ]


def test_the_list_below_is_complete(lm: CausalLM) -> None:
    described = _schema(lm)["paths"]  # type: ignore[index]
    plain = {"/healthz", "/api/model-status", "/api/models", "/api/strategies", "/v1/models"}
    known = {
        (path, method.upper())
        for path, methods in described.items()
        for method in methods
        if path not in plain
    }
    assert known == set(_paths())


@pytest.mark.parametrize(("path", "method"), _paths())
def test_no_failures(served: str, lm: CausalLM, path: str, method: str) -> None:
    operation = schemathesis.openapi.from_dict(_schema(lm))[path][method]
    modes = list(schemathesis.GenerationMode)

    @hypothesis.settings(
        max_examples=25,
        database=None,
        derandomize=True,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(data=hypothesis.strategies.data())
    def check(data: hypothesis.strategies.DataObject) -> None:
        mode = data.draw(hypothesis.strategies.sampled_from(modes))
        case = data.draw(operation.as_strategy(generation_mode=mode))
        response = case.call(base_url=served, timeout=30)
        assert response.status_code < 500, response.text
        assert "Traceback" not in response.text

    check()
