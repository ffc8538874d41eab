"""Who may call, by which name, from which page, with how much."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from serving import serving

from unspoken.errors import ConfigError
from unspoken.lm.model import CausalLM
from unspoken.web._settings import Settings
from unspoken.web.jobs import Engine

KEY = "a-long-enough-key"


@pytest.fixture(scope="module")
def keyed(lm: CausalLM) -> Iterator[str]:
    with serving(Engine(lm), Settings(name="tiny", api_key=KEY, max_body=2000)) as address:
        yield address


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:5000", "127.0.0.1.evil.example", "", "0.0.0.0", "[::2]"]
)
def test_another_name_is_refused(base: str, host: str) -> None:
    """A page of another site may have its name point here; it must not be able to read the answer."""
    response = httpx.get(f"{base}/api/runs", headers={"Host": host})
    assert response.status_code in (400, 403), host


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "localhost:8080", "[::1]:5000", "LOCALHOST"])
def test_names_of_this_computer_are_fine_through_any_tunnel(base: str, host: str) -> None:
    assert httpx.get(f"{base}/healthz", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:1"},
        {"Origin": "http://[broken"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ],
)
def test_pages_of_other_sites_are_refused(base: str, headers: dict[str, str]) -> None:
    for path in ("/api/stream", "/v1/completions", "/api/cancel"):
        response = httpx.post(base + path, json={"prompt": "a", "id": "x", "model": "tiny"}, headers=headers)
        assert response.status_code == 403
    assert httpx.get(f"{base}/api/runs", headers=headers).status_code == 403


def test_the_own_page_is_fine(base: str) -> None:
    headers = {"Origin": base, "Sec-Fetch-Site": "same-origin"}
    assert httpx.post(f"{base}/api/cancel", json={"id": "x"}, headers=headers).status_code == 200
    # A link from elsewhere may open the page.
    assert httpx.get(f"{base}/", headers={"Sec-Fetch-Site": "cross-site"}).status_code == 200


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", ""]
)
def test_forms_cannot_be_sent(base: str, kind: str) -> None:
    response = httpx.post(f"{base}/api/cancel", content=b'{"id": "x"}', headers={"Content-Type": kind})
    assert response.status_code == 400


@pytest.mark.parametrize("path", ["/", "/static/main.js", "/healthz", "/api/runs", "/nothing"])
def test_every_answer_tells_browsers_what_they_may(base: str, path: str) -> None:
    headers = httpx.get(base + path).headers
    policy = headers["content-security-policy"]
    assert "default-src 'self'" in policy and "unsafe" not in policy and "frame-ancestors 'none'" in policy
    assert headers["x-content-type-options"] == "nosniff" and headers["referrer-policy"] == "no-referrer"
    assert "access-control-allow-origin" not in headers and "server" not in headers
    assert httpx.get(base + path, headers={"Host": "evil.example"}).headers["x-frame-options"] == "DENY"


@pytest.mark.parametrize(
    "value", [None, "", "Bearer", "Bearer wrong", f"Basic {KEY}", f"Bearer {KEY}x", "Bearer é"]
)
def test_without_the_key_nothing_is_done(keyed: str, value: str | None) -> None:
    headers = {} if value is None else {"Authorization": value.encode("latin-1")}
    for method, path in (
        ("GET", "/api/runs"),
        ("GET", "/v1/models"),
        ("POST", "/api/cancel"),
        ("GET", "/nothing"),
    ):
        response = httpx.request(method, keyed + path, headers=headers, json={} if method == "POST" else None)
        assert response.status_code == 401 and response.headers["www-authenticate"] == "Bearer"
    assert httpx.get(f"{keyed}/healthz", headers=headers).status_code == 200
    assert httpx.get(f"{keyed}/", headers=headers).status_code == 200


def test_with_the_key_all_is_well(keyed: str) -> None:
    assert httpx.get(f"{keyed}/api/runs", headers={"Authorization": f"Bearer {KEY}"}).status_code == 200
    assert httpx.get(f"{keyed}/v1/models", headers={"Authorization": f"bearer {KEY}"}).status_code == 200


@pytest.mark.parametrize(
    "spoilt",
    [{"max_tokens": KEY}, {"n": "x" * 50 + KEY}, {KEY: 1}, {"unspoken": {KEY: 1}}, {"model": KEY}],
)
def test_a_key_in_a_wrong_place_is_not_given_back(keyed: str, spoilt: dict[str, Any]) -> None:
    body = {"model": "tiny", "prompt": "a", **spoilt}
    response = httpx.post(f"{keyed}/v1/completions", json=body, headers={"Authorization": f"Bearer {KEY}"})
    assert response.status_code in (400, 404) and KEY[:6] not in response.text, response.text


def test_bodies_are_limited_told_or_not(keyed: str) -> None:
    headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
    body = b'{"prompt": "' + b"a" * 3000 + b'"}'

    def pieces() -> Iterator[bytes]:
        yield body[:1500]
        yield body[1500:]

    for content in (body, pieces()):
        response = httpx.post(f"{keyed}/api/stream", content=content, headers=headers)
        assert response.status_code == 413 and "2000 bytes" in response.json()["error"]["message"]
    place = urlsplit(keyed)
    with socket.create_connection((place.hostname, place.port)) as raw:
        raw.sendall(
            b"POST /api/stream HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            b"Authorization: Bearer " + KEY.encode() + b"\r\nContent-Length: 99999999999999\r\n\r\n"
        )
        assert b" 413 " in raw.recv(4096).split(b"\r\n")[0]  # before a byte of it is sent


def test_long_prompts_are_refused(lm: CausalLM) -> None:
    with serving(Engine(lm), Settings(name="tiny", max_prompt=50)) as base:
        response = httpx.post(f"{base}/api/stream", json={"prompt": "a" * 30, "system": "b" * 30})
        assert response.status_code == 422
        assert response.json()["error"]["fields"] == {
            "prompt": ["prompt must have at most 50 characters, not 60."]
        }


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.5", "::", "my-computer"])
def test_an_address_that_others_reach_needs_a_key(host: str) -> None:
    with pytest.raises(ConfigError, match="--api-key KEY .*--insecure"):
        Settings(host=host)
    assert Settings(host=host, insecure=True).host == host
    assert not Settings(host=host, api_key=KEY).local


@pytest.mark.parametrize("options", [{"api_key": "short"}, {"api_key": "schlüssel-lang"}, {"max_body": 0}])
def test_wrong_settings(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        Settings(**options)


def test_a_key_is_not_shown() -> None:
    assert KEY not in repr(Settings(api_key=KEY))


def test_names_on_a_shared_address() -> None:
    """An address is no name that could be made to point here; other names are told to the server."""
    settings = Settings(host="0.0.0.0", api_key=KEY, allowed_hosts=("lab.example",))
    assert settings.allows_host("192.168.1.5") and settings.allows_host(socket.gethostname())
    assert settings.allows_host("lab.example") and settings.allows_host("Lab.Example.")
    assert not settings.allows_host("evil.example") and not settings.allows_host("")


def test_a_fault_of_the_server_is_told_without_its_inside(
    lm: CausalLM, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: Any) -> Any:
        raise RuntimeError("secret inside")

    monkeypatch.setattr("unspoken.lm.zoo.summary", broken)
    with serving(Engine(lm)) as base:
        response = httpx.get(f"{base}/api/models")
        assert response.status_code == 500 and "secret" not in response.text
        assert httpx.get(f"{base}/healthz").status_code == 200
    said = capsys.readouterr().err
    assert "/api/models': RuntimeError: secret inside" in said and "in broken" in said  # with its place
