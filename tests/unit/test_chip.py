"""Chip files: presets, strict loading, overrides, round trips."""

import dataclasses

import pytest

from tapeout.chip import (
    FORMATS,
    Chip,
    ChipError,
    Dma,
    apply_overrides,
    load,
    presets,
    to_toml,
)
from tapeout.chip.figures import figures
from tapeout.chip.load import keys
from tapeout.isa.dma import HbmFormat


def test_the_presets_are_all_there():
    assert presets() == ("tiny", "lab16", "solo", "n3")


@pytest.mark.parametrize("name", presets())
def test_a_preset_round_trips_through_toml(name, tmp_path):
    chip = load(name)
    assert chip.name == name
    path = tmp_path / "copy.toml"
    path.write_text(to_toml(chip))
    assert load(path) == chip


def test_round_trip_keeps_awkward_values(tmp_path):
    chip = apply_overrides(
        load("tiny"),
        {"description": 'quotes " and \\ and é', "hbm.timing.rcd_ns": 1e-7, "links.gb_per_s": 1e22},
    )
    path = tmp_path / "copy.toml"
    path.write_text(to_toml(chip), encoding="utf-8")
    assert load(path) == chip


def test_published_figures_of_the_presets():
    solo, n3 = load("solo"), load("n3")
    assert solo.peak_flops == 2 * 128 * 128 * 1e9
    assert solo.hbm.peak_bytes_per_s == pytest.approx(614.4e9)
    assert solo.spm.rows * solo.spm_row_bytes == 24 * 2**20
    assert n3.peak_flops == pytest.approx(3.67e15, rel=1e-3)
    assert n3.hbm.peak_bytes_per_s == pytest.approx(9.83e12, rel=1e-3)
    assert n3.hbm.capacity_bytes == 288 * 2**30
    assert load("lab16").spm.rows * load("lab16").spm_row_bytes == 3 * 2**20


def test_n3_has_cores_of_the_solo_geometry():
    solo, n3 = load("solo"), load("n3")
    assert (n3.spm, n3.vmem, n3.acc) == (solo.spm, solo.vmem, solo.acc)
    assert (n3.mxu.rows, n3.mxu.cols, n3.lanes) == (solo.mxu.rows, solo.mxu.cols, solo.lanes)


CHANGES = {"clock_ghz": 2.0, "hbm.timing.rcd_ns": 15}


def test_overrides_as_text_and_as_mapping_agree():
    text = load("solo", ["mxu.rows=64", " clock_ghz = 2 ", "hbm.timing.rcd_ns=1.5e1"])
    mapping = load("solo", CHANGES | {"mxu.rows": 64})
    assert text == mapping
    assert text == apply_overrides(load("solo", ["mxu.rows=64"]), CHANGES)
    assert (text.mxu.cols, text.lanes) == (64, 64)
    assert (text.mxu.rows, text.clock_ghz, text.hbm.timing.rcd_ns) == (64, 2.0, 15.0)
    assert isinstance(text.clock_ghz, float)


def test_overrides_are_checked_only_once_all_are_in():
    low = load("solo", ["mxu.rows=64", "mxu.cols=128", "lanes=128"])
    assert low.macs_per_cycle == 64 * 128


def test_an_array_is_square_and_as_wide_as_lanes_unless_the_chip_says_otherwise():
    assert load("solo", ["mxu.rows=256"]) == load(
        "solo", ["mxu.rows=256", "mxu.cols=256", "lanes=256"]
    )
    low = load("solo", ["mxu.rows=64", "mxu.cols=128"])
    assert (low.mxu.rows, low.mxu.cols, low.lanes) == (64, 128, 128)
    with pytest.raises(ChipError, match=r"mxu.rows = 128 must not exceed lanes = 64"):
        load("solo", ["mxu.cols=64"])


def test_an_override_may_name_a_table_the_file_leaves_out():
    assert load("solo", ["links.count=4"]).links.count == 4


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("mxu.row=64", r"unknown chip key 'mxu.row': did you mean mxu.rows\?"),
        ("clokc_ghz=1", r"unknown chip key 'clokc_ghz': did you mean clock_ghz\?"),
        ("rcd_ns=14", r"did you mean hbm.timing.rcd_ns\?"),
        ("sublane=4", r"did you mean vpu.sublanes\?"),
        ("qqq.zzz=1", r"the keys are name, description, process, clock_ghz, .* tables hbm, "),
        ("mxu=3", r"mxu is a table, set one of its keys: mxu.rows, mxu.cols"),
        ("hbm.timing=3", r"hbm.timing is a table, set one of its keys: hbm.timing.rcd_ns"),
        ("mxu.rows", r"'mxu.rows' is not KEY=VALUE"),
        ("mxu.rows=", r"'mxu.rows=' is not KEY=VALUE"),
        ("mxu.rows=6.5", r"mxu.rows must be an integer, not 6.5"),
        ("mxu.rows=64.0", r"mxu.rows must be an integer, not 64.0"),
        ("mxu.rows=true", r"mxu.rows must be an integer, not True"),
        ("clock_ghz=true", r"clock_ghz must be a number, not True"),
        ("clock_ghz=fast", r"clock_ghz must be a number, not 'fast'"),
        ("clock_ghz=nan", r"clock_ghz must be finite, not nan"),
        ("clock_ghz=inf", r"clock_ghz must be finite, not inf"),
        ("clock_ghz=0", r"clock_ghz must be positive, not 0.0"),
        ("hbm.timing.rp_ns=-1", r"hbm.timing.rp_ns must be positive, not -1.0"),
        ("links.count=-1", r"links.count must be zero or more, not -1"),
        ("name=7", r"name must be a text, not 7"),
        ("mxu.rows=512", r"lanes must be a power of two in 4..256 .*, not 512"),
        ("lanes=64", r"mxu.cols = 128 must equal lanes = 64"),
        ("dma.formats=bf16,fp32,fp6", r"dma.formats has 'fp6': known are bf16, fp32, fp8_e4m3"),
        ("dma.formats=bf16,fp32,bf16", r"dma.formats names a format twice"),
        ("dma.formats=bf16,q8_0", r"dma.formats must have bf16 and fp32"),
        ("dma.formats=3", r"dma.formats must be a list of names, not 3"),
        ("dma.queues=9", r"a queue would see 40 token channels each way, .*lower dma.queues"),
    ],
)
def test_a_bad_override_is_refused_by_name(setting, words):
    with pytest.raises(ChipError, match=rf"^chip solo: .*{words}"):
        load("solo", [setting])


def test_no_more_rows_are_loaded_at_once_than_the_array_has():
    words = r"mxu.load_rows_per_cycle = 2 must not exceed mxu.rows = 1: there are no more to load"
    with pytest.raises(ChipError, match=words):
        load("tiny", ["mxu.rows=1", "mxu.cols=8"])


def test_one_string_of_overrides_is_a_programming_error():
    with pytest.raises(TypeError, match="list of 'key=value' strings"):
        load("solo", "mxu.rows=64")


def test_an_unknown_preset_names_the_nearest():
    with pytest.raises(ChipError, match=r"no chip named 'sol': did you mean solo\? presets are"):
        load("sol")
    with pytest.raises(ChipError, match=r"no chip file nowhere/x.toml: give a preset \(tiny"):
        load("nowhere/x.toml")


def write(folder, text, name="mine.toml"):
    path = folder / name
    path.write_text(text)
    return path


def test_a_file_may_list_only_changes_to_a_base(tmp_path):
    chip = load(write(tmp_path, 'base = "solo"\n[mxu]\nadder_stages = 3\n'))
    expected = dataclasses.replace(load("solo").mxu, adder_stages=3)
    assert chip.mxu == expected
    assert chip.hbm == load("solo").hbm
    assert (chip.name, chip.description) == ("mine", "solo, changed by mine.toml")


def test_a_base_may_be_another_file_beside_it(tmp_path):
    write(tmp_path, 'base = "tiny"\nclock_ghz = 0.5\n', "slow.toml")
    chip = load(write(tmp_path, 'base = "slow.toml"\ncores = 2\n'))
    assert (chip.clock_ghz, chip.cores, chip.lanes) == (0.5, 2, 8)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('base = "solo"\n[mxuu]\nrows = 3\n', r"unknown chip key 'mxuu': did you mean mxu\?"),
        ('base = "solo"\n[mxu]\nrow = 3\n', r"unknown chip key 'mxu.row': did you mean mxu.rows"),
        ('base = "solo"\n[hbm.timing]\nrcd = 3.0\n', r"did you mean hbm.timing.rcd_ns\?"),
        ('base = "solo"\nmxu = 3\n', r"mxu is a table of keys, not 3"),
        ('base = "solo"\n[clock_ghz]\nx = 3\n', r"clock_ghz is a single value, not a table"),
        ('base = "solo"\n[mxu]\nrows = "many"\n', r"mxu.rows must be an integer, not 'many'"),
        ('base = "solo"\n[mxu]\nrows = [64]\n', r"mxu.rows must be an integer, not \[64\]"),
        ("base = 3\n", r"base must be the name or path of a chip, not 3"),
        ('base = "mine.toml"\n', r"base leads back to the file itself"),
        ('base = "soloo"\n', r"no chip named 'soloo': did you mean solo\?"),
        ("rows = = 3\n", r"mine.toml is not TOML: .*line 1"),
        ('name = "x"\n', r"missing key description: add it, or start from base = 'solo'"),
    ],
)
def test_a_bad_file_is_refused_by_name(tmp_path, text, words):
    with pytest.raises(ChipError, match=words):
        load(write(tmp_path, text))


FOLLOW = ("lanes", "mxu.cols")  # of mxu.rows


@pytest.mark.parametrize(
    "key", [k for k in keys() if not k.startswith("links.") and k not in FOLLOW]
)
def test_every_key_is_required_in_a_file_without_a_base(tmp_path, key):
    *path, leaf = key.split(".")
    lines = to_toml(load("tiny")).splitlines()
    start = lines.index(f"[{'.'.join(path)}]") if path else 0
    del lines[next(i for i in range(start, len(lines)) if lines[i].startswith(f"{leaf} = "))]
    with pytest.raises(ChipError, match=f"missing key {key}:"):
        load(write(tmp_path, "\n".join(lines)))


def test_parts_check_types_when_made_in_python():
    with pytest.raises(ChipError, match=r"dma.queues must be an integer, not '4'"):
        dataclasses.replace(load("solo").dma, queues="4")
    with pytest.raises(ChipError, match="dma must be Dma, not 4"):
        dataclasses.replace(load("solo"), dma=4)
    assert isinstance(load("solo").dma, Dma)


def test_a_chip_is_frozen_and_hashable():
    chip = load("solo")
    assert hash(chip) == hash(load("solo"))
    with pytest.raises(dataclasses.FrozenInstanceError):
        chip.lanes = 3


def derived(chip: Chip) -> dict[str, float]:
    return {f.key: f.value for group in figures(chip).values() for f in group}


def test_figures_follow_the_numbers():
    solo = derived(load("solo"))
    assert solo["peak_bf16_flops"] == 32.768e12
    assert solo["stationary_gb_per_s_per_core"] == 4096  # 16 rows of 256 bytes a cycle
    assert solo["moving_gb_per_s_per_core"] == 256
    assert solo["spm_gb_per_s_per_core"] == 192 * 256  # 12 stripes of 16 banks
    assert solo["mxu_latency_cycles"] == 2 * 128 + 16
    assert solo["hbm_bytes_per_flop"] == pytest.approx(614.4 / 32768)
    half = derived(load("solo", ["mxu.rows=64", "mxu.cols=128"]))
    assert half["peak_bf16_flops"] == solo["peak_bf16_flops"] / 2
    assert half["hbm_gb_per_s"] == solo["hbm_gb_per_s"]
    assert len(derived(load("n3"))) == sum(len(g) for g in figures(load("n3")).values())


def test_formats_are_those_of_the_instruction_set():
    assert {f.name.lower(): f.value for f in HbmFormat} == FORMATS
    chip = load("tiny", ["dma.formats=bf16, fp32, q8_0"])
    assert chip.dma.formats == ("bf16", "fp32", "q8_0")
    assert chip.dma.format_mask == 1 << 0 | 1 << 1 | 1 << 6
