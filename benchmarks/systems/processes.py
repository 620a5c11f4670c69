"""All processes of a server that was started here: found, paused, continued, weighed, ended.

A server's processes are not always one group: Ray's take groups of their own within the session, BentoML's take
sessions of their own below their parent. What is in the session, and what descends from it, is the server's.
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
    """A server started with `start_new_session=True`, and whatever it started."""

    def __init__(self, process: subprocess.Popen[bytes], url: str) -> None:
        self.process = process
        self.url = url
        self.seconds_to_start = 0.0

    def all(self) -> list[psutil.Process]:
        """Return the processes that are alive, the server's first one among them."""
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
        """Take the processor away from all of them until `resume`; return when they stand still."""
        self._signal(signal.SIGSTOP)
        deadline = time.monotonic() + STOP_S
        still = (psutil.STATUS_STOPPED, psutil.STATUS_ZOMBIE)
        while any(process.status() not in still for process in self.all()) and time.monotonic() < deadline:
            time.sleep(0.01)

    def resume(self) -> None:
        """Let them go on."""
        self._signal(signal.SIGCONT)

    def memory_mib(self) -> float:
        """Proportional set size of all of them: pages that several share count in parts."""
        return sum(process.memory_full_info().pss for process in self.all()) / MIB

    def cpu_of_a_core(self, seconds: float) -> float:
        """Watch them for `seconds` and return how much of one core they took."""
        before = self._cpu_seconds()
        time.sleep(seconds)
        return (self._cpu_seconds() - before) / seconds

    def stop(self) -> None:
        """End the server as Ctrl-C does, then whatever is left: LitServe's and Ray's are not tidy."""
        everything = self.all()
        self.resume()
        self.process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(STOP_S)
        for process in {*everything, *self.all()}:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self.process.wait()

    def _signal(self, number: signal.Signals) -> None:
        for process in self.all():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(number)

    def _cpu_seconds(self) -> float:
        return sum(sum(process.cpu_times()[:2]) for process in self.all())
