/* Mean and variance of each channel of channels_last maps, in one reading.
 *
 * Differences from the first pixel are added up in floats over a tile, and
 * tiles in doubles, so that a large mean does not drown a small variance.
 */
#include "lanes.h"

#define TILE 256
#define SPLITS 16

typedef struct {
    const float *x; /* (pixels, channels) */
    float *mean, *variance;
    int64_t pixels, channels;
} moments;

typedef struct {
    const moments *job;
    double *sums; /* (SPLITS, 2, channels) */
} moments_run;

INLINE void add_tile(const moments *job, int64_t first, int64_t last, double *sums) {
    for (int64_t c = 0; c < job->channels; c += LANES) {
        int lanes = (int)least(job->channels - c, LANES);
        vec pivot = load_part((const char *)(job->x + c), lanes, 0), sum = {0}, squares = {0};
        for (int64_t p = first; p < last; p++) {
            const char *at = (const char *)(job->x + p * job->channels + c);
            vec from = load_part(at, lanes, 0) - pivot;
            sum += from;
            squares += from * from;
        }
        for (int lane = 0; lane < lanes; lane++) {
            sums[c + lane] += sum[lane];
            sums[job->channels + c + lane] += squares[lane];
        }
    }
}

static void add_splits(int64_t begin, int64_t end, void *context) {
    moments_run *run = context;
    const moments *job = run->job;
    for (int64_t s = begin; s < end; s++) {
        int64_t last = job->pixels * (s + 1) / SPLITS;
        for (int64_t p = job->pixels * s / SPLITS; p < last; p += TILE)
            add_tile(job, p, least(p + TILE, last), run->sums + s * 2 * job->channels);
    }
}

int foveate_moments(const moments *job, loop run) {
    moments_run context = {job, calloc((size_t)(SPLITS * 2 * job->channels), sizeof(double))};
    if (!context.sums) return 1;
    int failed = run(0, SPLITS, 1, add_splits, &context);
    for (int64_t c = 0; c < job->channels; c++) {
        double sum = 0, squares = 0;
        for (int64_t s = 0; s < SPLITS; s++) {
            sum += context.sums[s * 2 * job->channels + c];
            squares += context.sums[(s * 2 + 1) * job->channels + c];
        }
        double mean = sum / (double)job->pixels;
        job->mean[c] = (float)(mean + job->x[c]);
        job->variance[c] = (float)(squares / (double)job->pixels - mean * mean);
    }
    free(context.sums);
    return failed;
}
