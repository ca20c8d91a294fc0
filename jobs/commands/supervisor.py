"""Runs a command that starts Ray on this machine in a child process, and again if it dies with Ray.

When its GCS server or its raylet is killed, Ray ends the process that uses it after a while, or crashes
it. What had been committed by then is not computed again.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from dataclasses import dataclass

_MAX_RESTARTS = 2
_FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_STOPPED_BY = (*_FORWARDED, signal.SIGKILL, signal.SIGQUIT)
"""Signals by which a user, or a machine without memory, stops a process."""

_SET_DEATH_SIGNAL = 1
"""PR_SET_PDEATHSIG, see prctl(2)."""


ORDERLY, LOST = b"orderly", b"lost"
"""How a command ended, as far as it could still say so: LOST if it is to be started again."""


@dataclass(frozen=True)
class Supervisor:
    """The parent, as the child sees it."""

    restarts_left: int
    _writer: int

    def report(self, ending: bytes) -> None:
        """Say how this process ends: ORDERLY or LOST."""
        os.write(self._writer, ending)
        os.close(self._writer)


def supervise() -> Supervisor:
    """Return in a child process. The parent waits, starts another child if the first died with Ray, and
    exits with the code of the last."""
    signals = {*_FORWARDED, signal.SIGCHLD}
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    for restarts_left in reversed(range(_MAX_RESTARTS + 1)):
        reader, writer = os.pipe()
        parent = os.getpid()
        child = os.fork()
        if child == 0:
            os.close(reader)
            _die_with(parent)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, signals)
            return Supervisor(restarts_left, writer)
        os.close(writer)
        code = _wait_for(child, signals)
        with os.fdopen(reader, "rb") as pipe:
            ending = pipe.read()
        if not _died_with_ray(code, ending) or restarts_left == 0:
            _exit_like(code, ending)
        if not ending:
            reason = _describe(code)
            print(f"neuralign: the command {reason}; starting it again to go on", file=sys.stderr)
    raise AssertionError


def _die_with(parent: int) -> None:
    """Let the system kill this process when its parent dies."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_SET_DEATH_SIGNAL, signal.SIGKILL)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)


def _wait_for(child: int, signals: set[signal.Signals]) -> int:
    """The exit code of the child, as in `subprocess`; signals to this process alone are forwarded."""
    while True:
        info = signal.sigwaitinfo(signals)
        if info.si_signo == signal.SIGCHLD:
            pid, status = os.waitpid(child, os.WNOHANG)
            if pid:
                return os.waitstatus_to_exitcode(status)
        elif info.si_pid:
            # a terminal sends its signals to both
            os.kill(child, info.si_signo)


def _died_with_ray(code: int, ending: bytes) -> bool:
    if ending:
        return ending == LOST
    return code != 0 and -code not in _STOPPED_BY


def _exit_like(code: int, ending: bytes) -> None:
    """Exit as the child did; say so if it could not."""
    if ending or code == 0:
        sys.exit(code)
    if -code in _STOPPED_BY and -code != signal.SIGKILL:
        signal.signal(-code, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {-code})
        os.kill(os.getpid(), -code)
    print(f"neuralign: the command {_describe(code)}; run it again to resume", file=sys.stderr)
    sys.exit(1 if code < 0 else code)


def _describe(code: int) -> str:
    reason = f"was killed by signal {-code}" if code < 0 else f"was ended by Ray with exit code {code}"
    return f"{reason} (memory may have run out)"
