"""Lockstep: two networks of the same code run side by side on the same images, and stop at each product of a weight.

Layer by layer the cut network is given what the dense one computes in that place, and its weight may be changed
before it goes on: one pass of each is enough for all layers, however many there are. A pass is a thread that waits at
each product; one runs at a time. Where a product's output is added to something, as at the end of a residual block,
passes stop once more, for only then is known what the sum lacks.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from compress.prune.calibration import CalibrationBatch, Forward, run
from compress.prune.reads import ReadCall, Reads

Function = Callable[..., Any]


class Numbered(Reads):
    """`Reads` that counts torch's functions as they are called, and lets `called` run each."""

    def __init__(
        self,
        weights: Mapping[str, Tensor],
        seen: Callable[[ReadCall, Callable[[Tensor], Tensor]], Tensor],
        called: Callable[[int, Function, tuple[Any, ...], dict[str, Any], Function], Any],
    ) -> None:
        super().__init__(weights, seen)
        self.number, self._called = 0, called

    def __torch_function__(
        self, func: Function, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        number = self.number
        self.number += 1
        inner = super().__torch_function__

        def plain(*given: Any, **named: Any) -> Any:
            return inner(func, types, given, named)

        return self._called(number, func, args, kwargs or {}, plain)


@dataclass(frozen=True)
class Join:
    """Where the output of a weight's product, or that of the norm behind it, is added to something.

    Args:
        name: the weight.
        side: which of the two operands it is.
        norm: the number of the norm between them, None where there is none.
    """

    name: str
    side: int
    norm: int | None


@dataclass
class Waiting:
    """A product whose output is on the way to a join: the call, how to compute it, and what it gave."""

    call: ReadCall
    product: Callable[[Tensor], Tensor]
    output: Tensor | None = None
    norm: Callable[[Tensor], Tensor] | None = None


@dataclass(frozen=True)
class Way:
    """How passes over a network go.

    Args:
        network: what runs.
        weights: its parameters to stop at, by name.
        forward: how, as in `run`.
        joins: the numbers of the additions to stop at.
    """

    network: nn.Module
    weights: Mapping[str, Tensor]
    forward: Forward | None
    joins: Mapping[int, Join] = field(default_factory=dict)


class _StoppedError(BaseException):
    """Ends a pass that nobody waits for any more; no code of the user's may catch it."""


class Walker:
    """One pass over one batch, a step at a time.

    Attributes:
        name: the weight that it stands at; None once it is through.
        call: the product that it stands at, None at a join.
        other: what is added, at a join.
        waiting: by weight, products on the way to their join.
    """

    def __init__(self, way: Way, batch: CalibrationBatch) -> None:
        self.name: str | None = None
        self.call: ReadCall | None = None
        self.other: Tensor | None = None
        self.waiting: dict[str, Waiting] = {}
        self._way = way
        self._later = {join.name for join in way.joins.values()}
        self._norms = {join.norm: join.name for join in way.joins.values() if join.norm is not None}
        self._product: Callable[[Tensor], Tensor] | None = None
        self._output: Tensor | None = None
        self._error: BaseException | None = None
        self._go, self._stands = threading.Semaphore(0), threading.Semaphore(0)
        self._stopped = False
        self._thread = threading.Thread(target=self._walk, args=(batch,), daemon=True)
        self._thread.start()

    def step(self) -> str | None:
        """Goes on to the next stop; None where there is none. Raises what the network raises."""
        self._go.release()
        self._stands.acquire()
        if self._error is not None:
            raise self._error
        return self.name

    def product(self) -> Tensor:
        """The output of the product where it stands, which the pass then goes on with."""
        assert self._product is not None
        assert self.call is not None
        if self._output is None:
            with torch.no_grad():
                self._output = self._product(self.call.x)
        if self.call.name in self.waiting:
            self.waiting[self.call.name].output = self._output
        return self._output

    def again(self) -> None:
        """At a join: goes on with what the product gives now."""
        assert self.name is not None
        own = self.waiting[self.name]
        with torch.no_grad():
            made = own.product(own.call.x)
            self._output = made if own.norm is None else own.norm(made)

    def stop(self) -> None:
        """Ends the pass where it stands."""
        if self._thread.is_alive():
            self._stopped = True
            self._go.release()
            self._thread.join()

    def _walk(self, batch: CalibrationBatch) -> None:
        way = self._way
        try:
            self._go.acquire()
            if not self._stopped:
                with torch.no_grad(), Numbered(way.weights, self._at_product, self._at_function):
                    run(way.network, batch, way.forward)
        except _StoppedError:
            pass
        except BaseException as error:  # noqa: BLE001  (raised again where the pass is waited for)
            self._error = error
        self.name = self.call = self.other = self._product = self._output = None
        self._stands.release()

    def _wait(self) -> Tensor | None:
        """Stands until the next step; gives what to go on with, where that was set."""
        self._output = None
        self._stands.release()
        self._go.acquire()
        if self._stopped:
            raise _StoppedError
        return self._output

    def _at_product(self, call: ReadCall, product: Callable[[Tensor], Tensor]) -> Tensor:
        self.name, self.call, self._product = call.name, call, product
        if call.name in self._later:
            self.waiting[call.name] = Waiting(call, product)
        known = self._wait()
        self.call = self._product = None
        return product(call.x) if known is None else known

    def _at_function(
        self, number: int, func: Function, args: tuple[Any, ...], named: dict[str, Any], plain: Function
    ) -> Any:
        if number in self._norms and self._norms[number] in self.waiting:
            self.waiting[self._norms[number]].norm = lambda made: func(made, *args[1:], **named)
        join = self._way.joins.get(number)
        if join is None or join.name not in self.waiting:
            return plain(*args, **named)
        self.name, self.other = join.name, args[1 - join.side]
        known = self._wait()
        self.other = None
        del self.waiting[join.name]
        if known is not None:
            args = (known, args[1]) if join.side == 0 else (args[0], known)
        return plain(*args, **named)


@contextmanager
def walkers(way: Way, batches: Sequence[CalibrationBatch]) -> Iterator[list[Walker]]:
    """A pass for each batch, none of which outlives the block."""
    made: list[Walker] = []
    try:
        made.extend(Walker(way, batch) for batch in batches)
        yield made
    finally:
        for walker in made:
            walker.stop()
