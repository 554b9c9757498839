"""What people see: one line per stage on stderr, tables on stdout, one sentence when something is wrong.

On a terminal a stage is a line that moves and ends as a check mark; elsewhere it is a few plain log lines, and with
SEMIPRUNE_LOG=json one JSON object each, for what collects logs.
"""

import json
import os
import re
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime

from rich.box import SIMPLE_HEAD
from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from jobs.interrupt import Interrupt
from pipeline.errors import UserError
from pipeline.stage import Progress
from pipeline.units import counted, duration

LOG_SECONDS = 10.0
"""Progress lines of a log are at least this far apart."""
RATE_SECONDS = 30.0
"""The rate is that of the last seconds: a stage that warms up or resumes soon tells the truth."""
TITLE_CELLS, BAR_CELLS = 20, 24
WORD_STYLES = {"ok": "green", "done": "green", "warn": "yellow", "to run": "yellow", "fail": "bold red"}


class Display:
    """The terminal of one command. One stage at a time; its Progress may be called from any thread, and often."""

    def __init__(self) -> None:
        if os.environ.get("SEMIPRUNE_LOG", "text") not in ("text", "json"):
            raise UserError(f"SEMIPRUNE_LOG={os.environ['SEMIPRUNE_LOG']!r} is unknown: use text or json, or unset it")
        self._console = Console(stderr=True, highlight=False)
        self._interrupt = Interrupt()

    def __enter__(self) -> "Display":
        self._interrupt.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._interrupt.__exit__()
        if _moves(self._console):
            self._console.show_cursor()

    @contextmanager
    def stage(self, title: str) -> Iterator[Progress]:
        """Show a stage while the block runs; an exception that leaves the block is told as its end and goes on.

        A Ctrl-C that something in the block swallowed is raised again by the next call of its Progress, or at its end.
        """
        told = _Moving(self._console, title) if _moves(self._console) else _Logged(self._console, title)

        def progress(done: int, total: int, unit: str) -> None:
            self._interrupt.check()
            told(done, total, unit)

        told.begin()
        try:
            yield progress
            self._interrupt.check()
        except KeyboardInterrupt:
            told.end("stopped")
            raise
        except BaseException:
            told.end("failed")
            raise
        told.end("done")

    def skipped(self, title: str, key: str) -> None:
        """Tell that a stage was found done."""
        if _moves(self._console):
            _one_line(self._console, _marked(self._console, "done", title), Text(f"found done  {key}", "dim"))
        else:
            _log(self._console, f"{title}  found done ({key})", event="found", stage=title, key=key)

    def note(self, title: str, text: str) -> None:
        """Tell what was decided."""
        if _moves(self._console):
            _one_line(self._console, _marked(self._console, "note", title), Text(text, "dim"))
        else:
            _log(self._console, f"{title}  {text}", event="note", stage=title)


class _Stage:
    """How far a running stage is. Calls only note numbers, so that they cost nothing in an inner loop."""

    def __init__(self, console: Console, title: str) -> None:
        self.console, self.title = console, title
        self.started = time.monotonic()
        self.done, self.total, self.unit = 0, 0, ""
        self._seen: deque[tuple[float, int]] = deque()
        self._lock = threading.Lock()

    def __call__(self, done: int, total: int, unit: str) -> None:
        now = time.monotonic()
        with self._lock:
            if (total, unit) != (self.total, self.unit) or done < self.done:
                self._seen.clear()
            self.done, self.total, self.unit = done, total, unit
            if not self._seen or now - self._seen[-1][0] > RATE_SECONDS / 60:
                self._seen.append((now, done))
            while now - self._seen[0][0] > RATE_SECONDS and len(self._seen) > 2:
                self._seen.popleft()

    def count(self) -> str:
        """`4/20 shards`, or nothing before the first call."""
        return f"{self.done:,}/{counted(self.total, self.unit)}" if self.unit else ""

    def speed(self) -> list[str]:
        """The rate and the time left, as far as they are known."""
        with self._lock:
            if not self._seen:
                return []
            since, first = self._seen[0]
            gained, passed, missing = self.done - first, time.monotonic() - since, self.total - self.done
        if gained <= 0 or passed <= 0:
            return []
        return [rate(gained / passed), *([f"{duration(missing * passed / gained)} left"] if missing > 0 else [])]

    def elapsed(self) -> str:
        """Since the stage began."""
        return duration(time.monotonic() - self.started)


class _Moving(_Stage):
    """A stage on a terminal."""

    def begin(self) -> None:
        # Prints of others appear above the line; a piped stdout is left alone, it belongs to tables.
        self._live = Live(
            console=self.console,
            get_renderable=self.line,
            refresh_per_second=8,
            transient=True,
            redirect_stdout=sys.stdout.isatty(),
        )
        self._live.start(refresh=True)

    def line(self) -> Text:
        """The stage now, in one line of the terminal; in a narrow one the bar goes first, then elapsed and rate."""
        start, width = _marked(self.console, "runs", self.title), self.console.width
        speed = self.speed()
        for numbers in ([self.count(), self.elapsed(), *speed], [self.count(), *speed[1:]], [self.count()]):
            end = Text("  ".join(filter(None, numbers)))
            if (room := width - start.cell_len - end.cell_len - 3) >= 0:
                break
        bar = [self._bar(min(BAR_CELLS, room - 2))] if self.total and room >= 8 else []
        return _cut(Text("  ").join([start, *bar, end]), width)

    def _bar(self, cells: int) -> Text:
        filled = min(cells, cells * self.done // self.total)
        full, rest = ("#", "-") if self.console.options.ascii_only else ("━", "─")
        return Text.assemble((full * filled, "cyan"), (rest * (cells - filled), "dim"))

    def end(self, how: str) -> None:
        self._live.stop()
        took = "" if how == "done" else f"{how} after "
        what = [Text(self.count().split("/")[-1] if how == "done" else self.count(), "dim")] if self.unit else []
        _one_line(
            self.console, _marked(self.console, how, self.title), Text(f"{took}{self.elapsed()}".rjust(10)), *what
        )


class _Logged(_Stage):
    """A stage in a log."""

    def begin(self) -> None:
        self._logged = self.started
        _log(self.console, f"{self.title}  started", event="started", stage=self.title)

    def __call__(self, done: int, total: int, unit: str) -> None:
        super().__call__(done, total, unit)
        now = time.monotonic()
        with self._lock:
            if now - self._logged < LOG_SECONDS or done >= total:
                return
            self._logged = now
        told = ", ".join([f"{self.title}  {self.count()}", *self.speed()])
        _log(self.console, told, event="progress", stage=self.title, done=done, total=total, unit=unit)

    def end(self, how: str) -> None:
        told = f"{self.title}  {how} {'in' if how == 'done' else 'after'} {self.elapsed()}"
        _log(self.console, told, event=how, stage=self.title, seconds=round(time.monotonic() - self.started, 3))


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table to stdout: drawn on a terminal; aligned plain text, nothing cut, in a pipe."""
    console = Console(highlight=False)
    right = [bool(rows) and all(_is_number(row[column]) for row in rows) for column in range(len(columns))]
    if not _moves(console):
        console.file.write("\n".join([*_plain(title, columns, rows, right), ""]))
        return
    drawn = Table(title=Text(title, "bold"), title_justify="left", box=SIMPLE_HEAD, pad_edge=False, header_style="dim")
    for column, name in enumerate(columns):
        narrow = max((cell_len(row[column]) for row in rows), default=0) <= TITLE_CELLS
        drawn.add_column(name, justify="right" if right[column] else "left", no_wrap=narrow, overflow="fold")
    for row in rows:
        drawn.add_row(*(Text(cell, WORD_STYLES.get(cell, "")) for cell in row))
    console.print(drawn)


def error(message: str) -> None:
    """Say what is wrong, in one line on stderr."""
    console = Console(stderr=True, highlight=False)
    sentence = " ".join(message.splitlines())
    if _is_json():
        _log(console, sentence, event="error", level="error")
    elif _moves(console):
        console.print(Text.assemble(("semiprune: error: ", "bold red"), sentence), soft_wrap=True)
    else:
        console.file.write(f"semiprune: error: {sentence}\n")


def rate(per_second: float) -> str:
    """A rate as people say it: `12,345/s`, `1.3/s`, and `40 s each` where a second is too short."""
    if per_second >= 9.95:
        return f"{per_second:,.0f}/s"
    return f"{per_second:.1f}/s" if per_second >= 0.95 else f"{duration(1 / per_second)} each"


def _moves(console: Console) -> bool:
    """Whether lines can be redrawn; asked of the file itself, because FORCE_COLOR makes a terminal of a pipe."""
    return console.file.isatty() and not console.is_dumb_terminal and not _is_json()


def _is_json() -> bool:
    return os.environ.get("SEMIPRUNE_LOG") == "json"


def _marked(console: Console, how: str, title: str) -> Text:
    marks = {"done": ("✓", "+", "green"), "stopped": ("■", "=", "yellow"), "failed": ("✗", "x", "bold red")}
    drawn, plain, style = marks.get(how, ("•", "*", "cyan"))
    mark = plain if console.options.ascii_only else drawn
    return Text.assemble((mark, style), " ", set_cell_size(title, max(TITLE_CELLS, cell_len(title))))


def _one_line(console: Console, *parts: Text) -> None:
    console.print(_cut(Text("  ").join(parts), console.width), soft_wrap=True)


def _cut(line: Text, width: int) -> Text:
    # One cell stays free: terminals differ in what they do when the last one is written.
    line.truncate(width - 1, overflow="ellipsis")
    return line


def _log(console: Console, line: str, **facts: str | float) -> None:
    """Write a line; facts: what of it a program wants to know."""
    if _is_json():
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        line = json.dumps({"time": now, "level": "info", **facts, "message": line})
    else:
        line = f"{time.strftime('%H:%M:%S')} {line}"
    console.file.write(f"{line}\n")
    console.file.flush()


def _plain(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[bool]) -> Iterator[str]:
    widths = [max(cell_len(line[column]) for line in (columns, *rows)) for column in range(len(columns))]
    yield title
    for line in (columns, *rows):
        cells = [
            " " * (width - cell_len(cell)) + cell if flush else set_cell_size(cell, width)
            for cell, width, flush in zip(line, widths, right, strict=True)
        ]
        yield "  ".join(cells).rstrip()


def _is_number(cell: str) -> bool:
    return re.fullmatch(r"[+-]?[\d,]*\.?\d+ ?%?( ± .*)?|-?", cell) is not None
