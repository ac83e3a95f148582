"""Makes what a fresh adapter has beside its trained parameters, while the engine goes on.

Decomposing the weights of a base model takes seconds to minutes; serving must not wait for that.
"""

from __future__ import annotations

from concurrent.futures import Executor, Future, ThreadPoolExecutor
from functools import partial

import torch

from workers.decoder import Decoder
from workers.inline_executor import InlineExecutor
from workers.lane_device import lane_device
from workers.site_weights import SiteWeights
from workers.train_job import TrainJob


class JobPreparer:
    """Prepares the jobs of one base model, one after the other.

    The ranks of a group gather weights from each other, so all of them do it at once and at the
    same point between two steps. On CUDA a thread finds what it is given as a lane does, and a job
    is prepared only once the device has all of it: threads have streams of their own.
    """

    def __init__(self, decoder: Decoder) -> None:
        self._weights = SiteWeights(decoder)
        self._device = lane_device(decoder.weights.device)
        self._executor: Executor = InlineExecutor()
        if decoder.group.is_alone:
            self._executor = ThreadPoolExecutor(1, "preparer", torch.set_num_threads, (1,))

    def prepare(self, job: TrainJob) -> Future[None] | None:
        """Begin; None where nothing has to be made, or a checkpoint holds it."""
        if job.order.resume_from is not None or not job.shard.whole.fixed_shapes():
            return None
        self._device.begin()
        make = partial(job.shard.make_fixed, job.params, self._weights)
        return self._executor.submit(self._device.run, make)
