// The extension module tapeout.sim._native: each part binds itself in its own bind_*.cpp.
#include <nanobind/nanobind.h>

namespace nb = nanobind;

void bind_hbm(nb::module_ &m);
void bind_math(nb::module_ &m);
void bind_sim(nb::module_ &m);

NB_MODULE(_native, m) {
    m.doc() = "Tapeout's native simulator: HBM model, arithmetic kernels, instruction execution";
    bind_hbm(m);
    bind_math(m);
    bind_sim(m);
}
