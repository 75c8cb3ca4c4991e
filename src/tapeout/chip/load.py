"""Chips from TOML files and `key=value` overrides, and back to TOML.

A chip file has the keys of `Chip` at the top and one table for each part (`[mxu]`, `[hbm.timing]`,
...). It may name another chip, `base = "solo"` (a preset, or a path ending in .toml relative to the
file), and then holds only what differs. A chip that does not say `mxu.cols` has a square array, and
one that does not say `lanes` has one for each column: in the presets, `mxu.rows` alone sets all
three. Unknown keys, missing keys and values of the wrong type raise `ChipError`.
"""

import difflib
import json
import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any

from tapeout.chip.spec import Chip, ChipError

Overrides = Mapping[str, Any] | Sequence[str]

_PRESET_DIR = Path(__file__).parent / "presets"


def presets() -> tuple[str, ...]:
    """The names of the chips that come with the package, smallest array first."""
    found = {path.stem for path in _PRESET_DIR.glob("*.toml")}
    order = ("tiny", "lab16", "solo", "n3")
    return tuple(n for n in order if n in found) + tuple(sorted(found - set(order)))


def load(name_or_path: str | Path, overrides: Overrides = ()) -> Chip:
    """The chip of that preset name or TOML file (anything ending in .toml or holding a slash).

    `overrides` are `{"mxu.rows": 64}` or `["mxu.rows=64"]`; the chip is checked once, after all of
    them. Raises `ChipError`.
    """
    tree = _read(_locate(str(name_or_path), Path()), ())
    return _build(tree, overrides, str(name_or_path))


def apply_overrides(chip: Chip, overrides: Overrides) -> Chip:
    """A copy of `chip` with these keys changed and no others. Raises `ChipError`."""
    return _build(to_dict(chip), overrides, chip.name)


def to_dict(chip: Chip) -> dict[str, Any]:
    """The chip as nested dictionaries, the shape of its TOML file."""
    return _plain(chip)


def to_toml(chip: Chip) -> str:
    """The chip as TOML text; `load` of that text gives an equal chip."""
    lines: list[str] = []
    _write_table(lines, "", to_dict(chip))
    return "\n".join(lines).lstrip("\n") + "\n"


def keys() -> tuple[str, ...]:
    """Every dotted key of a chip, `("name", ..., "hbm.timing.rcd_ns", ...)`."""
    return tuple(_leaves(Chip, ""))


def _plain(part: Any) -> dict[str, Any]:
    values = ((f.name, getattr(part, f.name)) for f in fields(part))
    return {
        name: _plain(v) if is_dataclass(v) else list(v) if isinstance(v, tuple) else v
        for name, v in values
    }


def _leaves(part: Any, prefix: str) -> Iterable[str]:
    for f in fields(part):
        if is_dataclass(f.type):
            yield from _leaves(f.type, f"{prefix}{f.name}.")
        else:
            yield prefix + f.name


# Reading: a chip file becomes one nested dictionary, its base merged in.


def _locate(name: str, folder: Path) -> Path:
    if name.endswith(".toml") or "/" in name:
        path = folder / name
        if not path.is_file():
            raise ChipError(
                f"no chip file {path}: give a preset ({', '.join(presets())}) or a path"
            )
        return path
    if name in presets():
        return _PRESET_DIR / f"{name}.toml"
    nearest = difflib.get_close_matches(name, presets(), n=1)
    hint = f"did you mean {nearest[0]}? " if nearest else ""
    raise ChipError(
        f"no chip named {name!r}: {hint}presets are {', '.join(presets())}; "
        f"a chip of your own is a path ending in .toml"
    )


def _read(path: Path, seen: tuple[Path, ...]) -> dict[str, Any]:
    path = path.resolve()
    if path in seen:
        raise ChipError(f"{path}: base leads back to the file itself; name a preset instead")
    try:
        tree = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ChipError(f"{path} is not TOML: {error}") from None
    where = path.stem if path.parent == _PRESET_DIR else str(path)
    base = tree.pop("base", None)
    _check_names(tree, Chip, "", where)
    if base is None:
        return tree
    if not isinstance(base, str):
        raise ChipError(f"{where}: base must be the name or path of a chip, not {base!r}")
    named = {"name": path.stem, "description": f"{base}, changed by {path.name}"}
    parent = _read(_locate(base, path.parent), (*seen, path))
    return _merge(parent, named | tree)


def _merge(parent: dict[str, Any], child: dict[str, Any]) -> dict[str, Any]:
    merged = dict(parent)
    for key, value in child.items():
        both_tables = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merge(merged[key], value) if both_tables else value
    return merged


def _check_names(tree: dict[str, Any], part: Any, prefix: str, where: str) -> None:
    """Refuse unknown keys, tables where a value belongs and values where a table belongs."""
    known = {f.name: f.type for f in fields(part)}
    for name, value in tree.items():
        if name not in known:
            raise ChipError(f"{where}: {_unknown(prefix + name)}")
        wanted = known[name]
        if is_dataclass(wanted):
            if not isinstance(value, dict):
                raise ChipError(f"{where}: {prefix}{name} is a table of keys, not {value!r}")
            _check_names(value, wanted, f"{prefix}{name}.", where)
        elif isinstance(value, dict):
            raise ChipError(f"{where}: {prefix}{name} is a single value, not a table")


def _unknown(key: str) -> str:
    """The message for a key no chip has, with the nearest right one."""
    leaves = keys()
    tables = tuple(dict.fromkeys(k.rpartition(".")[0] for k in leaves if "." in k))
    leaf = key.rpartition(".")[2]
    nearest = [k for k in leaves if k.rpartition(".")[2] == leaf]
    nearest = nearest or difflib.get_close_matches(key, (*leaves, *tables), n=1, cutoff=0.6)
    nearest = nearest or [
        k for k in leaves
        if difflib.SequenceMatcher(None, k.rpartition(".")[2], leaf).ratio() > 0.75
    ]  # fmt: skip
    if nearest:
        return f"unknown chip key {key!r}: did you mean {' or '.join(nearest[:3])}?"
    return (
        f"unknown chip key {key!r}: the keys are {', '.join(k for k in leaves if '.' not in k)} "
        f"and those of the tables {', '.join(tables)}; `tapeout chip solo` prints them all"
    )


# Overrides and construction.


def _build(tree: dict[str, Any], overrides: Overrides, where: str) -> Chip:
    if isinstance(overrides, str):
        raise TypeError("overrides is a list of 'key=value' strings, not one string")
    try:
        pairs = overrides.items() if isinstance(overrides, Mapping) else map(_split, overrides)
        for key, value in pairs:
            _check_key(key)
            *path, leaf = key.split(".")
            tree = _merge(tree, _nest(path, leaf, value))
        return _construct(Chip, _with_derived(tree), "")
    except ChipError as error:
        raise ChipError(f"chip {where}: {error}") from None


def _with_derived(tree: dict[str, Any]) -> dict[str, Any]:
    """Adds `mxu.cols` and `lanes` where the chip leaves them out."""
    mxu = tree.get("mxu", {})
    if "rows" in mxu:
        tree = _merge({"mxu": {"cols": mxu["rows"]}}, tree)
    if "cols" in tree.get("mxu", {}):
        tree = {"lanes": tree["mxu"]["cols"]} | tree
    return tree


def _check_key(key: str) -> None:
    inside = [k for k in keys() if k.startswith(f"{key}.")]
    if inside:
        raise ChipError(f"{key} is a table, set one of its keys: {', '.join(inside)}")
    if key not in keys():
        raise ChipError(_unknown(key))


def _nest(path: list[str], leaf: str, value: Any) -> dict[str, Any]:
    nested: dict[str, Any] = {leaf: value}
    for name in reversed(path):
        nested = {name: nested}
    return nested


def _split(setting: str) -> tuple[str, Any]:
    """`"mxu.rows=64"` as `("mxu.rows", 64)`."""
    key, equals, text = (part.strip() for part in setting.partition("="))
    if not equals or not key or not text:
        raise ChipError(f"{setting!r} is not KEY=VALUE: write for example mxu.rows=64")
    if re.fullmatch(r"[+-]?\d[\d_]*", text):
        return key, int(text)
    try:
        return key, float(text)
    except ValueError:
        return key, {"true": True, "false": False}.get(text, text.strip("\"'"))


def _construct(part: Any, tree: dict[str, Any], prefix: str) -> Any:
    """The dataclass from its dictionary; the class itself checks types and ranges."""
    arguments: dict[str, Any] = {}
    for f in fields(part):
        key = prefix + f.name
        if f.name not in tree:
            if f.default is MISSING:
                raise ChipError(f"missing key {key}: add it, or start from base = 'solo'")
        elif is_dataclass(f.type):
            arguments[f.name] = _construct(f.type, tree[f.name], f"{key}.")
        else:
            arguments[f.name] = tree[f.name]
    return part(**arguments)


# Writing.


def _write_table(lines: list[str], prefix: str, table: dict[str, Any]) -> None:
    if prefix:
        lines += ["", f"[{prefix}]"]
    for name, value in table.items():
        if not isinstance(value, dict):
            is_text = isinstance(value, (str, list))
            text = json.dumps(value, ensure_ascii=False) if is_text else repr(value)
            lines.append(f"{name} = {text}")
    for name, value in table.items():
        if isinstance(value, dict):
            _write_table(lines, f"{prefix}.{name}" if prefix else name, value)
