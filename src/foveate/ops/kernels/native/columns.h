/* Kernels one pixel wide, which move along columns and need nothing packed.
 *
 * Neighbours in memory, be they channels or pixels of a row, have their columns
 * side by side: T outputs of LANES columns are kept in registers while the taps
 * fall onto them, each row of the map read as it lies. Rows beyond it are zeros.
 */
#pragma once
#include "depthwise.h"

/* Rows that are done together: maps mostly have a multiple. With gradients at once they need as many
 * registers again. */
#define TILE (HALVES == 1 ? 14 : 4)
#define LEARNED_TILE (TOGETHER ? 7 : 4)

typedef struct {
    const float *rows[TILE + 30]; /* under the kernel as it moves over the tile */
    const float *taps, *seen;     /* seen: the tile's first row of the input, on the way back */
    float *y, *shares;            /* of each tap, and last of the bias */
    const float *next;            /* the first row that comes in under the kernel for the next tile */
    int64_t row, y_row, seen_row; /* floats from row to row */
    int64_t pad, count;
    vec bias;
} columns;

/* Where all neighbours are of one channel (`apart`), its taps are spread over them. */
INLINE vec tap_of(const columns *s, int64_t k, const int apart) {
    return apart ? splat(s->taps[k * LANES]) : load(s->taps + k * LANES);
}

/* Let J taps from the k-th on fall onto T rows; each row under them is read once. */
INLINE void fall_down(
    const int T, const int J, const columns *s, int64_t k, int64_t x, int count, vec *sum,
    const vec *input, const int apart, const int learns
) {
    vec tap[J], share[J];
    UNROLL for (int j = 0; j < J; j++) tap[j] = tap_of(s, k + j, apart), share[j] = (vec){0};
    UNROLL for (int i = 0; i < T + J - 1; i++) {
        vec pixel = load_part((const char *)(s->rows[k + i] + x), count, 0);
        UNROLL for (int j = 0; j < J; j++)
            if (i - j >= 0 && i - j < T) {
                sum[i - j] += pixel * tap[j];
                if (learns) share[j] += pixel * input[i - j];
            }
    }
    if (learns) UNROLL for (int j = 0; j < J; j++) {
        float *to = s->shares + (k + j) * LANES;
        store(to, load(to) + share[j]);
    }
}

/* T rows of `count` columns, which lie so many floats from the rows' first. */
INLINE void down(
    const int T, const columns *s, int64_t x, int64_t y, int64_t seen, int count, const int apart,
    const int learns
) {
    const int at_once = learns && TOGETHER;
    vec sum[T], input[T];
    UNROLL for (int t = 0; t < T; t++) {
        sum[t] = s->bias;
        fetch((const char *)(s->next + t * s->row + x), 0);
        if (s->y) fetch((const char *)(s->y + (T + t) * s->y_row + y), 1);
        if (learns) fetch((const char *)(s->seen + (T + t) * s->seen_row + seen), 0);
        if (at_once) input[t] = load_part((const char *)(s->seen + t * s->seen_row + seen), count, 0);
    }
    int64_t k = 0;
    for (; k + 8 <= s->count; k += 8) fall_down(T, 8, s, k, x, count, sum, input, apart, at_once);
    for (; k + 3 <= s->count; k += 3) fall_down(T, 3, s, k, x, count, sum, input, apart, at_once);
    for (; k < s->count; k++) fall_down(T, 1, s, k, x, count, sum, input, apart, at_once);
    if (learns) {
        float *bias = s->shares + s->count * LANES;
        vec share = load(bias);
        UNROLL for (int t = 0; t < T; t++)
            share += load_part((const char *)(s->rows[t + s->pad] + x), count, 0);
        store(bias, share);
    }
    if (s->y)
        UNROLL for (int t = 0; t < T; t++)
            store_part((char *)(s->y + t * s->y_row + y), sum[t], count, 0);
}

/* Let T rows of `count` columns tell J taps from the k-th on what to learn. */
INLINE void learn_columns(
    const int T, const int J, const columns *s, int64_t k, int64_t x, int64_t seen, int count,
    part_vec *share
) {
    part_vec input[TILE];
    UNROLL for (int t = 0; t < T; t++)
        input[t] = load_some((const char *)(s->seen + t * s->seen_row + seen), count, 0);
    UNROLL for (int i = 0; i < T + J - 1; i++) {
        part_vec pixel = load_some((const char *)(s->rows[k + i] + x), count, 0);
        UNROLL for (int j = 0; j < J; j++)
            if (i - j >= 0 && i - j < T) share[j] += pixel * input[i - j];
    }
}

/* The same of T whole rows, for the registers from `side` on, or for all pixels of one channel. */
INLINE void learn_rows(
    const int T, const int J, const columns *s, const depthwise *d, int64_t k, int side, int lanes,
    const int apart
) {
    float *shares = s->shares + k * LANES + side;
    part_vec share[8];
    UNROLL for (int j = 0; j < J; j++) share[j] = load_side(shares + j * LANES);
    if (apart)
        for (int64_t w = 0; w < d->width; w += SIDE) {
            if (d->width - w >= SIDE) learn_columns(T, J, s, k, w, w, SIDE, share);
            else learn_columns(T, J, s, k, w, w, (int)(d->width - w), share);
        }
    else
        for (int64_t w = 0; w < d->width; w++) {
            int64_t x = w * d->x.w + side, seen = w * d->seen.w + side;
            if (lanes - side >= SIDE) learn_columns(T, J, s, k, x, seen, SIDE, share);
            else learn_columns(T, J, s, k, x, seen, lanes - side, share);
        }
    UNROLL for (int j = 0; j < J; j++) store_side(shares + j * LANES, share[j]);
}

INLINE void learn_all_taps(
    const int T, const columns *s, const depthwise *d, int lanes, const int apart
) {
    for (int side = 0; side < (apart ? SIDE : lanes); side += SIDE) {
        int64_t k = 0;
        for (; k + 8 <= s->count; k += 8) learn_rows(T, 8, s, d, k, side, lanes, apart);
        for (; k + 3 <= s->count; k += 3) learn_rows(T, 3, s, d, k, side, lanes, apart);
        for (; k < s->count; k++) learn_rows(T, 1, s, d, k, side, lanes, apart);
    }
}

INLINE void down_rows(
    const int T, const columns *s, const depthwise *d, int lanes, const int apart, const int learns
) {
    if (apart)
        for (int64_t w = 0; w < d->width; w += LANES) {
            if (d->width - w >= LANES) down(T, s, w, w, w, LANES, 1, learns);
            else down(T, s, w, w, w, (int)(d->width - w), 1, learns);
        }
    else
        for (int64_t w = 0; w < d->width; w++) {
            int64_t x = w * d->x.w, y = w * d->y.w, seen = w * d->seen.w;
            if (lanes == LANES) down(T, s, x, y, seen, LANES, 0, learns);
            else down(T, s, x, y, seen, lanes, 0, learns);
        }
    if (learns && !TOGETHER) learn_all_taps(T, s, d, lanes, apart);
}

/* A slab's rows, of maps that are given from their first ones on; `zero` is a row of zeros. */
INLINE void slab_rows(
    columns *s, const depthwise *d, slab now, const float *x, float *y, const float *seen,
    const float *zero, int lanes, const int apart, const int learns
) {
    const int tile = learns ? LEARNED_TILE : TILE;
    s->row = d->x.h, s->y_row = d->y.h, s->seen_row = d->seen.h, s->pad = d->pad_h, s->count = d->kernel_h;
    for (int64_t row = now.row; row < now.end;) {
        int tall = now.end - row >= tile ? tile : 1;
        for (int i = 0; i < tall + d->kernel_h - 1; i++) {
            int64_t at = row + i - d->pad_h;
            s->rows[i] = at >= 0 && at < d->height ? x + at * d->x.h : zero;
        }
        s->next = x + (row + tall + d->kernel_h - 1 - d->pad_h) * d->x.h;
        s->y = y ? y + row * d->y.h : 0;
        s->seen = seen + row * d->seen.h;
        if (tall == tile) down_rows(tile, s, d, lanes, apart, learns);
        else down_rows(1, s, d, lanes, apart, learns);
        row += tall;
    }
}

/* Whether neighbours in memory are channels, or pixels of a row, in all maps. */
INLINE int channels_together(const depthwise *d) {
    return d->x.c == 1 && (!d->y.data || d->y.c == 1) && (!d->seen.data || d->seen.c == 1);
}
INLINE int pixels_together(const depthwise *d) {
    return d->x.w == 1 && (!d->y.data || d->y.w == 1) && (!d->seen.data || d->seen.w == 1);
}

/* Whether a kernel is such a one, and keeps the map's size. */
INLINE int is_column(const depthwise *d) {
    return d->kernel_w == 1 && d->kernel_h > 1 && d->stride_h == 1 && d->stride_w == 1 &&
           d->stuff_h == 1 && d->stuff_w == 1 && d->dilation_h == 1 && !d->half &&
           d->height == d->out_height && (channels_together(d) || pixels_together(d));
}

/* Floats of memory that are needed: a row of zeros, and the shares of one channel. */
INLINE int64_t column_floats(const depthwise *d) {
    return rounded_up(d->width * (d->x.c == 1 ? d->x.w : 1) + LANES, LANES) + (d->kernel_h + 1) * LANES;
}

/* Convolve a slab; `memory` is zeroed, and is zero again afterwards. */
static void convolve_columns(
    const depthwise *d, slab now, const float *taps, float *shares, float *memory
) {
    int lanes = (int)least(d->channels - now.channel, LANES);
    const float *x = (const float *)begin_of(d->x, now, 0);
    const float *seen = (const float *)begin_of(d->seen, now, 0);
    float *y = d->y.data ? (float *)begin_of(d->y, now, 0) : 0;
    float *apart = memory + column_floats(d) - (d->kernel_h + 1) * LANES;
    columns s = {.taps = taps, .shares = shares};
    if (channels_together(d)) {
        if (d->bias) s.bias = load_part((const char *)(d->bias + now.channel), lanes, 0);
        if (shares) slab_rows(&s, d, now, x, y, seen, memory, lanes, 0, 1);
        else slab_rows(&s, d, now, x, y, seen, memory, lanes, 0, 0);
        return;
    }
    s.shares = apart;
    for (int c = 0; c < lanes; c++) {
        if (d->bias) s.bias = splat(d->bias[now.channel + c]);
        s.taps = taps + c;
        const float *from = x + c * d->x.c, *input = seen + c * d->seen.c;
        float *to = y ? y + c * d->y.c : 0;
        if (shares) slab_rows(&s, d, now, from, to, input, memory, 0, 1, 1);
        else slab_rows(&s, d, now, from, to, input, memory, 0, 1, 0);
        for (int k = 0; shares && k <= d->kernel_h; k++) {
            shares[k * LANES + c] += total(load(apart + k * LANES));
            store(apart + k * LANES, (vec){0});
        }
    }
}
