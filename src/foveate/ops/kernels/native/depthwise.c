/* Depthwise convolution, and its gradients.
 *
 * A unit of work is some images and LANES channels. The rows under the kernel
 * are kept as vectors in a ring that the caches hold, with their padding, so
 * that any layout, type and border come to the same inner loop: T outputs in
 * registers, onto which J taps of a row fall at a time.
 *
 * The input gradient is the same convolution of the output's gradient, with
 * the kernel turned over and zeros stuffed between pixels where it strides. A
 * tap's own gradient is the sum of what it was multiplied with times what the
 * input held at that place, so both come out of one pass: `seen` is that input.
 */
#include "columns.h"
#include "flat.h"

#define MOST_TAPS 64 /* rows of a kernel */
#define SMALL 1024   /* pixels of a map up to which the caches hold two slabs */
#define BAND (1 << 15) /* floats of rows that units of several parts do together */
#define UNITS 16     /* fewest units of work on the way back, for as many threads */
#define APART 4      /* parts of the batch there, for threads that do not meet */
#define MOST_SHARES (1 << 19) /* floats of all parts' gradients of the taps */

/* ---------------------------------------------------------------- rows under the kernel */

typedef struct {
    float *memory;
    int64_t slots, pitch, next; /* rows held, floats a row, the first row not yet read */
} ring;

static ring ring_of(const depthwise *d) {
    int64_t read = (d->out_width - 1) * d->stride_w + (d->kernel_w - 1) * d->dilation_w + 1;
    int64_t written = (d->width - 1) * d->stuff_w + 1 + d->pad_w;
    int64_t rows = (d->kernel_h - 1) * d->dilation_h + 1;
    return (ring){0, rows, most(read, written) * LANES, 0};
}

INLINE float *slot(const ring *r, int64_t row) { return r->memory + row % r->slots * r->pitch; }

/* Read the rows before `end` that are not there yet; padding is zero from the start. */
INLINE void advance(
    ring *r, const depthwise *d, const char *x, const char *later, int64_t end, int lanes
) {
    r->next = most(r->next, most(0, end - r->slots));
    for (end = least(end, rows_of(d)); r->next < end; r->next++) {
        if (r->next % d->stuff_h) continue;
        const char *row = x + r->next / d->stuff_h * d->x.h * element_size(d->half);
        float *to = slot(r, r->next) + d->pad_w * LANES;
        expect(later + (row - x), d->x, d->width, d->half, 0);
        pack(to, d->stuff_w * LANES, row, d->x, d->width, lanes, d->half);
    }
}

/* The kernel's rows that lie on the map when it stands at output row `row`: how many. */
INLINE int under(const ring *r, const depthwise *d, int64_t row, const float **rows, int *taps) {
    int count = 0;
    for (int i = 0; i < d->kernel_h; i++) {
        int64_t at = row * d->stride_h - d->pad_h + (int64_t)i * d->dilation_h;
        if (at < 0 || at >= rows_of(d) || at % d->stuff_h) continue;
        rows[count] = slot(r, at);
        taps[count++] = i;
    }
    return count;
}

/* ---------------------------------------------------------------- output */

/* Let J taps of a row fall onto T outputs. */
INLINE void fall(
    const int T, const int J, vec *sum, const float *x, const float *weight, const float *seen,
    float *shares, const int stride, const int dilation
) {
    vec tap[8], share[8];
    UNROLL for (int j = 0; j < J; j++) {
        tap[j] = load(weight + j * LANES);
        if (seen) share[j] = load(shares + j * LANES);
    }
    if (stride == 1 && dilation == 1) {
        UNROLL for (int i = 0; i < T + J - 1; i++) {
            vec pixel = load(x + i * LANES);
            UNROLL for (int j = 0; j < J; j++)
                if (i - j >= 0 && i - j < T) {
                    sum[i - j] += pixel * tap[j];
                    if (seen) share[j] += pixel * load(seen + (i - j) * LANES);
                }
        }
    } else
        UNROLL for (int j = 0; j < J; j++)
            UNROLL for (int t = 0; t < T; t++) {
                vec pixel = load(x + (t * stride + j * dilation) * LANES);
                sum[t] += pixel * tap[j];
                if (seen) share[j] += pixel * load(seen + t * LANES);
            }
    if (seen) UNROLL for (int j = 0; j < J; j++) store(shares + j * LANES, share[j]);
}

typedef struct {
    const float *rows[MOST_TAPS], *taps[MOST_TAPS];
    const float *seen;        /* the input's row, for the taps' gradients */
    float *shares[MOST_TAPS]; /* where these are summed, as the taps lie */
    int count, width;         /* rows that count, taps in each */
    vec bias;
    float *out;
    int64_t pitch;      /* floats from output to output */
    int64_t pad, across; /* where the map begins in a row, and how wide it is; dense rows only */
} stencil;

/* T outputs from `first` on: all taps that lie on the map for any of them. */
INLINE void outputs(
    const int T, const stencil *s, int64_t first, const int stride, const int dilation, const int learns
) {
    int64_t from = 0, to = s->width;
    if (stride == 1 && dilation == 1) {
        from = most(0, s->pad - first - T + 1);
        to = most(from, least(to, s->pad + s->across - first));
    }
    vec sum[T];
    UNROLL for (int t = 0; t < T; t++) sum[t] = s->bias;
    const float *seen = learns ? s->seen + first * LANES : 0;
    for (int r = 0; r < s->count; r++) {
        const float *x = s->rows[r] + (first * stride + from * dilation) * LANES;
        const float *tap = s->taps[r] + from * LANES;
        float *share = learns ? s->shares[r] + from * LANES : 0;
        int64_t left = to - from;
        for (; left >= 8; left -= 8, x += 8 * dilation * LANES, tap += 8 * LANES, share += 8 * LANES)
            fall(T, 8, sum, x, tap, seen, share, stride, dilation);
        if (left & 4) {
            fall(T, 4, sum, x, tap, seen, share, stride, dilation);
            x += 4 * dilation * LANES, tap += 4 * LANES, share += 4 * LANES;
        }
        switch (left & 3) {
            case 1: fall(T, 1, sum, x, tap, seen, share, stride, dilation); break;
            case 2: fall(T, 2, sum, x, tap, seen, share, stride, dilation); break;
            case 3: fall(T, 3, sum, x, tap, seen, share, stride, dilation); break;
        }
    }
    UNROLL for (int t = 0; t < T; t++) store(s->out + (first + t) * s->pitch, sum[t]);
}

INLINE void output_row(
    const stencil *s, int64_t width, const int stride, const int dilation, const int learns
) {
    int64_t t = 0;
#if HALVES == 1
    int wide = s->width <= s->across; /* else shorter tiles have fewer taps on the map */
    for (; wide && t + 14 <= width; t += 14) outputs(14, s, t, stride, dilation, learns);
    for (; t + 8 <= width && (wide || width % 7); t += 8) outputs(8, s, t, stride, dilation, learns);
    for (; t + 7 <= width; t += 7) outputs(7, s, t, stride, dilation, learns);
#endif
    for (; t + 4 <= width; t += 4) outputs(4, s, t, stride, dilation, learns);
    for (; t + 2 <= width; t += 2) outputs(2, s, t, stride, dilation, learns);
    for (; t < width; t++) outputs(1, s, t, stride, dilation, learns);
}

/* Let T pixels of a row from `at` on tell J taps what to learn: of each tap, what it fell onto
 * times the pixel that was seen there. */
INLINE void learn_pixels(
    const int T, const int J, const float *x, const float *seen, int64_t at, part_vec *share,
    const int dilation
) {
    part_vec input[7];
    UNROLL for (int t = 0; t < T; t++) input[t] = load_side(seen + (at + t) * LANES);
    if (dilation == 1) {
        UNROLL for (int i = 0; i < T + J - 1; i++) {
            part_vec pixel = load_side(x + (at + i) * LANES);
            UNROLL for (int j = 0; j < J; j++)
                if (i - j >= 0 && i - j < T) share[j] += pixel * input[i - j];
        }
    } else
        UNROLL for (int j = 0; j < J; j++)
            UNROLL for (int t = 0; t < T; t++)
                share[j] += load_side(x + (at + t + j * dilation) * LANES) * input[t];
}

/* J taps of a row from `tap` on: all pixels at which any of them lies on the map. */
INLINE void learn_taps(
    const int J, const stencil *s, int r, int64_t tap, int64_t width, const int dilation
) {
    int64_t from = 0, to = width;
    if (dilation == 1) {
        from = most(0, s->pad - tap - J + 1);
        to = least(width, s->pad + s->across - tap);
    }
    for (int side = 0; side < LANES; side += SIDE) {
        const float *x = s->rows[r] + tap * dilation * LANES + side, *seen = s->seen + side;
        float *shares = s->shares[r] + tap * LANES + side;
        part_vec share[8];
        int64_t at = from;
        UNROLL for (int j = 0; j < J; j++) share[j] = load_side(shares + j * LANES);
        for (; at + 7 <= to; at += 7) learn_pixels(7, J, x, seen, at, share, dilation);
        for (; at < to; at++) learn_pixels(1, J, x, seen, at, share, dilation);
        UNROLL for (int j = 0; j < J; j++) store_side(shares + j * LANES, share[j]);
    }
}

INLINE void learn_row(const stencil *s, int64_t width, const int dilation) {
    for (int r = 0; r < s->count; r++) {
        int64_t tap = 0;
        for (; tap + 8 <= s->width; tap += 8) learn_taps(8, s, r, tap, width, dilation);
        for (; tap + 7 <= s->width; tap += 7) learn_taps(7, s, r, tap, width, dilation);
        for (; tap + 5 <= s->width; tap += 5) learn_taps(5, s, r, tap, width, dilation);
        for (; tap + 3 <= s->width; tap += 3) learn_taps(3, s, r, tap, width, dilation);
        for (; tap < s->width; tap++) learn_taps(1, s, r, tap, width, dilation);
    }
}

static void dense_row(const stencil *s, int64_t width) { output_row(s, width, 1, 1, 0); }
static void spread_row(const stencil *s, int64_t width, int stride, int dilation) {
    output_row(s, width, stride, dilation, 0);
}
static void learn_dense_row(const stencil *s, int64_t width) {
    output_row(s, width, 1, 1, TOGETHER);
    if (!TOGETHER) learn_row(s, width, 1);
}
static void learn_spread_row(const stencil *s, int64_t width, int dilation) {
    output_row(s, width, 1, dilation, TOGETHER);
    if (!TOGETHER) learn_row(s, width, dilation);
}

/* Where the taps of LANES channels lie: as vectors, one after the other, and last the bias's. */
INLINE int64_t tap_floats(const depthwise *d) { return (taps_of(d) + 1) * LANES; }

static void read_taps(float *to, const depthwise *d, int64_t channel) {
    int64_t taps = taps_of(d), lanes = least(d->channels - channel, LANES);
    for (int64_t lane = 0; lane < lanes; lane++)
        for (int64_t k = 0; k < taps; k++) {
            int64_t from = d->turned ? taps - 1 - k : k;
            to[k * LANES + lane] = d->weight[(channel + lane) * taps + from];
        }
}

INLINE int64_t row_floats(const depthwise *d) { return d->out_width * LANES; }

/* What the rows from `first` to before `end`, read into the ring, add to the bias's gradient. */
INLINE void share_of_bias(
    const ring *r, const depthwise *d, int64_t first, int64_t end, float *share
) {
    vec sum = load(share);
    for (int64_t row = first; row < end; row++)
        if (row % d->stuff_h == 0) {
            const float *pixel = slot(r, row) + d->pad_w * LANES;
            for (int64_t i = 0; i < d->width; i++) sum += load(pixel + i * d->stuff_w * LANES);
        }
    store(share, sum);
}

/* Convolve a slab, while the next is fetched; `memory` holds the ring, zeroed, and two rows. */
static void convolve(
    const depthwise *d, slab now, slab next, const float *taps, float *shares, float *memory
) {
    int lanes = (int)least(d->channels - now.channel, LANES), at[MOST_TAPS];
    ring r = ring_of(d);
    r.memory = memory;
    float *out = memory + r.slots * r.pitch, *seen = out + row_floats(d);
    int straight = d->y.data && d->y.c == 1 && lanes == LANES && !d->half; /* to memory without a detour */
    stencil s = {
        .width = d->kernel_w,
        .out = out,
        .seen = seen,
        .pitch = straight ? d->y.w : LANES,
        .pad = d->pad_w,
        .across = (d->width - 1) * d->stuff_w + 1,
    };
    if (d->bias) s.bias = load_part((const char *)(d->bias + now.channel), lanes, 0);
    int64_t size = element_size(d->half);
    int small = d->height * d->width <= SMALL; /* ask for the next slab, else for the next row */
    const char *x = begin_of(d->x, now, d->half), *input = begin_of(d->seen, now, d->half);
    char *y = (char *)begin_of(d->y, now, d->half);
    const char *later_x = small ? begin_of(d->x, next, d->half) : x + d->x.h * size;
    const char *later_y = small ? begin_of(d->y, next, d->half) : y + d->y.h * size;
    const char *later = small ? begin_of(d->seen, next, d->half) : input + d->seen.h * size;
    int64_t counted = now.row, last = now.end < d->out_height ? now.end : rows_of(d);
    for (int64_t row = now.row; row < now.end; row++) {
        advance(&r, d, x, later_x, row * d->stride_h - d->pad_h + r.slots, lanes);
        s.count = under(&r, d, row, s.rows, at);
        for (int i = 0; i < s.count; i++) s.taps[i] = taps + (int64_t)at[i] * d->kernel_w * LANES;
        char *to = y + row * d->y.h * size;
        if (d->y.data) expect(later_y + row * d->y.h * size, d->y, d->out_width, d->half, 1);
        if (straight) s.out = (float *)to;
        if (shares) {
            int64_t at_row = row * d->seen.h * size;
            expect(later + at_row, d->seen, d->out_width, d->half, 0);
            pack(seen, LANES, input + at_row, d->seen, d->out_width, lanes, d->half);
            int64_t before = most(counted, least(r.next, last));
            share_of_bias(&r, d, counted, before, shares + taps_of(d) * LANES);
            counted = before;
            for (int i = 0; i < s.count; i++)
                s.shares[i] = shares + (int64_t)at[i] * d->kernel_w * LANES;
            if (d->dilation_w == 1) learn_dense_row(&s, d->out_width);
            else learn_spread_row(&s, d->out_width, d->dilation_w);
        } else if (d->stride_w == 1 && d->dilation_w == 1) dense_row(&s, d->out_width);
        else spread_row(&s, d->out_width, d->stride_w, d->dilation_w);
        if (!straight && d->y.data) unpack(to, d->y, out, LANES, d->out_width, lanes, d->half);
    }
}

/* Floats of memory that a slab needs. */
INLINE int64_t memory_floats(const depthwise *d) {
    ring r = ring_of(d);
    if (is_flat(d)) return flat_floats(d);
    return is_column(d) ? column_floats(d) : r.slots * r.pitch + 2 * row_floats(d);
}

/* Hand on all channels of a slab, which lies in both maps in the same order. */
static void copy(const depthwise *d, slab now) {
    int last = d->x.c == 1;
    int64_t pixels = (now.end - now.row) * d->width, size = element_size(d->half);
    int64_t runs = last ? pixels : 1, length = size * (last ? d->channels : d->channels * pixels);
    const char *x = begin_of(d->x, now, d->half) + now.row * d->x.h * size;
    char *y = (char *)begin_of(d->y, now, d->half) + now.row * d->y.h * size;
    int far = runs == 1 && d->batch * d->y.n * size > CACHED;
    for (int64_t i = 0; i < runs; i++, x += d->x.w * size, y += d->y.w * size)
        if (far) copy_past(y, x, length);
        else memcpy(y, x, (size_t)length);
}

typedef struct {
    const depthwise *parts;
    int count, failed;
    int64_t splits, floats; /* parts of the batch; floats of the taps of all blocks */
    float *taps;            /* (floats) */
    float *shares;          /* (splits, floats): the taps' gradients, or null */
} parts_job;

INLINE int64_t units_of(const depthwise *d) { return d->kernel_h == COPY ? 1 : blocks_of(d); }

static int64_t each_image(const parts_job *job) {
    int64_t units = 0;
    for (int p = 0; p < job->count; p++) units += units_of(job->parts + p);
    return units;
}

/* The part to which a unit of an image belongs, the unit's number in it, and where its taps and its
 * part's memory lie. */
typedef struct {
    int part;
    int64_t block, taps, memory;
} place;

INLINE place place_of(const parts_job *job, int64_t unit) {
    place at = {0, unit, 0, 0};
    for (const depthwise *d = job->parts; at.block >= units_of(d); d++, at.part++) {
        at.block -= units_of(d);
        if (d->kernel_h == COPY) continue;
        at.taps += blocks_of(d) * tap_floats(d);
        at.memory += memory_floats(d);
    }
    at.taps += at.block * tap_floats(job->parts + at.part);
    return at;
}

static void read_all_taps(int64_t begin, int64_t end, void *context) {
    parts_job *job = context;
    for (int64_t unit = begin; unit < end; unit++) {
        place at = place_of(job, unit);
        const depthwise *d = job->parts + at.part;
        if (d->kernel_h != COPY) read_taps(job->taps + at.taps, d, at.block * LANES);
    }
}

/* Rows of an image that all its units do before the next ones. Where several parts share lines of
 * the cache on the way back, as many as it holds; else all of them. */
INLINE int64_t rows_together(const parts_job *job) {
    const depthwise *d = job->parts;
    if (!job->shares || job->count == 1) return d->out_height;
    for (int p = 0; p < job->count; p++)
        if (d[p].x.c != 1 || d[p].x.w == 1 || d[p].height != d[p].out_height || d[p].stuff_h > 1)
            return d->out_height;
    return most(BAND / d->x.h / 7 * 7, 7);
}

/* Do a slab of one unit. */
static void convolve_unit(const parts_job *job, place at, slab now, slab next, float *shares, float *memory) {
    const depthwise *d = job->parts + at.part;
    const float *taps = job->taps + at.taps;
    if (d->kernel_h == COPY) copy(d, now);
    else if (is_flat(d)) convolve_flat(d, now, taps, shares != 0, memory);
    else if (is_column(d)) convolve_columns(d, now, taps, shares, memory);
    else convolve(d, now, next, taps, shares, memory);
}

static void convolve_parts(int64_t begin, int64_t end, void *context) {
    parts_job *job = context;
    int64_t each = each_image(job), batch = job->parts->batch, height = job->parts->out_height;
    int64_t rows = rows_together(job), floats = 0;
    for (int p = 0; p < job->count; p++)
        if (job->parts[p].kernel_h != COPY) floats += memory_floats(job->parts + p);
    float *memory = zeros(most(floats, LANES)); /* each part leaves the padding of its own zero */
    if (!memory) {
        job->failed = 1;
        return;
    }
    for (int64_t unit = begin, stop; unit < end; unit = stop) {
        int64_t split = unit / each;
        int64_t first = batch * split / job->splits, last = batch * (split + 1) / job->splits;
        stop = rows < height ? least(end, (split + 1) * each) : unit + 1;
        for (int64_t image = first; image < last; image++)
            for (int64_t row = 0; row < height; row += rows)
                for (int64_t u = unit; u < stop; u++) {
                    place at = place_of(job, u % each);
                    const depthwise *d = job->parts + at.part;
                    float *shares = job->shares && d->seen.data ? job->shares + split * job->floats + at.taps : 0;
                    slab now = {image, at.block * LANES, row, least(row + rows, height)};
                    slab next = {image + 1, now.channel, 0, 0};
                    if (image + 1 == last) next = (slab){first, now.channel + LANES, 0, 0};
                    if (next.channel >= d->channels) next = (slab){least(last, batch - 1), 0, 0, 0};
                    convolve_unit(job, at, now, next, shares, memory + at.memory);
                    if (shares && is_flat(d) && image + 1 == last)
                        sum_flat_shares(d, now.channel, shares, memory + at.memory);
                }
    }
    free(memory);
    settle();
}

/* Add up the shares of all parts of the batch, in order; the taps were turned over. */
static void add_shares(int64_t begin, int64_t end, void *context) {
    parts_job *job = context;
    for (int64_t unit = begin; unit < end; unit++) {
        place at = place_of(job, unit);
        const depthwise *d = job->parts + at.part;
        if (d->kernel_h == COPY) continue;
        int64_t taps = taps_of(d), first = at.block * LANES;
        for (int64_t k = 0; k <= taps; k++) {
            vec sum = {0};
            for (int64_t split = 0; split < job->splits; split++)
                sum += load(job->shares + split * job->floats + at.taps + k * LANES);
            for (int64_t lane = 0; lane < least(LANES, d->channels - first); lane++) {
                float *to = k == taps ? d->bias_gradient + first + lane
                                      : d->weight_gradient + (first + lane) * taps + taps - 1 - k;
                *to = sum[lane];
            }
        }
    }
}

/* Parts of the batch on the way back, by shapes alone, so that threads don't change the result:
 * enough for many threads, and where taps are few so many that threads rarely meet. Lines of the
 * cache are fetched in pairs, and in channels_last the next channels of a pixel lie in the next line:
 * threads that share an image write to one pair. */
INLINE int64_t splits_back(const parts_job *job) {
    int64_t each = each_image(job), few = (UNITS + each - 1) / each;
    int64_t apart = least(APART, MOST_SHARES / most(job->floats, 1));
    return least(job->parts->batch, most(few, apart));
}

static int run_parts(parts_job *job, int learns, loop run) {
    int64_t each = each_image(job);
    for (int p = 0; p < job->count; p++)
        if (job->parts[p].kernel_h != COPY)
            job->floats += blocks_of(job->parts + p) * tap_floats(job->parts + p);
    job->splits = learns ? splits_back(job) : job->parts->batch;
    job->taps = zeros(most(job->floats, LANES));
    if (learns) job->shares = zeros(job->splits * job->floats);
    int failed = !job->taps || (learns && !job->shares) ||
                 run(0, each, 16, read_all_taps, job) ||
                 run(0, job->splits * each, 1, convolve_parts, job) || job->failed ||
                 (learns && run(0, each, 16, add_shares, job));
    free(job->taps);
    free(job->shares);
    return failed;
}

/* Convolve groups of channels of the same maps, each with a kernel of its own or none. */
int foveate_depthwise(const depthwise *parts, int count, loop run) {
    parts_job job = {.parts = parts, .count = count};
    return run_parts(&job, 0, run);
}

/* The same on the way back, with the gradients of weights and biases: each part of the batch has its
 * own, which are added in order. */
int foveate_depthwise_back(const depthwise *parts, int count, loop run) {
    parts_job job = {.parts = parts, .count = count};
    return run_parts(&job, 1, run);
}
