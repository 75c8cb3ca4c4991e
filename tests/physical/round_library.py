"""A library of four cells whose figures are round, as OSU018 has it."""

GATE_NS, CLOCK_TO_Q_NS, SETUP_NS = 1.0, 0.5, 0.25
AREA = {"INVX1": 1.0, "NAND2X1": 2.0, "BUFX4": 1.5, "DFFPOSX1": 8.0}

_THRESHOLDS = "".join(
    f"{kind}_threshold_pct_{edge} : {percent};\n"
    for kind, percent in (("input", 50), ("output", 50), ("slew_lower", 20), ("slew_upper", 80))
    for edge in ("rise", "fall")
)


def _table(kind: str, value: float, template: str = "by_load") -> str:
    return f'{kind} ({template}) {{ values ("{value}, {value}", "{value}, {value}"); }}'


def _template(name: str, first: str, second: str) -> str:
    axes = f"variable_1 : {first}; variable_2 : {second};"
    return f'lu_table_template ({name}) {{ {axes} index_1 ("0.001, 1"); index_2 ("0.001, 1"); }}\n'


def _arc(related: str, how: str, delay: float) -> str:
    tables = [_table(f"cell_{edge}", delay) for edge in ("rise", "fall")]
    tables += [_table(f"{edge}_transition", 0.01) for edge in ("rise", "fall")]
    return f'timing () {{ related_pin : "{related}"; {how} {" ".join(tables)} }}'


def _input(name: str, more: str = "") -> str:
    return f"pin ({name}) {{ direction : input; capacitance : 0.001; {more} }}"


def _gate(name: str, function: str, pins: str, sense: str) -> str:
    arcs = " ".join(_arc(pin, f"timing_sense : {sense};", GATE_NS) for pin in pins)
    inputs = " ".join(_input(pin) for pin in pins)
    return (
        f"cell ({name}) {{\n area : {AREA[name]};\n{inputs}\n"
        f'pin (Y) {{ direction : output; max_capacitance : 1; function : "{function}"; {arcs} }} }}'
    )


def _flop() -> str:
    constraint = "".join(
        _table(f"{edge}_constraint", SETUP_NS, "by_slews") for edge in ("rise", "fall")
    )
    setup = f'timing () {{ related_pin : "CLK"; timing_type : setup_rising; {constraint} }}'
    arc = _arc("CLK", "timing_type : rising_edge;", CLOCK_TO_Q_NS)
    return (
        f"cell (DFFPOSX1) {{\n area : {AREA['DFFPOSX1']};\n"
        'ff (IQ, IQN) { next_state : "D"; clocked_on : "CLK"; }\n'
        f"{_input('CLK', 'clock : true;')} {_input('D', setup)}\n"
        f'pin (Q) {{ direction : output; max_capacitance : 1; function : "IQ"; {arc} }} }}'
    )


def liberty() -> str:
    cells = [
        _gate("INVX1", "!A", "A", "negative_unate"),
        _gate("NAND2X1", "!(A*B)", "AB", "negative_unate"),
        _gate("BUFX4", "A", "A", "positive_unate"),
        _flop(),
    ]
    return (
        'library (round) {\n delay_model : table_lookup; time_unit : "1ns";\n'
        'voltage_unit : "1V"; current_unit : "1uA"; pulling_resistance_unit : "1kohm";\n'
        'leakage_power_unit : "1nW"; capacitive_load_unit (1, pf); nom_voltage : 1.8;\n'
        "operating_conditions (typical) { process : 1; temperature : 25; voltage : 1.8; }\n"
        "default_operating_conditions : typical;\n"
        + _THRESHOLDS
        + _template("by_load", "total_output_net_capacitance", "input_net_transition")
        + _template("by_slews", "related_pin_transition", "constrained_pin_transition")
        + "\n".join(cells)
        + "\n}\n"
    )
