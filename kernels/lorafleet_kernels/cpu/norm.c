/* RMSNorm, with the addition that comes before it. */
#include "vector.h"

/* x [rows, width] += delta, where there is one; out = x / rms(x) · weight. Rounds where the reference rounds. */
void lorafleet_add_rms_norm(
    elem *x, const elem *delta, const elem *weight, elem *out, int64_t rows, int64_t width, float eps, int threads
) {
    const int64_t whole = width / LANES * LANES, rest = width - whole;
#pragma omp parallel for num_threads(team(threads, rows * width)) schedule(static)
    for (int64_t row = 0; row < rows; row++) {
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
        const float scale = 1.0f / sqrtf(sum(squares) / (float)width + eps);
        for (int64_t i = 0; i < whole; i += LANES) store(result + i, load(weight + i) * rounded(load(to + i) * scale));
        if (rest) {
            const vec v = rounded(load_some(to + whole, rest) * scale);
            store_some(result + whole, load_some(weight + whole, rest) * v, rest);
        }
    }
}
