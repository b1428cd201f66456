"""Progress of long work on stderr: a bar on a terminal, one line per finished stage elsewhere."""

import io
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO

# advance(done, total): what every library room accepts as `progress`; total 0: unknown.
Advance = Callable[[int, int], None]


class StageReporter:
    """Names the stages of a run, shows how far each is, and keeps the seconds each took.

    >>> reporter = StageReporter(stream=sys.stdout)
    >>> with reporter.stage("calibrate", "calibrating on 8 frames") as advance:
    ...     advance(8, 8)
    calibrating on 8 frames ... 0.0 s
    >>> sorted(reporter.seconds)
    ['calibrate']
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self.stream = stream if stream is not None else sys.stderr
        self.seconds: dict[str, float] = {}

    @classmethod
    def silent(cls) -> "StageReporter":
        """A reporter that keeps the seconds and says nothing: for all processes but the first."""
        return cls(io.StringIO())

    @contextmanager
    def stage(self, key: str, description: str) -> Iterator[Advance]:
        """Time one stage under `key` and yield its progress callback."""
        started = time.perf_counter()
        if self.stream.isatty():
            with self._bar(description) as advance:
                yield advance
        else:
            yield _ignore_progress
        self.seconds[key] = self.seconds.get(key, 0.0) + time.perf_counter() - started
        print(f"{description} ... {time.perf_counter() - started:.1f} s", file=self.stream)

    def say(self, line: str) -> None:
        """A milestone worth a line of its own."""
        print(line, file=self.stream)

    def say_all(self, lines: Iterable[str]) -> None:
        """Several milestones."""
        for line in lines:
            self.say(line)

    @contextmanager
    def _bar(self, description: str) -> Iterator[Advance]:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
        )

        columns: list[Any] = [
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
        ]
        with Progress(*columns, console=Console(file=self.stream), transient=True) as bar:
            task = bar.add_task(description, total=None)

            def advance(done: int, total: int) -> None:
                bar.update(task, completed=done, total=total or None)

            yield advance


def _ignore_progress(done: int, total: int) -> None:
    """Where nobody watches, the finished stage's line is enough."""
