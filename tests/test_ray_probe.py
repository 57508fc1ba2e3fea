"""What a head says is heard before Ray is started on it: each refusal is one line, at once."""

from __future__ import annotations

import platform
import socket
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest
from fake_heads import TOKEN, gcs

from cluster import ray_environment
from cluster.errors import ClusterError, RefusedError, exit_code

OURS = {"ray_version": metadata.version("ray"), "python_version": platform.python_version()}
RESOLVE = "ray._private.services.canonicalize_bootstrap_address_or_die"
SHOWS_TOKEN = "cluster.ray_probe.is_token_auth_enabled"
HERE, ELSEWHERE = "127.0.0.1", "192.0.2.1"


@pytest.fixture(autouse=True)
def home(ray_ready: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A home without a token, and a process that shows none."""
    for name in (ray_environment.TOKEN, ray_environment.TOKEN_PATH):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(SHOWS_TOKEN, lambda: True)
    # Or Ray reads 127.0.0.1 as the machine's outward address.
    monkeypatch.setattr(RESOLVE, lambda address: address)
    yield tmp_path


def check(head: str) -> str | None:
    from cluster import ray_probe  # not before Ray's environment is set

    return ray_probe.check(head)


def refusal(head: str) -> str:
    with pytest.raises(RefusedError) as caught:
        check(head)
    assert exit_code(caught.value) == 2
    text = str(caught.value)
    assert "\n" not in text and TOKEN not in text
    return text


def test_a_head_that_will_have_us_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ray_environment.TOKEN, TOKEN)
    with gcs(TOKEN, OURS, (ELSEWHERE, HERE)) as head:
        assert check(head) is None


def test_a_head_that_asks_for_no_token_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SHOWS_TOKEN, lambda: False)
    with gcs(None, OURS, (HERE,)) as head:
        assert f"the Ray cluster at {head} asks for no token" in str(check(head))


def test_a_token_is_wrong_missing_or_not_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    with gcs(TOKEN, OURS, (HERE,)) as head:
        assert refusal(head).startswith(f"no token for the Ray cluster at {head}: set RAY_AUTH")
        monkeypatch.setenv(ray_environment.TOKEN, "wrong")
        assert "refuses the token" in refusal(head)
        monkeypatch.setattr(SHOWS_TOKEN, lambda: False)
        assert refusal(head).startswith(f"the Ray cluster at {head} asks for a token: set RAY_AUTH")


@pytest.mark.parametrize("name", OURS)
def test_another_version_is_told_with_both(name: str) -> None:
    theirs = OURS | {name: "1.2.3"}
    with gcs(None, theirs, (HERE,)) as head:
        assert refusal(head) == (
            f"the Ray cluster at {head} runs Ray {theirs['ray_version']} with Python "
            f"{theirs['python_version']}, and this is Ray {OURS['ray_version']} with Python "
            f"{OURS['python_version']}: they must be the same"
        )


def test_a_machine_that_is_no_node_is_told() -> None:
    with gcs(None, OURS, (ELSEWHERE,)) as head:
        assert refusal(head).startswith(f"this machine is no node of the Ray cluster at {head}")


def test_what_is_no_head_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_environment, "CONNECT_S", 0.5)
    with socket.create_server((HERE, 0)) as server:  # takes the connection, and says nothing
        head = f"{HERE}:{server.getsockname()[1]}"
        with pytest.raises(ClusterError, match="no answer within") as caught:
            check(head)
    assert exit_code(caught.value) == 1
    assert refusal(head).startswith(f"what answers at {head} is no head of a Ray cluster")


def test_auto_without_a_cluster_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def finds_none(address: str) -> str:
        raise ConnectionError("Could not find any running Ray instance.\nPlease specify the one")

    monkeypatch.setattr(RESOLVE, finds_none)
    with pytest.raises(ClusterError, match=r"^no Ray cluster at auto: none runs on this machine"):
        check("auto")


# The token


def test_the_token_is_found_where_ray_finds_it(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert ray_environment.find_token() is None
    (home / ".ray").mkdir()
    (home / ".ray" / "auth_token").write_text("of-the-home\n")
    assert ray_environment.find_token() == "of-the-home"
    (tmp_path / "file").write_text(" of-the-file ")
    monkeypatch.setenv(ray_environment.TOKEN_PATH, str(tmp_path / "file"))
    assert ray_environment.find_token() == "of-the-file"
    monkeypatch.setenv(ray_environment.TOKEN, "of-the-variable")
    assert ray_environment.find_token() == "of-the-variable"


@pytest.mark.parametrize("text", ["two words", "a\r\nHost: b", "", "wört", "\x7f"])
def test_what_is_no_token_is_refused_without_being_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    path = tmp_path / "file"
    path.write_text(text, "utf-8")
    monkeypatch.setenv(ray_environment.TOKEN_PATH, str(path))
    with pytest.raises(ValueError, match="must hold a token") as caught:
        ray_environment.find_token()
    assert not text or text not in str(caught.value)
    path.unlink()
    with pytest.raises(ValueError, match="cannot be read"):
        ray_environment.find_token()
