"""Settings of the service that need more than a type."""

from pathlib import Path

import pytest

import distillery
from serving.__main__ import COMMANDS, Serve


@pytest.fixture(autouse=True)
def not_started(monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings alone are under test: print the key instead of serving."""

    def show(settings: Serve) -> None:
        print(settings.api_key.get_secret_value() if settings.api_key else None)

    monkeypatch.setattr(Serve, "run", show)


def serve(*arguments: str) -> int:
    return distillery.main("distillery-serve", COMMANDS, default="serve", arguments=arguments)


@pytest.mark.parametrize(
    ("given", "key"),
    [
        ("secret", "secret"),
        ("correct horse", "correct horse"),
        ("secret\n", "secret"),  # echo secret | base64, in a Kubernetes Secret
        ("secret\r\n", "secret"),  # of a file written on Windows
        (" secret\t", "secret"),  # as the server reads it from the header
    ],
)
def test_whitespace_around_a_key_is_removed_as_http_does(
    given: str, key: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DISTILLERY_API_KEY", given)
    assert serve() == 0
    assert capsys.readouterr().out == f"{key}\n"


@pytest.mark.parametrize("key", ["", " ", "\n", "\t \r\n"])
def test_an_empty_key_is_refused_with_the_fix(
    key: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A secret that is missing must not leave the service open."""
    monkeypatch.setenv("DISTILLERY_API_KEY", key)
    assert serve() == 2
    assert capsys.readouterr().err.startswith(
        "distillery-serve: api_key: is empty: is a secret missing? Set DISTILLERY_API_KEY to the key, or unset it"
    )
    monkeypatch.delenv("DISTILLERY_API_KEY")
    assert serve("--api-key", key) == 2
    assert serve() == 0


@pytest.mark.parametrize(
    "key", ["sesame\nopen", "sesame\x00open", "sésame", "open\u2028sesame", "sesame\x7f"]
)
def test_a_key_that_no_header_can_carry_is_refused_without_showing_it(
    key: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if "\x00" in key:  # which no variable can hold
        assert serve("--api-key", key) == 2
    else:
        monkeypatch.setenv("DISTILLERY_API_KEY", key)
        assert serve() == 2
    error = capsys.readouterr().err
    assert "api_key: contains a character that no header can carry" in error
    assert "same" not in error


@pytest.mark.parametrize("value", ["123456", "[1, 2]", "true"])
def test_a_key_of_another_type_is_refused_without_showing_it(
    value: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "serving.toml").write_text(f"api_key = {value}\n")
    assert serve("--config", str(tmp_path / "serving.toml")) == 2
    error = capsys.readouterr().err
    assert "api_key: must be a string; put the key in quotes" in error
    assert value not in error
