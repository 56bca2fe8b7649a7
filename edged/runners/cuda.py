"""One CUDA device as a runner uses it: context, streams, buffers, events, graphs.

pycuda owns contexts, streams and memory; events, and the graph calls that it lacks, go to the
driver library through ctypes. A launch keeps the interpreter lock: it takes 2 to 4 us, and to give
the lock away costs more, since the thread that waits for batches takes it. TensorRT works in the
device's primary context, so that one is retained, never a new one (and never ``pycuda.autoinit``,
which binds the importing thread).
"""

from __future__ import annotations

import contextlib
import ctypes
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pycuda.driver as drv

from edged.device import cuda_number
from edged.errors import DeviceFaultError, EngineRefusedError
from edged.runners import Array

_RELAXED = 2  # CU_STREAM_CAPTURE_MODE_RELAXED: other threads may allocate meanwhile
_thread = threading.local()  # which context is current in a thread, by its handle
_BLOCKING_SYNC, _DISABLE_TIMING = 1, 2  # CU_EVENT_*
_NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING: not ordered after the legacy default stream


class Driver:
    """The driver calls that are made for each batch, and those for graphs.

    Raises:
        EngineRefusedError: there is no NVIDIA driver library.
    """

    def __init__(self) -> None:
        try:
            self._library = ctypes.CDLL("libcuda.so.1")
            quick = ctypes.PyDLL("libcuda.so.1")
        except OSError as err:
            raise EngineRefusedError(
                "no NVIDIA driver is installed here (libcuda.so.1 is missing); "
                "install one, or build the engine for onnx"
            ) from err
        self._launch, self._record = quick.cuGraphLaunch, quick.cuEventRecord
        for function in (self._launch, self._record):
            function.argtypes = [ctypes.c_void_p, ctypes.c_void_p]
            function.restype = ctypes.c_int

    def launch(self, graph: int, event: int, stream: int) -> None:
        """Puts a graph on a stream and an event behind it; never waits, as few lanes are in flight.

        Args:
            graph: handle of an instantiated graph.
            event: handle of what is recorded once the graph is done.
            stream: handle.

        Raises:
            DeviceFaultError: the driver returned an error, which is named.
        """
        code = self._launch(graph, stream) or self._record(event, stream)
        if code:
            raise DeviceFaultError(f"a CUDA graph could not be launched: {self._text(code)}")

    def call(self, name: str, *arguments: Any) -> None:
        """Calls a driver function.

        Raises:
            DeviceFaultError: it returned an error, which is named.
        """
        code = getattr(self._library, name)(*arguments)
        if code:
            raise DeviceFaultError(f"{name} failed: {self._text(code)}")

    def _text(self, code: int) -> str:
        text = ctypes.c_char_p()
        self._library.cuGetErrorName(code, ctypes.byref(text))
        return f"{(text.value or b'unknown error').decode()} ({code})"


@dataclass(frozen=True)
class DeviceFacts:
    """What a CUDA device is.

    Attributes:
        name: as its driver calls it.
        compute_capability: e.g. ``8.7``.
        integrated: it shares the memory of the CPU, as on Jetson.
        memory_bytes: all of it.
    """

    name: str
    compute_capability: str
    integrated: bool
    memory_bytes: int


class CudaDevice:
    """A device and its primary context. Threads that use it call `use` first.

    Args:
        name: ``cuda:N``, or ``dla:N``, which is driven through the GPU of its chip.

    Raises:
        EngineRefusedError: no driver, or no such device.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.driver = Driver()
        try:
            drv.init()
            device = drv.Device(cuda_number(name))
            self._context = device.retain_primary_context()
        except drv.Error as err:
            raise EngineRefusedError(f"{name} cannot be used: {err}") from err
        self._handle = ctypes.c_void_p()
        with self.current():
            self.driver.call("cuCtxGetCurrent", ctypes.byref(self._handle))
        attribute = drv.device_attribute
        self.facts = DeviceFacts(
            name=device.name(),
            compute_capability=".".join(map(str, device.compute_capability())),
            integrated=bool(device.get_attribute(attribute.INTEGRATED)),
            memory_bytes=device.total_memory(),
        )

    def __repr__(self) -> str:
        return f"<CudaDevice {self.name} {self.facts.name}>"

    @contextlib.contextmanager
    def current(self) -> Iterator[None]:
        """Makes the context current for pycuda, which wants to know where its objects belong."""
        self._context.push()
        try:
            yield
        finally:
            drv.Context.pop()

    def use(self) -> None:
        """Makes the context current in this thread; cheap where it was the last one used.

        Not by pycuda's stack of contexts: that has to be empty when a thread ends.
        """
        if getattr(_thread, "context", None) != self._handle.value:
            self.driver.call("cuCtxSetCurrent", self._handle)
            _thread.context = self._handle.value

    def free_bytes(self) -> int:
        """Device memory that is free now; on Jetson the driver's view, without page cache."""
        with self.current():
            return int(drv.mem_get_info()[0])

    def healthy(self) -> bool:
        """Whether the context still works; after an illegal access every call in it fails."""
        self.use()
        try:
            self.driver.call("cuCtxSynchronize")
        except DeviceFaultError:
            return False
        return True

    @contextlib.contextmanager
    def _making(self, what: str) -> Iterator[None]:
        with self.current():
            try:
                yield
            except drv.Error as err:
                raise EngineRefusedError(
                    f"{self.name} gives no {what} ({err}): most likely it has too little memory; "
                    "lower max_batch, serve fewer models, or free memory"
                ) from err

    def stream(self) -> drv.Stream:
        """A new stream.

        Raises:
            EngineRefusedError: out of memory, most likely.
        """
        with self._making("stream"):
            return drv.Stream(_NON_BLOCKING)

    def event(self, *, spin: bool = False) -> Event:
        """A new event; waiting for it sleeps, or spins: quicker, but it keeps a core busy.

        Raises:
            DeviceFaultError: the driver makes none.
        """
        with self.current():
            return Event(self.driver, spin=spin)

    def buffer(
        self, shape: tuple[int, ...], dtype: np.dtype[np.generic], *, mapped: bool
    ) -> Buffer:
        """A staging buffer.

        Raises:
            EngineRefusedError: out of memory, most likely.
        """
        with self._making(f"staging buffer {shape} of {dtype}"):
            return _make_buffer(shape, dtype, mapped=mapped)


class Event:
    """Recorded behind a batch, and waited for. pycuda's own does not show its handle.

    Its device's context must be current where it is made and closed.

    Args:
        driver: driver calls.
        spin: wait for it by spinning instead of sleeping.

    Raises:
        DeviceFaultError: the driver makes none.
    """

    def __init__(self, driver: Driver, *, spin: bool) -> None:
        self._driver = driver
        made = ctypes.c_void_p()
        flags = _DISABLE_TIMING | (0 if spin else _BLOCKING_SYNC)
        driver.call("cuEventCreate", ctypes.byref(made), ctypes.c_uint(flags))
        self.handle = int(made.value or 0)
        self._waited = ctypes.c_void_p(self.handle)

    def record(self, stream: drv.Stream) -> None:
        """Behind what the stream has to do now."""
        self._driver.call("cuEventRecord", self._waited, ctypes.c_void_p(stream.handle))

    def synchronize(self) -> None:
        """Waits until it is reached, without the interpreter lock.

        Raises:
            DeviceFaultError: the device failed before.
        """
        self._driver.call("cuEventSynchronize", self._waited)

    def close(self) -> None:
        """Gives it back; may be called twice."""
        if self.handle:
            self._driver.call("cuEventDestroy_v2", self._waited)
            self.handle = 0


@dataclass(frozen=True)
class Buffer:
    """Page-locked memory of the host and its counterpart on the device.

    Attributes:
        host: the array that the CPU reads and writes.
        address: what the engine is told.
        device: the device's own memory; None where the device reads the host's (mapped).
    """

    host: Array
    address: int
    device: Any

    def copy_in(self, stream: drv.Stream, rows: int) -> None:
        """Enqueues the first rows, host to device; nothing where it is mapped."""
        if self.device is not None:
            drv.memcpy_htod_async(self.device, self.host[:rows], stream)

    def copy_out(self, stream: drv.Stream, rows: int) -> None:
        """Enqueues the first rows, device to host; nothing where it is mapped."""
        if self.device is not None:
            drv.memcpy_dtoh_async(self.host[:rows], self.device, stream)


def _make_buffer(shape: tuple[int, ...], dtype: np.dtype[np.generic], *, mapped: bool) -> Buffer:
    flags = drv.host_alloc_flags.DEVICEMAP if mapped else 0
    host = drv.pagelocked_empty(shape, dtype, mem_flags=flags)
    host[...] = 0
    if mapped:
        return Buffer(host, int(host.base.get_device_pointer()), None)
    device = drv.mem_alloc(max(1, host.nbytes))
    return Buffer(host, int(device), device)


class Graph:
    """Work of a stream, captured once and launched as a whole.

    Args:
        driver: driver calls.
        stream: where it is captured and launched.
        enqueue: puts the work on the stream; it must have run there once before.

    Raises:
        DeviceFaultError: the work cannot be captured.
    """

    def __init__(self, driver: Driver, stream: drv.Stream, enqueue: Callable[[], None]) -> None:
        self._driver = driver
        self._stream = int(stream.handle)
        self._exec = ctypes.c_void_p()
        graph, handle = ctypes.c_void_p(), ctypes.c_void_p(self._stream)
        driver.call("cuStreamBeginCapture_v2", handle, _RELAXED)
        try:
            enqueue()
        finally:
            driver.call("cuStreamEndCapture", handle, ctypes.byref(graph))
        try:
            driver.call(
                "cuGraphInstantiateWithFlags",
                ctypes.byref(self._exec),
                graph,
                ctypes.c_ulonglong(0),
            )
        finally:
            driver.call("cuGraphDestroy", graph)
        self._handle = int(self._exec.value or 0)

    def launch(self, event: int) -> None:
        """Puts the captured work on the stream, and an event, by its handle, behind it."""
        self._driver.launch(self._handle, event, self._stream)

    def close(self) -> None:
        """Frees it; nothing may be running."""
        if self._exec.value:
            self._driver.call("cuGraphExecDestroy", self._exec)
            self._exec = ctypes.c_void_p()
