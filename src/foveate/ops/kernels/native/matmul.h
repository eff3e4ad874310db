/* Products of matrices that the caches hold.
 *
 * T rows by two vectors of sums stay in registers: each step loads two vectors
 * of the right matrix and spreads one value of the left over each row.
 */
#pragma once
#include "lanes.h"

#define PANEL (2 * LANES) /* columns that are done together */
#if LANES == 16
#define TALL 12 /* rows that are done together: 24 sums of 32 registers */
#else
#define TALL 6 /* 12 sums of 16 registers */
#endif

/* Where an element of the left matrix lies: row t of step k at from + t * row + k * step. */
typedef struct {
    const float *from;
    int64_t row, step;
} left_matrix;

/* Where the right matrix lies: panels of two vectors, in each a row a step. */
typedef struct {
    const float *from;
    int64_t panel, step;
} right_matrix;

/* out (+)= left right, for T rows and V vectors over `steps`. */
INLINE void cell(
    const int T, const int V, float *out, int64_t pitch, left_matrix left, const float *right,
    int64_t right_step, int64_t steps, const int more
) {
    vec sum[T], next[T];
    UNROLL for (int t = 0; t < T; t++) {
        sum[t] = more ? load(out + t * pitch) : (vec){0};
        if (V == 2) next[t] = more ? load(out + t * pitch + LANES) : (vec){0};
    }
    for (int64_t k = 0; k < steps; k++) {
        vec first = load(right + k * right_step), second = {0};
        if (V == 2) second = load(right + k * right_step + LANES);
        const float *value = left.from + k * left.step;
        UNROLL for (int t = 0; t < T; t++) {
            vec spread = splat(value[t * left.row]);
            sum[t] += spread * first;
            if (V == 2) next[t] += spread * second;
        }
    }
    UNROLL for (int t = 0; t < T; t++) {
        store(out + t * pitch, sum[t]);
        if (V == 2) store(out + t * pitch + LANES, next[t]);
    }
}

INLINE void column(
    const int V, float *out, int64_t pitch, left_matrix left, const float *right,
    int64_t right_step, int64_t rows, int64_t steps, const int more
) {
    int64_t t = 0;
    for (; t + TALL <= rows; t += TALL) {
        left_matrix at = {left.from + t * left.row, left.row, left.step};
        cell(TALL, V, out + t * pitch, pitch, at, right, right_step, steps, more);
    }
    for (; t + 4 <= rows; t += 4) {
        left_matrix at = {left.from + t * left.row, left.row, left.step};
        cell(4, V, out + t * pitch, pitch, at, right, right_step, steps, more);
    }
    for (; t < rows; t++) {
        left_matrix at = {left.from + t * left.row, left.row, left.step};
        cell(1, V, out + t * pitch, pitch, at, right, right_step, steps, more);
    }
}

INLINE void multiply(
    float *out, int64_t pitch, left_matrix left, right_matrix right, int64_t rows, int64_t columns,
    int64_t steps, const int more
) {
    for (int64_t c = 0; c < columns; c += PANEL) {
        const float *panel = right.from + c / PANEL * right.panel;
        if (columns - c > LANES)
            column(2, out + c, pitch, left, panel, right.step, rows, steps, more);
        else column(1, out + c, pitch, left, panel, right.step, rows, steps, more);
    }
}

/* out (rows, columns) = left right; columns are done in whole vectors, rows lie `pitch` apart. */
static void product(
    float *out, int64_t pitch, left_matrix left, right_matrix right, int64_t rows, int64_t columns,
    int64_t steps
) {
    multiply(out, pitch, left, right, rows, columns, steps, 0);
}

/* out += left right. */
static void add_product(
    float *out, int64_t pitch, left_matrix left, right_matrix right, int64_t rows, int64_t columns,
    int64_t steps
) {
    multiply(out, pitch, left, right, rows, columns, steps, 1);
}

/* What is right of a column, a multiple of PANEL; what is below a step. */
INLINE right_matrix columns_from(right_matrix m, int64_t column) {
    return (right_matrix){m.from + column / PANEL * m.panel, m.panel, m.step};
}
INLINE right_matrix steps_from(right_matrix m, int64_t step) {
    return (right_matrix){m.from + step * m.step, m.panel, m.step};
}

/* Floats that panels of a (steps, columns) matrix take. */
INLINE int64_t panel_floats(int64_t steps, int64_t columns) {
    return rounded_up(columns, PANEL) * steps;
}

/* A weight whose element (step, column) is at from + step * down + column * along, as panels. */
INLINE right_matrix panels(
    float *to, const float *from, int64_t steps, int64_t columns, int64_t down, int64_t along
) {
    for (int64_t c = 0; c < columns; c++)
        for (int64_t k = 0; k < steps; k++)
            to[c / PANEL * PANEL * steps + k * PANEL + c % PANEL] = from[k * down + c * along];
    return (right_matrix){to, PANEL * steps, PANEL};
}
