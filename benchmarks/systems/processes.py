"""All processes of a server started by a benchmark: pause, resume, memory, CPU time, termination.

They are not always one process group: Ray's form groups of their own within the session, BentoML's form sessions of
their own below their parent. Members of the session and descendants of the first process belong to the server.
"""

import contextlib
import os
import signal
import subprocess
import time

import psutil

STOP_S = 15
MIB = 2**20


class ServerProcess:
    """A server started with `start_new_session=True`, and all processes it started."""

    def __init__(self, process: subprocess.Popen[bytes], url: str) -> None:
        self.process = process
        self.url = url
        self.seconds_to_start = 0.0

    def all(self) -> list[psutil.Process]:
        """Return the running processes, the first one included."""
        found: dict[int, psutil.Process] = {}
        with contextlib.suppress(psutil.NoSuchProcess):
            first = psutil.Process(self.process.pid)
            found = {process.pid: process for process in (first, *first.children(recursive=True))}
        for process in psutil.process_iter():
            with contextlib.suppress(ProcessLookupError):
                if os.getsid(process.pid) == self.process.pid:
                    found[process.pid] = process
        return list(found.values())

    def pause(self) -> None:
        """Stop all processes (SIGSTOP) until `resume`; return when they have stopped."""
        self._signal(signal.SIGSTOP)
        deadline = time.monotonic() + STOP_S
        stopped = (psutil.STATUS_STOPPED, psutil.STATUS_ZOMBIE)
        while any(process.status() not in stopped for process in self.all()) and time.monotonic() < deadline:
            time.sleep(0.01)

    def resume(self) -> None:
        """Continue all processes (SIGCONT)."""
        self._signal(signal.SIGCONT)

    def memory_mib(self) -> float:
        """Return the proportional set size of all processes: a page shared by n of them counts as 1/n each."""
        return sum(process.memory_full_info().pss for process in self.all()) / MIB

    def cpu_of_a_core(self, seconds: float) -> float:
        """Measure for `seconds`; return the CPU time of all processes as a fraction of one core."""
        before = self.cpu_seconds()
        time.sleep(seconds)
        return (self.cpu_seconds() - before) / seconds

    def stop(self) -> None:
        """Interrupt the server, then kill all remaining processes: LitServe and Ray leave some."""
        before = self.all()
        self.resume()
        self.process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(STOP_S)
        for process in {*before, *self.all()}:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self.process.wait()

    def _signal(self, number: signal.Signals) -> None:
        for process in self.all():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(number)

    def cpu_seconds(self) -> float:
        """Return the CPU time of all running processes since their start."""
        return sum(sum(process.cpu_times()[:2]) for process in self.all())
