"""What commands print: nothing that they quote steers the terminal, and errors become sentences."""

from __future__ import annotations

import ast
import logging
import sys
from pathlib import Path

import pytest
import torch
from mip_adapter.commands import demo
from mip_adapter.common.console import NO_MEMORY, complain, exit_status, legible, log_to_console, say

from ..support.paths import ROOT

EVIL = "cat\x1b]0;title\x07\x1b[2J\u202egnp.\ud800\rover"


def test_what_is_quoted_steers_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    say(EVIL)
    complain(ValueError(EVIL))
    told = capsys.readouterr()
    assert told.out == told.err == "cat?]0;title??[2J?gnp.??over\n"
    assert legible("one\n\ttwo 猫 🐈") == "one\n\ttwo 猫 🐈"


def test_logs_steer_nothing(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    log_to_console()
    logging.getLogger("x").warning("Training sample %s is broken", EVIL)
    assert capsys.readouterr().err == "Training sample cat?]0;title??[2J?gnp.??over is broken\n"


def test_only_the_console_prints() -> None:
    """In the commands that are installed. The demo's line of progress steers the terminal itself."""
    printing = []
    for path in sorted((ROOT / "commands").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "print":
                printing.append(path.name)
    assert printing == ["demo.py"] * 2


def raising(error: BaseException) -> int:
    raise error


@pytest.mark.parametrize(
    "error, status, said",
    [
        (ValueError("No picture."), 1, "No picture."),
        (OSError(28, "No space left"), 1, "[Errno 28] No space left"),
        (MemoryError(), 1, NO_MEMORY),
        (torch.cuda.OutOfMemoryError("CUDA out of memory"), 1, NO_MEMORY),
        (KeyboardInterrupt(), 130, "Stopped. The same command goes on from here."),
    ],
)
def test_errors_become_sentences(error: BaseException, status: int, said: str, capsys) -> None:
    assert exit_status(lambda: raising(error)) == status
    assert capsys.readouterr().err == f"{said}\n"


def test_torchs_own_words_for_no_memory_become_a_sentence(capsys) -> None:
    def too_much() -> None:
        torch.empty(1 << 50)

    with pytest.raises(RuntimeError):
        too_much()
    assert exit_status(too_much) == 1 and capsys.readouterr().err == f"{NO_MEMORY}\n"


def test_faults_of_ours_are_not_hidden() -> None:
    with pytest.raises(RuntimeError, match="shapes"):
        exit_status(lambda: raising(RuntimeError("shapes do not fit")))
    assert exit_status(lambda: None) == 0 and exit_status(lambda: 143) == 143


def test_a_name_that_steers_is_printed_by_a_command(tmp_path: Path, capsys) -> None:
    from mip_adapter.commands.convert import main

    assert main([str(tmp_path / "\x1b[2Jnone.bin")]) == 1
    assert "\x1b" not in capsys.readouterr().err and sys.stderr is not None


@pytest.mark.parametrize(
    "text", ["[" * 100_000, "no JSON", "[1]", '{"1": 7}', '{"1": {"class_type": "X", "_meta": 7}}', "\xff"]
)
def test_the_demo_takes_workflows_only(tmp_path: Path, capsys, text: str) -> None:
    (tmp_path / "x.json").write_bytes(text.encode("latin-1"))
    run = ["run", "--server", "http://127.0.0.1:9", "--output", str(tmp_path / "out"), "--workflow"]
    assert demo.main([*run, str(tmp_path / "x.json")]) == 1
    said = capsys.readouterr().err
    assert "cannot be read" in said or "is no workflow in API format" in said, said
