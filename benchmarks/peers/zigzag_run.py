"""ZigZag on the layers of a request, one after the other; runs in its own environment.

Configuration nearest to the chip: a systolic array of its size that keeps K x N weights (two a
cell, one in use and one on its way), fp32 sums beside it, a scratchpad that gives it one row of
inputs and `load_rows` rows of weights a cycle, HBM at the chip's rate on one shared port. ZigZag
searches loop orders (LOMA, its defaults) and reports the latency of the best: an analytic figure,
nothing runs.
"""

import json
import logging
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

LPF_LIMIT = 6  # ZigZag's default bound on loop orders


def _port(name: str, kind: str, bits: int, *allocation: str) -> dict[str, Any]:
    low = min(bits, 16)
    return {
        "name": name, "type": kind, "bandwidth_min": low, "bandwidth_max": bits,
        "allocation": list(allocation),
    }  # fmt: skip


def _memory(size_bits: int, operands: list[str], dims: list[str], *ports: dict) -> dict[str, Any]:
    return {
        "size": size_bits, "r_cost": 0, "w_cost": 0, "area": 0, "latency": 1,
        "operands": operands, "ports": list(ports), "served_dimensions": dims,
    }  # fmt: skip


def accelerator(chip: dict[str, Any]) -> dict[str, Any]:
    """The chip in ZigZag's terms: I1 moves, I2 stays in the array, O comes out; rates in bits.

    The order of the memories, lowest first, means something to ZigZag.
    """
    both, cols = ["D1", "D2"], chip["mxu_cols"]
    row, sums = 16 * chip["mxu_rows"], 32 * cols
    hbm = int(8 * chip["hbm_bytes_per_cycle"])
    dma, vector = 8 * chip["dma_bytes_per_cycle"], chip["vpu_sublanes"]
    every = [f"{op}, {way}" for op in ("I1", "I2") for way in ("fh", "tl")]
    return {
        "name": "nearest",
        "memories": {
            "weight_registers": _memory(
                32, ["I2"], [],
                _port("r_port_1", "read", 16, "I2, tl"),
                _port("w_port_1", "write", 16, "I2, fh"),
            ),
            "acc": _memory(
                8 * chip["acc_bytes"], ["O"], both,
                _port("r_port_1", "read", sums, "O, tl"),
                _port("w_port_1", "write", sums, "O, fl"),
                _port("r_port_2", "read", sums * vector, "O, th"),
                _port("w_port_2", "write", sums * vector, "O, fh"),
            ),
            "spm": _memory(
                8 * chip["spm_bytes"], ["I1", "I2", "O"], both,
                _port("r_port_1", "read", row, "I1, tl"),
                _port("r_port_2", "read", 16 * cols * chip["load_rows"], "I2, tl"),
                _port("rw_port_1", "read_write", 16 * cols * vector, "O, tl", "O, fl"),
                _port("w_port_1", "write", dma, "I1, fh", "I2, fh", "O, fh"),
                _port("r_port_3", "read", dma, "O, th"),
            ),
            "hbm": _memory(
                8 * chip["hbm_bytes"], ["I1", "I2", "O"], both,
                _port("rw_port_1", "read_write", hbm, *every, "O, fh", "O, tl", "O, fl", "O, th"),
            ),
        },
        "operational_array": {
            "unit_energy": 0, "unit_area": 0, "dimensions": both,
            "sizes": [cols, chip["mxu_rows"]], "systolic_dimensions": both,
        },
    }  # fmt: skip


def mapping(chip: dict[str, Any], layer: dict[str, Any]) -> list[dict[str, Any]]:
    """N of a product across the array, K down it (ZigZag's names are K and C); channels of a
    convolution that do not fill the array come with several pixels of a window."""
    down = [f"C, {chip['mxu_rows']}"]
    if layer.get("channels", chip["mxu_rows"]) < chip["mxu_rows"]:
        room = chip["mxu_rows"] // layer["channels"]
        along = min(layer["window"], room)
        down = [f"C, {layer['channels']}", f"FX, {along}"]
        if room // along > 1:
            down.append(f"FY, {min(layer['window'], room // along)}")
        down = [d for d in down if not d.endswith(", 1")]
    return [
        {
            "name": "default",
            "spatial_mapping": {"D1": [f"K, {chip['mxu_cols']}"], "D2": down},
            "memory_operand_links": {"O": "O", "W": "I2", "I": "I1"},
        }
    ]


def workload(layer: dict[str, Any]) -> list[dict[str, Any]]:
    common = {
        "id": 0, "name": "layer",
        "operand_precision": {"W": 16, "I": 16, "O": 32, "O_final": 16},
        "operand_source": {"W": 0, "I": 0},
    }  # fmt: skip
    if "m" in layer:
        return [
            common | {
                "operator_type": "Gemm", "equation": "O[b][k]+=W[k][c]*I[b][c]",
                "dimension_relations": [], "loop_dims": ["B", "C", "K"],
                "loop_sizes": [layer["m"], layer["k"], layer["n"]],
            }
        ]  # fmt: skip
    out, window, stride = layer["out"], layer["window"], layer["stride"]
    before = (window - 1) // 2
    return [
        common | {
            "operator_type": "Conv", "equation": "O[b][k][oy][ox]+=W[k][c][fy][fx]*I[b][c][iy][ix]",
            "dimension_relations": [f"ix={stride}*ox+1*fx", f"iy={stride}*oy+1*fy"],
            "loop_dims": ["B", "K", "C", "OY", "OX", "FY", "FX"],
            "loop_sizes": [1, layer["filters"], layer["channels"], out, out, window, window],
            "pr_loop_dims": ["IX", "IY"], "pr_loop_sizes": [layer["size"]] * 2,
            "padding": [[before, layer["padded"] - layer["size"] - before]] * 2,
        }
    ]  # fmt: skip


def main() -> None:
    import yaml
    from zigzag.api import get_hardware_performance_zigzag

    logging.disable(logging.WARNING)
    request = json.loads(Path(sys.argv[1]).read_text())
    chip = request["chip"]
    with tempfile.TemporaryDirectory() as scratch, Path(request["result"]).open("w") as out:
        folder = Path(scratch)
        files = {name: folder / f"{name}.yaml" for name in ("chip", "mapping", "workload")}
        files["chip"].write_text(yaml.safe_dump(accelerator(chip), sort_keys=False))
        for product in request["products"]:
            files["mapping"].write_text(yaml.safe_dump(mapping(chip, product)))
            files["workload"].write_text(yaml.safe_dump(workload(product)))
            start, cpu = time.perf_counter(), time.process_time()
            _, latency_cycles, _ = get_hardware_performance_zigzag(
                str(files["workload"]), str(files["chip"]), str(files["mapping"]),
                opt="latency", dump_folder=str(folder / "dump"), lpf_limit=LPF_LIMIT,
                loma_show_progress_bar=False,
            )  # fmt: skip
            figures = {
                "cycles": int(latency_cycles),
                "wall_s": time.perf_counter() - start,
                "cpu_s": time.process_time() - cpu,
            }
            out.write(json.dumps(product | figures) + "\n")
            out.flush()


if __name__ == "__main__":
    main()
