/* The gated activation of the feed-forward layer. */
#include "parts.h"

INLINE vec silu_times(vec gate, vec up) { return rounded(gate / (1.0f + exponential(-gate))) * up; }

void silu_and_mul_part(const share_t *share, const elem *x, elem *out, int64_t rows, int64_t width) {
    for (int64_t row = first_of(share, rows); row < end_of(share, rows); row++) {
        const elem *const gate = x + row * 2 * width, *const up = gate + width;
        elem *const to = out + row * width;
        int64_t i = 0;
        for (; i + LANES <= width; i += LANES) store(to + i, silu_times(load(gate + i), load(up + i)));
        if (i < width) store_some(to + i, silu_times(load_some(gate + i, width - i), load_some(up + i, width - i)), width - i);
    }
}

void lorafleet_silu_and_mul(const elem *x, elem *out, int64_t rows, int64_t width, int threads) {
#pragma omp parallel num_threads(team(threads, 4 * rows * width))
    {
        const share_t share = shared(0);
        silu_and_mul_part(&share, x, out, rows, width);
    }
}
