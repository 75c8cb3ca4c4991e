"""`tapeout chip` and the frame of the command: output, JSON, errors, exit codes, start-up."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tapeout.chip import load, presets, to_dict


def tapeout(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tapeout", *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": "/usr/bin:/bin", "COLUMNS": "100", "NO_COLOR": "1"},
    )


def answer(*arguments: str) -> str:
    done = tapeout(*arguments)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


def test_help_lists_the_verbs_and_explains_them():
    assert "chip" in answer("--help")
    help_text = answer("chip", "--help")
    assert "--set" in help_text
    assert "KEY=VALUE" in help_text
    assert "--json" in help_text


def test_no_name_lists_the_presets():
    text = answer("chip")
    for name in presets():
        assert name in text
    assert "3670 TFLOP/s" in text
    assert list(json.loads(answer("chip", "--json"))["presets"]) == list(presets())


def test_a_chip_is_shown_with_its_peaks():
    text = answer("chip", "solo")
    for words in ("32.77 TFLOP/s", "614.4 GB/s", "24 MiB", "2.048 TB/s", "mxu.rows=128"):
        assert words in text


def test_json_holds_the_numbers_and_what_follows():
    found = json.loads(answer("chip", "solo", "--json", "--set", "mxu.rows=64", "--set=cores=2"))
    assert found["chip"] == to_dict(load("solo", ["mxu.rows=64", "cores=2"]))
    assert found["derived"]["peak_bf16_flops"] == 2 * 2 * 64 * 64 * 1e9


def test_toml_output_is_a_chip_file(tmp_path):
    path = tmp_path / "wide.toml"
    path.write_text(answer("chip", "lab16", "--toml", "--set", "clock_ghz=1.5"))
    assert load(path) == load("lab16", ["clock_ghz=1.5"])
    assert "768 GFLOP/s" in answer("chip", str(path))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["chip", "sole"], "error: no chip named 'sole': did you mean solo?"),
        (["chip", "solo", "--set", "mxu.row=1"], "error: chip solo: unknown chip key 'mxu.row'"),
        (["chip", "missing.toml"], "error: no chip file missing.toml"),
        (["chip", "--set", "mxu.rows=64"], "error: --set and --toml need a chip"),
    ],
)
def test_an_error_is_one_line_and_exit_code_1(arguments, words):
    done = tapeout(*arguments)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith(words)
    assert done.stderr.count("\n") == 1


def test_an_unknown_verb_is_refused():
    done = tapeout("chop")
    assert done.returncode == 2
    assert "No such command 'chop'" in done.stderr


def test_a_defect_keeps_its_traceback(monkeypatch):
    from tapeout.cli import main

    def defect() -> None:
        raise ZeroDivisionError("planted")

    monkeypatch.setattr(main, "app", defect)
    with pytest.raises(ZeroDivisionError, match="planted"):
        main.main()


def test_a_missing_file_is_the_users_to_mend(monkeypatch, capsys):
    from tapeout.cli import main

    monkeypatch.setattr(main, "app", Path("/nowhere/weights.gguf").read_bytes)
    with pytest.raises(SystemExit, match="1"):
        main.main()
    assert "No such file or directory: '/nowhere/weights.gguf'" in capsys.readouterr().err


HEAVY = ("numpy", "torch", "rich.table", "typer", "transformers", "jinja2", "tokenizers")


@pytest.mark.parametrize(
    ("statement", "light"),
    [
        ("import tapeout", HEAVY),
        ("import tapeout.chip", HEAVY),
        ("import tapeout.cli.main", ("numpy", "torch", "rich.table", "transformers", "tokenizers")),
    ],
)
def test_imports_stay_light(statement, light):
    code = f"import sys; {statement}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not set(light) & set(done.stdout.split())
