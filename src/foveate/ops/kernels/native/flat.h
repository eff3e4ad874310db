/* Depthwise convolutions of dense maps, each as one long row.
 *
 * A map is copied with `pad_w` zeros between its rows, so that every tap finds its
 * pixels at one distance from every output, at the map's borders too: LANES outputs
 * at a time, whatever the width, and nothing transposed. What comes out between
 * rows is left behind. It fills registers however few channels there are, but reads
 * a vector for each multiplication, so that it is for kernels of few taps.
 */
#pragma once
#include "depthwise.h"

#define BLOCKS (8 / HALVES)         /* vectors of outputs that are kept in registers */
#define LEARNED_BLOCKS (6 / HALVES) /* where as many of the input are, for the taps' gradients */
#define LONGEST (1 << 14)           /* pixels of a map that the caches hold */

typedef struct {
    const float *from, *taps, *seen; /* seen: the input on the way back, with zeros between its rows */
    float *to, *shares;              /* of each tap */
    const float *next, *next_seen;   /* the maps that are read next */
    int64_t pitch, tall, wide;       /* floats from row to row; the kernel */
    vec bias;
} flat;

/* B vectors of outputs. */
INLINE void flat_blocks(const int B, const flat *f, int64_t at, const int learns) {
    vec sum[B], input[B];
    UNROLL for (int b = 0; b < B; b++) {
        sum[b] = f->bias;
        fetch((const char *)(f->next + at + b * LANES), 0);
        if (learns) fetch((const char *)(f->next_seen + at + b * LANES), 0);
        if (learns) input[b] = load(f->seen + at + b * LANES);
    }
    const float *tap = f->taps;
    float *share = f->shares;
    for (int64_t k = 0; k < f->tall; k++) {
        const float *x = f->from + at + k * f->pitch;
        for (int64_t w = 0; w < f->wide; w++, x++, tap += LANES, share += LANES) {
            vec weight = splat(*tap), learned = {0};
            UNROLL for (int b = 0; b < B; b++) {
                vec pixel = load(x + b * LANES);
                sum[b] += pixel * weight;
                if (learns) learned += pixel * input[b];
            }
            if (learns) store(share, load(share) + learned);
        }
    }
    UNROLL for (int b = 0; b < B; b++) store(f->to + at + b * LANES, sum[b]);
}

INLINE void flat_row(const flat *f, int64_t length, const int learns) {
    const int most_blocks = learns ? LEARNED_BLOCKS : BLOCKS;
    int64_t at = 0;
    for (; at + most_blocks * LANES <= length; at += most_blocks * LANES)
        flat_blocks(most_blocks, f, at, learns);
    for (; BLOCKS > 4 && at + 2 * LANES < length; at += 3 * LANES) flat_blocks(3, f, at, learns);
    for (; at < length; at += LANES) flat_blocks(1, f, at, learns);
}

static void convolve_flat_row(const flat *f, int64_t length) { flat_row(f, length, 0); }
static void learn_flat_row(const flat *f, int64_t length) { flat_row(f, length, 1); }

/* Whether a convolution can be done so: it keeps the size of dense maps, which the caches hold.
 * Kernels one pixel wide move along columns instead, unless short rows end with a part of a
 * register where a vector takes two. */
INLINE int may_be_flat(const depthwise *d) {
    int ragged = HALVES == 2 && d->width % SIDE && d->width < 3 * SIDE && d->kernel_h > 1;
    int apart = d->x.w == 1 && (!d->y.data || d->y.w == 1) && (!d->seen.data || d->seen.w == 1);
    int plain = d->stride_h * d->stride_w * d->stuff_h * d->stuff_w == 1 && !d->half;
    return plain && apart && d->dilation_h * d->dilation_w == 1 && (d->kernel_w > 1 || ragged) &&
           d->height * d->width <= LONGEST && d->height == d->out_height &&
           d->width == d->out_width;
}

/* Whether it is: what a vector of outputs was measured to cost, against that of a full vector of
 * channels, which are transposed but need half a read for each multiplication. Where a vector takes
 * two registers, transposing costs more, and most where the taps learn, in two passes. */
INLINE int is_flat(const depthwise *d) {
    int64_t whole = (2 * taps_of(d) + 8) * (d->width + d->pad_w) * d->channels;
    int64_t transposed = (taps_of(d) + 24) * d->width * blocks_of(d) * LANES;
    if (HALVES == 2) transposed = transposed * (d->seen.data ? 7 : 5) / 4;
    return may_be_flat(d) && whole < transposed;
}

/* The memory of a unit: a map with its borders, a map on its way out, one that is seen, and what
 * the lanes learn of each channel's taps. All is zero before and after but for the maps. */
typedef struct {
    int64_t pitch, length, from, to, seen, shares; /* floats */
} flat_room;

INLINE flat_room flat_room_of(const depthwise *d) {
    int64_t pitch = d->width + d->pad_w, slack = 2 * LANES, length = d->height * pitch;
    return (flat_room){
        .pitch = pitch,
        .length = length,
        .from = rounded_up((d->height + d->kernel_h - 1) * pitch + d->kernel_w + slack, LANES),
        .to = rounded_up(length + slack, LANES),
        .seen = d->seen.data ? rounded_up(length + slack, LANES) : 0,
        .shares = d->seen.data ? (taps_of(d) + 1) * LANES : 0,
    };
}

INLINE int64_t flat_floats(const depthwise *d) {
    flat_room r = flat_room_of(d);
    return r.from + r.to + r.seen + LANES * r.shares;
}

/* Copy rows of pixels to where they are `pitch` apart, in order: each ends with zeros, onto which
 * the next one comes. Returns the sum of all pixels, lane by lane. */
INLINE vec spread_rows(
    float *to, int64_t pitch, const float *rows, int64_t row, const depthwise *d
) {
    vec sum = {0};
    for (int64_t h = 0; h < d->height; h++)
        for (int64_t w = 0; w < d->width; w += LANES) {
            int count = (int)least(d->width - w, LANES);
            vec pixels = load_part((const char *)(rows + h * row + w), count, 0);
            store(to + h * pitch + w, pixels);
            sum += pixels;
        }
    return sum;
}

/* Copy rows back together, in order. Where the next row or nothing lies behind a row (`dense`), its
 * last vector may end there. */
INLINE void gather_rows(
    float *to, int64_t row, const float *rows, int64_t pitch, const depthwise *d, int dense
) {
    const float *end = to + d->height * d->width;
    for (int64_t h = 0; h < d->height; h++)
        for (int64_t w = 0; w < d->width; w += LANES) {
            float *at = to + h * row + w;
            vec pixels = load(rows + h * pitch + w);
            if (dense && at + LANES <= end) store(at, pixels);
            else store_part((char *)at, pixels, (int)least(d->width - w, LANES), 0);
        }
}

/* Convolve a slab; what lanes learn stays in the memory. */
static void convolve_flat(
    const depthwise *d, slab now, const float *taps, int learns, float *memory
) {
    flat_room r = flat_room_of(d);
    const float *x = (const float *)begin_of(d->x, now, 0);
    const float *input = (const float *)begin_of(d->seen, now, 0);
    float *y = d->y.data ? (float *)begin_of(d->y, now, 0) : 0;
    float *to = memory + r.from, *seen = to + r.to, *shares = seen + r.seen;
    float *first = memory + d->pad_h * r.pitch + d->pad_w;
    flat f = {
        .from = memory,
        .seen = seen,
        .to = to,
        .pitch = r.pitch,
        .tall = d->kernel_h,
        .wide = d->kernel_w,
    };
    for (int64_t c = 0; c < least(d->channels - now.channel, LANES); c++) {
        if (d->bias) f.bias = splat(d->bias[now.channel + c]);
        f.taps = taps + c, f.shares = shares + c * r.shares;
        f.next = x + (c + 1) * d->x.c, f.next_seen = input + (c + 1) * d->seen.c;
        vec sum = spread_rows(first, r.pitch, x + c * d->x.c, d->x.h, d);
        if (learns) {
            float *bias = f.shares + taps_of(d) * LANES;
            store(bias, load(bias) + sum);
            spread_rows(seen, r.pitch, input + c * d->seen.c, d->seen.h, d);
            learn_flat_row(&f, r.length);
        } else convolve_flat_row(&f, r.length);
        if (!y) continue;
        float *plane = y + c * d->y.c;
        int dense = d->y.h == d->width;
        if (dense && d->batch * d->y.n * 4 > CACHED) {
            gather_rows(to, d->width, to, r.pitch, d, 0);
            copy_past((char *)plane, (char *)to, 4 * d->height * d->width);
        } else gather_rows(plane, d->y.h, to, r.pitch, d, dense);
    }
}

/* Add up what the lanes learned of a slab's channels. */
static void sum_flat_shares(const depthwise *d, int64_t channel, float *shares, float *memory) {
    flat_room r = flat_room_of(d);
    float *own = memory + r.from + r.to + r.seen;
    for (int64_t c = 0; c < least(d->channels - channel, LANES); c++)
        for (int64_t k = 0; k <= taps_of(d); k++) {
            float *share = own + c * r.shares + k * LANES;
            shares[k * LANES + c] += total(load(share));
            store(share, (vec){0});
        }
}
