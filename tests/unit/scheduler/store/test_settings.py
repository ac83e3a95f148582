from __future__ import annotations

import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from scheduler.settings import SchedulerSettings, StoreSettings, TextSettings


def test_one_folder_holds_everything_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TANDEM_DATA_DIR", "/srv/tandem")

    settings = StoreSettings()

    assert settings.database_url == "sqlite+aiosqlite:////srv/tandem/tandem.db"
    assert settings.object_store_url == "file:///srv/tandem/objects"
    assert settings.channel_url == "unix:///srv/tandem/channel.sock"
    assert settings.key_pepper_file == Path("/srv/tandem/pepper")


def test_a_cluster_names_its_services(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TANDEM_CHANNEL_URL", "redis://r:6379/0")

    assert StoreSettings().channel_url == "redis://r:6379/0"


def test_base_models_are_folders_with_ids(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TANDEM_BASE_MODELS", json.dumps(["org/a=/models/x=1", "/models/b"]))

    assert TextSettings().model_dirs() == {
        "org/a": Path("/models/x=1"),
        "b": Path("/models/b"),
    }


def test_two_base_models_of_one_id_are_refused() -> None:
    with pytest.raises(ValueError, match="write ID=DIR"):
        TextSettings(base_models=["a=/x", "/y/a"]).model_dirs()


def test_settings_never_change_and_unknown_ones_are_refused() -> None:
    with pytest.raises(ValidationError):
        StoreSettings(no_such_setting=1)
    with pytest.raises(ValidationError):
        StoreSettings().data_dir = Path("/elsewhere")


def test_every_setting_is_described() -> None:
    assert all(field.description for field in SchedulerSettings.model_fields.values())
