/* Decode and resize against the ffmpeg program doing the same, to run by hand:
 *
 *     bench_video CLIP FRAMES FPS HEIGHT WIDTH THREADS
 *
 * Reads the clip with THREADS readers side by side, and with `ffmpeg -benchmark -threads THREADS`,
 * each five times, and prints the best frames a second of both. The program writes into memory, as
 * the reader does, and once more to nowhere; its start is not counted, the reader's is not either.
 * FPS must divide the clip's own, and the clip begin where the frames are taken. */
#define _GNU_SOURCE
#include "tests/data/clips.h"

#include <pthread.h>

typedef struct {
    const char *clip;
    VideoWant want;
    VideoReader *reader;
    float *pixels;
} Work;

static void *read_once(void *context) {
    Work *w = context;
    Error e;
    if (!video_read(w->reader, w->clip, &w->want, 0, w->pixels, NULL, &e)) die_error(&e);
    return NULL;
}

/* Seconds of the best of five rounds in which every reader reads the clip once. */
static double time_readers(Work *work, int n) {
    pthread_t threads[64];
    double best = 1e9;
    for (int round = 0; round < 6; round++) {
        double begin = now_seconds();
        for (int i = 0; i < n; i++) pthread_create(&threads[i], NULL, read_once, &work[i]);
        for (int i = 0; i < n; i++) pthread_join(threads[i], NULL);
        if (round) best = fmin(best, now_seconds() - begin); /* the first starts the decoders */
    }
    return best;
}

/* The program's own measure of the same. */
static double time_program(const Work *w, int threads, const char *to) {
    double best = 1e9, seconds;
    const VideoWant *v = &w->want;
    for (int round = 0; round < 5; round++) {
        char *command =
            xprintf("ffmpeg -nostdin -y -benchmark -threads %d -filter_threads %d -i '%s' -vf "
                    "'fps=%g:round=up,scale=%lld:%lld:force_original_aspect_ratio=increase:" RESIZE
                    ",crop=%lld:%lld,format=gbrp' -frames:v %lld %s 2>&1 | tr '\\r' '\\n' | "
                    "sed -n 's/^bench:.*rtime=\\([0-9.]*\\)s/\\1/p'",
                    threads, threads, w->clip, v->fps, (long long)v->width, (long long)v->height,
                    (long long)v->width, (long long)v->height, (long long)v->frames, to);
        FILE *f = popen(command, "r");
        CHECK(f && fscanf(f, "%lf", &seconds) == 1, "%s", command);
        pclose(f);
        free(command);
        best = fmin(best, seconds);
    }
    return best;
}

int main(int argc, char **argv) {
    Work work[64];
    Error e;
    if (argc != 7) die("usage: bench_video CLIP FRAMES FPS HEIGHT WIDTH THREADS");
    int n = atoi(argv[6]);
    VideoWant want = {atoi(argv[2]), atoi(argv[4]), atoi(argv[5]), atof(argv[3]), 1};
    CHECK(n > 0 && (size_t)n <= COUNT(work), "%d threads", n);
    for (int i = 0; i < n; i++) {
        size_t count = (size_t)(3 * want.frames * want.height * want.width);
        work[i] = (Work){argv[1], want, video_reader_open(NULL, &e), xcalloc(count, sizeof(float))};
        if (!work[i].reader) die_error(&e);
    }
    double frames = (double)want.frames, ours = frames * n / time_readers(work, n);
    double memory = frames / time_program(work, n, "-f rawvideo /dev/shm/cogsmith-bench.raw");
    double nowhere = frames / time_program(work, n, "-f null -");
    unlink("/dev/shm/cogsmith-bench.raw");
    printf(
        "reader %.0f frames/s; ffmpeg into memory %.0f, ratio %.2f; to nowhere %.0f, ratio %.2f\n",
        ours, memory, ours / memory, nowhere, ours / nowhere);
    for (int i = 0; i < n; i++) {
        video_reader_close(work[i].reader);
        free(work[i].pixels);
    }
    return 0;
}
