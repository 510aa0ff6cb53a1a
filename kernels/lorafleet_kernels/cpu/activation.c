/* The gated activation of the feed-forward layer. */
#include "vector.h"

INLINE vec silu_times(vec gate, vec up) { return rounded(gate / (1.0f + exponential(-gate))) * up; }

/* out [rows, width] = silu(gate) · up, of x [rows, 2 · width] = gate, up. */
void lorafleet_silu_and_mul(const elem *x, elem *out, int64_t rows, int64_t width, int threads) {
#pragma omp parallel for num_threads(team(threads, 4 * rows * width)) schedule(static)
    for (int64_t row = 0; row < rows; row++) {
        const elem *const gate = x + row * 2 * width, *const up = gate + width;
        elem *const to = out + row * width;
        int64_t i = 0;
        for (; i + LANES <= width; i += LANES) store(to + i, silu_times(load(gate + i), load(up + i)));
        if (i < width) store_some(to + i, silu_times(load_some(gate + i, width - i), load_some(up + i, width - i)), width - i);
    }
}
