"""Every query of the shipped dashboard, alerts and autoscaler finds data in a real Prometheus."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.e2e.load import callers, compressed_answer
from tests.e2e.prometheus import alert_measures, panel_queries, scaling_queries, watching
from tests.e2e.service import start, start_job, until

if TYPE_CHECKING:
    from pathlib import Path

    from tests.e2e.prometheus import Prometheus

pytestmark = pytest.mark.e2e


def _wait_for_data(prometheus: Prometheus, queries: dict[str, str]) -> None:
    """Each query must give numbers sooner or later, while the load lasts."""
    silent = dict(queries)

    def all_have_told() -> bool:
        for name, query in list(silent.items()):
            if prometheus.query(query):
                del silent[name]
        return not silent

    try:
        until(all_have_told)
    except AssertionError:
        raise AssertionError(f"No data: {silent}") from None


def test_every_panel_alert_and_trigger_has_data_under_mixed_load(tmp_path: Path) -> None:
    service = start(tmp_path / "data")
    try:
        acme, rival = service.tenant("acme"), service.tenant("rival")
        with watching(service, tmp_path) as prometheus, callers(acme, rival):
            _wait_for_data(prometheus, {"off": panel_queries()["SLO kept, training off A"]})
            start_job(acme, examples=64, epochs=50, batch=1)

            compressed_answer(acme)

            queries = panel_queries() | alert_measures() | scaling_queries()
            _wait_for_data(prometheus, queries)
            dropped = "sum(tandem_kv_dropped_tokens_total) > 0"
            until(lambda: bool(prometheus.query(dropped)))

            kinds = prometheus.query("sum by (kind) (tandem_step_tokens_total) > 0")
            up = prometheus.query("min(up)")
    finally:
        service.stop()

    told = {sample["metric"]["kind"] for sample in kinds}
    assert told == {"decode", "prefill", "train_forward", "train_backward"}
    assert [sample["value"][1] for sample in up] == ["1"]
