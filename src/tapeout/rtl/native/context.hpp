// The context of a verilated model.
#pragma once

#include "verilated.h"

// One thread is what the model has; without this, every context keeps a pool of workers.
struct Context : VerilatedContext {
  Context() { threads(1); }
};
