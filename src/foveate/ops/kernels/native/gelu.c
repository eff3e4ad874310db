/* GELU of any dense tensor, and its gradient. */
#include "gelu.h"

#define RUN 4096 /* elements that a thread takes at a time */

typedef struct {
    const char *x, *g; /* g: the output's gradient, or null */
    char *out;
    int64_t count;
    int half;
} gelu_job;

static void gelu_runs(int64_t begin, int64_t end, void *context) {
    const gelu_job *job = context;
    int64_t size = element_size(job->half), last = least(end * RUN, job->count);
    for (int64_t i = begin * RUN; i < last; i += LANES) {
        int lanes = (int)least(last - i, LANES);
        gelu_pair at = gelu_of(load_part(job->x + i * size, lanes, job->half));
        vec out = job->g ? at.slope * load_part(job->g + i * size, lanes, job->half) : at.value;
        store_part(job->out + i * size, out, lanes, job->half);
    }
}

int foveate_gelu(const gelu_job *job, loop run) {
    return run(0, (job->count + RUN - 1) / RUN, 1, gelu_runs, (void *)job);
}
