"""Settings of connections, proxies and origins: where they may come from, and which values are errors."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from distillery.errors import errors
from serving.__main__ import Serve

PAGES = ["https://page.example", "http://localhost:3000"]


def test_lists_are_separated_by_commas_in_an_option_a_variable_and_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert Serve.parse(["--cors-origins", ",".join(PAGES)]).cors_origins == PAGES
    file = tmp_path / "service.toml"
    for value in (f'"{", ".join(PAGES)}"', str(PAGES)):
        file.write_text(f"cors_origins = {value}\n")
        assert Serve.parse(["--config", str(file)]).cors_origins == PAGES
    monkeypatch.setenv("DISTILLERY_CORS_ORIGINS", ", ".join(PAGES))
    assert Serve.parse([]).cors_origins == PAGES
    monkeypatch.setenv("DISTILLERY_CORS_ORIGINS", "")
    assert Serve.parse([]).cors_origins == []


def test_valid_values_are_accepted() -> None:
    settings = Serve.parse(["--trusted-proxies", "10.0.0.0/8,::1,192.0.2.1", "--root-path", "/a/b/"])
    assert (settings.trusted_proxies, settings.root_path) == (["10.0.0.0/8", "::1", "192.0.2.1"], "/a/b")
    assert Serve.parse(["--trusted-proxies", "*,::1", "--cors-origins", "*"]).trusted_proxies == ["*"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--cors-origins", "https://page.example/"), "use https://page.example"),
        (("--cors-origins", "HTTPS://Page.example:443"), "use https://page.example"),
        (("--cors-origins", "page.example"), "expected one such as https://example.org"),
        (("--trusted-proxies", "10.0.0.1/8"), "10.0.0.1/8 has host bits set"),
        (("--trusted-proxies", "nginx"), "expected addresses or networks such as 10.0.0.0/8"),
        (("--root-path", "digits"), "'digits' is not a path prefix such as /digits"),
        (("--root-path", "//digits"), "'//digits' is not a path prefix"),
        (("--keep-alive", "0"), "greater than 0"),
    ],
)
def test_an_invalid_value_is_an_error_that_names_the_fix(arguments: tuple[str, ...], message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        Serve.parse(arguments)
    [line] = errors(caught.value, Serve)
    assert message in line
