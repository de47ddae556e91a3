"""Schedulers of diffusers that look at a number on the GPU in every step, and so wait for all that it still has to do.

They index a table on the host with the timestep, which lies on the GPU: the next step's launches begin only when the
network of this one has ended. The timestep is an element of the scheduler's own list, which is copied to the host once.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

import torch

from rewriter.capture.watching import version

# Those whose results are the same, bit by bit, wherever the timestep lies: only tables on the host are indexed with it.
_WAITING = ("DDIMScheduler", "DDPMScheduler", "PNDMScheduler")
_TIMESTEP = 1

_users: weakref.WeakKeyDictionary[Any, weakref.WeakSet[Any]] = weakref.WeakKeyDictionary()


class HostStep:
    """Stands for a scheduler's `step`, and calls it with the timestep and the list of them on the host.

    Calls whose timestep is on the host already, or no element of the list, are passed on as they are.
    """

    def __init__(self, scheduler: Any) -> None:
        # Where `inspect.signature` looks, by which pipelines find out about the arguments.
        self.__wrapped__ = scheduler.step
        self._known: tuple[weakref.ref[torch.Tensor], int, torch.Tensor] | None = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        scheduler = self.__wrapped__.__self__
        named = "timestep" in kwargs
        timestep = kwargs["timestep"] if named else args[_TIMESTEP] if len(args) > _TIMESTEP else None
        every = getattr(scheduler, "timesteps", None)
        index = _index(timestep, every)
        if index is None:
            return self.__wrapped__(*args, **kwargs)
        assert isinstance(every, torch.Tensor)
        on_host = self._on_host(every)
        if named:
            kwargs["timestep"] = on_host[index]
        else:
            args = (*args[:_TIMESTEP], on_host[index], *args[_TIMESTEP + 1 :])
        scheduler.timesteps = on_host
        try:
            return self.__wrapped__(*args, **kwargs)
        finally:
            if scheduler.timesteps is on_host:
                scheduler.timesteps = every

    def __reduce__(self) -> tuple[Any, ...]:
        # Copies, and what is loaded where this package is not, have the scheduler's own step.
        return getattr, (self.__wrapped__.__self__, "step")

    def _on_host(self, every: torch.Tensor) -> torch.Tensor:
        if self._known is None or self._known[0]() is not every or self._known[1] != version(every):
            self._known = weakref.ref(every), version(every), every.cpu()
        return self._known[2]


def attach(pipeline: Any) -> None:
    """Has the pipeline's scheduler step without waiting, if it is one that would wait."""
    scheduler: Any = getattr(pipeline, "scheduler", None)
    if not _waits(scheduler):
        return
    _users.setdefault(scheduler, weakref.WeakSet()).add(pipeline)
    if "step" not in vars(scheduler):
        scheduler.step = HostStep(scheduler)


def follow(users: Iterable[Any]) -> None:
    """As `attach`, for the pipelines among `users` that have been given another scheduler since."""
    for user in users:
        scheduler = getattr(user, "scheduler", None)
        if _waits(scheduler) and "step" not in vars(scheduler):
            attach(user)


def detach(pipeline: Any) -> None:
    """Undoes `attach`, for each scheduler that no other pipeline has been attached with."""
    for scheduler, users in list(_users.items()):
        users.discard(pipeline)
        if not users:
            del _users[scheduler]
            if isinstance(vars(scheduler).get("step"), HostStep):
                del scheduler.step


def _waits(scheduler: Any) -> bool:
    kind = type(scheduler)
    return kind.__name__ in _WAITING and kind.__module__.startswith("diffusers.")


def _index(timestep: Any, every: Any) -> int | None:
    """Which element of `every`, on a GPU, the timestep is a view of; None if it is none."""
    if not (isinstance(timestep, torch.Tensor) and isinstance(every, torch.Tensor)):
        return None
    if not (timestep.is_cuda and every.is_cuda and timestep.device == every.device and timestep.dtype == every.dtype):
        return None
    if timestep.dim() != 0 or every.dim() != 1 or not every.is_contiguous():
        return None
    index, rest = divmod(timestep.data_ptr() - every.data_ptr(), every.element_size())
    return index if rest == 0 and 0 <= index < len(every) else None
