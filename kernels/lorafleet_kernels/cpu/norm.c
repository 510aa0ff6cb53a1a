/* RMSNorm, with the addition that comes before it. */
#include "parts.h"

void add_rms_norm_part(
    const share_t *share, elem *x, const elem *delta, const elem *weight, elem *out, int64_t rows, int64_t width, float eps
) {
    const int64_t whole = width / LANES * LANES, rest = width - whole;
    for (int64_t row = first_of(share, rows); row < end_of(share, rows); row++) {
        elem *const to = x + row * width, *const result = out + row * width;
        vec squares = {0};
        for (int64_t i = 0; i < width; i += LANES) {
            const int64_t left = width - i;
            vec v = left >= LANES ? load(to + i) : load_some(to + i, left);
            if (delta) {
                const elem *const from = delta + row * width + i;
                v = rounded(v + (left >= LANES ? load(from) : load_some(from, left)));
                if (left >= LANES)
                    store(to + i, v);
                else
                    store_some(to + i, v, left);
            }
            squares += v * v;
        }
        if (!out) continue;
        const float scale = 1.0f / sqrtf(sum(squares) / (float)width + eps);
        for (int64_t i = 0; i < whole; i += LANES) store(result + i, load(weight + i) * rounded(load(to + i) * scale));
        if (rest) {
            const vec v = rounded(load_some(to + whole, rest) * scale);
            store_some(result + whole, load_some(weight + whole, rest) * v, rest);
        }
    }
}

void lorafleet_add_rms_norm(
    elem *x, const elem *delta, const elem *weight, elem *out, int64_t rows, int64_t width, float eps, int threads
) {
#pragma omp parallel num_threads(team(threads, rows * width))
    {
        const share_t share = shared(0);
        add_rms_norm_part(&share, x, delta, weight, out, rows, width, eps);
    }
}
