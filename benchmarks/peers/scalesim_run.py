"""SCALE-Sim 3 on the layers of a request, one after the other; runs in its own environment.

Configuration nearest to the chip: a weight-stationary array of its size; the scratchpad in three
equal parts; memory at the chip's HBM rate in words (SCALE-Sim counts words, here bf16) on each of
its three interfaces: it has no rate that they share, so its memory is up to three times as fast.
"""

import contextlib
import io
import json
import sys
import tempfile
import time
from pathlib import Path

CONFIG = """\
[general]
run_name = run
[architecture_presets]
ArrayHeight = {rows}
ArrayWidth = {cols}
IfmapSramSzkB = {part_kwords}
FilterSramSzkB = {part_kwords}
OfmapSramSzkB = {part_kwords}
IfmapOffset = 0
FilterOffset = 1000000000
OfmapOffset = 2000000000
Bandwidth = {words_per_cycle}
Dataflow = ws
ReadRequestBuffer = 64
WriteRequestBuffer = 64
[layout]
IfmapCustomLayout = False
IfmapSRAMBankBandwidth = {words_per_cycle}
IfmapSRAMBankNum = 1
IfmapSRAMBankPort = 2
FilterCustomLayout = False
FilterSRAMBankBandwidth = {words_per_cycle}
FilterSRAMBankNum = 1
FilterSRAMBankPort = 2
[sparsity]
SparsitySupport = false
SparseRep = ellpack_block
OptimizedMapping = false
BlockSize = 8
RandomNumberGeneratorSeed = 40
[run_presets]
InterfaceBandwidth = USER
UseRamulatorTrace = False
"""


def simulate(config: Path, product: dict, folder: Path) -> int:
    """Cycles of one product, with the prefetch before it and the write-back after it."""
    from scalesim.scale_sim import scalesim

    topology, layout = folder / "topology.csv", folder / "layout.csv"
    is_product = "m" in product
    if is_product:
        text = f"Layer,M,N,K,\np,{product['m']},{product['n']},{product['k']},\n"
    else:  # a padded image that gives as many pixels as the convolution
        padded, window, stride = product["padded"], product["window"], product["stride"]
        sizes = (padded, padded, window, window, product["channels"], product["filters"], stride)
        text = f"Layer,H,W,R,S,C,M,Stride,\np,{','.join(map(str, sizes))},\n"
    topology.write_text(text)
    layout.write_text("Layer,\np," + "1," * 19 + "\n")  # required, unused without custom layouts
    with contextlib.redirect_stderr(io.StringIO()):  # its progress bars
        run = scalesim(
            save_disk_space=True, verbose=False, config=str(config), topology=str(topology),
            layout=str(layout), input_type_gemm=is_product,
        )  # fmt: skip
        run.run_scale(top_path=str(folder))
    return int(run.runner.single_layer_sim_object_list[0].get_compute_report_items()[0])


def main() -> None:
    request = json.loads(Path(sys.argv[1]).read_text())
    chip = request["chip"]
    with tempfile.TemporaryDirectory() as scratch, Path(request["result"]).open("w") as out:
        folder = Path(scratch)
        config = folder / "solo.cfg"
        config.write_text(
            CONFIG.format(
                rows=chip["mxu_rows"],
                cols=chip["mxu_cols"],
                part_kwords=chip["spm_bytes"] // 2 // 1024 // 3,
                words_per_cycle=int(chip["hbm_bytes_per_cycle"] / 2),
            )
        )
        for product in request["products"]:
            start, cpu = time.perf_counter(), time.process_time()
            cycles = simulate(config, product, folder)
            figures = {
                "cycles": cycles,
                "wall_s": time.perf_counter() - start,
                "cpu_s": time.process_time() - cpu,
            }
            out.write(json.dumps(product | figures) + "\n")
            out.flush()


if __name__ == "__main__":
    main()
