"""Which workers live, what they hold, and how busy they are.

Workers announce themselves in the channel's registry with a time to live; the roster is this
gateway's copy of it, refreshed every second. A worker is given up when a new boot of it appears,
or when refreshes have missed it for the grace time: a restarted broker starts with an empty
registry, and one that cannot be asked says nothing about workers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from jsonschema import Draft202012Validator

from scheduler.domain.errors import InvalidInput, NotFound, Overloaded, UnknownPlugin
from scheduler.domain.service_class import check_announced

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from scheduler.domain.messages import BaseModelInfo, WorkerInfo
    from scheduler.domain.service_class import ClassTargets

IRREGULAR_WORDS = {"kv_policies": "KV policy"}


class WorkerRoster:
    """The workers known to this gateway, by inbox name (so one entry per boot).

    Args:
        grace_s: how long a worker may be missing from the registry, on top of the registry's
            own time to live, before it is lost; longer than workers take to announce themselves.
    """

    def __init__(self, grace_s: float) -> None:
        self._grace_s = grace_s
        self._workers: dict[str, WorkerInfo] = {}
        self._missing_since_s: dict[str, float] = {}

    def refresh(self, announced: Collection[WorkerInfo], now_s: float) -> list[str]:
        """Take in the registry's content; returns the inboxes of workers that are lost."""
        self._workers |= {info.inbox: info for info in announced}
        missing = self._workers.keys() - {info.inbox for info in announced}
        self._missing_since_s = {
            inbox: self._missing_since_s.get(inbox, now_s) for inbox in missing
        }
        announced_ids = {info.worker_id for info in announced}
        lost = [
            inbox
            for inbox, since_s in self._missing_since_s.items()
            if self._workers[inbox].worker_id in announced_ids or now_s - since_s > self._grace_s
        ]
        for inbox in lost:
            del self._workers[inbox], self._missing_since_s[inbox]
        return lost

    @property
    def workers(self) -> list[WorkerInfo]:
        """Live workers, in a stable order."""
        return [self._workers[inbox] for inbox in sorted(self._workers)]

    def holding(self, base_model: str) -> list[WorkerInfo]:
        """Live workers that serve `base_model`."""
        return [
            worker
            for worker in self.workers
            if any(base.id == base_model for base in worker.capabilities.base_models)
        ]

    def base(self, base_model: str) -> BaseModelInfo | None:
        """What a live worker says about `base_model`; None while nobody holds it."""
        for worker in self.holding(base_model):
            for base in worker.capabilities.base_models:
                if base.id == base_model:
                    return base
        return None

    def able(self, base_model: str, avoid: Collection[str] = ()) -> list[WorkerInfo]:
        """The workers that may get a request for `base_model`; those of `avoid` may not.

        Raises:
            Overloaded: no live worker holds it.
        """
        able = [worker for worker in self.holding(base_model) if worker.inbox not in avoid]
        able = [worker for worker in able if self._is_announced(worker)] or able
        if not able:
            raise Overloaded(
                f"No worker serves {base_model!r} at the moment; try again in a few seconds.",
                param="model",
                retry_after_s=2,
            )
        return able

    def least_loaded(self, base_model: str, num_live: Mapping[str, int]) -> WorkerInfo:
        """The least busy worker that holds `base_model`.

        Args:
            base_model: its id.
            num_live: this gateway's own unfinished requests per inbox; fresher than the stats.

        Raises:
            Overloaded: no live worker holds it.
        """
        return min(self.able(base_model), key=lambda worker: load_of(worker, num_live))

    def _is_announced(self, worker: WorkerInfo) -> bool:
        """Whether the last refresh saw it; in its grace time it gets work for want of others."""
        return worker.inbox not in self._missing_since_s

    def worker(self, worker_id: str) -> WorkerInfo:
        """The live worker of that name.

        Raises:
            NotFound: none is called so.
        """
        for worker in self.workers:
            if worker.worker_id == worker_id:
                return worker
        known = ", ".join(worker.worker_id for worker in self.workers) or "none"
        raise NotFound(f"No live worker {worker_id!r}; known: {known}.", param="worker_id")

    @property
    def service_classes(self) -> dict[str, ClassTargets]:
        """Targets by service class, over all live workers."""
        return {
            name: targets
            for worker in self.workers
            for name, targets in worker.capabilities.service_classes.items()
        }

    def check_declared(self, service_class: str) -> None:
        """Refuse a service class that no live worker declares.

        Raises:
            InvalidInput: there is no such class.
            Overloaded: no worker is up to ask.
        """
        check_announced(service_class, [w.capabilities.service_classes for w in self.workers])

    def check_served(self, base_model: str, service_class: str) -> None:
        """Refuse a request whose class not every worker of its model declares any more.

        Raises:
            InvalidInput: the sentence is for the tenant, who has no say in its class.
        """
        announced = [set(w.capabilities.service_classes) for w in self.holding(base_model)]
        if not all(service_class in classes for classes in announced):
            raise InvalidInput(
                f"Your service class {service_class!r} is not offered for {base_model!r} any more; "
                "ask the operator for another, or send service_tier 'flex'.",
                param="service_tier",
            )

    def schemas(self, kind: str) -> dict[str, dict[str, Any]]:
        """Plug-in name -> JSON Schema of its options, over all live workers."""
        merged: dict[str, dict[str, Any]] = {}
        for worker in self.workers:
            merged.update(getattr(worker.capabilities, kind))
        return merged

    def check_options(
        self, base_model: str, kind: str, name: str, options: Mapping[str, Any], param: str
    ) -> None:
        """Refuse options that no worker with `base_model` would take.

        Args:
            base_model: the base model of the job.
            kind: `peft_methods`, `codecs` or another field of WorkerCapabilities.
            name: the plug-in.
            options: what the caller wrote for it.
            param: field of the request to blame.

        Raises:
            UnknownPlugin: no such plug-in.
            InvalidInput: the options do not fit its schema.
            Overloaded: no worker is up to ask.
        """
        capabilities = self.able(base_model)[0].capabilities
        schemas: dict[str, dict[str, Any]] = getattr(capabilities, kind)
        word = IRREGULAR_WORDS.get(kind, kind.removesuffix("s").replace("_", " "))
        if name not in schemas:
            known = ", ".join(sorted(schemas)) or "none"
            raise UnknownPlugin(f"Unknown {word} {name!r}; known: {known}.", param=param)
        check_schema(schemas[name], options, param)


def check_schema(schema: Mapping[str, Any], options: Mapping[str, Any], param: str) -> None:
    """Refuse `options` that do not fit a JSON Schema.

    Raises:
        InvalidInput: with the dotted path of the first wrong option as `param`.
    """
    first = next(Draft202012Validator(schema).iter_errors(dict(options)), None)
    if first is not None:
        path = ".".join([param, *(str(part) for part in first.absolute_path)])
        raise InvalidInput(f"{path!r}: {first.message[:300]}.", param=path)


def load_of(worker: WorkerInfo, num_live: Mapping[str, int]) -> float:
    """How busy a worker is, as a number to compare with: requests, then KV use."""
    mine = num_live.get(worker.inbox, 0)
    if worker.stats is None:
        return float(mine)
    theirs = worker.stats.num_running + worker.stats.num_waiting
    return max(mine, theirs) + worker.stats.kv_usage
