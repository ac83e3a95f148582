"""The command line: keys, and refusals in one sentence before anything starts."""

from __future__ import annotations

import fcntl
import socket
import stat
from typing import TYPE_CHECKING

import pytest
from typer.testing import CliRunner, Result

from scheduler import cli, data_dir
from scheduler.cli import app
from scheduler.data_dir import accounts, check_class_exists, store_settings
from scheduler.domain.errors import AuthenticationFailed, InvalidInput
from scheduler.domain.messages import WorkerCapabilities, WorkerInfo
from scheduler.domain.service_class import ClassTargets
from scheduler.launch import UpOptions, make_plan
from scheduler.store.channels import connect_channel
from scheduler.store.channels.local import LocalBroker, socket_path
from workers.settings import WorkerSettings

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return tmp_path / "data"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A folder that passes all checks but could not answer."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text('{"architectures": ["Qwen3ForCausalLM"]}')
    (folder / "tokenizer.json").write_text("{}")
    (folder / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    return folder


def _tandem(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def _options(model: Path, data: Path, **changes: object) -> UpOptions:
    fixed: dict[str, object] = {
        "base_models": (str(model),),
        "data": data,
        "host": "127.0.0.1",
        "port": 0,
        "devices": "cpu",
        "environment": {},
    }
    return UpOptions(**(fixed | changes))


def test_adapter_commands_run_where_tensors_are_known(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    result = _tandem("adapters", "local", "inspect", tmp_path / "none.tnd")

    assert result.exit_code == 1
    sentence = "none.tnd is missing or cannot be read."
    assert capfd.readouterr().err == f"tandem adapters local: {sentence}\n"


def test_a_created_key_is_the_only_output_and_works(data: Path) -> None:
    result = _tandem("keys", "create", "--tenant", "team-a", "--data", data)

    assert result.exit_code == 0
    assert result.stdout.startswith("sk-tandem-")
    assert len(result.stdout.split()) == 1


async def test_a_revoked_key_is_refused(data: Path) -> None:
    async with accounts(store_settings(data)) as known:
        tenant = await known.tenant("team-a")
        key_id, plaintext = await known.keys.create(tenant.id, "test")
        assert (await known.keys.authenticate(plaintext)).name == "team-a"

        await known.keys.revoke(key_id)

        with pytest.raises(AuthenticationFailed):
            await known.keys.authenticate(plaintext)


def test_a_key_that_may_administer_is_made_for_a_new_tenant_only(data: Path) -> None:
    _tandem("keys", "create", "--tenant", "watch", "--admin", "--data", data)
    _tandem("keys", "create", "--tenant", "team-a", "--data", data)
    refused = _tandem("keys", "create", "--tenant", "team-a", "--admin", "--data", data)

    lines = _tandem("tenants", "list", "--data", data).stdout.splitlines()
    assert {line.split("\t")[1]: line.endswith("admin") for line in lines} == {
        "watch": True,
        "team-a": False,
    }
    assert refused.exit_code == 1
    assert "no admin" in refused.stderr


def test_keys_are_listed_with_their_state_and_without_their_secret(data: Path) -> None:
    key = _tandem("keys", "create", "--tenant", "team-a", "--data", data).stdout.strip()
    key_id = _tandem("keys", "list", "--data", data).stdout.split("\t")[0]

    revoked = _tandem("keys", "revoke", key_id, "--data", data)
    listing = _tandem("keys", "list", "--data", data).stdout

    assert revoked.exit_code == 0
    assert "team-a" in listing
    assert "revoked" in listing
    assert key not in listing


def test_revoking_an_unknown_key_fails_in_one_sentence(data: Path) -> None:
    result = _tandem("keys", "revoke", "key-unknown", "--data", data)

    assert result.exit_code == 1
    assert result.stderr.startswith("tandem: ")
    assert result.stderr.count("\n") == 1


async def test_the_first_admin_key_is_made_once_and_for_the_owner_only(data: Path) -> None:
    async with accounts(store_settings(data)) as known:
        first = await known.first_admin_key(data)
        second = await known.first_admin_key(data)
        assert first is not None
        assert (await known.keys.authenticate(first)).is_admin

    assert second is None
    assert (data / "admin.key").read_text().strip() == first
    assert stat.S_IMODE((data / "admin.key").stat().st_mode) == 0o600
    assert stat.S_IMODE(data.stat().st_mode) == 0o700


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--base-model", "/no/such/model"), "no folder '/no/such/model'"),
        (("--devices", "tpu"), "neither `cpu` nor GPU numbers"),
    ],
)
def test_up_refuses_what_cannot_work_in_one_sentence(
    arguments: tuple[str, str], words: str, model: Path, data: Path
) -> None:
    given = arguments if "--base-model" in arguments else (*arguments, "--base-model", str(model))

    result = _tandem("up", *given, "--data", data)

    assert result.exit_code == 1
    assert words in result.stderr
    assert result.stderr.count("\n") == 1
    assert not data.exists()


def test_tenants_are_listed_with_their_class_and_weight_and_changed(data: Path) -> None:
    _tandem("keys", "create", "--tenant", "team-a", "--data", data)

    changed = _tandem(
        "tenants", "set", "team-a", "--class", "best_effort", "--weight", "2.5", "--data", data
    )
    listing = _tandem("tenants", "list", "--data", data).stdout

    assert changed.stdout == "team-a: class best_effort, weight 2.5.\n"
    assert "\tteam-a\tbest_effort\t2.5\n" in listing


def test_rate_limits_of_a_tenant_are_set_and_lifted(data: Path) -> None:
    _tandem("keys", "create", "--tenant", "team-a", "--data", data)
    rates = ("--requests-per-minute", "60", "--tokens-per-minute", "9000")

    limited = _tandem("tenants", "set", "team-a", *rates, "--data", data)
    listing = _tandem("tenants", "list", "--data", data).stdout
    lifted = _tandem("tenants", "set", "team-a", "--requests-per-minute", "0", "--data", data)

    terms = "60 requests a minute, 9000 tokens a minute"
    assert limited.stdout == f"team-a: class default, weight 1, {terms}.\n"
    assert terms.replace(", ", "\t") in listing
    assert lifted.stdout == "team-a: class default, weight 1, 9000 tokens a minute.\n"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("team-a", "--class", "gold"), "No worker is up to say"),
        (("team-a", "--weight", "0"), "out of range"),
        (("team-a", "--weight", "nan"), "out of range"),
        (("team-a", "--tokens-per-minute", "-1"), "out of range"),
        (("nobody", "--weight", "2"), "No tenant 'nobody'"),
    ],
)
def test_a_wrong_change_of_a_tenant_is_refused_in_one_sentence(
    arguments: tuple[str, ...], words: str, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data_dir, "REGISTRY_PATIENCE_S", 0.05)
    _tandem("keys", "create", "--tenant", "team-a", "--data", data)

    result = _tandem("tenants", "set", *arguments, "--data", data)

    assert result.exit_code == 1
    assert words in result.stderr
    assert result.stderr.count("\n") == 1


async def test_a_class_exists_when_a_worker_announces_it(data: Path) -> None:
    settings = store_settings(data)
    broker = LocalBroker(socket_path(settings.channel_url))
    await broker.start()
    channel = connect_channel(settings.channel_url)
    capabilities = WorkerCapabilities(
        base_models=(), peft_methods={}, optimizers={}, objectives={},
        max_rank=1, max_num_sequences=1,
        service_classes={"default": ClassTargets(), "gold": ClassTargets(tpot_ms=20)},
    )  # fmt: skip
    await channel.announce(WorkerInfo(worker_id="w", boot_id="b", capabilities=capabilities))

    await check_class_exists(settings, "gold")
    with pytest.raises(InvalidInput, match="Unknown service class 'silver'; known: default, gold"):
        await check_class_exists(settings, "silver")

    await channel.close()
    await broker.stop()


def test_up_hands_declared_classes_to_the_workers(
    model: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[UpOptions] = []

    async def keep(options: UpOptions, *_: object, **__: object) -> None:
        given.append(options)

    monkeypatch.setattr(cli, "launch", keep)
    classes = ("--slo-class", "gold:ttft_ms=300,tpot_ms=30", "--slo-class", "bulk:tpot_ms=200")
    result = _tandem("up", "--base-model", model, "--data", data, "--tpot-ms", "70", *classes)

    assert result.exit_code == 0
    for name, value in given[0].environment.items():
        monkeypatch.setenv(name, value)
    assert WorkerSettings().service_classes() == {
        "default": ClassTargets(ttft_ms=500, tpot_ms=70),
        "best_effort": ClassTargets(),
        "gold": ClassTargets(ttft_ms=300, tpot_ms=30),
        "bulk": ClassTargets(tpot_ms=200),
    }


def test_up_refuses_a_wrong_class_before_anything_starts(model: Path, data: Path) -> None:
    result = _tandem("up", "--base-model", model, "--data", data, "--slo-class", "gold:tpot=3")

    assert result.exit_code == 1
    assert result.stderr.startswith("tandem: --slo-class 'gold:tpot=3'")
    assert result.stderr.count("\n") == 1
    assert not data.exists()


def test_up_refuses_a_taken_port(model: Path, data: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]

        result = _tandem("up", "--base-model", model, "--data", data, "--port", str(port))

    assert result.exit_code == 1
    assert f"port {port} is taken" in result.stderr


def test_up_refuses_a_data_folder_whose_path_is_too_long_for_a_socket(
    model: Path, data: Path
) -> None:
    result = _tandem("up", "--base-model", model, "--data", data / ("x" * 90), "--port", "0")

    assert result.exit_code == 1
    assert "too long a path for --data" in result.stderr


def test_up_refuses_a_folder_that_another_supervisor_holds(model: Path, data: Path) -> None:
    data.mkdir()
    with (data / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)

        result = _tandem("up", "--base-model", model, "--data", data, "--port", "0")

    assert result.exit_code == 1
    assert "Another `tandem up` already uses" in result.stderr


def test_a_data_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    result = _tandem("keys", "list", "--data", tmp_path / "file" / "data")

    assert result.exit_code == 1
    assert "Not a directory" in result.stderr


def test_two_base_models_of_one_name_are_refused(model: Path, data: Path) -> None:
    result = _tandem("up", "--base-model", model, "--base-model", model, "--data", data)

    assert result.exit_code == 1
    assert "Two base models are called 'model'" in result.stderr


def test_a_plan_starts_the_broker_first_and_the_gateway_last(model: Path, data: Path) -> None:
    plan = make_plan(_options(model, data))

    assert [child.name for child in plan.children()] == ["scheduler", "worker cpu", "gateway"]
    assert plan.url.startswith("http://127.0.0.1:")
    assert plan.children()[1].environment["TANDEM_DEVICE"] == "cpu"


def test_version_is_the_installed_one() -> None:
    assert _tandem("version").stdout.startswith("tandem 0.")


def test_prepare_makes_schema_and_root_where_the_environment_says(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TANDEM_DATA_DIR", str(data))

    first, second = _tandem("prepare"), _tandem("prepare")

    assert (first.exit_code, second.exit_code) == (0, 0)
    assert (data / "tandem.db").is_file()
    assert (data / "objects").is_dir()
