/* GELU of any dense tensor, and its gradient.
 *
 * A vector takes two registers where these are few, so that each coefficient is read once for both.
 */
#if LANES == 8
#undef LANES
#define LANES 16
#endif
#include "gelu.h"

#define RUN 4096 /* elements that a thread takes at a time */

typedef struct {
    const char *x, *g; /* g: the output's gradient, or null */
    char *out;
    int64_t count;
    int half;
} gelu_job;

INLINE vec gelu_at(const gelu_job *job, int64_t from, int lanes, const int half, const int back) {
    gelu_pair at = gelu_of(load_part(job->x + from, lanes, half));
    return back ? at.slope * load_part(job->g + from, lanes, half) : at.value;
}

INLINE void gelu_run(
    const gelu_job *job, int64_t i, int64_t last, const int half, const int back, const int far
) {
    int64_t size = element_size(half);
    for (; i + LANES <= last; i += LANES) {
        vec out = gelu_at(job, i * size, LANES, half, back);
        if (far) stream(job->out + i * size, out);
        else store_part(job->out + i * size, out, LANES, half);
    }
    int rest = (int)(last - i);
    if (rest) store_part(job->out + i * size, gelu_at(job, i * size, rest, half, back), rest, half);
    if (far) settle();
}

static void gelu_runs(int64_t begin, int64_t end, void *context) {
    const gelu_job *job = context;
    int64_t first = begin * RUN, last = least(end * RUN, job->count);
    int back = job->g != 0, far = !job->half && 4 * job->count > CACHED && is_even(job->out);
    switch (4 * job->half + 2 * back + far) {
        case 0: gelu_run(job, first, last, 0, 0, 0); break;
        case 1: gelu_run(job, first, last, 0, 0, 1); break;
        case 2: gelu_run(job, first, last, 0, 1, 0); break;
        case 3: gelu_run(job, first, last, 0, 1, 1); break;
        case 4: gelu_run(job, first, last, 1, 0, 0); break;
        case 6: gelu_run(job, first, last, 1, 1, 0); break;
    }
}

int foveate_gelu(const gelu_job *job, loop run) {
    return run(0, (job->count + RUN - 1) / RUN, 1, gelu_runs, (void *)job);
}
