"""What people see, on a terminal and in a pipe."""

import contextlib
import io
import json
import re
import signal
import sys
import threading
from datetime import datetime
from functools import partial

import pytest

from jobs import display, results
from jobs.display import Display, duration, error, rate, table
from pipeline.errors import UserError
from pipeline.stage import Artifact


class Terminal(io.StringIO):
    """A file that says it is a terminal."""

    encoding = "utf-8"

    def isatty(self) -> bool:
        return True

    def text(self) -> str:
        """What was written, without colours and cursor movements."""
        return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", self.getvalue())

    def last_lines(self) -> list[str]:
        """The lines that remain: of those that were redrawn, the last."""
        return [line.rsplit("\r", 1)[-1].rstrip() for line in self.text().split("\n")]


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "COLORTERM"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("LINES", "30")
    made = Terminal()
    monkeypatch.setattr(display, "Console", partial(display.Console, file=made))
    return made


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr(display.time, "monotonic", lambda: now[0])
    return now


def test_a_log_is_plain_and_rare(capsys: pytest.CaptureFixture[str], clock: list[float]) -> None:
    with Display() as shown:
        shown.skipped("index", "4ef10484b3deba2e")
        with shown.stage("split") as progress:
            for done in range(1600):
                progress(done, 1600, "rows")
                clock[0] += 1 / 64
    out, err = capsys.readouterr()
    assert out == ""
    assert "\x1b" not in err
    assert all(re.match(r"\d\d:\d\d:\d\d ", line) for line in err.splitlines())
    assert [line[9:] for line in err.splitlines()] == [
        "index  found done (4ef10484b3deba2e)",
        "split  started",
        "split  640/1,600 rows, 64/s, 15 s left",
        "split  1,280/1,600 rows, 64/s, 5.0 s left",
        "split  done in 25 s",
    ]


def test_a_log_of_json_is_an_object_a_line_also_on_a_terminal(
    terminal: Terminal, clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SEMIPRUNE_LOG", "json")
    with contextlib.suppress(ValueError), Display() as shown:
        shown.skipped("index", "4ef10484b3deba2e")
        shown.note("images", "cache: 1.4 MB")
        with shown.stage("ssl") as progress:
            clock[0] += 11
            progress(5, 10, "steps")
            raise ValueError
    error("no\nmore")
    lines = [json.loads(line) for line in terminal.getvalue().splitlines()]
    assert [(line["event"], line["level"], line.get("stage")) for line in lines] == [
        ("found", "info", "index"),
        ("note", "info", "images"),
        ("started", "info", "ssl"),
        ("progress", "info", "ssl"),
        ("failed", "info", "ssl"),
        ("error", "error", None),
    ]
    assert (lines[3]["done"], lines[3]["total"], lines[3]["unit"]) == (5, 10, "steps")
    assert lines[4]["seconds"] == 11
    assert lines[5]["message"] == "no more"
    assert all(datetime.fromisoformat(line["time"]).tzinfo for line in lines)


def test_an_unknown_kind_of_log_is_a_mistake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEMIPRUNE_LOG", "xml")
    with pytest.raises(UserError, match="SEMIPRUNE_LOG='xml' is unknown: use text or json"):
        Display()


def test_a_resumed_stage_counts_only_what_it_did(capsys: pytest.CaptureFixture[str], clock: list[float]) -> None:
    with Display() as shown, shown.stage("proxy") as progress:
        progress(100, 200, "epochs")
        clock[0] += 20
        progress(110, 200, "epochs")
    assert "110/200 epochs, 2.0 s each, 3 min 00 s left" in capsys.readouterr().err


def test_a_new_unit_starts_a_new_rate(capsys: pytest.CaptureFixture[str], clock: list[float]) -> None:
    with Display() as shown, shown.stage("ssl") as progress:
        progress(0, 1000, "steps")
        clock[0] += 11
        progress(0, 8, "shards")
        clock[0] += 11
        progress(4, 8, "shards")
    lines = capsys.readouterr().err.splitlines()
    assert lines[1].endswith("ssl  0/8 shards")
    assert lines[2].endswith("ssl  4/8 shards, 2.8 s each, 11 s left")


def test_a_terminal_gets_one_line_that_ends_as_a_check_mark(terminal: Terminal, clock: list[float]) -> None:
    with Display() as shown:
        shown.skipped("index", "4ef10484b3deba2e")
        with shown.stage("split") as progress:
            progress(0, 20, "shards")
            clock[0] += 2
            progress(4, 20, "shards")
    assert re.search(r"• split +━+─+  4/20 shards  2\.0 s  2\.0/s  8\.0 s left", terminal.text())
    lines = [line for line in terminal.last_lines() if line]
    assert lines[0] == "✓ index                 found done  4ef10484b3deba2e"
    assert re.fullmatch(r"✓ split  + 2\.0 s  20 shards", lines[-1])
    assert terminal.getvalue().rfind("\x1b[?25h") > terminal.getvalue().rfind("\x1b[?25l")


def test_one_is_not_many(terminal: Terminal, clock: list[float]) -> None:
    with Display() as shown, shown.stage("index") as progress:
        progress(0, 1, "shards")
        clock[0] += 2
        progress(1, 1, "shards")
    assert "1/1 shard " in terminal.text() and re.fullmatch(r"✓ index  + 2\.0 s  1 shard", terminal.last_lines()[-2])


@pytest.mark.parametrize(
    ("leaves", "end"), [(KeyboardInterrupt, "■ score .*stopped"), (ValueError, "✗ score .*failed")]
)
def test_an_exception_is_told_and_goes_on(
    terminal: Terminal, clock: list[float], leaves: type[BaseException], end: str
) -> None:
    with pytest.raises(leaves), Display() as shown, shown.stage("score") as progress:
        progress(3, 9, "ranges")
        clock[0] += 3
        raise leaves
    assert re.search(end + r" after 3\.0 s  3/9 ranges", terminal.text())


@pytest.mark.parametrize("width", [10, 20, 40, 60, 80, 200])
@pytest.mark.parametrize("title", ["ssl", "select: a name that is far too long for its column", "数据集"])
def test_no_line_is_wider_than_the_terminal(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch, width: int, title: str
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    with Display() as shown:
        shown.skipped(title, "4ef10484b3deba2e")
        with shown.stage(title) as progress:
            progress(0, 60_000, "images")
            progress(12_345, 60_000, "images")
    for line in re.split(r"[\r\n]", terminal.text()):
        assert display.cell_len(line) < width


def test_no_color(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    with Display() as shown, shown.stage("index"):
        pass
    error("no")
    assert not re.search(r"\x1b\[[0-9;]*3[0-9]", terminal.getvalue())


def test_a_forced_colour_does_not_animate_a_log(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    with Display() as shown, shown.stage("index"):
        pass
    table("T", ("a",), [("1",)])
    error("no")
    out, err = capsys.readouterr()
    assert "\x1b" not in out + err


def test_a_dumb_terminal_gets_the_log(terminal: Terminal, clock: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    with Display() as shown, shown.stage("index"):
        pass
    assert "\x1b" not in terminal.getvalue()
    assert re.search(r"\d index  done in 0\.0 s\n$", terminal.getvalue())


def test_a_piped_stdout_stays_clean_while_stderr_is_a_terminal(
    terminal: Terminal, capsys: pytest.CaptureFixture[str]
) -> None:
    with Display() as shown, shown.stage("index"):
        sys.stdout.write("a result\n")
    assert capsys.readouterr().out == "a result\n"
    assert "a result" not in terminal.getvalue()


def test_progress_from_many_threads_only_notes_numbers(
    terminal: Terminal, clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    writers: set[threading.Thread] = set()
    monkeypatch.setattr(terminal, "flush", lambda: writers.add(threading.current_thread()))
    with Display() as shown, shown.stage("index") as progress:

        def count() -> None:
            for done in range(1000):
                progress(done, 1000, "rows")

        threads = [threading.Thread(target=count) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        progress(1000, 1000, "rows")
    assert writers.isdisjoint(threads) and writers
    assert "1,000/1,000 rows" in terminal.text()


def test_a_piped_table_is_aligned_text(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [("random", "30%", "91.0 ± 0.6"), ("full, 数", "100%", "-"), ("x" * 150, "", "7")]
    table("Results", ("subset", "kept", "accuracy"), rows)
    out, err = capsys.readouterr()
    assert err == ""
    assert out.splitlines() == [
        "Results",
        f"{'subset':150}  kept    accuracy",
        f"{'random':150}   30%  91.0 ± 0.6",
        f"full, 数{' ' * 142}  100%           -",
        f"{'x' * 150}{' ' * 15}7".replace(" " * 15, " " * 17),
    ]


def test_a_table_on_a_terminal_fits(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    table(
        "This machine",
        ("check", "verdict", "detail"),
        [("Ray", "ok", "[bold]2.60[/bold]"), ("disk", "fail", "x " * 90)],
    )
    text = terminal.text()
    assert all(display.cell_len(line) <= 60 for line in text.splitlines())
    assert text.splitlines()[0].strip() == "This machine"
    assert "[bold]2.60[/bold]" in text
    assert "\x1b[32mok" in terminal.getvalue()


def test_results_name_each_coreset(capsys: pytest.CaptureFixture[str]) -> None:
    exports = [Artifact(f"run/export/{n}", {"stage": "export", "title": f"export {n}"}) for n in ("cutoff", "beta")]
    results.show(exports)
    assert capsys.readouterr().out == "Coreset cutoff: run/export/cutoff\nCoreset beta: run/export/beta\n"


def test_an_empty_table(capsys: pytest.CaptureFixture[str]) -> None:
    table("Nothing", ("a", "b"), [])
    assert capsys.readouterr().out == "Nothing\na  b\n"


def test_an_error_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    error(f"budget=[0] is too small:\nchoose 1 to {'9' * 200}")
    out, err = capsys.readouterr()
    assert out == ""
    assert err == f"semiprune: error: budget=[0] is too small: choose 1 to {'9' * 200}\n"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0.0 s"), (9.94, "9.9 s"), (9.96, "10 s"), (59.6, "1 min 00 s"), (185, "3 min 05 s"), (7800, "2 h 10 min")],
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("per_second", "text"),
    [(12345.6, "12,346/s"), (9.96, "10/s"), (1.34, "1.3/s"), (0.1, "10 s each"), (0.94, "1.1 s each")],
)
def test_rate(per_second: float, text: str) -> None:
    assert rate(per_second) == text


def test_a_swallowed_ctrl_c_is_raised_again() -> None:
    before = signal.getsignal(signal.SIGINT)
    for place in ("progress", "end"):
        with pytest.raises(KeyboardInterrupt), Display() as display, display.stage("index") as progress:
            with contextlib.suppress(KeyboardInterrupt):  # as a library's callback does
                signal.raise_signal(signal.SIGINT)
            if place == "progress":
                progress(1, 2, "shards")
                pytest.fail("it was not raised again")
    assert signal.getsignal(signal.SIGINT) is before
