"""A small random model's directory, and the `tapeout` command in this process."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from small_llama import write_model


@dataclass(frozen=True)
class Said:
    """What a command wrote and how it ended."""

    code: int
    out: str
    err: str


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small model's directory."""
    pytest.importorskip("torch")
    return write_model(tmp_path_factory.mktemp("models") / "small-llama")


@pytest.fixture(scope="session")
def cache_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where this session's compiled models go."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def tapeout(cache_home: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> Any:
    """Runs the command with these arguments, as the console script does."""
    from tapeout.cli.main import main

    monkeypatch.setenv("XDG_CACHE_HOME", str(cache_home))

    def command(*arguments: object) -> Said:
        monkeypatch.setattr(sys, "argv", ["tapeout", *map(str, arguments)])
        code = 0
        try:
            main()
        except SystemExit as ended:
            code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
        written = capsys.readouterr()
        return Said(code, written.out, written.err)

    return command
