from __future__ import annotations

from scheduler.tasks.celery_queue import make_celery
from scheduler.tasks.registry import ADAPTER_ORDER, TASKS


def test_orders_wait_in_a_queue_of_their_own_and_a_plain_worker_takes_from_both() -> None:
    app = make_celery("redis://localhost:1/0")

    ways = {task: app.amqp.router.route({}, task)["queue"] for task in TASKS}

    assert {task: str(queue.name) for task, queue in ways.items()} == dict.fromkeys(
        TASKS, "tandem"
    ) | {ADAPTER_ORDER: "tandem-orders"}
    assert len({(queue.exchange.name, queue.routing_key) for queue in ways.values()}) == 2
    assert set(app.amqp.queues.consume_from) == {"tandem", "tandem-orders"}
