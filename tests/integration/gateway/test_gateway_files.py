"""Files through the official client."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import openai
import pytest

from tests.integration.gateway.conftest import run_service
from tests.integration.gateway.training import CONTENT, upload

if TYPE_CHECKING:
    from collections.abc import Iterator

    from openai import OpenAI

    from tests.integration.gateway.conftest import Service


def stored_objects(service: Service) -> list[Path]:
    """Every uploaded object on disk."""
    root = Path(service.settings.object_store_url.removeprefix("file://")) / "files"
    return [path for path in root.rglob("*") if path.is_file()]


def test_a_file_comes_back_as_it_went_in(client: OpenAI) -> None:
    file = upload(client)

    assert file.id.startswith("file-")
    assert file.object == "file"
    assert (file.bytes, file.filename, file.purpose) == (len(CONTENT), "data.jsonl", "fine-tune")
    assert client.files.retrieve(file.id) == file
    assert client.files.content(file.id).read() == CONTENT
    assert client.files.wait_for_processing(file.id).status == "processed"


def test_a_large_file_survives_the_spool(client: OpenAI) -> None:
    content = b'{"prompt": "a", "completion": "b"}\n' * 100_000

    file = upload(client, content=content)

    assert client.files.content(file.id).read() == content


def test_files_are_listed_in_pages(client: OpenAI) -> None:
    ids = [upload(client, name=f"{i}.jsonl").id for i in range(3)]

    assert [file.id for file in client.files.list(limit=2)] == ids[::-1]
    assert [file.id for file in client.files.list(order="asc")] == ids
    assert [file.id for file in client.files.list(purpose="batch")] == []
    assert client.files.list(limit=2).has_more


def test_a_deleted_file_leaves_nothing_behind(service: Service, client: OpenAI) -> None:
    before = stored_objects(service)
    file = upload(client)

    assert client.files.delete(file.id).deleted

    with pytest.raises(openai.NotFoundError):
        client.files.retrieve(file.id)
    assert stored_objects(service) == before


def test_another_tenants_file_is_not_found(service: Service, client: OpenAI) -> None:
    file = upload(client)
    other = service.client(service.tenant()[1])

    for call in (other.files.retrieve, other.files.content, other.files.delete):
        with pytest.raises(openai.NotFoundError) as foreign:
            call(file.id)
        with pytest.raises(openai.NotFoundError) as unknown:
            call("file-" + "0" * 24)
        assert foreign.value.message.replace(file.id, "file-" + "0" * 24) == unknown.value.message
    assert list(other.files.list()) == []


def test_the_same_idempotency_key_makes_one_file(service: Service, client: OpenAI) -> None:
    before = len(stored_objects(service))
    headers = {"Idempotency-Key": "once"}

    first = upload(client, extra_headers=headers)
    second = upload(client, extra_headers=headers)

    assert first.id == second.id
    assert len(list(client.files.list())) == 1
    assert len(stored_objects(service)) == before + 1


def test_the_same_idempotency_key_with_another_body_is_refused(client: OpenAI) -> None:
    headers = {"Idempotency-Key": "once"}
    upload(client, extra_headers=headers)

    with pytest.raises(openai.BadRequestError) as caught:
        upload(client, content=b"{}\n", extra_headers=headers)

    assert caught.value.code == "idempotency_mismatch"
    assert caught.value.response.headers["x-should-retry"] == "false"


@pytest.mark.parametrize(
    ("form", "param"),
    [
        ({"data": {"purpose": "fine-tune"}}, "file"),
        ({"files": {"file": ("a", b"x")}}, "purpose"),
        ({"files": {"file": ("a", b"x")}, "data": {"purpose": "fun"}}, "purpose"),
        ({"files": {"file": ("a", b"")}, "data": {"purpose": "fine-tune"}}, "file"),
        ({"data": {"purpose": "fine-tune", "file": "text"}}, "file"),
        ({"json": {"purpose": "fine-tune"}}, "purpose"),
        (
            {
                "files": {"file": ("a", b"x")},
                "data": {"purpose": "fine-tune", "expires_after[seconds]": "3600"},
            },
            "expires_after[seconds]",
        ),
    ],
)
def test_a_bad_form_is_refused_by_field_and_stores_nothing(
    service: Service, form: dict[str, Any], param: str
) -> None:
    headers = {"authorization": f"Bearer {service.tenant()[1]}"}
    before = stored_objects(service)

    response = service.http.post("/v1/files", headers=headers, **form)

    assert response.status_code == 400
    assert response.json()["error"]["param"] == param
    assert stored_objects(service) == before


def test_a_filename_is_only_ever_shown(client: OpenAI) -> None:
    file = upload(client, name="../../etc/passwd")

    assert file.filename == "passwd"


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A gateway that takes little."""
    limits = {"max_file_bytes": 1000, "max_stored_bytes": 1500}
    yield from run_service(tmp_path_factory.mktemp("small-files"), **limits)


def test_an_oversized_file_is_refused_and_leaves_nothing(small: Service) -> None:
    client = small.client(small.tenant()[1])

    with pytest.raises(openai.APIStatusError) as just_over:
        upload(client, content=b"x" * 1001)
    with pytest.raises(openai.APIStatusError) as far_over:
        upload(client, content=b"x" * 200_000)

    assert just_over.value.status_code == far_over.value.status_code == 413
    assert just_over.value.param == "file"
    assert stored_objects(small) == []


def test_stored_bytes_of_a_tenant_are_limited(small: Service) -> None:
    client = small.client(small.tenant()[1])
    kept = upload(client, content=b"x" * 900)
    before = stored_objects(small)

    with pytest.raises(openai.RateLimitError):
        upload(client, content=b"y" * 900)

    assert stored_objects(small) == before
    client.files.delete(kept.id)
    assert upload(client, content=b"y" * 900).bytes == 900
