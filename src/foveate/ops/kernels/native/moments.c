/* Sums over each channel of channels_last maps, and maps scaled and shifted channel by channel:
 * what batch norms are made of, and their ways back.
 */
#include "lanes.h"

#define TILE 256
#define SPLITS 16
#define RUN 8192 /* floats that a thread takes at a time, or somewhat more */

/* ---------------------------------------------------------------- sums */

typedef struct {
    const float *x, *g;  /* (pixels, channels); g: what is summed, or null for x less the middle */
    const float *middle; /* (channels) */
    double *sums;        /* (2, channels): of that, and of its products with x less the middle */
    int64_t pixels, channels;
} sums_job;

typedef struct {
    const sums_job *job;
    double *sums; /* (SPLITS, 2, channels) */
    int failed;
} sums_run;

/* Add P pixels to the sums of up to LANES channels from `c` on; products lie `pitch` floats on. */
INLINE void add_vector(
    const int P, const sums_job *job, int64_t pixel, int64_t c, int lanes, float *sums, int64_t pitch,
    const int back
) {
    vec middle = load_part((const char *)(job->middle + c), lanes, 0);
    vec sum = load(sums + c), products = load(sums + pitch + c);
    UNROLL for (int p = 0; p < P; p++) {
        int64_t at = (pixel + p) * job->channels + c;
        vec x = load_part((const char *)(job->x + at), lanes, 0) - middle;
        vec summed = back ? load_part((const char *)(job->g + at), lanes, 0) : x;
        sum += summed;
        products += summed * x;
    }
    store(sums + c, sum);
    store(sums + pitch + c, products);
}

INLINE void add_pixels(
    const int P, const sums_job *job, int64_t pixel, float *sums, int64_t pitch, const int back
) {
    int64_t c = 0;
    for (; c + LANES <= job->channels; c += LANES)
        add_vector(P, job, pixel, c, LANES, sums, pitch, back);
    if (c < job->channels)
        add_vector(P, job, pixel, c, (int)(job->channels - c), sums, pitch, back);
}

INLINE void add_tile(
    const sums_job *job, int64_t first, int64_t last, float *sums, int64_t pitch, const int back
) {
    for (; first + 4 <= last; first += 4) add_pixels(4, job, first, sums, pitch, back);
    for (; first < last; first++) add_pixels(1, job, first, sums, pitch, back);
}

/* Sums are in floats over a tile, and in doubles over tiles, so that a large middle does not drown
 * small differences. */
static void add_splits(int64_t begin, int64_t end, void *context) {
    sums_run *run = context;
    const sums_job *job = run->job;
    int64_t pitch = rounded_up(job->channels, LANES);
    float *tile = zeros(2 * pitch);
    if (!tile) {
        run->failed = 1;
        return;
    }
    for (int64_t s = begin; s < end; s++) {
        int64_t last = job->pixels * (s + 1) / SPLITS;
        double *sums = run->sums + s * 2 * job->channels;
        for (int64_t p = job->pixels * s / SPLITS; p < last; p += TILE) {
            if (job->g) add_tile(job, p, least(p + TILE, last), tile, pitch, 1);
            else add_tile(job, p, least(p + TILE, last), tile, pitch, 0);
            for (int64_t c = 0; c < job->channels; c++) {
                sums[c] += tile[c];
                sums[job->channels + c] += tile[pitch + c];
            }
            memset(tile, 0, 8 * (size_t)pitch);
        }
    }
    free(tile);
}

int foveate_channel_sums(const sums_job *job, loop run) {
    int64_t each = 2 * job->channels;
    sums_run context = {job, calloc((size_t)(SPLITS * each), sizeof(double)), 0};
    if (!context.sums) return 1;
    int failed = run(0, SPLITS, 1, add_splits, &context) || context.failed;
    for (int64_t i = 0; i < each; i++) {
        job->sums[i] = 0;
        for (int64_t s = 0; s < SPLITS; s++) job->sums[i] += context.sums[s * each + i];
    }
    free(context.sums);
    return failed;
}

/* ---------------------------------------------------------------- scaled and shifted */

typedef struct {
    const float *x, *g; /* (pixels, channels); g may be null */
    float *out;
    const float *middle, *x_scale, *g_scale, *offset; /* (channels) */
    int64_t pixels, channels;
} scaled_job;

/* Whole vectors fill some pixels in a row: so many floats, with the factors of each beside it. */
typedef struct {
    const scaled_job *job;
    float *middle, *x_scale, *g_scale, *offset;
    int64_t period;
} scaled_run;

INLINE vec scaled(const scaled_run *run, int64_t at, int64_t i, int lanes, const int sum) {
    vec x = load_part((const char *)(run->job->x + at), lanes, 0) - load(run->middle + i);
    vec out = x * load(run->x_scale + i) + load(run->offset + i);
    if (sum) out += load_part((const char *)(run->job->g + at), lanes, 0) * load(run->g_scale + i);
    return out;
}

INLINE void scale_run(
    const scaled_run *run, int64_t first, int64_t last, const int sum, const int far
) {
    float *out = run->job->out;
    for (; first + run->period <= last; first += run->period)
        for (int64_t i = 0; i < run->period; i += LANES) {
            vec v = scaled(run, first + i, i, LANES, sum);
            if (far) stream((char *)(out + first + i), v);
            else store(out + first + i, v);
        }
    for (int64_t i = 0; first + i < last; i += LANES) {
        int lanes = (int)least(last - first - i, LANES);
        store_part((char *)(out + first + i), scaled(run, first + i, i, lanes, sum), lanes, 0);
    }
}

INLINE int64_t run_floats(const scaled_run *run) { return rounded_up(RUN, run->period); }

static void scale_runs(int64_t begin, int64_t end, void *context) {
    const scaled_run *run = context;
    int64_t count = run->job->pixels * run->job->channels;
    int64_t first = begin * run_floats(run), last = least(end * run_floats(run), count);
    int far = 4 * count > CACHED && is_even((char *)run->job->out);
    switch (2 * (run->job->g != 0) + far) {
        case 0: scale_run(run, first, last, 0, 0); break;
        case 1: scale_run(run, first, last, 0, 1); break;
        case 2: scale_run(run, first, last, 1, 0); break;
        case 3: scale_run(run, first, last, 1, 1); break;
    }
    settle();
}

/* out = (x - middle) * x_scale + g * g_scale + offset. */
int foveate_scale_channels(const scaled_job *job, loop run) {
    int64_t period = job->channels;
    while (period % LANES) period += job->channels;
    float *factors = zeros(4 * period);
    if (!factors) return 1;
    scaled_run context = {
        .job = job,
        .middle = factors,
        .x_scale = factors + period,
        .g_scale = factors + 2 * period,
        .offset = factors + 3 * period,
        .period = period,
    };
    for (int64_t i = 0; i < period; i++) {
        int64_t c = i % job->channels;
        context.middle[i] = job->middle[c];
        context.x_scale[i] = job->x_scale[c];
        context.g_scale[i] = job->g ? job->g_scale[c] : 0;
        context.offset[i] = job->offset[c];
    }
    int64_t each = run_floats(&context), count = job->pixels * job->channels;
    int failed = run(0, (count + each - 1) / each, 1, scale_runs, &context);
    free(factors);
    return failed;
}
