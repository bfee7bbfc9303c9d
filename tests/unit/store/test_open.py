from pathlib import Path

import pytest

from omnifarm.errors import ConfigError
from omnifarm.store.local import LocalStore
from omnifarm.store.memory import MemoryStore
from omnifarm.store.open import open_store


def test_memory_is_new_each_time() -> None:
    first, second = open_store("memory:"), open_store("memory:")
    assert isinstance(first, MemoryStore)
    first.put("k", b"")
    assert list(second.list()) == []


@pytest.mark.parametrize("form", ["{}", "file://{}", "file://localhost{}"])
def test_a_folder_opens_as_path_and_as_file_url(tmp_path: Path, form: str) -> None:
    store = open_store(form.format(tmp_path))
    assert isinstance(store, LocalStore)
    assert store.url == str(tmp_path)


def test_a_relative_path_is_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert open_store("build/store").url == str(tmp_path / "build" / "store")


@pytest.mark.parametrize(
    ("url", "advice"),
    [
        ("", "s3://bucket/prefix"),
        ("http://host/x", "no store speaks"),
        ("s3:bucket", "no store speaks"),
        ("s3://", "s3://bucket/prefix"),
        ("s3://Bad_Bucket/x", "lower-case"),
        ("s3://bucket/../x", "like a key"),
        ("file://host/x", "file:///absolute"),
        ("file:relative", "file:///absolute"),
        ("file:///a/../../etc", "without '..'"),
    ],
)
def test_another_form_is_refused_with_the_right_one(url: str, advice: str) -> None:
    with pytest.raises(ConfigError) as caught:
        open_store(url)
    assert advice in str(caught.value)


@pytest.mark.parametrize("url", ["https://user:hunter2@host/x", "s3://AKIA:hunter2@bucket/x", "ftp://a:hunter2@b"])
def test_a_password_in_the_url_is_not_repeated(url: str) -> None:
    with pytest.raises(ConfigError) as caught:
        open_store(url)
    assert "hunter2" not in str(caught.value)


def test_opening_s3_contacts_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:1")
    assert open_store("s3://bucket/a/b/").url == "s3://bucket/a/b"
