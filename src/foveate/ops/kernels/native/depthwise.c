/* Depthwise convolution: output, input gradient and weight gradient.
 *
 * A unit of work is one image and LANES channels. The rows under the kernel
 * are kept as vectors in a ring that the caches hold, with their padding, so
 * that any layout, type and border come to the same inner loop: T outputs in
 * registers, onto which J taps of a row fall at a time.
 *
 * The input gradient is the same convolution of the output's gradient, with
 * the kernel turned over and zeros stuffed between pixels where it strides.
 */
#include "lanes.h"

#define MOST_TAPS 64 /* rows of a kernel */
#define COPY 0       /* a height of 0 says: no kernel, hand the channels on */

typedef struct {
    view x, y;
    const float *weight, *bias; /* (channels, kernel_h, kernel_w); (channels) or null */
    int64_t batch, channels, height, width, out_height, out_width;
    int32_t kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w;
    int32_t stuff_h, stuff_w; /* distance of input pixels once zeros are stuffed between */
    int32_t turned, half;     /* kernel turned over; x and y are bfloat16 */
} depthwise;

INLINE int64_t blocks_of(const depthwise *d) { return (d->channels + LANES - 1) / LANES; }
INLINE int64_t taps_of(const depthwise *d) { return (int64_t)d->kernel_h * d->kernel_w; }
INLINE int64_t rows_of(const depthwise *d) { return (d->height - 1) * d->stuff_h + 1; }

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
INLINE void advance(ring *r, const depthwise *d, const char *x, int64_t end, int lanes) {
    r->next = most(r->next, most(0, end - r->slots));
    for (end = least(end, rows_of(d)); r->next < end; r->next++) {
        if (r->next % d->stuff_h) continue;
        const char *row = x + r->next / d->stuff_h * d->x.h * element_size(d->half);
        float *to = slot(r, r->next) + d->pad_w * LANES;
        expect(row + d->x.h * element_size(d->half), d->x, d->width, element_size(d->half));
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
    const int T, const int J, vec *sum, const float *x, const float *weight, const int stride,
    const int dilation
) {
    vec tap[8];
    UNROLL for (int j = 0; j < J; j++) tap[j] = load(weight + j * LANES);
    if (stride == 1 && dilation == 1) {
        UNROLL for (int i = 0; i < T + J - 1; i++) {
            vec pixel = load(x + i * LANES);
            UNROLL for (int j = 0; j < J; j++)
                if (i - j >= 0 && i - j < T) sum[i - j] += pixel * tap[j];
        }
    } else
        UNROLL for (int j = 0; j < J; j++)
            UNROLL for (int t = 0; t < T; t++)
                sum[t] += load(x + (t * stride + j * dilation) * LANES) * tap[j];
}

typedef struct {
    const float *rows[MOST_TAPS], *taps[MOST_TAPS];
    int count, width; /* rows that count, taps in each */
    vec bias;
    float *out;
    int64_t pitch;      /* floats from output to output */
    int64_t pad, across; /* where the map begins in a row, and how wide it is; dense rows only */
} stencil;

/* T outputs from `first` on: all taps that lie on the map for any of them. */
INLINE void outputs(const int T, const stencil *s, int64_t first, const int stride, const int dilation) {
    int64_t from = 0, to = s->width;
    if (stride == 1 && dilation == 1) {
        from = most(0, s->pad - first - T + 1);
        to = least(to, s->pad + s->across - first);
    }
    vec sum[T];
    UNROLL for (int t = 0; t < T; t++) sum[t] = s->bias;
    for (int r = 0; r < s->count; r++) {
        const float *x = s->rows[r] + (first * stride + from * dilation) * LANES;
        const float *tap = s->taps[r] + from * LANES;
        int64_t left = to - from;
        for (; left >= 8; left -= 8, x += 8 * dilation * LANES, tap += 8 * LANES)
            fall(T, 8, sum, x, tap, stride, dilation);
        if (left & 4) {
            fall(T, 4, sum, x, tap, stride, dilation);
            x += 4 * dilation * LANES, tap += 4 * LANES;
        }
        switch (left & 3) {
            case 1: fall(T, 1, sum, x, tap, stride, dilation); break;
            case 2: fall(T, 2, sum, x, tap, stride, dilation); break;
            case 3: fall(T, 3, sum, x, tap, stride, dilation); break;
        }
    }
    UNROLL for (int t = 0; t < T; t++) store(s->out + (first + t) * s->pitch, sum[t]);
}

INLINE void output_row(const stencil *s, int64_t width, const int stride, const int dilation) {
    int64_t t = 0;
    int wide = s->width <= s->across; /* else shorter tiles have fewer taps on the map */
    for (; wide && t + 14 <= width; t += 14) outputs(14, s, t, stride, dilation);
    for (; t + 8 <= width && (wide || width % 7); t += 8) outputs(8, s, t, stride, dilation);
    for (; t + 7 <= width; t += 7) outputs(7, s, t, stride, dilation);
    for (; t + 4 <= width; t += 4) outputs(4, s, t, stride, dilation);
    for (; t < width; t++) outputs(1, s, t, stride, dilation);
}

static void dense_row(const stencil *s, int64_t width) { output_row(s, width, 1, 1); }
static void spread_row(const stencil *s, int64_t width, int stride, int dilation) {
    output_row(s, width, stride, dilation);
}

/* Where the taps of LANES channels lie: as vectors, one after the other. */
INLINE int64_t tap_floats(const depthwise *d) { return taps_of(d) * LANES; }

static void read_taps(float *to, const depthwise *d, int64_t channel) {
    int64_t taps = taps_of(d), lanes = least(d->channels - channel, LANES);
    for (int64_t lane = 0; lane < lanes; lane++)
        for (int64_t k = 0; k < taps; k++) {
            int64_t from = d->turned ? taps - 1 - k : k;
            to[k * LANES + lane] = d->weight[(channel + lane) * taps + from];
        }
}

INLINE int64_t row_floats(const depthwise *d) { return d->out_width * LANES; }

/* One image and up to LANES channels; `memory` holds the ring, zeroed, and a row of outputs. */
static void convolve(const depthwise *d, int64_t image, int64_t channel, const float *taps, float *memory) {
    int lanes = (int)least(d->channels - channel, LANES), at[MOST_TAPS];
    ring r = ring_of(d);
    r.memory = memory;
    float *out = memory + r.slots * r.pitch;
    int straight = d->y.c == 1 && lanes == LANES && !d->half; /* to memory without a detour */
    stencil s = {
        .width = d->kernel_w,
        .out = out,
        .pitch = straight ? d->y.w : LANES,
        .pad = d->pad_w,
        .across = (d->width - 1) * d->stuff_w + 1,
    };
    if (d->bias) s.bias = load_part((const char *)(d->bias + channel), lanes, 0);
    int64_t size = element_size(d->half);
    const char *x = d->x.data + (image * d->x.n + channel * d->x.c) * size;
    char *y = d->y.data + (image * d->y.n + channel * d->y.c) * size;
    for (int64_t row = 0; row < d->out_height; row++) {
        advance(&r, d, x, row * d->stride_h - d->pad_h + r.slots, lanes);
        s.count = under(&r, d, row, s.rows, at);
        for (int i = 0; i < s.count; i++) s.taps[i] = taps + (int64_t)at[i] * d->kernel_w * LANES;
        char *to = y + row * d->y.h * size;
        if (straight) s.out = (float *)to;
        if (d->stride_w == 1 && d->dilation_w == 1) dense_row(&s, d->out_width);
        else spread_row(&s, d->out_width, d->stride_w, d->dilation_w);
        if (!straight) unpack(to, d->y, out, LANES, d->out_width, lanes, d->half);
    }
}

/* Hand on all channels of one image, which lies in both maps in the same order. */
static void copy(const depthwise *d, int64_t image) {
    int64_t size = element_size(d->half), last = d->x.c == 1;
    int64_t runs = last ? d->width : d->channels, length = last ? d->channels : d->width;
    int64_t x_step = (last ? d->x.w : d->x.c) * size, y_step = (last ? d->y.w : d->y.c) * size;
    for (int64_t row = 0; row < d->height; row++) {
        const char *x = d->x.data + (image * d->x.n + row * d->x.h) * size;
        char *y = d->y.data + (image * d->y.n + row * d->y.h) * size;
        for (int64_t i = 0; i < runs; i++, x += x_step, y += y_step)
            for (int64_t c = 0; c < length; c += LANES) {
                int lanes = (int)least(length - c, LANES);
                store_part(y + c * size, load_part(x + c * size, lanes, d->half), lanes, d->half);
            }
    }
}

typedef struct {
    const depthwise *parts;
    int count, failed;
    float *taps; /* of all blocks of all parts */
} parts_job;

INLINE int64_t units_of(const depthwise *d) { return d->kernel_h == COPY ? 1 : blocks_of(d); }

/* The part to which a unit of an image belongs; what is left is the unit's number in the part. */
INLINE int part_of(const parts_job *job, int64_t *unit, float **taps) {
    int p = 0;
    *taps = job->taps;
    for (; *unit >= units_of(job->parts + p); p++) {
        *unit -= units_of(job->parts + p);
        *taps += blocks_of(job->parts + p) * tap_floats(job->parts + p);
    }
    *taps += *unit * tap_floats(job->parts + p);
    return p;
}

static int64_t each_image(const parts_job *job) {
    int64_t units = 0;
    for (int p = 0; p < job->count; p++) units += units_of(job->parts + p);
    return units;
}

static void read_all_taps(int64_t begin, int64_t end, void *context) {
    parts_job *job = context;
    for (int64_t unit = begin; unit < end; unit++) {
        int64_t block = unit;
        float *taps;
        const depthwise *d = job->parts + part_of(job, &block, &taps);
        if (d->kernel_h != COPY) read_taps(taps, d, block * LANES);
    }
}

static void convolve_parts(int64_t begin, int64_t end, void *context) {
    parts_job *job = context;
    int64_t each = each_image(job), most_floats = 0;
    for (int p = 0; p < job->count; p++) {
        ring r = ring_of(job->parts + p);
        most_floats = most(most_floats, r.slots * r.pitch + row_floats(job->parts + p));
    }
    float *memory = zeros(most_floats);
    if (!memory) {
        job->failed = 1;
        return;
    }
    int before = -1; /* the part whose ring is in memory; it leaves its padding zero */
    for (int64_t unit = begin; unit < end; unit++) {
        int64_t block = unit % each;
        float *taps;
        int p = part_of(job, &block, &taps);
        const depthwise *d = job->parts + p;
        if (d->kernel_h == COPY) {
            copy(d, unit / each);
            continue;
        }
        if (before >= 0 && before != p) memset(memory, 0, 4 * (size_t)most_floats);
        convolve(d, unit / each, block * LANES, taps, memory);
        before = p;
    }
    free(memory);
}

/* Convolve groups of channels of the same maps, each with a kernel of its own or none. */
int foveate_depthwise(const depthwise *parts, int count, loop run) {
    parts_job job = {parts, count, 0, 0};
    int64_t floats = 0;
    for (int p = 0; p < count; p++) floats += blocks_of(parts + p) * tap_floats(parts + p);
    job.taps = zeros(most(floats, LANES));
    if (!job.taps) return 1;
    int64_t each = each_image(&job);
    int failed = run(0, each, 16, read_all_taps, &job) ||
                 run(0, parts->batch * each, 1, convolve_parts, &job) || job.failed;
    free(job.taps);
    return failed;
}

/* ---------------------------------------------------------------- weight gradient */

/* Sums of g times x for R rows of J taps; rows of sums are `pitch` taps apart. */
INLINE void correlate(
    const int R, const int J, float *sums, int64_t pitch, const float *const *x, const float *g,
    int64_t width, const int stride, const int dilation
) {
    vec sum[R * J];
    UNROLL for (int i = 0; i < R * J; i++) sum[i] = load(sums + (i / J * pitch + i % J) * LANES);
    for (int64_t w = 0; w < width; w++) {
        vec gradient = load(g + w * LANES);
        UNROLL for (int i = 0; i < R * J; i++)
            sum[i] += gradient * load(x[i / J] + (w * stride + i % J * dilation) * LANES);
    }
    UNROLL for (int i = 0; i < R * J; i++) store(sums + (i / J * pitch + i % J) * LANES, sum[i]);
}

typedef struct {
    const float *rows[MOST_TAPS], *g;
    float *sums; /* of the first row's taps; the others follow */
    int count, width;
    int64_t outputs;     /* of the row */
    int64_t pad, across; /* where the map begins in a row, and how wide it is; dense rows only */
} gradient_row;

/* As many rows at once as give some eight sums or more, which hide an addition's latency. */
#define ROWS(R, J)                                                                          \
    if (wide == J && s->count - r >= R) {                                                   \
        const float *x[R];                                                                  \
        UNROLL for (int i = 0; i < R; i++)                                                  \
            x[i] = s->rows[r + i] + (from * stride + j * dilation) * LANES;                 \
        float *sums = s->sums + (r * s->width + j) * LANES;                                 \
        const float *g = s->g + from * LANES;                                               \
        correlate(R, J, sums, s->width, x, g, to - from, stride, dilation);                 \
        r += R;                                                                             \
        continue;                                                                           \
    }

INLINE void correlate_row(const gradient_row *s, const int stride, const int dilation) {
    for (int j = 0, wide; j < s->width; j += wide) {
        wide = s->width - j == 9 ? 5 : (int)least(s->width - j, 8);
        int64_t from = 0, to = s->outputs; /* of which a tap of these lies on the map */
        if (stride == 1 && dilation == 1) {
            from = least(to, most(0, s->pad - j - wide + 1));
            to = most(from, least(to, s->pad + s->across - j));
        }
        for (int r = 0; r < s->count;) {
            ROWS(8, 1) ROWS(4, 1) ROWS(2, 1) ROWS(1, 1)
            ROWS(3, 3) ROWS(2, 3) ROWS(1, 3)
            ROWS(2, 4) ROWS(1, 4)
            ROWS(2, 5) ROWS(1, 5)
            ROWS(2, 7) ROWS(1, 7)
            ROWS(2, 8) ROWS(1, 8)
        }
    }
}

static void correlate_dense(const gradient_row *s) { correlate_row(s, 1, 1); }
static void correlate_spread(const gradient_row *s, int stride, int dilation) {
    correlate_row(s, stride, dilation);
}

typedef struct {
    const depthwise *d;
    float *sums; /* (blocks, splits, taps + 1, LANES), the bias's last */
    int64_t splits;
    int failed;
} weight_job;

static int correlate_images(const depthwise *d, int64_t channel, int64_t from, int64_t to, float *sums) {
    int lanes = (int)least(d->channels - channel, LANES), at[MOST_TAPS];
    ring r = ring_of(d);
    float *memory = zeros(r.slots * r.pitch + d->out_width * LANES);
    if (!memory) return 1;
    r.memory = memory;
    float *g = memory + r.slots * r.pitch;
    gradient_row s = {
        .g = g,
        .width = d->kernel_w,
        .outputs = d->out_width,
        .pad = d->pad_w,
        .across = d->width,
    };
    int64_t size = element_size(d->half);
    vec bias = {0};
    for (int64_t image = from; image < to; image++) {
        const char *x = d->x.data + (image * d->x.n + channel * d->x.c) * size;
        const char *y = d->y.data + (image * d->y.n + channel * d->y.c) * size;
        r.next = 0;
        for (int64_t row = 0; row < d->out_height; row++) {
            advance(&r, d, x, row * d->stride_h - d->pad_h + r.slots, lanes);
            pack(g, LANES, y + row * d->y.h * size, d->y, d->out_width, lanes, d->half);
            for (int64_t w = 0; w < d->out_width; w++) bias += load(g + w * LANES);
            s.count = under(&r, d, row, s.rows, at);
            if (!s.count) continue;
            s.sums = sums + (int64_t)at[0] * d->kernel_w * LANES;
            if (d->stride_w == 1 && d->dilation_w == 1) correlate_dense(&s);
            else correlate_spread(&s, d->stride_w, d->dilation_w);
        }
    }
    store(sums + taps_of(d) * LANES, bias);
    free(memory);
    return 0;
}

static void correlate_splits(int64_t begin, int64_t end, void *context) {
    weight_job *job = context;
    const depthwise *d = job->d;
    for (int64_t unit = begin; unit < end; unit++) {
        int64_t split = unit % job->splits, channel = unit / job->splits * LANES;
        int64_t from = d->batch * split / job->splits, to = d->batch * (split + 1) / job->splits;
        float *sums = job->sums + unit * (taps_of(d) + 1) * LANES;
        if (correlate_images(d, channel, from, to, sums)) job->failed = 1;
    }
}

/* Gradients of weight and bias, where y is the output's gradient.
 *
 * Images are split into parts whose number depends on shapes alone, and their
 * sums are added in order, so that threads don't change the result.
 */
int foveate_depthwise_weight(const depthwise *d, float *weight, float *bias, loop run) {
    int64_t blocks = blocks_of(d), taps = taps_of(d);
    int64_t splits = least(d->batch, (16 + blocks - 1) / blocks);
    weight_job job = {d, zeros(blocks * splits * (taps + 1) * LANES), splits, 0};
    if (!job.sums) return 1;
    int failed = run(0, blocks * splits, 1, correlate_splits, &job) || job.failed;
    for (int64_t c = 0; c < d->channels; c++)
        for (int64_t k = 0; k <= taps; k++) {
            float sum = 0;
            for (int64_t s = 0; s < splits; s++)
                sum += job.sums[((c / LANES * splits + s) * (taps + 1) + k) * LANES + c % LANES];
            if (k < taps) weight[c * taps + k] = sum;
            else bias[c] = sum;
        }
    free(job.sums);
    return failed;
}
