"""Calls that are overtaken: one runs until it pauses, then others take steps."""

import threading
from concurrent.futures import ThreadPoolExecutor

_here = threading.local()
# A thread is used again: starting one takes longer than a strand.
_threads = ThreadPoolExecutor(100)


class Killed(BaseException):
    """The process of this strand was killed; not an `Exception`, so that nobody handles it."""


def pause():
    """Let others take steps, where this runs in a strand."""
    strand = getattr(_here, "strand", None)
    if strand is not None:
        strand.pause()


class Strand:
    """A call in a thread of its own, which runs only while `step` waits for it."""

    def __init__(self, call, is_calm):
        self._call, self._is_calm = call, is_calm
        self._turn, self._back = threading.Lock(), threading.Lock()
        self._turn.acquire()
        self._back.acquire()
        self._is_killed = self.is_over = False
        self._error = self.value = None
        _threads.submit(self._run)

    def _run(self):
        self._turn.acquire()
        _here.strand = self
        try:
            self.value = None if self._is_killed else self._call()
        except Killed:
            pass
        except BaseException as error:  # noqa: BLE001 - raised again by `step`
            self._error = error
        self.is_over = True
        self._back.release()

    def pause(self):
        if self._is_calm() or self._is_killed:
            return
        self._back.release()
        self._turn.acquire()
        if self._is_killed:
            raise Killed

    def step(self):
        """Go on to the next pause or to the end; return whether that was the end."""
        self._turn.release()
        self._back.acquire()
        if self._error is not None:
            raise self._error
        return self.is_over

    def kill(self):
        if not self.is_over:
            self._is_killed = True
            self.step()


class Paused:
    """A part whose methods may be overtaken after they end; `noted` receives their results."""

    def __init__(self, part, **noted):
        self._part = part
        self._noted = noted

    def __getattr__(self, name):
        attribute = getattr(self._part, name)
        if not callable(attribute):
            return attribute

        def call(*args, **options):
            result = attribute(*args, **options)
            self._noted.get(name, lambda *_: None)(result, *args)
            pause()
            return result

        return call
